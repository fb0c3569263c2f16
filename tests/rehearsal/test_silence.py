"""What one that falls silent costs the others: rounds of eight devices, in virtual time, around a fault."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from peer.rehearsal.driver import Device, Rehearsal, Weather
from rehearsal.stories import KINDS, WHOLE, Kind, home, name, together

SPONSORS = "sponsors a newcomer"
STEP_S, LOOK_S, WINDOW_S = 0.3, 0.25, 15.0
EACH = pytest.mark.parametrize(
    ("kind", "topology"),
    [(KINDS[0], "exponential"), (WHOLE[0], "binary-tree"), (WHOLE[1], "ring")],
    ids=lambda part: getattr(part, "algorithm", part),
)


@dataclass
class Eight:
    """A session of eight with paced learners. `others` are counted."""

    r: Rehearsal
    victim: str
    others: list[Device]

    @classmethod
    def at_work(cls, kind: Kind, topology: str, seed: int) -> Eight:
        r, _ = home(kind, topology, 4, weather=Weather(latency_s=(0.002, 0.02), local_s=0.005), seed=seed)
        dice = random.Random(seed)
        r._step_s = lambda peer: STEP_S * dice.uniform(0.9, 1.3)
        together(r, 8)
        r.run(30.0)
        victim = name(1 + seed % 7)
        return cls(r, victim, [d for d in r.alive() if d.peer != victim])

    def rounds(self) -> int:
        return sum(device.rounds for device in self.others)

    def worst(self, fault: Callable[[], object], seconds: float) -> float:
        """The fewest rounds in any WINDOW_S after the fault, as a share of those before it."""
        before = self.rounds()
        self.r.run(WINDOW_S)
        usual, counts = self.rounds() - before, [self.rounds()]
        fault()
        for _ in range(int(seconds / LOOK_S)):
            self.r.run(LOOK_S)
            counts.append(self.rounds())
        window = int(WINDOW_S / LOOK_S)
        return min(b - a for a, b in zip(counts, counts[window:], strict=False)) / usual


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_one_that_loses_its_power_costs_the_others_no_more_than_a_few_rounds(
    kind: Kind, topology: str, seed: int
) -> None:
    session = Eight.at_work(kind, topology, seed)
    assert session.worst(lambda: session.r.crash(session.victim, silent=True), 40.0) > 0.75
    assert all(len(device.node.members.view()) == 7 for device in session.others)


@EACH
def test_one_that_stands_still_and_goes_on_costs_the_others_no_more_than_a_few_rounds(
    kind: Kind, topology: str
) -> None:
    session = Eight.at_work(kind, topology, seed=0)
    assert session.worst(lambda: session.r.pause(session.victim, 10.0), 25.0) > 0.75
    assert all(len(device.node.members.view()) == 8 for device in session.r.alive())


@pytest.mark.parametrize(
    ("kind", "topology"),
    [(KINDS[0], "complete"), (KINDS[0], "exponential"), (KINDS[2], "random-2"), (WHOLE[1], "ring")],
    ids=lambda part: getattr(part, "algorithm", part),
)
def test_one_that_went_on_while_the_others_stood_still_is_in_step_again_soon(
    kind: Kind, topology: str
) -> None:
    """All hear each other, and it is rounds ahead: it waits for them, or would close each round alone."""
    session = Eight.at_work(kind, topology, seed=1)
    for device in session.others:
        session.r.pause(device.peer, 8.0)
    session.r.run(8.0)
    ahead, leads = session.r.devices[session.victim].node.rounds.pace, []
    for _ in range(34):
        session.r.run(LOOK_S)
        leads.append(ahead.lead(session.r.now))
    if kind.conserves:
        assert max(leads) > 2
    else:
        assert max(leads[int(2.0 / LOOK_S) :]) == 0, "on an agreed graph they go to its round"
    assert ahead.lead(session.r.now) == 0
    devices = [d.node.rounds for d in session.r.alive()]
    first = [rounds.key.round for rounds in devices]
    alone = [rounds.alone_total for rounds in devices]
    session.r.run(30.0)
    keys = [rounds.key.round for rounds in devices]
    assert max(keys) - min(keys) <= 3
    assert [rounds.alone_total for rounds in devices] == alone
    assert min(now - before for now, before in zip(keys, first, strict=True)) > 60


@pytest.mark.parametrize("slow", [6.0, 12.0])
def test_on_an_agreed_graph_one_much_faster_than_the_others_hears_them_again_after_a_cut(slow: float) -> None:
    """All go to the round of whoever is furthest on: else it would hear nothing of that in time, and be the
    one that they go after for good."""
    r, _ = home(WHOLE[1], "complete", 4, weather=Weather(latency_s=(0.002, 0.02), local_s=0.005))
    r._step_s = lambda peer: STEP_S * (1.0 if peer == name(3) else slow)
    together(r, 4)
    r.run(20.0)
    r.partition([{name(i) for i in range(3)}, {name(3)}])
    r.run(8.0)
    r.heal()
    r.run(30.0)
    fast = r.devices[name(3)].node.rounds
    first, alone = fast.key.round, fast.alone_total
    r.run(60.0)
    assert fast.alone_total == alone
    assert 50.0 < (fast.key.round - first) * slow * STEP_S < 70.0


@pytest.mark.parametrize(("topology", "takes_s"), [("complete", 0.4), ("ring", 0.8)])
def test_where_messages_take_longer_than_steps_all_are_heard_in_time_again_after_one_stood_still(
    topology: str, takes_s: float
) -> None:
    """Rounds are held up for acknowledgements there, by who was given up too."""
    dim = 500
    weather = Weather(latency_s=(0.002, 0.02), local_s=0.005, bandwidth_bps=64 * dim / takes_s)
    r, books = home(KINDS[0], topology, dim, weather=weather, rate=0.01)
    r._step_s = lambda peer: STEP_S
    together(r, 3)
    r.run(30.0)

    def seen() -> tuple[float, int]:
        """Rounds a second, and neighbors missed in them, in half a minute."""
        before, missed = [d.node.key.round for d in r.alive()], 0
        for _ in range(600):
            keys = {d: d.node.key for d in r.alive()}
            r.run(0.05)
            missed += sum(len(d.node.rounds.missed) for d, key in keys.items() if d.node.key != key)
        done = [d.node.key.round - round_ for d, round_ in zip(r.alive(), before, strict=True)]
        return sum(done) / len(done) / 30.0, missed

    usual, _ = seen()
    r.pause(name(2), 9.0)
    r.run(30.0)
    rate, missed = seen()
    assert missed <= 2
    assert 0.9 * usual < rate < 1.1 * usual
    books.check()


@EACH
def test_one_that_returns_costs_the_others_no_more_than_a_few_rounds(kind: Kind, topology: str) -> None:
    session = Eight.at_work(kind, topology, seed=1)
    session.r.crash(session.victim)
    session.r.run(30.0)
    assert session.worst(lambda: session.r.add(session.victim), 30.0) > 0.75
    assert all(len(device.node.members.view()) == 8 for device in session.r.alive())


@EACH
@pytest.mark.parametrize("seed", range(2))
def test_a_cut_through_the_middle_and_its_end_leave_both_halves_most_of_their_rounds(
    kind: Kind, topology: str, seed: int
) -> None:
    """Four of everybody's seven neighbors are gone at once, and come back one by one."""
    session = Eight.at_work(kind, topology, seed)
    session.others = session.r.alive()
    peers = [device.peer for device in session.others]
    halves = [set(peers[:4]), set(peers[4:])]
    assert session.worst(lambda: session.r.partition(halves), 40.0) > 0.6
    assert session.worst(session.r.heal, 40.0) > 0.5


def test_one_that_is_slow_and_answers_is_waited_for_as_before() -> None:
    """Its rounds take twice as long as the others'; they ask it whether it is there, and wait."""
    session = Eight.at_work(KINDS[0], "ring", seed=2)
    slow = session.victim
    session.r._step_s = lambda peer: 2 * STEP_S if peer == slow else STEP_S
    session.r.run(30.0)
    before = {device: device.node.key.round for device in session.r.alive()}
    missed = 0
    for _ in range(120):
        session.r.run(LOOK_S)
        missed += sum(slow in device.node.rounds.missed for device in session.others)
    done = {device.node.key.round - round_ for device, round_ in before.items()}
    assert max(done) - min(done) <= 8 and min(done) > 0.8 * 120 * LOOK_S / (2 * STEP_S)
    assert missed <= 3


# --- a sponsor that was cut off while it answered --------------------------------------------------------


@pytest.mark.parametrize("kind", [KINDS[0], WHOLE[1]], ids=lambda kind: kind.algorithm)
def test_what_a_newcomer_was_sent_before_a_long_cut_is_not_what_it_begins_with(kind: Kind) -> None:
    r, books = home(kind, "ring", 4, weather=Weather(latency_s=(0.4, 0.5)), seed=5)
    together(r, 2)
    r.run(10.0)
    newcomer = r.add(name(2))
    r.run(
        30.0,
        until=lambda: any(n.text == SPONSORS and n.fields["peer"] == newcomer.peer for _, _, n in r.notes),
    )
    r.run(0.1)  # the model is on its way
    r.partition([{name(0), name(1)}, {newcomer.peer}])
    r.run(40.0)
    assert newcomer.node.phase == "seeking"
    r.heal()
    r.run(30.0, until=lambda: newcomer.node.phase == "training")
    sponsor = r.devices[next(peer for _, peer, note in reversed(r.notes) if note.text == SPONSORS)]
    away = float((newcomer.exchange.estimate() - sponsor.exchange.estimate()).norm())
    assert away < 0.2 * float((sponsor.exchange.estimate() - kind.start).norm()), away
    r.run(20.0)
    books.check()
