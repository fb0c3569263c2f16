"""When a learner makes a sketch: each 10 s or so, at rounds that its neighbors choose too."""

from __future__ import annotations

import torch

from peer.learner.sketching import SHARE, SKETCH_S, Sketching
from peer.sketch import is_body

MODEL = torch.arange(64.0)


class Clock:
    """Virtual; each look may take time."""

    def __init__(self, per_look: float = 0.0) -> None:
        self.now, self.per_look = 0.0, per_look

    def __call__(self) -> float:
        self.now += self.per_look
        return self.now


def rounds_of(sketching: Sketching, clock: Clock, round_s: float, rounds: range) -> list[int]:
    made = []
    for round_ in rounds:
        clock.now += round_s
        if sketching.is_due(round_):
            fields = sketching.made(MODEL, round_)
            assert is_body(fields["sketch"])
            assert fields["sketch_round"] == round_
            made.append(round_)
    return made


def test_it_is_made_at_the_same_rounds_by_devices_of_about_one_pace() -> None:
    clock = Clock()
    made = rounds_of(Sketching("home", b"", clock), clock, 0.3, range(1000))
    assert made[2:] == [r for r in range(64, 1000) if r % 64 == 0]  # 64 rounds of 0.3 s are 19 s
    other = Clock()
    slower = rounds_of(Sketching("home", b"", other), other, 0.9, range(1000))
    assert set(made[2:]) <= set(slower)  # each 16


def test_rounds_that_are_longer_than_the_interval_each_have_one() -> None:
    clock = Clock()
    assert rounds_of(Sketching("home", b"", clock), clock, 30.0, range(5)) == list(range(5))


def test_rounds_that_become_slow_do_not_wait_for_a_far_multiple() -> None:
    clock = Clock()
    sketching = Sketching("home", b"", clock)
    rounds_of(sketching, clock, 0.01, range(3000))
    began = clock.now
    made = rounds_of(sketching, clock, 5.0, range(3000, 3020))
    assert made, "within 100 s of rounds of 5 s"
    assert clock.now - began <= 100.0


def test_a_round_that_was_jumped_over_is_made_up_for() -> None:
    clock = Clock()
    sketching = Sketching("home", b"", clock)
    rounds_of(sketching, clock, 1.0, range(17))
    clock.now += 1.0
    assert sketching.is_due(35)
    assert sketching.is_due(3), "a new life begins at an earlier one"


def test_what_is_slow_to_make_is_made_seldom() -> None:
    clock = Clock(per_look=1.0)
    sketching = Sketching("home", b"", clock)
    made = rounds_of(sketching, clock, 1.0, range(2000))
    assert len(made) < 2 + 2000 * 2 * SHARE, "a look takes a second: SKETCH_S would be too often"
    assert SKETCH_S < 1.0 / SHARE


def test_a_model_that_is_not_finite_is_not_told() -> None:
    assert Sketching("home", b"", Clock()).made(torch.full((64,), torch.nan), 0) == {}
