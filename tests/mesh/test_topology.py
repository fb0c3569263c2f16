"""Topologies are the same on every node, column-stochastic, and connect everybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import UsageError
from peer.graphs import grid_shape
from peer.mesh.topology import (
    cycle,
    final_rounds,
    final_spec,
    in_neighbors,
    out_neighbors,
    parse,
)

SPECS = ("ring", "exponential", "random-1", "random-2", "complete", "grid")


def peers(n: int) -> tuple[str, ...]:
    return tuple(f"p-{i:03d}" for i in range(n))


def matrix(spec: str, n: int, round_: int, seed: int = 0) -> list[list[float]]:
    """W[i][j]: what i gets of what j has."""
    view = peers(n)
    w = [[0.0] * n for _ in view]
    for j, src in enumerate(view):
        out = out_neighbors(spec, view, src, round_, seed)
        w[j][j] = 1.0 - sum(out.values())
        for dst, share in out.items():
            w[view.index(dst)][j] = share
    return w


def push_sum(spec: str, values: list[float], rounds: int, seed: int = 0) -> list[float]:
    n = len(values)
    x, weights = list(values), [1.0] * n
    for r in range(rounds):
        w = matrix(spec, n, r, seed)
        x = [sum(w[i][j] * x[j] for j in range(n)) for i in range(n)]
        weights = [sum(w[i][j] * weights[j] for j in range(n)) for i in range(n)]
    return [a / b for a, b in zip(x, weights, strict=True)]


@given(st.sampled_from(SPECS), st.integers(2, 40), st.integers(0, 1000), st.integers(0, 2**64 - 1))
def test_column_sums_stay_1_with_uniform_weights(spec: str, n: int, round_: int, seed: int) -> None:
    for me in peers(n):
        out = out_neighbors(spec, peers(n), me, round_, seed)
        assert me not in out and out
        assert set(out.values()) == {1.0 / (len(out) + 1)}


@given(st.sampled_from(SPECS), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 99))
def test_in_neighbors_are_those_whose_out_neighbors_include_me(
    spec: str, n: int, round_: int, seed: int
) -> None:
    view = peers(n)
    for me in view:
        senders = tuple(src for src in view if me in out_neighbors(spec, list(view), src, round_, seed))
        assert in_neighbors(spec, view, me, round_, seed) == senders


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 16, 33])
def test_the_union_over_a_cycle_is_strongly_connected(spec: str, n: int) -> None:
    view = peers(n)
    for forward in (True, False):
        reached, frontier = {view[0]}, [view[0]]
        while frontier:
            peer = frontier.pop()
            for r in range(cycle(spec, n)):
                ask = out_neighbors if forward else in_neighbors
                for other in ask(spec, view, peer, r, 7):
                    if other not in reached:
                        reached.add(other)
                        frontier.append(other)
        assert reached == set(view)


def test_exponential_hops_are_the_powers_of_two_below_n() -> None:
    view = peers(6)
    hops = [view.index(next(iter(out_neighbors("exponential", view, view[0], r, 0)))) for r in range(6)]
    assert hops == [1, 2, 4, 1, 2, 4]
    assert [cycle("exponential", n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_a_grid_is_a_torus_as_square_as_can_be_and_a_ring_where_n_is_prime() -> None:
    assert [grid_shape(n) for n in (1, 2, 4, 12, 13, 16, 22)] == [
        (1, 1),
        (1, 2),
        (2, 2),
        (3, 4),
        (1, 13),
        (4, 4),
        (2, 11),
    ]
    view = peers(12)
    assert sorted(out_neighbors("grid", view, view[7], 0, 0)) == [view[4], view[11]]  # right and down
    assert in_neighbors("grid", view, view[7], 0, 0) == (view[3], view[6])
    assert out_neighbors("grid", peers(13), view[7], 0, 0) == out_neighbors("ring", peers(13), view[7], 0, 0)


@pytest.mark.parametrize(("n", "rounds"), [(2, 1), (4, 2), (8, 3), (16, 4)])
def test_exponential_averages_exactly_in_log2_n_rounds_and_no_sooner(n: int, rounds: int) -> None:
    values = [float(i * i) for i in range(n)]
    mean = sum(values) / n
    assert final_rounds("exponential", n) == rounds
    assert push_sum("exponential", values, rounds) == pytest.approx([mean] * n, rel=1e-12)
    assert push_sum("exponential", values, rounds - 1) != pytest.approx([mean] * n, rel=1e-3)


@pytest.mark.parametrize("spec", ["ring", "exponential", "complete", "grid"])
def test_circulant_topologies_are_doubly_stochastic(spec: str) -> None:
    for r in range(4):
        assert [sum(row) for row in matrix(spec, 8, r)] == pytest.approx([1.0] * 8)


@pytest.mark.parametrize(
    ("spec", "n", "left"),
    [("ring", 2, 1e-9), ("ring", 8, 1e-9), ("grid", 16, 1e-9), ("random-2", 16, 1e-9), ("complete", 7, 1e-9)]
    + [("exponential", n, 0.3) for n in (3, 5, 6, 7, 12)]
    + [("ring", n, 0.1) for n in (3, 5, 6, 7, 13)],
)
def test_final_rounds_leave_no_more_than_promised_of_the_spread(spec: str, n: int, left: float) -> None:
    values = [float((i * 7) % n) for i in range(n)]
    for seed in range(5):
        z = push_sum(final_spec(spec), values, final_rounds(spec, n), seed)
        assert max(z) - min(z) <= left * (max(values) - min(values))


def test_random_draws_change_with_round_seed_and_node_and_are_uniform() -> None:
    view = peers(20)
    draws = [tuple(out_neighbors("random-2", view, view[3], r, 1)) for r in range(2000)]
    assert all(len(set(draw)) == 2 and view[3] not in draw for draw in draws)
    times = {peer: sum(peer in draw for draw in draws) for peer in view if peer != view[3]}
    assert all(140 < count < 290 for count in times.values())  # 2000 * 2 / 19 = 210 +- 14
    other = [tuple(out_neighbors("random-2", view, view[3], r, 2)) for r in range(2000)]
    assert draws != other
    # the same on every device and Python, so written down
    assert sorted(out_neighbors("random-2", view, view[3], 5, 1)) == ["p-006", "p-007"]


@pytest.mark.parametrize("spec", SPECS)
def test_alone_or_outside_of_the_view_there_is_nobody(spec: str) -> None:
    assert out_neighbors(spec, ("a",), "a", 3, 0) == {}
    assert out_neighbors(spec, ("a", "b"), "c", 3, 0) == {}
    assert in_neighbors(spec, ("a", "b"), "c", 3, 0) == ()
    assert out_neighbors(spec, ("a", "b"), "a", 3, 0) == {"b": 0.5}
    assert final_rounds(spec, 1) == 0


def test_an_unknown_topology_is_refused_by_naming_those_there_are() -> None:
    for spec in ("star", "random", "random-", "random-0", "random-x", "ring-2", ""):
        with pytest.raises(UsageError, match="ring, exponential, random-K, complete"):
            parse(spec)
    assert parse("random-3") == ("random", 3)
