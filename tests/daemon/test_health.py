"""What is wrong has a sentence in the status that says what to do; where nothing is wrong there is none."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from daemon.conftest import PATIENCE_S, Home, NoChild, here, session
from daemon.puppet import Puppet
from daemon.test_sessions import pair, until
from peer.daemon import health
from peer.daemon.disk import free_mb
from peer.daemon.network import network
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError
from peer.events import (
    Closed,
    Effect,
    FrameHeard,
    Held,
    Holds,
    Met,
    Opened,
    Probe,
    Push,
    Pushed,
    Ready,
    Record,
    Rejected,
    Spent,
    SponsorMe,
    StreamUp,
    Tick,
    Told,
)
from peer.keys import format_key, new_key
from peer.mesh.discovery import Sighting
from peer.mesh.greeting import PROTOCOL_MAX
from peer.mesh.node import Node, NodeEvent
from peer.mesh.terms import Terms

PEER, OTHER = "p-" + 26 * "a", "p-" + 26 * "b"


async def founded(make: Callable[[str], Home]) -> tuple[Home, SessionDriver]:
    """A device that has created a session whose learner is not there yet."""
    a = make("a")
    await a.daemon.create(session(), here())
    assert said(a) == []
    return a, a.daemon.sessions["home"]


def now() -> float:
    return asyncio.get_running_loop().time()


def said(home: Home) -> list[str]:
    return list(home.daemon.status(None).health)


def test_all_that_look_at_the_state_folder_see_it_go(tmp_path: Path) -> None:
    assert (free_mb(tmp_path) or 0.0) > 0.0
    assert network("p-a", tmp_path, [], 0.0)["disk"]["problem"] is None
    gone = tmp_path / "gone"
    assert free_mb(gone) is None
    assert network("p-a", gone, [], 0.0)["disk"]["problem"] == "it is gone"
    assert f"{gone} cannot be looked at: it is gone;" in list(health.of_device(gone))[-1]


class Child(NoChild):
    """A supervisor between two lives of its child."""

    running, pid, problem = True, None, ""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        vars(self).update(changes)


DEAD = {
    "again and again": (Child(last_code=7, restarts=2), ("died with exit code 7", "started again", "2")),
    "for the first time": (Child(last_code=-9), ("died with exit code -9", "started again soon")),
    "before it lived": (Child(problem="the learner cannot be started: no memory"), ("no memory", "again")),
}


@pytest.mark.parametrize("how", DEAD)
async def test_a_learner_that_died_is_said_with_its_code_and_where_to_look(
    how: str, home: Callable[[str], Home]
) -> None:
    a, driver = await founded(home)
    child, words = DEAD[how]
    driver.learning.supervisor = child  # type: ignore[assignment]
    [sentence] = said(a)
    assert sentence.startswith("home: the learner ")
    assert [word for word in (*words, "'peerd logs home'") if word not in sentence] == []


async def test_a_learner_that_lives_is_not_said_to_have_died(home: Callable[[str], Home]) -> None:
    a, driver = await founded(home)
    driver.learning.supervisor = Child(pid=1)  # type: ignore[assignment]
    assert said(a) == []


async def test_what_a_peer_broke_is_counted_over_both_ends_of_the_wire(home: Callable[[str], Home]) -> None:
    """What this device's transport refused, with the last reason, and what its learner refused."""
    a, driver = await founded(home)
    driver.transport.contacts.of(PEER).reject("an empty frame")
    driver.transport.contacts.of(PEER).reject("a checksum that does not fit")
    driver.feed(Rejected(OTHER, 1, 1, "a payload of NaN", fault=True))
    first, second = said(a)
    assert first.startswith(f"home: 2 message(s) of {PEER} broke a rule (a checksum that does not fit)")
    assert second.startswith(f"home: 1 message(s) of {OTHER} broke a rule;")
    driver.feed(Rejected(PEER, 1, 1, "a payload of NaN", fault=True))
    driver.feed(Rejected(PEER, 1, 2, "of a base not known here", fault=False))
    assert said(a)[0].startswith(f"home: 3 message(s) of {PEER} broke a rule")


@pytest.mark.parametrize(("version", "words"), [(7, "protocol 7"), (0, "another protocol")])
async def test_a_peer_of_another_version_is_named_with_both_versions(
    version: int, words: str, home: Callable[[str], Home]
) -> None:
    a, driver = await founded(home)
    driver.finder.other_versions[PEER] = version
    [sentence] = said(a)
    ours = f"this device {PROTOCOL_MAX}"
    assert sentence == f"home: {PEER} speaks {words}, {ours}; upgrade the one with the lower number"


async def test_an_announcement_of_a_newer_version_is_said(home: Callable[[str], Home]) -> None:
    a, driver = await founded(home)
    driver.finder.sighted(Sighting(PEER, (), True, 7, "0" * 32))
    assert [sentence for sentence in said(a) if "protocol 7" in sentence]


async def test_a_member_with_another_task_file_is_named(home: Callable[[str], Home]) -> None:
    a, driver = await founded(home)
    driver.feed(Met(Record(PEER, boot=1, incarnation=1, device="pi", task_digest="f" * 64)))
    [sentence] = said(a)
    assert sentence.startswith("home: pi trains with another task file; give every device the same")


async def test_strangers_that_do_not_know_the_key_are_counted(home: Callable[[str], Home]) -> None:
    a = home("a")
    with pytest.raises(NobodyFoundError):
        await a.daemon.join("home", format_key(new_key()), here(timeout_s=0.0), lambda text: None)
    a.daemon.sessions["home"].finder.strangers |= {"one": PEER, "other": OTHER}
    [sentence] = said(a)
    assert sentence.startswith("home: 2 peerd device(s) are seen and none recognises this key")
    assert "'peerd key'" in sentence


async def test_no_multicast_is_said_after_a_while_and_not_at_once(
    home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, driver = await founded(home)
    monkeypatch.setattr(driver, "options", here(insecure=False))
    soon, late = driver.started_at, driver.started_at + health.LONELY_S + 1
    assert list(health.of_session(driver, soon)) == []
    [sentence] = health.of_session(driver, late)
    assert "no multicast of any other peerd is heard" in sentence
    assert "--peer HOST:PORT" in sentence


async def test_a_learner_that_stands_still_is_said_with_its_pid_and_the_usual_time(
    home: Callable[[str], Home],
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, _, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        driver = a.daemon.sessions["home"]
        first.freeze()
        await until(driver, lambda: driver.node is not None and driver.node.rounds.at_learner_s(now()) > 0.2)
        assert driver.node is not None
        assert driver.figures.round_s is not None
        long = max(health.STUCK_S, health.STUCK_ROUNDS * driver.figures.round_s)
        assert not any("has worked on round" in sentence for sentence in health.of_session(driver, now()))
        stuck = [s for s in health.of_session(driver, now() + long) if "has worked on round" in s]
        assert len(stuck) == 1
        assert f"(pid {os.getpid()})" in stuck[0]  # this test attached it
        first.thaw()
        await first.until(first.rounds + 3)
        assert not any("has worked on round" in s for s in health.of_session(driver, now() + 0.1 * long))


def training() -> Node:
    """One that has opened a round with another device."""
    node = Node(Record(PEER, 1, 1 << 20), Terms("complete", 0, founder=True))
    node.handle(Ready((1 << 20) + 1), 0.0)
    node.handle(Holds((), 1.0), 0.0)
    node.handle(Met(Record(OTHER, 1, 1 << 20, phase="training", life=9, weight=1.0)), 0.0)
    node.handle(Tick(), 0.0)
    return node


def test_a_round_is_at_the_learner_until_it_is_pushed_or_held_for_a_neighbor() -> None:
    node = training()
    assert node.rounds.at_learner_s(50.0) == 50.0
    node.handle(Held(node.key, (OTHER,)), 1.0)
    assert node.rounds.at_learner_s(50.0) == 50.0  # nothing is out to there any more, and the learner knows
    node.handle(Push(OTHER, 1, node.key, b"m"), 1.0)
    assert node.rounds.at_learner_s(50.0) == 0.0
    node.handle(Pushed(node.key), 2.0)
    assert node.rounds.at_learner_s(50.0) == 0.0


@pytest.mark.parametrize("first", [Tick(), Told(OTHER, Probe(b""))])
def test_time_for_which_the_whole_device_stood_still_is_nobodys(first: Tick | Told) -> None:
    """Whatever comes first afterwards: what waited in a socket comes before the timer."""
    node = training()
    for now in (0.25, 0.5):
        node.handle(Tick(), now)
    node.handle(first, 600.5)
    node.handle(Tick(), 600.5)
    assert node.rounds.at_learner_s(601.0) == pytest.approx(1.0)
    assert node.members.heard_at(OTHER) <= 600.5
    node.handle(Closed(node.key, (), 1.0), 600.75)
    node.handle(Pushed(node.key), 601.75)
    assert node.rounds.pace.patience._round_s == pytest.approx(1.0)


class Round(NamedTuple):
    """What status says when this device has closed a round. silent: nobody was heard in it."""

    silent: bool
    alone: int | None
    state: str
    said: list[str]


def closing(driver: SessionDriver, monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """The rounds that are closed from now on."""
    node, closed = driver.node, list[Round]()
    assert node is not None
    handle = node.handle

    def handled(event: NodeEvent, at: float) -> list[Effect]:
        open_key = node.key if node.rounds.is_open else None
        effects = handle(event, at)
        if isinstance(event, Closed) and event.key == open_key:
            status = driver.status()
            said = [s for s in health.of_session(driver, at) if "closed alone" in s]
            closed.append(Round(not event.heard, status.rounds_alone, status.state, said))
        return effects

    monkeypatch.setattr(node, "handle", handled)
    return closed


async def in_company(found: tuple[Home, Home, Puppet, Puppet]) -> tuple[SessionDriver, Node]:
    """The first of these two, once it hears the other in its rounds."""
    a, _, first, second = found
    await asyncio.gather(first.until(3), second.until(3))
    driver = a.daemon.sessions["home"]
    node = driver.node
    assert node is not None
    await until(driver, lambda: node.rounds.alone == 0)
    return driver, node


def are_silent(closed: list[Round]) -> bool:
    """The last five?"""
    return len(closed) >= 5 and all(round_.silent for round_ in closed[-5:])


def check_counted(closed: list[Round], total: int | None, words: str) -> None:
    """Each round closed alone adds one to the total, and from three in a row on it is said."""
    assert total is not None
    row = 0
    for silent, alone, state, said in closed:
        row, total = (row + 1, total + 1) if silent else (0, total)
        assert alone == total
        if row < 3:
            assert said == []
        else:
            [sentence] = said
            assert sentence.startswith(f"home: the last {row} rounds were closed alone: {words}")
            assert state == "alone"


async def test_rounds_closed_alone_are_counted_and_said_after_three(
    home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's learner stands still for a while."""
    async with asyncio.timeout(PATIENCE_S):
        a, _, _, second = found = await pair(home)
        driver, _ = await in_company(found)
        before, closed = driver.status().rounds_alone, closing(driver, monkeypatch)
        second.freeze()
        await until(driver, lambda: are_silent(closed))
        assert before is not None
        assert a.daemon.status("home").sessions[0].rounds_alone == closed[-1].alone >= before + 5
        assert len(said(a)) == 1
        second.thaw()
        await until(driver, lambda: not closed[-1].silent)
        assert said(a) == []
        assert driver.state == "training"
    check_counted(closed, before, "none of 1 other device(s) was heard in time; are they on,")


async def test_one_that_is_ahead_of_the_others_says_that_it_waits_for_them(
    home: Callable[[str], Home],
) -> None:
    """And not that they are gone."""
    async with asyncio.timeout(PATIENCE_S):
        a, _, _, second = found = await pair(home)
        driver, node = await in_company(found)
        second.freeze()
        await until(driver, lambda: node.rounds.alone >= 3)
        other = next(record.peer for record in node.members.members() if record.peer != node.me)
        node.rounds.pace.patience.follows(other, asyncio.get_running_loop().time(), 1.0)
        [sentence] = said(a)
        second.thaw()
    lead = re.fullmatch(
        r"home: it is (\d+) round\(s\) ahead of the others, and waits until they .*", sentence
    )
    assert lead and int(lead[1]) >= 3


async def test_rounds_that_an_earlier_node_of_the_session_closed_alone_stay_counted(
    home: Callable[[str], Home],
) -> None:
    """Another takes its place with another learner."""
    _, driver = await founded(home)
    node = training()
    for at in (0.1, 0.2):
        node.handle(Closed(node.key, (), 1.0), at)
    driver.figures.node_ends(node)
    assert driver.status().rounds_alone == 2


async def test_that_nobody_was_there_for_a_day_is_said(home: Callable[[str], Home]) -> None:
    """Of the dead and of those who have left nothing is known any more."""
    async with asyncio.timeout(PATIENCE_S):
        a, _, _, second = found = await pair(home)
        driver, node = await in_company(found)
        second.freeze()
        await until(driver, lambda: node.rounds.alone >= 3)
        other = next(record for record in node.members.members() if record.peer != node.me)
        node.members._forget(other.peer)
        [sentence] = said(a)
        driver.feed(Met(other))
        second.thaw()
    assert "nobody else of this session was there for a day" in sentence


@pytest.mark.parametrize("goes", ["leaves", "is stopped"])
async def test_who_trains_on_alone_because_the_others_have_gone_is_told_so(
    goes: str, home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They said goodbye and are not missed, and yet its model is nobody else's any more."""
    async with asyncio.timeout(PATIENCE_S):
        a, b, _, _ = found = await pair(home)
        driver, node = await in_company(found)
        before, closed = driver.status().rounds_alone, closing(driver, monkeypatch)
        await (b.daemon.leave("home", forget=False) if goes == "leaves" else b.daemon.stop())
        await until(driver, lambda: are_silent(closed))
        [record] = [record for record in node.members.members() if record.peer != node.me]
        assert record.state == ("left" if goes == "leaves" else "paused")
        [sentence] = said(a)
    assert "'peerd leave home'" in sentence
    check_counted(
        closed, before, "all 1 other device(s) have left, paused or finished; this one trains on by"
    )


async def test_a_budget_that_does_not_do_is_said_with_what_would(home: Callable[[str], Home]) -> None:
    """First what control messages take, then rounds that send nothing, then newcomers that wait."""
    a, driver = await founded(home)
    driver.set_budget(here(budget="20kB/min"))
    assert said(a) == []
    for _ in range(32):
        driver.spending.close_round(held_back=1, sent=0)
    [few] = said(a)
    assert few.startswith("home: the budget of 20 kB per minute let 0 of the last 32 rounds send anything")
    assert "'peerd join home --budget" in few
    driver.feed(Spent(12_000))
    [control] = said(a)
    assert control.startswith("home: the budget is 20 kB per minute, and what 1 members tell each other")
    assert "12 kB" in control
    assert "above 36 kB" in control


async def test_a_newcomer_that_waits_for_a_sponsors_budget_is_said(home: Callable[[str], Home]) -> None:
    a, driver = await founded(home)
    driver.set_budget(here(budget="20kB/min"))
    node = driver.node
    assert node is not None
    driver.feed(Ready(1))
    driver.feed(Holds((), 1.0, whole=3_000_000))
    driver.spending.begin(OTHER, 10)
    driver.feed(Met(Record(PEER, boot=1, incarnation=1, phase="seeking", life=5)))
    driver.feed(Told(PEER, SponsorMe(5)))
    driver.feed(StreamUp(PEER, "out"))
    driver.feed(FrameHeard(PEER, "out", Opened(5, 1, 0)))
    [waits] = said(a)
    assert waits.startswith("home: 1 newcomer(s) wait for a model of 3 MB, for which the budget of 20 kB per")
