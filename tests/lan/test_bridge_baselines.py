"""What the others are measured against, between real devices: three of them, in six sessions at once."""

from __future__ import annotations

import pytest

from lan.bridge import Switch
from lan.intact import clean_logs, finite, nothing_refused
from lan.watching import begin_all, distances, everyone_trains, rounds_later, sessions, well

pytestmark = [pytest.mark.lan]

COUNT = 3
ROUNDS = 20
CLOSE = 0.3  # to the mean of all three minima, from which each of them is 0.82 away
NAMES = ("d2", "dsgt", "choco-sgd", "qg-d-psgd", "ad-psgd", "all-reduce")


def test_each_trains_and_brings_the_models_together(lan: Switch) -> None:
    devices = begin_all(lan, COUNT, {name: terms(name) for name in NAMES})
    lan.wait("all train", lambda: everyone_trains(devices))
    assert {session["algorithm"] for session in sessions(devices)} == set(NAMES)
    rounds_later(lan, ROUNDS, devices)
    lan.wait("models are close", lambda: max(distances(devices)) < CLOSE)
    clean_logs(lan)
    finite(devices)
    nothing_refused(devices)
    well(devices)


def terms(name: str) -> tuple[str, ...]:
    if name == "all-reduce":
        return "--algorithm", name, "--topology", "complete", "--option", "parts=on"
    return "--algorithm", name, "--topology", "ring"
