"""`--quiet-hours 22-7`: the part of each day, in local time, in which a device does not train. Pure.

What counts is what the clock on the wall shows at the moment. So the hour that summer time repeats is quiet
twice, one that it leaves out never is, and a clock that is set is believed at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from peer.errors import UsageError

DAY = 24 * 60  # minutes


@dataclass(frozen=True, slots=True)
class QuietHours:
    """From `begin` until just before `end`, in minutes of the day; over midnight if `end` is the smaller."""

    begin: int
    end: int

    def covers(self, minute: int) -> bool:
        """Is this minute of the day a quiet one?"""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    @property
    def until(self) -> str:
        """When they end, as a clock shows it."""
        return _clock(self.end)

    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)}"


def parse_quiet_hours(text: str) -> QuietHours | None:
    """`22-7` or `22:30-06:15`; `none` is None. Raises UsageError."""
    if text.strip() == "none":
        return None
    found = re.fullmatch(r"([0-9]{1,2})(?::([0-9]{2}))? ?- ?([0-9]{1,2})(?::([0-9]{2}))?", text.strip())
    if found is not None:
        hours = [int(part or 0) for part in found.groups()]
        begin, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        fits = hours[1] < 60 and hours[3] < 60 and begin <= DAY and end <= DAY
        if fits and begin % DAY != end % DAY:
            return QuietHours(begin % DAY, end % DAY)
    raise UsageError(
        "quiet hours are written '22-7' or '22:30-06:15', from one time of the day to another; 'none' lifts "
        f"them; not '{text}'"
    )


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
