"""What keeps a node that is short of weight from running away, and leaves others as the papers have them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.swarm import F64, randoms
from peer.algorithms import make
from peer.algorithms.base import Links
from peer.algorithms.push_sum import GUARD, OFF, Guard, PushSum
from peer.algorithms.sgp import SGP
from peer.compression.bodies import Layout
from peer.events import FINAL, TRAIN, Key

LAYOUT = Layout((8, 4))
MODEL, U = randoms(2, LAYOUT.d, 1)
every_algorithm = pytest.mark.parametrize("name", ["sgp", "sparse-push", "difference-push"])


def begun(name: str, weight: float, **options: str) -> PushSum:
    one = make(name, options, LAYOUT, F64)
    assert isinstance(one, PushSum)
    one.know(MODEL)
    one.begin(MODEL, weight)
    return one


def alone(round_: int, mean_weight: float) -> Links:
    return Links(Key(0, round_), {}, frozenset(), 2, mean_weight)


def to_one(round_: int, phase: int = TRAIN) -> Links:
    return Links(Key(0, round_, phase), {"1": 0.5}, frozenset(), 2, 1.0, frozenset({"1"}))


@every_algorithm
@given(light=st.floats(1e-9, 0.8), mean=st.floats(1e-3, 1e3))
def test_a_light_nodes_model_moves_at_most_overshoot_times_its_local_change(
    name: str, light: float, mean: float
) -> None:
    one = begun(name, light * mean)
    one.step(U, 0.1, alone(1, mean), 0.0)
    moved = float((one.mix() - MODEL).norm() / U.norm())
    assert moved <= 1.25 * (1 + 1e-9)
    assert moved == pytest.approx(min(1.25, 1 / light), rel=1e-6)


@every_algorithm
@given(near=st.floats(0.8, 50.0), mean=st.floats(1e-3, 1e3))
def test_weights_near_the_mean_and_above_are_not_touched(name: str, near: float, mean: float) -> None:
    """x += w̄ u exactly."""
    one = begun(name, near * mean * (1 + 1e-12))
    x = one.x.clone()
    one.step(U, 0.1, alone(1, mean), 0.0)
    assert torch.equal(one.x, x + mean * U)


def test_a_light_node_moves_by_its_own_change_again_and_again_and_never_runs_away() -> None:
    """Without the guard the same 50 rounds of a node at a twentieth of the mean move it 20 times as far."""
    ends = {}
    for guard in (GUARD, OFF):
        one = SGP(LAYOUT, F64, guard=guard)
        one.begin(MODEL, 0.05)
        for t in range(50):
            one.step(U, 0.1, alone(t, 1.0), 0.0)
        ends[guard] = float((one.mix() - MODEL).norm() / U.norm())
    assert ends[GUARD] == pytest.approx(1.25 * 50)
    assert ends[OFF] == pytest.approx(20 * 50)


def test_a_light_node_does_not_push_itself_below_the_limit() -> None:
    """Or one that hears nothing would soon have no weight left to move by."""
    one = SGP(LAYOUT, F64)
    one.begin(MODEL, 1.0)
    for t in range(20):
        messages = one.step(torch.zeros_like(MODEL), 0.1, to_one(t), 0.0)
        assert set(messages) == {"1"}, "its neighbor waits for a message of each round"
    assert one.w == pytest.approx(GUARD.min_weight)
    torch.testing.assert_close(one.mix(), MODEL)


def test_the_final_rounds_average_without_a_limit() -> None:
    one = SGP(LAYOUT, F64)
    one.begin(MODEL, 0.1)
    assert one.step(torch.zeros_like(MODEL), 0.0, to_one(1, FINAL), 0.0)["1"].weight == 0.05


def test_off_is_the_paper() -> None:
    one = SGP(LAYOUT, F64, guard=OFF)
    one.begin(MODEL, 0.01)
    x = one.x.clone()
    message = one.step(U, 0.1, to_one(1), 0.0)["1"]
    assert message.weight == 0.005
    torch.testing.assert_close(one.x + message.body.dense(), x + U, rtol=1e-15, atol=0)


@every_algorithm
def test_options_name_the_guard(name: str) -> None:
    assert begun(name, 1.0).guard == GUARD
    assert begun(name, 1.0, **{"min-weight": "0", "overshoot": "1e9"}).guard == Guard(0.0, 1e9)
    assert Guard(0.0, math.inf) == OFF
