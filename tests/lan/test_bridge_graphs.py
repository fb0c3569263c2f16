"""Four devices on graphs that they agree on: a tree of measured costs, and the baseline's own. One is killed,
the others go on without it, it returns.

Told in order on one network: a test relies on the ones before it. Each device is in both sessions, so that
its death is waited for once. The learners are paced (lan/paced.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lan.bridge import Switch, Wired
from lan.intact import checkpoints_load, clean_logs, finite, nothing_refused
from lan.watching import (
    NAME,
    begin_all,
    distances,
    everyone_trains,
    one_generation,
    rounds_later,
    sessions,
    states,
    well,
)

pytestmark = [pytest.mark.lan]

COUNT = 4
CLOSE = 0.3  # to the mean of all four minima, from which each of them is 0.87 away
TREE = ("--algorithm", "relay-sum", "--topology", "spanning-tree")
BASELINE = ("--algorithm", "d-psgd")


@pytest.fixture(scope="module")
def devices(lan: Switch) -> list[Wired]:
    return begin_all(lan, COUNT, {NAME: TREE, "baseline": BASELINE})


def epochs(devices: Sequence[Wired]) -> dict[str, int]:
    """The latest of each session that one of these is on."""
    seen = [(session["generation"] or 0, session["name"]) for session in sessions(devices)]
    return {name: epoch for epoch, name in sorted(seen)}


def on_one_graph(lan: Switch, devices: Sequence[Wired], before: dict[str, int]) -> None:
    """All train on one graph in each session, of a later epoch than these, and their models are close."""
    lan.wait("all train", lambda: everyone_trains(devices))

    def agreed() -> bool:
        return one_generation(devices) and all(
            epoch > before[name] for name, epoch in epochs(devices).items()
        )

    lan.wait("one generation of them", agreed)
    rounds_later(lan, 5, devices)
    lan.wait("models are close", lambda: max(distances(devices)) < CLOSE)
    assert agreed(), "and they stay on it"


def intact(lan: Switch, devices: Sequence[Wired]) -> None:
    clean_logs(lan)
    finite(devices)
    nothing_refused(devices)
    well(devices)


def test_all_are_on_one_graph_and_their_models_are_close(lan: Switch, devices: list[Wired]) -> None:
    terms = {(s["algorithm"], s["topology"]) for s in sessions(devices)}
    assert terms == {("relay-sum", "spanning-tree"), ("d-psgd", "ring")}
    on_one_graph(lan, devices, {"home": 0, "baseline": 0})
    intact(lan, devices)


def test_without_the_one_that_is_killed_the_others_agree_on_another(
    lan: Switch, devices: list[Wired]
) -> None:
    *others, victim = devices
    peer, before = victim.peer, epochs(devices)
    victim.crash()
    rounds_later(lan, 5, others)
    lan.wait("it is declared dead", lambda: states(others, peer) == {"dead"})
    on_one_graph(lan, others, before)
    assert all(states(others, other.peer) == {"alive"} for other in others), "nobody else is"
    checkpoints_load(victim)


def test_with_the_one_that_returns_all_agree_again(lan: Switch, devices: list[Wired]) -> None:
    *others, victim = devices
    before = epochs(others)
    lan.start(victim)
    on_one_graph(lan, devices, before)
    assert all(states(devices, device.peer) == {"alive"} for device in devices), "nobody is dead"
    intact(lan, devices)
