"""Joining a session: what a join may ask for, the descriptor that a member sends, the wait for the first
link, and why none has come. `app.Daemon.join` says what follows what."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from peer import catalogue
from peer.config import Descriptor, JoinOptions
from peer.daemon.readable import check_readable
from peer.daemon.store import SessionFolder, check_task
from peer.errors import NobodyFoundError, PeerdError, UsageError, WrongKeyError

if TYPE_CHECKING:
    from peer.daemon.session import SessionDriver

_FLAGS = {"task_file_text": "--task", "peers": "--peer", "interfaces": "--interface"}
# options that may be given anew at any time, and stay until then
LASTING = ("budget", "quiet_hours", "manners")
LOOK_S = 0.25  # between two looks at a session of which nothing is told (guess)
Say = Callable[[str], None]


async def check_data(options: JoinOptions) -> None:
    """Raises DataError where this daemon may not read what is to be trained on."""
    if options.data is not None:
        await asyncio.to_thread(check_readable, options.data)


def refuse_change(driver: SessionDriver, options: JoinOptions) -> None:
    """Raises UsageError if a join of a session that runs here names an option that it does not run with."""
    asked, plain, runs = options.to_dict(), JoinOptions().to_dict(), driver.options.to_dict()
    at_any_time = ("timeout_s", *LASTING)
    changed = [key for key in asked if key not in at_any_time and asked[key] not in (plain[key], runs[key])]
    text = options.task_file_text
    if text is not None and hashlib.sha256(text.encode()).digest() == driver.folder.task_digest:
        changed.remove("task_file_text")
    if changed:
        names = ", ".join(_FLAGS.get(key, f"--{key}") for key in changed)
        raise UsageError(
            f"session '{driver.name}' runs on this device already, with another {names}; leave it first with "
            f"'peerd leave {driver.name}', then join it with the new options"
        )


def merged(folder: SessionFolder, options: JoinOptions) -> JoinOptions:
    """Options of a join; a session known already keeps those that are not given anew, and its budget, quiet
    hours and manners until others are."""
    given = {name: getattr(options, name) for name in LASTING}
    plain = JoinOptions(timeout_s=options.timeout_s, **given)
    kept = options if folder.descriptor is None or options != plain else folder.options
    return replace(kept, **{name: given[name] or getattr(folder.options, name) for name in LASTING})


def take_over(said: bytes, folder: SessionFolder) -> Descriptor:
    """The descriptor that a member has sent, kept from now on. Raises UsageError, DataError, StateError when
    this device cannot take part by it; ValueError, TypeError, RecursionError, ConfigError when it makes no
    sense."""
    descriptor, name = Descriptor.from_dict(json.loads(said)), folder.note.name
    if descriptor.name != name:
        raise UsageError(
            f"this key is of the session '{descriptor.name}', not '{name}'; "
            f"run 'peerd join {descriptor.name}' with it"
        )
    check_task(descriptor, folder)
    catalogue.check_budget(descriptor.algorithm, folder.options.budget)
    folder.save_descriptor(descriptor)
    return descriptor


async def first_link(driver: SessionDriver, timeout_s: float, say: Say, stopping: asyncio.Event) -> None:
    """Wait until there is one, the session pauses, or the daemon is to end. Raises the session's failure;
    NobodyFoundError or WrongKeyError when the time is over."""
    say(f"looking for members of '{driver.name}'")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    found = False
    while not driver.linked.is_set() and not stopping.is_set():
        if driver.failure is not None:
            raise driver.failure
        if driver.state == "paused":
            return  # it stays with the others, and trains when it may
        if driver.has_met() and driver.descriptor is not None and not found:
            found = True
            say("found a member; the learner is starting")
        driver.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(LOOK_S, max(0.0, deadline - loop.time()))):
                await driver.changed.wait()
        if loop.time() >= deadline and not driver.linked.is_set() and driver.failure is None:
            raise nobody(driver, timeout_s)


def nobody(driver: SessionDriver, timeout_s: float) -> PeerdError:
    """Why there is no link yet: a wrong key, if all that is seen are strangers, else nobody."""
    finder = driver.finder
    strangers = finder.foreign if driver.descriptor is None else set()  # else the key was right once
    if not driver.has_met() and (strangers or finder.wrong_key):
        where = f"the peerd on {', '.join(sorted(finder.wrong_key))}" if finder.wrong_key else (
            f"{len(finder.foreign)} peerd device(s) on this network"
        )  # fmt: skip
        return WrongKeyError(
            f"{where} answered and did not recognise this key; compare it with 'peerd key {driver.name}' on "
            "a member (the session stays, and waits for one with this key)"
        )
    if driver.has_met() and driver.descriptor is None:
        return NobodyFoundError(
            f"members with this key were found within {timeout_s:.0f} s, and none of them knows the session "
            f"'{driver.name}' yet; start the device that created it (the session stays, and waits for it)"
        )
    if driver.has_met():
        starting = "" if driver.learning.end is not None else ", for the learner here is still starting"
        return NobodyFoundError(
            f"a member of '{driver.name}' was found and no link came up within {timeout_s:.0f} s{starting}; "
            f"the session stays and goes on trying, 'peerd status {driver.name}' says how it is"
        )
    tried = "".join(f"; {address}: {problem}" for address, problem in sorted(finder.unanswered.items()))
    return NobodyFoundError(
        f"no member of '{driver.name}' was found within {timeout_s:.0f} s; the session stays and goes on "
        f"looking; is a member on this network? if so, name it with --peer HOST:PORT{tried}"
    )


def finished(name: str) -> UsageError:
    return UsageError(
        f"session '{name}' is finished, all its rounds are done: 'peerd export {name} -o FILE.safetensors' "
        f"writes its model, 'peerd leave {name} --forget' deletes what is kept of it"
    )
