"""A learner that says nothing any more: a child is ended and started again, a script is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from daemon.conftest import PATIENCE_S, Home, NoChild, here, session
from daemon.puppet import Puppet
from daemon.test_sessions import until
from peer.daemon import health, learning
from peer.daemon.session import SessionDriver


class Killed(NoChild):
    """A supervisor that is told to end its child."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    def kill(self) -> None:
        self.told.set()


class Attached:
    """A learner of a session that was just created."""

    def __init__(self, driver: SessionDriver, puppet: Puppet, supervisor: Killed) -> None:
        self.driver, self.puppet, self.supervisor = driver, puppet, supervisor

    async def beats(self) -> float:
        """It gives a sign of life; the time when it is heard."""
        end = self.driver.learning.end
        assert end is not None
        self.puppet.report(beat_s=10.0)
        async with asyncio.timeout(PATIENCE_S):
            await until(self.driver, lambda: end.heard_at is not None)
        assert end.heard_at is not None
        return end.heard_at

    def said(self, now: float) -> list[str]:
        return [each for each in health.of_session(self.driver, now) if "has said nothing" in each]


Attach = Callable[[bool], Awaitable[Attached]]


@pytest.fixture
async def attach(home: Callable[[str], Home]) -> AsyncIterator[Attach]:
    """Makes a session and attaches a learner to it: a child, or a script."""
    puppets: list[Puppet] = []

    async def make(child: bool) -> Attached:
        a = home("a")
        await a.daemon.create(session(), here())
        driver = a.daemon.sessions["home"]
        supervisor = Killed()
        driver.learning.supervisor = supervisor  # type: ignore[assignment]
        puppets.append(await Puppet.attach(a.socket, "home", child=child))
        await puppets[-1].training.wait()
        return Attached(driver, puppets[-1], supervisor)

    yield make
    for puppet in puppets:
        puppet.close()


async def test_a_child_that_says_nothing_is_ended(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "LOOK_S", 0.0)
    monkeypatch.setattr(learning, "SILENT_S", 0.05)
    found = await attach(True)
    heard_at = await found.beats()
    found.puppet.freeze()
    async with asyncio.timeout(PATIENCE_S):
        await found.supervisor.told.wait()
    [sentence] = found.said(heard_at + 60.0)
    assert "has said nothing for" in sentence
    assert "another is started" in sentence


async def test_one_that_gives_signs_of_life_is_left_alone_however_long_its_round_takes(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, enough = 0, asyncio.Event()
    found = await attach(True)
    heard_at = await found.beats()
    sleep = asyncio.sleep

    async def look(delay: float) -> None:
        nonlocal looks
        looks += delay == learning.LOOK_S
        if looks == 10:
            enough.set()
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", look)
    found.driver.learning.end, end = None, found.driver.learning.end
    watching = asyncio.create_task(found.driver.learning._watch(end))
    found.driver.learning.end = end
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    watching.cancel()
    assert not found.supervisor.told.is_set()
    assert found.said(heard_at + learning.SILENT_S) == []
    assert len(found.said(heard_at + learning.SILENT_S + 1.0)) == 1


async def test_a_script_that_says_nothing_is_reported_and_not_ended(
    attach: Attach,
) -> None:
    found = await attach(False)
    heard_at = await found.beats()
    [sentence] = found.said(heard_at + learning.SILENT_S + 1.0)
    assert "the script that trains (pid" in sentence
    assert "'peerd join home'" in sentence
    end = found.driver.learning.end
    assert end is not None
    await found.driver.learning._watch(end)  # ends at once: there is nothing to look for
    assert not found.supervisor.told.is_set()


async def test_one_of_another_version_that_gives_no_signs_is_not_judged_by_them(
    attach: Attach,
) -> None:
    found = await attach(True)
    assert found.said(asyncio.get_running_loop().time() + 1e6) == []
