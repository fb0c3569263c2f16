"""Eight devices on a switch train on while one is killed, one is stopped, and the house is cut in two.

Told in order on one network: a test relies on the ones before it. The learners are paced (lan/paced.py), so
that the machine is no part of the story.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest

from lan.bridge import Switch, Wired
from lan.watching import (
    MASS,
    NAME,
    SHOWN,
    begin,
    comes_to,
    distances,
    during,
    everyone_trains,
    none_worse,
    one_generation,
    rounds,
    rounds_later,
    settled_weight,
    slow,
    states,
    well,
)

pytestmark = [pytest.mark.lan]

COUNT = 8
STOPPED_S = 10.0
CUT_S = 30.0
TOGETHER = 0.25  # to the mean of all eight minima, which halves stay some 0.35 away from
LEARNT = 0.4  # training begins at 1.1
LEAVES = 2  # of one device, at most, on a binary tree
SEVEN_S = math.sqrt(1 / 7 - 1 / 8)  # how far the mean of seven minima is from that


class Kind(NamedTuple):
    """An algorithm on a topology. mass: what a device holds is a share of one whole."""

    algorithm: str
    topology: str
    mass: bool


@pytest.fixture(
    scope="module",
    params=[Kind("difference-push", "exponential", True), Kind("relay-sum", "binary-tree", False)],
    ids=lambda k: k.algorithm,
)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def devices(lan: Switch, kind: Kind) -> Iterator[list[Wired]]:
    terms = ("--algorithm", kind.algorithm, "--topology", kind.topology)
    yield begin(lan, COUNT, *terms, task=slow(lan))
    lan.clear()


def test_one_is_killed_with_its_learner_and_comes_back(lan: Switch, kind: Kind, devices: list[Wired]) -> None:
    *others, victim = devices
    peer = victim.peer
    lan.wait("all have learnt something", lambda: max(distances(devices)) < LEARNT)
    held = victim.session(NAME)["weight"]
    known = math.hypot(max(distances(others)), SEVEN_S)
    leaves: set[str] = set()  # that had no other neighbor on the tree: they train by themselves for a while

    def none_of_the_linked_worse() -> None:
        if not kind.mass:
            leaves.update(device.name for device in others if device.session(NAME)["state"] == "alone")
        none_worse(known, [device for device in others if device.name not in leaves])

    victim.crash()
    with lan.throughout(none_of_the_linked_worse):
        rounds_later(lan, 5, others)
        lan.wait("it is declared dead", lambda: "dead" in states(others, peer))
        lan.wait("the others train without it", lambda: everyone_trains(others))
        rounds_later(lan, SHOWN, others)
    assert len(leaves) <= LEAVES
    with lan.throughout(partial(none_worse, known, others)):
        lan.start(victim)
        assert victim.peer == peer
        lan.wait("a first figure of it", lambda: victim.session(NAME).get("metrics"))
        with lan.throughout(partial(none_worse, known, [victim])):
            lan.wait("all train again", lambda: everyone_trains(devices))
            lan.wait("one generation", lambda: one_generation(devices))
            rounds_later(lan, SHOWN, devices)
    lan.wait("it is dead for nobody", lambda: states(others, peer) == {"alive"})
    if kind.mass:
        total = settled_weight(lan, devices)
        assert 1 - 3 * held < total < 1 + MASS, "no more is lost than it held, and none is made"


def test_one_stands_still_for_ten_seconds(lan: Switch, kind: Kind, devices: list[Wired]) -> None:
    *others, victim = devices
    total = settled_weight(lan, devices) if kind.mass else 0.0
    processes = set(victim.namespace.processes())
    before = rounds(others)
    victim.freeze()
    during(lan, STOPPED_S, lambda: None)
    assert all(now >= before[name] + 5 for name, now in rounds(others).items())
    victim.thaw()
    lan.wait("all train again", lambda: everyone_trains(devices))
    rounds_later(lan, 3, devices)
    lan.wait("one generation", lambda: one_generation(devices))
    lan.wait("it is dead for nobody", lambda: states(others, victim.peer) == {"alive"})
    assert set(victim.namespace.processes()) == processes, "nothing crashed"
    well(devices)
    if kind.mass:
        lan.wait("no weight is lost", lambda: comes_to(devices, total))


def test_a_house_cut_in_two_trains_on_in_both_halves_and_grows_together(
    lan: Switch, kind: Kind, devices: list[Wired]
) -> None:
    halves = devices[: COUNT // 2], devices[COUNT // 2 :]
    total = settled_weight(lan, devices) if kind.mass else 0.0
    lan.wait("all are close", lambda: max(distances(devices)) < TOGETHER)
    before = rounds(devices)
    lan.split(*halves)
    during(lan, CUT_S, lambda: None)
    assert all(now >= before[name] + 10 for name, now in rounds(devices).items())
    for half, other in (halves, halves[::-1]):
        lan.wait("a half trains by itself", lambda half=half: everyone_trains(half))
        assert set().union(*(states(half, device.peer) for device in other)) <= {"dead"}
    rounds_later(lan, 10, devices)
    better = min(max(distances(half)) for half in halves)
    assert min(map(min, map(distances, halves))) > TOGETHER, "each half trains for its own part of the data"
    kept = min(settled_weight(lan, half) for half in halves) if kind.mass else 0.0
    lan.heal()
    with lan.throughout(partial(none_worse, better, devices)):
        lan.wait("all train together", lambda: everyone_trains(devices))
        lan.wait("one generation", lambda: one_generation(devices))
        rounds_later(lan, SHOWN, devices)
        lan.wait("all know what neither half knew", lambda: max(distances(devices)) < TOGETHER)
    if kind.mass:
        now = settled_weight(lan, devices)
        assert kept - MASS < now < total + MASS, (
            "a half that does not mix starts over with what the other has"
        )
    lan.wait("nobody is dead for anybody", lambda: all(states(devices, d.peer) == {"alive"} for d in devices))
    well(devices)
