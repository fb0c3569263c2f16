"""Looks at the device every few seconds and tells each session at what pace it may train. An edge.

PSI's trap is that our own learner makes pressure itself: its threads wait, too, and most of all where they
give way to others. So the figure for the whole device says nothing. What others suffer is

- the pressure of control groups that we are no part of, nor a learner of ours (a script has its own), read as
  it is: with systemd that is everybody else;
- of those that share our group (a learner started in a terminal shares it with whatever else runs there):
  our group's pressure, times their part of the processor time that the group has used since the last look.
  That part is close to 0 where nobody else works, whatever our own learner does to itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Protocol

from peer.config import JoinOptions
from peer.daemon import clocks
from peer.daemon.condition import Host, Pressure
from peer.daemon.groups import used_s
from peer.daemon.host import look
from peer.daemon.manners import Strain, Verdict, Waiting, verdict

log = logging.getLogger(__name__)

LOOK_S = 5.0  # the kernel renews its figures every 2 s, heat takes longer (guess)


class Paced(Protocol):
    """What a session offers."""

    @property
    def options(self) -> JoinOptions: ...
    def learner_pids(self) -> Iterator[int]: ...
    def pace(self, now: Verdict) -> None: ...


async def _look(learners: Collection[int]) -> Host:
    return await look(learners=learners)


class Pacing:
    """`start`, then `stop`; or `once`, now and then. see: looks, for a daemon with these learners. minute: of
    the day in local time, None while the clock is not set."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[Paced]],
        see: Callable[[Collection[int]], Awaitable[Host]] = _look,
        minute: Callable[[], int | None] = clocks.minute_of_day,
        root: Path = Path("/"),
    ) -> None:
        self.strain = Strain()
        self.host = Host()
        self.see, self.minute = see, minute
        self._sessions, self._root = sessions, root
        self._looking: asyncio.Task[None] | None = None
        self._problem = ""
        self._used: tuple[float, float] | None = None  # CPU seconds: of our group, of ourselves

    async def start(self) -> None:
        """Look now, and again and again beside everything else."""
        if await self._looks():
            self._looking = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def ended(self) -> None:
        """Until it looks no more."""
        if self._looking is not None:
            await asyncio.wait([self._looking])

    async def _run(self) -> None:
        looks = True
        while looks:
            await asyncio.sleep(LOOK_S)
            looks = await self._looks()

    async def _looks(self) -> bool:
        """One look; False if it failed, and then there is to be none any more."""
        try:
            await self.once()
        except Exception as error:  # a bug: training goes on, and it is said
            log.exception("this device's condition is not looked at any more")
            self._problem = repr(error)
        return not self._problem

    async def once(self) -> None:
        """One look, and what follows from it."""
        learners = [pid for session in self._sessions() for pid in session.learner_pids()]
        self.host = await self.see(learners)
        own_s = await asyncio.to_thread(used_s, self._root, [os.getpid(), *learners])
        waiting = self._waiting(self.host.pressure, own_s)
        self.strain.take(self.host, waiting, asyncio.get_running_loop().time())
        for session in list(self._sessions()):
            copy_context().run(session.pace, self.verdict(session.options))  # its log lines have its name

    def verdict(self, options: JoinOptions) -> Verdict:
        """For a session with these options, by what was seen last."""
        return verdict(self.strain, options.manners or "on", options.quiet, self.minute())

    def sentences(self) -> Iterator[str]:
        """What a person should mend."""
        if self._problem:
            yield (
                f"heat, power and quiet hours are not looked at any more, for an internal error: "
                f"{self._problem}; start peerd again, 'peerd logs' says more"
            )
        firmware = self.host.firmware
        if firmware is not None and (firmware.under_voltage or firmware.since_boot.under_voltage):
            when = "now" if firmware.under_voltage else "since it was switched on"
            yield (
                f"the power supply gives too little voltage ({when}), which slows this device down and may "
                "spoil its SD card; take the maker's supply and a short, thick cable"
            )
        if self.minute() is None and any(session.options.quiet for session in self._sessions()):
            yield "quiet hours are not kept while the clock is unset; set it with 'timedatectl', or by NTP"

    def _waiting(self, pressure: Pressure | None, own_s: float) -> Waiting | None:
        if pressure is None:
            self._used = None
            return None
        before, self._used = self._used, None
        shared = 0.0
        if pressure.group_cpu_s is not None:
            self._used = (pressure.group_cpu_s, own_s)
            if before is not None:
                shared = pressure.group * others_part(pressure.group_cpu_s - before[0], own_s - before[1])
        if pressure.others is not None and pressure.others >= shared:
            return Waiting(pressure.others, pressure.who)
        return Waiting(shared)


def others_part(group_s: float, own_s: float) -> float:
    """Of the CPU seconds that our group has used, the part that was not ours. A learner that has ended or
    begun meanwhile makes ours no larger than all and no smaller than none."""
    return 1.0 - min(1.0, max(0.0, own_s / group_s)) if group_s > 0 else 0.0
