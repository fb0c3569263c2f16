"""Where rounds close: by the learning rate that has summed up, and every H steps where it is constant."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.config import Descriptor
from peer.placing import GRID, LONGEST, Placing, placed_by
from peer.schedule import Schedule


def session(**changes: Any) -> Descriptor:
    plain: dict[str, Any] = {"name": "home", "nonce": "00" * 16, "rounds": 128, "local_steps": 16}
    return Descriptor(**{**plain, **changes})


def ends(placing: Placing) -> list[int]:
    return [placing.first(r + 1) for r in range(placing.rounds)]


def test_a_round_closes_when_its_share_of_the_whole_rate_is_reached() -> None:
    placing, schedule = Placing.of(session()), Schedule.of({}, 2048)
    factors = [schedule.factor(step) for step in range(2048)]
    least = sum(factors) / 2048 / LONGEST
    sums = list(accumulate(max(factor, least) for factor in factors))
    for r, end in enumerate(ends(placing)):
        goal = (r + 1) / 128 * sums[-1]
        assert sums[end - 1] == pytest.approx(goal, abs=1.001), "the step that reaches it, and no later one"
        assert sums[end - 1] >= goal - 1e-3
    at_peak = [placing.steps(r) for r in range(10, 60)]
    assert set(at_peak) <= {11, 12}  # 0.7 H, as was measured
    assert placing.steps(127) > 32


@pytest.mark.parametrize("options", [{"schedule": "constant"}, {"algorithm.placing": "steps"}])
def test_at_a_constant_rate_or_when_asked_for_it_is_every_h_steps(options: dict[str, str]) -> None:
    placing = Placing.of(session(options=options))
    assert ends(placing) == list(range(16, 2049, 16))


def test_sessions_without_an_end_and_other_algorithms_count_steps() -> None:
    assert Placing.of(session(rounds=0)).first(1000) == 16_000
    assert {Placing.of(session(algorithm="sgp")).steps(r) for r in range(128)} == {16}


@pytest.mark.parametrize("option", ["task.logit-adjustment", "task.not-true-distillation"])
def test_with_skewed_labels_it_counts_steps_unless_told_otherwise(option: str) -> None:
    skewed = {option: "0.5"}
    assert placed_by("difference-push", {}) == "rate"
    assert placed_by("difference-push", {option: "0"}) == "rate"
    assert placed_by("difference-push", skewed) == "steps"
    assert placed_by("difference-push", {**skewed, "algorithm.placing": "rate"}) == "rate"
    assert placed_by("sgp", {}) == "steps"


@given(
    rounds=st.integers(1, 400),
    local_steps=st.integers(1, 40),
    warmup=st.integers(0, 500),
    kind=st.sampled_from(["cosine", "step"]),
    decay=st.sampled_from(["0.75:0.1,0.9:0.1", "0.01:0.000001", "0.5:0.5"]),
)
def test_every_round_has_a_step_and_all_of_them_all_steps(
    rounds: int, local_steps: int, warmup: int, kind: str, decay: str
) -> None:
    options = {"schedule": kind, "warmup": str(warmup), "lr-decay": decay}
    placing = Placing.of(session(rounds=rounds, local_steps=local_steps, options=options))
    found = ends(placing)
    assert placing.first(0) == 0 and found[-1] == rounds * local_steps
    assert all(placing.steps(r) >= 1 for r in range(rounds + 2))
    for step in range(0, rounds * local_steps + 1, max(1, rounds // 7)):
        assert placing.closed(step) == sum(end <= step for end in found)


def test_a_session_of_any_length_is_placed_by_a_bounded_table() -> None:
    rounds = 1 << 30
    placing = Placing.of(session(rounds=rounds))
    assert placing.first(rounds) == 16 * rounds
    assert placing.first(rounds // 2) / placing.first(rounds) == pytest.approx(0.378, abs=1e-3)
    assert placing.closed(placing.first(12345) - 1) == 12344
    assert math.isclose(placing.steps(1 << 20), 12, abs_tol=1)
    assert len(placing._sums) <= GRID + 1


def test_no_round_is_much_longer_than_twice_the_mean() -> None:
    placing = Placing.of(session(rounds=128))
    lengths = [placing.steps(round_) for round_ in range(128)]
    assert sum(lengths) == 2048 and 8 <= min(lengths) < 16 < max(lengths) <= 1 + 2.3 * 16
