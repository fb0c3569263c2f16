"""Who trains here and when: this device's own learner, a script in its place, or nobody while it pauses.

`pacing` tells at what pace this device may train. `learning` knows the learner that is attached, and ends it
for another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol

from peer.config import Descriptor, JoinOptions
from peer.daemon.learner_end import LearnerEnd
from peer.daemon.learning import Learning
from peer.daemon.logs import session_name
from peer.daemon.manners import LEAST_SHARE, Verdict
from peer.daemon.store import SessionFolder
from peer.errors import PeerdError, UsageError
from peer.local import Connection

log = logging.getLogger(__name__)


class Owner(Protocol):
    """What those who take turns need of their session."""

    name: str
    folder: SessionFolder
    options: JoinOptions
    descriptor: Descriptor | None
    failure: PeerdError | None

    @property
    def is_going(self) -> bool: ...
    def attachable(self) -> Descriptor: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...


class Turns:
    """`attach` a learner, `pace` all of them, `take_up` what a script or a pause has ended. `verdict`: at
    what pace this device may train now. owned: a script has started this daemon."""

    def __init__(self, owner: Owner, learning: Learning, *, owned: bool = False) -> None:
        self._owner, self._learning, self._owned = owner, learning, owned
        self.verdict = Verdict()
        self._resting = False  # by that verdict, our own learner
        self._attaching = asyncio.Lock()

    @property
    def options(self) -> JoinOptions:
        return self._owner.options

    @property
    def rests(self) -> bool:
        """Does its own learner pause, and nobody trains in its place?"""
        return self._resting and not self._learning.scripted

    def take_up(self) -> None:
        """Train with this device's own learner again, if nobody does: the script that did has ended."""
        if self._attaching.locked():
            return  # a script is about to train here
        if self._owner.descriptor is not None and self._owner.failure is None and self._learning.end is None:
            self._learning.scripted = self._learning.needs_script
            self.start()

    def start(self) -> None:
        """Have this device's own learner started, unless a script is to train, or nobody may now."""
        if self._learning.scripted:
            return
        self._resting = self.verdict.pauses
        if not self._resting:
            self._learning.supervisor.start()

    def pace(self, now: Verdict) -> None:
        """Train so much from now on. A pause is told to the others as any that somebody has asked for, and
        this device stays with them; a script is slowed if it has asked for that, and never paused."""
        session_name.set(self._owner.name)
        before, self.verdict = self.verdict, now
        if before.share != now.share:
            log.info("trains for %.3g %% of the time: %s", 100 * now.share, now.reason or "all is well")
        if self._owner.failure is not None or self._owner.is_going:
            return
        end = self._learning.end
        if end is not None and end.minds:
            end.use_share(max(now.share, LEAST_SHARE))
        if self._learning.scripted or self._attaching.locked():
            self._resting = self._resting and not self._learning.scripted
        elif now.pauses and not self._resting and self._owner.descriptor is not None:
            self._resting = True
            self._owner.spawn(self._rest())
        elif self._resting and not now.pauses:
            self.take_up()

    async def _rest(self) -> None:
        session_name.set(self._owner.name)
        async with self._attaching:
            if not self._owner.is_going and not self._learning.scripted:
                await self._learning.rest()

    def learner_pids(self) -> Iterator[int]:
        """Processes that train here."""
        end = self._learning.end
        found = (self._learning.supervisor.pid, end.pid if end is not None else None)
        yield from {pid for pid in found if pid is not None}

    async def attach(self, connection: Connection, end: LearnerEnd) -> None:
        """Serve a learner until its connection ends. Raises UsageError when there is nothing to learn."""
        session_name.set(self._owner.name)
        self._check_attachable(end)  # a child that is not wanted any more must not wait: it is waited for
        async with self._attaching:
            self._check_attachable(end)
            await self._learning.make_way(end)
            descriptor = self._check_attachable(end)  # making way takes its time
        task = self._owner.folder.task_file
        welcome = {
            "op": "attached",
            "life": end.life,
            "owned": self._owned,
            "descriptor": descriptor.to_dict(),
            "options": self._owner.options.to_dict(),
            "folder": str(self._owner.folder.path),
            "task_file": str(task) if task is not None else None,
        }
        await self._learning.serve(connection, end, welcome)

    def _check_attachable(self, end: LearnerEnd) -> Descriptor:
        """Raises UsageError when there is nothing for this learner to learn."""
        descriptor = self._owner.attachable()
        if end.child and self._learning.scripted:
            raise UsageError(f"a script trains in '{self._owner.name}' in this learner's place")
        return descriptor

    def status(self) -> dict[str, Any]:
        """The fields of peer.status.SessionStatus that come from here."""
        now, end = self.verdict, self._learning.end
        share, reason = now.share, now.reason or None
        if end is not None and not end.child:
            share = max(share, LEAST_SHARE) if end.minds else 1.0
            reason = (
                f"{reason}; the script that trains is not held back" if reason and not end.minds else reason
            )
        return {"pace_share": share, "pace_reason": reason, "pace_until": now.until}
