"""Algorithms that average in pairs, along edges or in phases, on four devices and real data.

On spoken digits each of them gets better than chance, with every device on its own part of the data.
"""

from __future__ import annotations

import pytest

from lan.bridge import Switch, Wired
from lan.device import PATIENCE_S
from lan.intact import clean_logs
from lan.watching import everyone_trains, key_of, sessions

pytestmark = [pytest.mark.lan]

COUNT = 4
LEARNT = 0.3  # guessing gives 0.1
PARCELS = 10  # from each neighbor
RATES = {"a2cid2": "0.05", "power-gossip": "0.05", "detag": "0.15"}  # DeTAG steps once in a phase of rounds
NAMES = tuple(RATES)


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
    lan.wait("each has averaged with each neighbor", lambda: min(parcels(devices)) >= PARCELS)
    clean_logs(lan)


def parcels(devices: list[Wired]) -> list[int]:
    """Of each device in each session: from its two neighbors, the fewer. A sponsor's model is one, too."""
    seen = [[k["parcels"] for k in s["links"] if k["direction"] == "in"] for s in sessions(devices)]
    return [sorted(of_one)[-2] for of_one in seen]


def accuracies(devices: list[Wired]) -> list[float]:
    return [session["metrics"].get("accuracy", 0.0) for session in sessions(devices)]
