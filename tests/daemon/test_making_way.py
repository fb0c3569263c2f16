"""A script takes the built-in learner's place: nothing is lost, doubled or thrown out, whatever happens
meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from daemon.conftest import PATIENCE_S, Home, NoChild, here, session
from daemon.puppet import Puppet, dial
from daemon.test_sessions import WIDE, newcomer, pair, quiet, until
from peer.errors import UsageError
from peer.events import Control, Direction, Frame, Goodbye, PeerId
from peer.local import error_of

Make = Callable[[str], Home]


def supervise(home: Home, stop: Callable[[], Any]) -> None:
    """From now on `stop` happens where the daemon ends its child."""

    class Child(NoChild):
        async def stop(self) -> None:
            await stop()

    home.daemon.sessions["home"].learning.supervisor = Child()  # type: ignore[assignment]


async def nothing() -> None:
    """The child has ended before."""


async def test_what_was_applied_counts_once_though_its_acknowledgement_and_the_goodbye_are_lost(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        here_, there = a.daemon.sessions["home"], b.daemon.sessions["home"]
        transport, me, other = there.transport, a.daemon.device.key.id, b.daemon.device.key.id
        send, tell, stalled = transport.send, transport.tell, True

        def send_out_only(peer: PeerId, direction: Direction, frame: Frame) -> bool:
            return True if stalled and direction == "in" else send(peer, direction, frame)

        def tell_no_goodbye(peer: PeerId, message: Control) -> None:
            if not isinstance(message, Goodbye):
                tell(peer, message)

        monkeypatch.setattr(transport, "send", send_out_only)
        monkeypatch.setattr(transport, "tell", tell_no_goodbye)

        def applied_and_not_acknowledged() -> bool:
            assert here_.node is not None
            assert there.node is not None
            out = [item for item in here_.node.links.ledger() if item.dst == other and item.number]
            return bool(out) and there.node.links.applied(me)[2] >= out[0].number

        await until(here_, applied_and_not_acknowledged)
        script = await Puppet.attach(b.socket, "home", child=False)
        assert there.node is not None
        assert there.node.farewells()[me].applied > 0
        assert there.node.farewells() == there.folder.farewells()
        stalled = False
        await script.training.wait()
        await script.leave()
        await until(here_, lambda: first.weight > 0.99)
        await first.until(first.rounds + 3)
    assert first.weight == pytest.approx(1.0)


async def test_a_child_that_was_starting_does_not_throw_the_script_out(home: Make) -> None:
    """The daemon waits for its end; it must not wait for its turn meanwhile, and take the place then."""
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        answers: list[str] = []

        async def child_dials_in() -> None:
            connection = await dial(a.socket, "learner")
            connection.send({"op": "attach", "session": "home", "child": True, "pid": 1})
            frame, _ = await connection.receive()
            answers.append(str(error_of(frame)))
            connection.close()

        supervise(a, child_dials_in)
        script = await Puppet.attach(a.socket, "home", child=False)
        await script.training.wait()
        supervise(a, nothing)
        assert answers == ["a script trains in 'home' in this learner's place"]
        assert not script.stopped
        assert a.daemon.sessions["home"].learning.end is not None


async def test_join_starts_no_child_while_a_script_is_about_to_attach(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        _, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        driver = b.daemon.sessions["home"]
        joined: list[bool] = []

        async def join_meanwhile() -> None:
            child.close()
            await until(driver, lambda: driver.learning.end is None)
            joined.append((await b.daemon.join("home", None, here(), quiet)).linked.is_set())

        supervise(b, join_meanwhile)
        script = await Puppet.attach(b.socket, "home", child=False)
        await script.until(3)
        assert joined == [True]
        assert (starts(b), driver.learning.scripted) == (0, True)
        supervise(b, nothing)


def starts(home: Home) -> int:
    supervisor: Any = home.daemon.sessions["home"].learning.supervisor
    return int(supervisor.starts)


async def test_of_two_scripts_at_once_one_trains_and_the_other_is_told(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        both = [Puppet.attach(b.socket, "home", child=False) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        [script] = [one for one in found if isinstance(one, Puppet)]
        [refused] = [one for one in found if isinstance(one, UsageError)]
        assert "end that one first" in str(refused)
        await script.training.wait()
        await script.leave()
        await until(a.daemon.sessions["home"], lambda: first.weight == pytest.approx(1.0))


async def test_a_script_that_comes_while_the_device_leaves_is_refused_and_breaks_no_hand_over(
    home: Make,
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        driver = b.daemon.sessions["home"]
        first.freeze()  # the hand-over takes its time
        leaving = asyncio.create_task(driver.leave(pause=False))
        await until(driver, lambda: driver.node is None or driver.node.phase == "leaving")
        with pytest.raises(UsageError, match="session 'home' is being left"):
            await Puppet.attach(b.socket, "home", child=False)
        assert not child.stopped
        first.thaw()
        await leaving
        await until(a.daemon.sessions["home"], lambda: first.weight == pytest.approx(1.0))


async def test_no_mass_is_asked_of_a_member_whose_model_is_not_known(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, joining, wide = await newcomer(home, WIDE)
        driver, asked = b.daemon.sessions["home"], []

        async def lost(peer: PeerId) -> None:
            """The Hello and its answer come to nothing."""
            if peer == a.daemon.device.key.id:
                asked.append(peer)

        for one in (a, b):
            monkeypatch.setattr(one.daemon.sessions["home"].transport, "refresh", lost)
        first = await Puppet.attach(a.socket, "home")
        await first.training.wait()
        await until(driver, lambda: len(asked) > 1)  # so often it would have had an answer
        assert wide.heard == []
        assert driver.failure is None
        joining.cancel()
