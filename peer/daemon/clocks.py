"""What the clocks of this machine say about each other. An edge: it reads them.

Of what devices do with each other nothing is decided by wall time. Here it is looked at, to tell a user
that it is wrong, for the quiet hours that he has set by it, and to note when a model was exported."""

from __future__ import annotations

import time
from collections.abc import Callable

from peer.version import WRITTEN

SUSPENDED_S = 5.0  # reliability note, section c: a gap like this is a suspend, and no hiccup


def asleep_s() -> float:
    """For how long this machine has been suspended since it booted, s. CLOCK_MONOTONIC, which the event loop
    runs by, stands still meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SuspendWatch:
    """asleep: a clock that counts suspended seconds alone."""

    def __init__(self, asleep: Callable[[], float] = asleep_s) -> None:
        self._asleep = asleep
        self._seen = asleep()

    def suspended(self) -> float:
        """For how long the machine was suspended since this was asked last, s; 0.0 if not worth a word."""
        before, self._seen = self._seen, self._asleep()
        gap = self._seen - before
        return gap if gap > SUSPENDED_S else 0.0


def written() -> str | None:
    """Now, in UTC, for a file's own note of when it was made; None where the clock shows no real time."""
    return None if is_unset() else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def shown_s() -> float:
    """What the wall clock shows, s since 1970."""
    return time.time()


def minute_of_day() -> int | None:
    """What a clock on the wall shows here, in minutes; None while the clock is unset."""
    if is_unset():
        return None
    time.tzset()  # the time zone may have been set anew
    shown = time.localtime()
    return 60 * shown.tm_hour + shown.tm_min


def is_unset(wall_s: float | None = None) -> bool:
    """Does the wall clock show a time before this program was written?"""
    return (shown_s() if wall_s is None else wall_s) < WRITTEN
