"""The daemon in the foreground: `create` and `join` without a running daemon, for as long as their session
lasts.

The request comes through a descriptor, since a key on a command line can be read by every user. What
happens is shown as plain lines; on a terminal the last line is a summary that refreshes in place."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, TextIO

import msgpack

from peer.config import Descriptor, JoinOptions
from peer.daemon.app import Daemon
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, UsageError
from peer.status import SessionStatus

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
    """Do what is asked, then show it until the session ends or `daemon.stopping`."""
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
    if sys.stdout.isatty():
        view.say("Ctrl-C hands over and ends")
    watching = asyncio.create_task(view.watch(driver))
    ends = [asyncio.create_task(event.wait()) for event in (driver.ended, daemon.stopping)]
    try:
        while not any(end.done() for end in ends) and driver.failure is None:
            await asyncio.wait([*ends], timeout=REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (watching, *ends):
            task.cancel()
        await asyncio.gather(watching, *ends, return_exceptions=True)
        view.last(driver.status())
    if driver.failure is not None:
        raise driver.failure


async def _join(daemon: Daemon, request: Request, options: JoinOptions, view: View) -> SessionDriver:
    """Join, and go on waiting where a daemon in the background would: a foreground user sees what is
    missing."""
    name, key = str(request.get("name")), request.get("key")
    try:
        return await daemon.join(name, str(key) if key is not None else None, options, view.say)
    except NobodyFoundError as error:
        view.say(str(error))
        return daemon.sessions[name]


class View:
    """Lines on `out`; the summary overwrites itself if that is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._shown = ""
        self._peers: set[str] = set()

    def say(self, text: str) -> None:
        self._write(f"{self._erase()}{text}\n")
        self._shown = ""

    async def watch(self, driver: SessionDriver) -> None:
        """Say who is found, and how training goes, until cancelled."""
        while True:
            self._found(driver)
            line = summary(driver.status())
            if self._live:
                self._write(f"{self._erase()}{line}")
            elif line != self._shown:
                self._write(f"{line}\n")
            self._shown = line
            await asyncio.sleep(REFRESH_S if self._live else LINE_S)

    def last(self, status: SessionStatus) -> None:
        self.say(summary(status))

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
        self._out.write(text)
        self._out.flush()


def summary(status: SessionStatus) -> str:
    """One line: state, round, loss, metrics, members, links, bytes, reduction."""
    parts = [f"{status.name}: {status.state}"]
    if status.round is not None:
        parts.append(f"round {status.round}")
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4g}")
    parts += [f"{name} {value:.4g}" for name, value in sorted(status.metrics.items())]
    if status.members is not None:
        alive = sum(link.state == "alive" for link in status.links)
        parts.append(f"{status.members} device(s), {alive} link(s)")
    if status.bytes_sent:
        parts.append(f"sent {status.bytes_sent / 1e6:.2f} MB")
    if status.reduction is not None:
        parts.append(f"{status.reduction:.0f}x less than dense")
    return ", ".join(parts)
