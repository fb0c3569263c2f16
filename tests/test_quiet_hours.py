"""Quiet hours: how they are written, over midnight, and with clocks that jump."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from peer.daemon import clocks
from peer.errors import UsageError
from peer.quiet_hours import DAY, QuietHours, parse_quiet_hours
from peer.version import WRITTEN


def hours(text: str) -> QuietHours:
    found = parse_quiet_hours(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "written", "minutes"),
    [
        ("22-7", "22:00-07:00", 9 * 60),
        ("22:30-06:15", "22:30-06:15", 7 * 60 + 45),
        ("0-8", "00:00-08:00", 8 * 60),
        ("20-24", "20:00-00:00", 4 * 60),
        ("9 - 17", "09:00-17:00", 8 * 60),
    ],
)
def test_they_are_written_as_people_do(text: str, written: str, minutes: int) -> None:
    found = hours(text)
    assert (str(found), sum(map(found.covers, range(DAY)))) == (written, minutes)
    assert hours(written) == found


@pytest.mark.parametrize(
    "text", ["", "22", "22-", "22-7h", "25-7", "22:60-7", "7-7", "0-24", "-1-5", "22:5-7"]
)
def test_what_is_no_part_of_a_day_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="'22-7' or '22:30-06:15'"):
        parse_quiet_hours(text)


def test_none_lifts_them() -> None:
    assert parse_quiet_hours("none") is None


def test_over_midnight_the_first_minute_is_quiet_and_the_last_is_not() -> None:
    found = hours("22:30-06:15")
    at = [22 * 60 + 29, 22 * 60 + 30, DAY - 1, 0, 6 * 60 + 14, 6 * 60 + 15, 12 * 60]
    assert [found.covers(minute) for minute in at] == [False, True, True, True, True, False, False]
    assert found.until == "06:15"


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A wall clock to be set, in Berlin."""
    now = [0.0]
    local = time.localtime
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.setattr(clocks.time, "time", lambda: now[0])
    monkeypatch.setattr(clocks.time, "localtime", lambda: local(now[0]))
    yield now
    monkeypatch.undo()
    time.tzset()


def minute_at(wall: list[float], when: float) -> int | None:
    wall[0] = when
    return clocks.minute_of_day()


def test_the_hour_that_summer_time_repeats_is_quiet_twice_and_one_left_out_never(wall: list[float]) -> None:
    repeated, left_out = 1_792_888_200.0, 1_806_195_600.0  # 2026-10-25 00:30 UTC; 2027-03-28 01:00 UTC
    found = hours("2:15-2:45")
    quiet = [found.covers(minute_at(wall, repeated + 60 * i) or 0) for i in range(-60, 120)]
    assert sum(quiet) == 60
    quiet = [found.covers(minute_at(wall, left_out + 60 * i) or 0) for i in range(-120, 120)]
    assert sum(quiet) == 0
    assert minute_at(wall, left_out) == 3 * 60
    assert minute_at(wall, left_out - 60) == 60 + 59


def test_an_unset_clock_shows_no_time_of_day(wall: list[float]) -> None:
    assert minute_at(wall, 0.0) is None
    assert minute_at(wall, WRITTEN - 1.0) is None
    assert minute_at(wall, WRITTEN + 86400.0) is not None


def test_a_time_zone_that_is_set_anew_is_believed(wall: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    berlin = minute_at(wall, 1_800_000_000.0)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    tokyo = clocks.minute_of_day()
    assert berlin is not None
    assert tokyo == (berlin + 8 * 60) % DAY
