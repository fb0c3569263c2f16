"""Algorithms that average in pairs, along edges or in phases, on four devices and a bad network.

On spoken digits each of them gets better than chance, with every device on its own part of the data. Then,
paced (lan/paced.py) and with 5 % of all packets lost, one of four is killed: the others go on without it, it
returns, and all are close again. Nobody is blamed, and nobody hangs. (Edges of PowerGossip that are out of
step refuse each other's messages, which is no fault.)
"""

from __future__ import annotations

import pytest

from lan.bridge import Switch, Wired
from lan.device import PATIENCE_S
from lan.intact import clean_logs, finite
from lan.watching import begin, distances, everyone_trains, found, key_of, rounds_later, sessions, states

pytestmark = [pytest.mark.lan]

COUNT = 4
LEARNT = 0.3  # of spoken digits; guessing gives 0.1
CLOSE = 0.45  # to the mean of all four minima, each 0.87 away from it; nobody is exact at a constant rate
LOSS = 0.05
RATES = {"a2cid2": "0.05", "power-gossip": "0.05", "detag": "0.3"}  # DeTAG steps once in a phase of rounds
NAMES = tuple(RATES)


@pytest.fixture(scope="module")
def devices(lan: Switch) -> list[Wired]:
    first, *others = NAMES
    begun = begin(lan, COUNT, "--algorithm", first, "--topology", "ring")
    for name in others:
        found(lan, begun, name, "--algorithm", name, "--topology", "ring")
    return begun


def test_each_learns_spoken_digits(lan: Switch) -> None:
    devices = [lan.add(f"s{k}") for k in range(COUNT)]
    lan.start(*devices)
    founder, *others = devices
    joining = []
    for name in NAMES:
        terms = ("--algorithm", name, "--topology", "ring", "--local-steps", "1", "--lr", RATES[name])
        founder.ok("create", name, *terms, "--shard", f"0/{COUNT}")
        key = key_of(founder, name)
        for number, device in enumerate(others, 1):
            joining.append(device.spawn("join", name, "--key", key, "--shard", f"{number}/{COUNT}"))
    assert [process.wait(PATIENCE_S) for process in joining] == [0] * len(NAMES) * len(others)
    lan.wait("all train", lambda: everyone_trains(devices))
    lan.wait("all have learnt something", lambda: min(accuracies(devices)) > LEARNT)
    clean_logs(lan)
    lan.clear()


def accuracies(devices: list[Wired]) -> list[float]:
    return [session["metrics"].get("accuracy", 0.0) for session in sessions(devices)]


def test_with_lost_packets_all_come_close(lan: Switch, devices: list[Wired]) -> None:
    assert {session["algorithm"] for session in sessions(devices)} == set(NAMES)
    for device in devices:
        device.lose(LOSS)
    close(lan, devices)


def test_without_the_one_that_is_killed_the_others_go_on(lan: Switch, devices: list[Wired]) -> None:
    *others, victim = devices
    peer = victim.peer
    victim.crash()
    lan.wait("it is declared dead", lambda: states(others, peer) == {"dead"})
    close(lan, others)


def test_the_one_that_returns_comes_close_again(lan: Switch, devices: list[Wired]) -> None:
    *_, victim = devices
    lan.start(victim)
    lan.wait("all train", lambda: everyone_trains(devices))
    close(lan, devices)
    clean_logs(lan)
    finite(devices)


def close(lan: Switch, devices: list[Wired]) -> None:
    rounds_later(lan, 10, devices)
    lan.wait("models are close", lambda: max(distances(devices)) < CLOSE)
