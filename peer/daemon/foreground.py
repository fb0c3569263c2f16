"""The daemon in the foreground: `create` and `join` without a running daemon, until its last session ends.

The request comes through a descriptor, since a key on a command line can be read by every user. What
happens, and each health sentence that is new, is shown as plain lines; on a terminal the last line is a
summary that refreshes in place. Nobody has to read it: the sessions go on where the output is closed."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

import msgpack

from peer.config import Descriptor, JoinOptions
from peer.daemon.app import Daemon
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, PeerdError, UnknownSessionError, UsageError, WrongKeyError
from peer.status import SessionStatus

log = logging.getLogger(__name__)

REFRESH_S = 0.5
LINE_S = 10.0  # between two summaries where lines cannot be overwritten (guess)
MAX_REQUEST = 1 << 20  # bytes
Request = dict[str, Any]


def read_request(fd: int) -> Request:
    """The request in a pipe or memfd, which is closed."""
    with os.fdopen(fd, "rb") as source:
        data = source.read(MAX_REQUEST + 1)
    try:
        request = msgpack.unpackb(data, max_array_len=4096, max_map_len=256, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise UsageError(f"what is on descriptor {fd} is no request: {error}") from error
    if not isinstance(request, dict) or request.get("op") not in ("create", "join"):
        raise UsageError(f"what is on descriptor {fd} is no create or join request")
    return request


async def run(daemon: Daemon, request: Request) -> None:
    """Do what is asked, then show it until no session runs any more or `daemon.stopping`. Raises what the
    request, or later its session, failed with."""
    view = View(sys.stdout)
    options = JoinOptions.from_dict(request.get("options") or {})
    if request["op"] == "create":
        descriptor = Descriptor.from_dict(request.get("descriptor") or {})
        key = await daemon.create(descriptor, options)
        view.say(f"session '{descriptor.name}' is made and this device is in it; on each other device:")
        view.say(f"    peerd join {descriptor.name} --key {key}")
        driver = daemon.sessions[descriptor.name]
    else:
        driver = await _join(daemon, request, options, view)
    others = [name for name in sorted(daemon.sessions) if name != driver.name]
    if others:
        view.say(f"taken up as well: {', '.join(others)}; 'peerd leave NAME' ends one")
    if sys.stdout.isatty():
        view.say("Ctrl-C hands over and ends")
    watching = asyncio.create_task(view.watch(daemon, driver))
    try:
        while (running(daemon) or daemon.changing) and not daemon.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await daemon.stopping.wait()
    finally:
        watching.cancel()
        [found] = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(found, Exception):
            log.error("the view failed, and the sessions went on", exc_info=found)
        view.last(driver)
    if driver.failure is not None:
        raise driver.failure


def running(daemon: Daemon) -> list[SessionDriver]:
    """The sessions that have neither ended nor failed, by name."""
    drivers = [driver for _, driver in sorted(daemon.sessions.items())]
    return [driver for driver in drivers if driver.failure is None and not driver.ended.is_set()]


async def _join(daemon: Daemon, request: Request, options: JoinOptions, view: View) -> SessionDriver:
    """Join, and go on waiting where a daemon in the background would: a foreground user sees what is
    missing."""
    name, key = str(request.get("name")), request.get("key")
    try:
        return await daemon.join(name, str(key) if key is not None else None, options, view.say)
    except NobodyFoundError as error:
        view.say(str(error))
        return daemon.sessions[name]
    except UnknownSessionError as error:
        if key is not None:
            raise
        raise UnknownSessionError(
            f"this device does not know '{name}' yet; give its key with --key-file or PEERD_KEY, "
            f"'peerd key {name}' on a member shows it"
        ) from error
    except WrongKeyError as error:
        raise await _wrong_key(daemon, name, error) from error


async def _wrong_key(daemon: Daemon, name: str, error: WrongKeyError) -> PeerdError:
    """What a daemon in the background says, without its remark in brackets that the session waits: this
    process ends. What never got anywhere is deleted, or the next daemon here would look for it forever."""
    said, driver = str(error).partition(" (")[0], daemon.sessions[name]
    if driver.descriptor is not None:
        return WrongKeyError(f"{said}; the session is kept, 'peerd join {name}' takes it up again")
    await daemon.leave(name, forget=True)
    return WrongKeyError(f"{said}, and give that one to 'peerd join {name}'; nothing is kept of this one")


class View:
    """Lines on `out`; the summary overwrites itself if that is a terminal. Where `out` takes no more, as when
    the reader of a pipe has gone, nothing is shown any more."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._closed = False
        self._shown = ""
        self._peers: set[str] = set()
        self._complaints: set[str] = set()
        self._over: set[str] = set()

    def say(self, text: str) -> None:
        self._write(f"{self._erase()}{printable(text)}\n")
        self._shown = ""

    async def watch(self, daemon: Daemon, driver: SessionDriver) -> None:
        """Say who is found, what is wrong, and how training goes, until cancelled. The session shown is
        `driver`, and after its end one that still runs."""
        while True:
            active = running(daemon)
            self._ended(driver, active)
            for each in active:
                self._found(each)
            if active:  # else this ends, and with the failure itself
                self.complain(daemon.status(None).health)
            shown = driver if driver in active or not active else active[0]
            self._summarize(shown.status())
            await asyncio.sleep(REFRESH_S if self._live else LINE_S)

    def complain(self, health: Sequence[str]) -> None:
        """A line for each sentence that was not there before. One with another count in it is the same."""
        said = {re.sub(r"(?<!\S)\d+(?!\S)", "#", sentence): sentence for sentence in health}
        for kind, sentence in said.items():
            if kind not in self._complaints:
                self.say(f"! {sentence}")
        self._complaints = set(said)

    def last(self, driver: SessionDriver) -> None:
        self.say(", ".join(summary(driver.status())))

    def _ended(self, driver: SessionDriver, active: Sequence[SessionDriver]) -> None:
        if active and driver not in active and driver.name not in self._over:
            self._over.add(driver.name)
            self.last(driver)
            self.say(f"'{driver.name}' has ended; still here: {', '.join(each.name for each in active)}")

    def _summarize(self, status: SessionStatus) -> None:
        if self._live:
            line = fitted(summary(status), shutil.get_terminal_size().columns - 1)
            self._write(f"{self._erase()}{printable(line)}")
        else:
            line = ", ".join(summary(status))
            if line != self._shown:
                self._write(f"{printable(line)}\n")
        self._shown = line

    def _found(self, driver: SessionDriver) -> None:
        if driver.node is None:
            return
        for record in driver.node.members.alive():
            if record.peer not in self._peers and record.peer != driver.node.me:
                self._peers.add(record.peer)
                self.say(f"found {record.device or record.peer}")

    def _erase(self) -> str:
        return "\r\x1b[2K" if self._live else ""

    def _write(self, text: str) -> None:
        if self._closed:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:
            self._closed = True
            log.info("what happens is not shown any more: %s", error.strerror)


def summary(status: SessionStatus) -> list[str]:
    """Round, loss, metrics, bytes, reduction, links, members: what matters most comes first, and a state only
    if it is not training."""
    parts: list[str] = [] if status.state == "training" else [status.state]
    if status.pace_reason:
        parts.append(status.pace_reason)
    if status.round is not None:
        parts.append(f"round {status.round}")
    if status.loss is not None:
        parts.append(f"loss {status.loss:.2g}")
    parts += [f"{name} {value:.3g}" for name, value in sorted(status.metrics.items())]
    if status.bytes_sent:
        sent = status.bytes_sent / 1e6
        small, large = f"sent {1000 * sent:.0f} kB", f"sent {sent:{'.0f' if sent >= 100 else '.3g'}} MB"
        parts.append(small if sent < 1 else large)
    if status.reduction is not None:
        parts.append(f"{status.reduction:.0f}x less")
    if status.members is not None:
        alive = sum(link.state == "alive" for link in status.links)
        parts.append(f"{alive} link{'' if alive == 1 else 's'}")
    if status.members is not None:
        parts.append(f"{status.members} device{'' if status.members == 1 else 's'}")
    return [f"{status.name}: {parts[0] if parts else status.state}", *parts[1:]]


def fitted(parts: Sequence[str], width: int) -> str:
    """As many whole parts as one row of the terminal has room for; a row that wraps cannot be erased."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(", ") + len(part) > width:
            break
        line += f", {part}"
    return line[: max(0, width)]


def printable(text: str) -> str:
    """The text without what could drive a terminal: other devices choose their names."""
    return "".join(letter for letter in text if letter.isprintable())
