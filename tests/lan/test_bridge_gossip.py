"""Algorithms that average in pairs, along edges or in phases, on four devices and a bad network.

Paced (lan/paced.py) and with 5 % of all packets lost, one of four is killed: the others go on without it, it
returns, and all are close again. Nobody is blamed, and nobody hangs. (Edges of PowerGossip that are out of
step refuse each other's messages, which is no fault.)
"""

from __future__ import annotations

import pytest

from lan.bridge import Switch, Wired
from lan.intact import clean_logs, finite
from lan.watching import begin_all, distances, everyone_trains, rounds_later, sessions, states

pytestmark = [pytest.mark.lan]

COUNT = 4
CLOSE = 0.45  # to the mean of all four minima, each 0.87 away from it; nobody is exact at a constant rate
LOSS = 0.05
NAMES = ("a2cid2", "power-gossip", "detag")


@pytest.fixture(scope="module")
def devices(lan: Switch) -> list[Wired]:
    return begin_all(lan, COUNT, {name: ("--algorithm", name, "--topology", "ring") for name in NAMES})


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
