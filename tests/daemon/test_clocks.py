"""Clocks that jump, stand still, or were never set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.test_sessions import pair
from peer.daemon import clocks
from peer.daemon.clocks import SuspendWatch
from peer.version import WRITTEN

YEARS = 10 * 365 * 86400.0


@pytest.mark.parametrize(("wall_s", "unset"), [(0.0, True), (WRITTEN - 1, True), (WRITTEN, False)])
def test_a_clock_from_before_the_program_is_unset(wall_s: float, unset: bool) -> None:
    assert clocks.is_unset(wall_s) is unset


def test_a_suspend_is_what_one_clock_counts_and_the_other_does_not() -> None:
    asleep = iter([100.0, 100.2, 105.0, 111.0, 111.0])
    watch = SuspendWatch(lambda: next(asleep))
    assert [watch.suspended() for _ in range(4)] == [0.0, 0.0, 6.0, 0.0]
    assert clocks.asleep_s() > -0.001


async def test_after_a_suspend_the_device_speaks_anew_before_anything_else(
    home: Callable[[str], Home],
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, _, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        driver = a.daemon.sessions["home"]
        asleep = iter([0.0, 3600.0])
        driver._suspends = SuspendWatch(lambda: next(asleep, 3600.0))
        assert driver.node is not None
        before = driver.node.members.me.incarnation
        await first.until(first.rounds + 5)
        await second.until(second.rounds + 5)
        assert driver.node.members.me.incarnation > before
        assert any("stood still" in line for line in a.recent.lines("home"))
        assert len(driver.node.members.view()) == 2


async def test_an_unset_clock_has_a_sentence(
    home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = home("a")
    await a.daemon.create(session(), here())
    monkeypatch.setattr(time, "time", lambda: 3.0)
    [sentence] = a.daemon.status(None).health
    assert sentence.startswith("the clock is unset")


async def test_a_wall_clock_that_jumps_by_ten_years_changes_nothing(
    home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        for jump in (0.0, -YEARS, YEARS, 0.0):
            monkeypatch.setattr(time, "time", lambda j=jump: real() + j)
            await asyncio.gather(first.until(first.rounds + 5), second.until(second.rounds + 5))
            for h in (a, b):
                node = h.daemon.sessions["home"].node
                assert node is not None
                assert {r.state for r in node.members.members()} == {"alive"}
                assert not [s for s in h.daemon.status(None).health if "clock" not in s]
