"""Telling systemd that the event loop turns (WatchdogSec= of the unit; sd_watchdog_enabled(3)).

The signs of life come from a task of the loop and from nowhere else: a loop that is blocked sends none, and
systemd ends the daemon and starts it again. Learners have no part in it: learning.py looks after one that is
silent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from peer.daemon.notify import notify

PER_PERIOD = 3  # sd_watchdog_enabled(3) asks for 2; one more for a loop that is late


def interval_s(environment: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life; None where nobody waits for any from this process."""
    period, whose = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0 or whose not in ("", str(os.getpid())):
        return None
    return int(period) / 1e6 / PER_PERIOD


async def feed(every_s: float, status: Callable[[], str]) -> None:
    """A sign of life now and again, without end, and what 'systemctl status' shows."""
    while True:
        notify("WATCHDOG=1", f"STATUS={status()}")
        await asyncio.sleep(every_s)
