"""A round closed with nobody heard is counted: as many as there were, in a row and of all."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from peer.events import Closed, FromLearner
from peer.rehearsal.driver import Device, Rehearsal, Weather, Witness
from rehearsal.stories import KINDS, WHOLE, Kind, home, name, together

ONE = name(2)
SGP, RELAY_SUM, D_PSGD = KINDS[0], WHOLE[0], WHOLE[1]


class Silences(Witness):
    """Counts the rounds that each device's learner closes with nobody heard."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter()

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        self.closed[device.peer] += sum(isinstance(event, Closed) and not event.heard for event in events)


def session(kind: Kind, topology: str, n: int) -> tuple[Rehearsal, Silences]:
    r, _ = home(kind, topology, 4, seed=1)
    r._witness = witness = Silences()
    together(r, n)
    r.run(20.0)
    return r, witness


def counted(r: Rehearsal) -> dict[str, int]:
    return {d.peer: d.node.rounds.alone_total for d in r.alive()}


@pytest.mark.parametrize(
    ("kind", "topology"),
    [(SGP, "complete"), (D_PSGD, "ring"), (RELAY_SUM, "chain")],
    ids=lambda value: str(getattr(value, "algorithm", value)),
)
def test_rounds_without_any_neighbor_are_counted_to_the_last_one_and_no_others(
    kind: Kind, topology: str
) -> None:
    """One of three is cut off for seven rounds, is back, and is cut off again."""
    r, witness = session(kind, topology, 3)
    cut, rest = r.devices[ONE], {name(0), name(1)}
    assert counted(r) == dict.fromkeys([*rest, ONE], 0)
    total = 0
    for _ in range(2):
        r.network.partition([{ONE}, rest])
        r.run(60.0, until=lambda: cut.node.rounds.alone > 0)
        earlier = cut.rounds - 1  # before the first that was closed alone
        r.run(60.0, until=lambda earlier=earlier: cut.rounds - earlier == 7)  # type: ignore[misc]
        total += 7
        assert (cut.node.rounds.alone, counted(r)[ONE]) == (7, total)
        r.network.heal()
        r.run(60.0, until=lambda: cut.node.rounds.alone == 0)
        total = witness.closed[ONE]  # until it found the others it may have closed some more
        assert (cut.node.rounds.alone, counted(r)[ONE]) == (0, total)
        rounds = cut.rounds
        r.run(30.0)
        assert cut.rounds > rounds + 20
        assert (cut.node.rounds.alone, counted(r)[ONE]) == (0, total)
    assert {peer: counted(r)[peer] for peer in rest} == dict.fromkeys(rest, 0)


def test_who_is_the_last_one_left_closes_each_round_alone() -> None:
    r, _ = session(SGP, "complete", 3)
    for peer in (name(1), name(2)):
        r.leave(peer)
    r.run(5.0)
    last = r.devices[name(0)]
    assert [d.peer for d in r.alive()] == [last.peer]
    rounds, total = last.rounds, last.node.rounds.alone_total
    r.run(60.0, until=lambda: last.rounds == rounds + 12)
    assert last.node.rounds.alone_total == total + 12
    assert last.node.rounds.alone >= 12


def test_a_round_in_which_nobody_was_to_send_is_not_closed_alone() -> None:
    """Where each draws one neighbor, some are drawn by nobody."""
    r, witness = session(SGP, "random-1", 4)
    r.run(60.0)
    assert min(witness.closed[peer] for peer in r.devices) > 5
    assert counted(r) == dict.fromkeys(r.devices, 0)


@pytest.mark.parametrize("topology", ["exponential", "ring"])
@pytest.mark.parametrize("seed", range(4))
def test_while_a_session_begins_hardly_a_round_is_closed_alone(topology: str, seed: int) -> None:
    """Processes whose first local steps take long, on a busy machine: all are there, and worth a wait."""
    dice, begun = random.Random(seed), set[str]()

    def step_s(peer: str) -> float:
        first = 3.0 if peer not in begun else 1.0
        begun.add(peer)
        return first * dice.uniform(0.8, 1.2) * (dice.uniform(1.0, 3.0) if dice.random() < 0.2 else 1.0)

    r, _ = home(SGP, topology, 4, weather=Weather(latency_s=(0.01, 0.2), local_s=0.005), seed=seed)
    r._step_s = step_s
    r.add(name(0), founder=True)
    for i in range(1, 6):
        r.run(dice.uniform(0.0, 0.5))
        r.add(name(i))
    longest = 0
    for _ in range(600):
        r.run(0.05)
        longest = max(longest, *(d.node.rounds.alone for d in r.alive()))
    assert longest < 3, "it would be said that the network is down"
    assert sum(counted(r).values()) < 0.1 * sum(d.rounds for d in r.alive())
