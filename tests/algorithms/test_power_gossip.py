"""PowerGossip: the paper's claims, what it costs, and what becomes of an edge when messages are lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.edges import F64, Edges
from peer.algorithms import factors, make
from peer.algorithms.base import Links
from peer.algorithms.factors import Draws, Tensors, change, orthonormal
from peer.algorithms.power_gossip import PowerGossip, best_diffusion
from peer.compression.bodies import Dense, Empty, Layout, Portion
from peer.compression.codec import encode
from peer.errors import RemoteError
from peer.events import FINAL, Key
from peer.graphs import Graph

LAYOUT = Layout((48, 6, 35, 5), (8, 1, 5, 1))  # 8 x 6 and 5 x 7 are factored at rank 1 and 2
MATRICES = Layout((48, 35), (8, 5))


def models(n: int, d: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, d, generator=g, dtype=F64))


def swarm(
    n: int = 5,
    spec: str = "ring",
    layout: Layout = LAYOUT,
    *,
    seed: int = 0,
    dtype: torch.dtype = F64,
    rank: int = 1,
    iterations: int = 1,
    diffusion: float | None = 1.0,
    warm: bool = True,
) -> Edges:
    words = {"iterations": iterations, "diffusion": diffusion, "warm": warm}
    nodes = [PowerGossip(layout, dtype, rank=rank, **words) for _ in range(n)]  # type: ignore[arg-type]
    start = [model.to(dtype) for model in models(n, layout.d, seed)]
    return Edges(nodes, layout, spec, seed).begin(start, torch.zeros(layout.d, dtype=dtype))


def spread(X: Tensor) -> float:
    return float(((X - X.mean(0)) ** 2).sum() / len(X))


# --- the paper's claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "n", "s"),
    [("ring", 5, 1), ("complete", 4, 1), ("exponential", 6, 2), ("grid", 6, 1), ("chain", 4, 2)],
)
def test_the_mean_is_preserved_and_models_come_together(spec: str, n: int, s: int) -> None:
    run = swarm(n, spec, iterations=s)
    start = torch.stack(models(n, LAYOUT.d, 0))
    after = run.run(60 // s)
    for X in after:
        torch.testing.assert_close(X.mean(0), start.mean(0), rtol=0, atol=1e-14)
    assert spread(after[-1]) < 0.05 * spread(start)
    final = run.average()
    torch.testing.assert_close(final, start.mean(0).expand_as(final), rtol=0, atol=1e-14)


def test_three_iterations_in_a_round_are_three_rounds_of_one() -> None:
    ones = swarm(layout=MATRICES).run(10)
    threes = swarm(layout=MATRICES, iterations=3).run(4)
    for t in range(1, 4):
        torch.testing.assert_close(threes[t], ones[3 * t], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_warm_start_beats_a_cold_one(seed: int) -> None:
    warm, cold = (swarm(seed=seed, warm=warm).run(40)[-1] for warm in (True, False))
    assert spread(warm) < 0.5 * spread(cold)


def test_at_full_rank_it_is_gossip_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "factored", lambda shape, rank: min(shape) > 1)
    run = swarm(rank=8)
    before = torch.stack(models(5, LAYOUT.d, 0))
    W = torch.tensor([[1 / 3 * ((i - j) % 5 in (0, 1, 4)) for j in range(5)] for i in range(5)], dtype=F64)
    first, second = run.run(2)  # the first is for the other tensors alone
    torch.testing.assert_close(first[:, :48], before[:, :48], rtol=0, atol=0)
    torch.testing.assert_close(first[:, 48:54], W @ before[:, 48:54])
    torch.testing.assert_close(second[:, :48], W @ before[:, :48], rtol=0, atol=1e-6)
    torch.testing.assert_close(second[:, 48:54], W @ W @ before[:, 48:54])


def test_the_best_diffusion_is_that_of_the_graph() -> None:
    """1.308 on a ring of 8 is what the authors ran with."""
    assert best_diffusion(Graph("ring", 8, 0)) == pytest.approx(1.30839, abs=1e-5)
    assert best_diffusion(Graph("complete", 5, 0)) == 1.0
    assert best_diffusion(Graph("chain", 2, 0)) == 1.0
    assert best_diffusion(Graph("chain", 1, 0)) == 1.0
    best = swarm(8, diffusion=None, rank=2)
    plain = swarm(8, rank=2)
    assert spread(best.run(30)[-1]) < spread(plain.run(30)[-1])
    assert best.nodes[0].g == pytest.approx(1.30839, abs=1e-5)


# --- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("rank", "s"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_bytes_are_those_of_the_formula(rank: int, s: int, dtype: torch.dtype) -> None:
    """s rank sum(m + k) / 2 numbers of products in a round, on the average, and the other tensors once."""
    m, k, others = 8 + 5, 6 + 7, 6 + 5
    run = swarm(rank=rank, iterations=s, dtype=dtype)
    run.run(1)
    run.sent.clear()
    rounds = 4
    run.run(rounds)
    sent = [message for i, j, message in run.sent if (i, j) == (1, 2)]
    assert len(sent) == rounds * s
    framing = len(encode(sent[0], LAYOUT)) - dtype.itemsize * sent[0].body.values.numel()  # type: ignore[union-attr]
    assert framing < 80
    numbers = rounds * (s * rank * (m + k) // 2 + others)
    assert sum(len(encode(one, LAYOUT)) for one in sent) == dtype.itemsize * numbers + framing * len(sent)


def test_tensors_go_as_they_are_where_factors_are_not_smaller() -> None:
    tensors = Tensors(Layout((640, 432, 10, 64), (10, 16, 10, 1)), 1)
    assert [(one.rows, one.columns) for one in tensors.matrices] == [(10, 64), (16, 27)]
    assert tensors.plain_size == 74
    assert Tensors(Layout((6, 4), (2, 2)), 2).matrices == ()


def test_without_matrices_it_is_d_psgd_that_takes_no_more_messages() -> None:
    run = swarm(layout=Layout((7, 3)), iterations=4)
    run.run(5)
    assert len(run.sent) == 5 * 10


# --- edges -------------------------------------------------------------------------------------------------


def test_a_dead_edge_comes_to_life_when_models_part() -> None:
    """While models are equal every product is zero."""
    run = swarm()
    for node in run.nodes:
        node.begin(torch.ones(LAYOUT.d, dtype=F64), 1.0)
    run.run(6)
    parted = iter(models(5, LAYOUT.d, 3))
    before = run.run(1, lambda i, x, t: next(parted))[-1]
    assert spread(before) > 1
    assert spread(run.run(40)[-1]) < 0.02 * spread(before)


def test_columns_that_have_become_nothing_are_drawn_anew() -> None:
    draws = Draws(b"salt", 0, 1, 0)
    v = np.array([3.0, 4.0, 0.0, 0.0])
    for column in (0 * v, 2 * v, 2 * v + 1e-9, 1e-9 * v, np.full(4, 5e-324)):
        V = orthonormal(np.stack([v, column], axis=1), lambda c: draws.column(1, 0, c, 4))
        torch.testing.assert_close(torch.from_numpy(V.T @ V), torch.eye(2, dtype=F64), rtol=0, atol=1e-7)
        assert V[:, 0] == pytest.approx([0.6, 0.8, 0, 0])


def test_every_edge_and_number_has_draws_of_its_own() -> None:
    """Their names are not run together: 1 with 112 is not 11 with 12."""
    drawn = [
        Draws(b"salt", lo, hi, number).factor(1, which, 8, 1).tobytes()
        for lo, hi in ((1, 112), (11, 12), (0, 1))
        for number in (0, 1)
        for which in (0, 1)
    ]
    assert len(set(drawn)) == len(drawn)
    run = swarm()
    run.run(2)
    assert run.nodes[0].edges["1"].check == run.nodes[1].edges["0"].check
    assert run.nodes[0].edges["1"].check != run.nodes[0].edges["4"].check


def test_both_ends_add_the_same_bits() -> None:
    inputs, outputs = (tuple(np.random.default_rng(i).normal(size=(5, 2)) for _ in "ab") for i in (1, 2))
    for it in (3, 4):
        up, down = (change(inputs, outputs, it, rate, None, torch.float32) for rate in (0.3, -0.3))
        for which in range(2):
            assert torch.equal(up.P[which] * up.Q[which], -(down.P[which] * down.Q[which]))


def test_what_is_left_of_drift_is_the_models_own_rounding() -> None:
    run = swarm(dtype=torch.float32)
    start = torch.stack([node.estimate() for node in run.nodes]).double().mean(0)
    end = torch.stack([node.estimate() for node in run.nodes]).double()
    for X in run.run(200):
        end = X.double()
    assert spread(end) < 1e-8
    torch.testing.assert_close(end.mean(0), start, rtol=0, atol=3e-6)


def test_an_edge_that_is_late_does_not_hold_up_the_others() -> None:
    """Node 3 says nothing for a while, and its neighbors' rounds are closed without it."""
    run = swarm(5, "complete", iterations=2)
    run.run(4)
    run.settle()
    before = torch.stack([node.estimate() for node in run.nodes])
    zero, silent = torch.zeros(LAYOUT.d, dtype=F64), run.nodes[3]
    for t in range(4, 12):
        for i in (0, 1, 2, 4):
            links = run.links(i, t)
            run.push(i, run.nodes[i].step(zero, 0.1, replace(links, expected=links.expected - {"3"}), 0.0))
        while busy := [key for key in run.busy() if 3 not in key]:
            run.move(*busy[0])
        assert all(run.nodes[i].ready() for i in (0, 1, 2, 4))
        assert {j for i in (0, 1, 2, 4) for j, one in run.nodes[i].edges.items() if one.due} == {"3"}
        for i in (0, 1, 2, 4):
            run.nodes[i].mix()
    after = torch.stack([node.estimate() for node in run.nodes])
    four = [0, 1, 2, 4]
    assert torch.equal(after[3], before[3])
    assert spread(after[four]) < 0.1 * spread(before[four])
    torch.testing.assert_close(run.sum(), before.sum(0), rtol=0, atol=1e-13)
    run.round = 12
    assert silent.edges["0"].it < run.nodes[0].edges["1"].it
    assert spread(run.run(20)[-1]) < 0.01 * spread(after)
    torch.testing.assert_close(run.sum(), before.sum(0), rtol=0, atol=1e-13)
    assert run.refused == 0


# --- when messages are lost --------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "n", "s"), [("ring", 5, 1), ("complete", 4, 2), ("exponential", 6, 3)])
def test_the_sum_changes_by_local_steps_alone_whatever_links_do(spec: str, n: int, s: int) -> None:
    """Links end with messages on their way, rounds are closed without some, and generations change in the
    middle of all that."""
    run = swarm(n, spec, iterations=s)
    run.faults, run.gives_up = 0.03, 0.02
    start = sum(models(n, LAYOUT.d, 0), torch.zeros(LAYOUT.d, dtype=F64))
    g = torch.Generator().manual_seed(0)
    for k in range(8):
        run.run(4, lambda i, x, t: 0.01 * torch.randn(LAYOUT.d, generator=g, dtype=F64))
        torch.testing.assert_close(run.sum(), start + run.own, rtol=0, atol=1e-12)
        if k % 3 == 2:
            run.generations = [one + 1 for one in run.generations]
    assert run.refused > 0
    run.faults, run.gives_up = 0.0, 0.01
    before, refused = run.run(8)[-1], run.refused
    assert spread(run.run(40)[-1]) < 0.2 * spread(before)
    assert run.refused == refused, "both ends of every edge agree again"
    final = run.average()
    torch.testing.assert_close(final.sum(0), start + run.own, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, final[:1].expand_as(final), rtol=0, atol=1e-12)


def test_who_is_on_another_generation_is_kept_waiting_or_gets_its_messages_back() -> None:
    run = swarm(3, "complete")
    run.run(3)
    run.generations = [2, 2, 1]
    zero = torch.zeros(LAYOUT.d, dtype=F64)
    total = run.sum()
    for i in range(3):
        run.push(i, run.nodes[i].step(zero, 0.1, run.links(i, 3), 0.0))
    run.settle()
    assert run.refused == 2  # of 2, at 0 and 1
    torch.testing.assert_close(run.sum(), total, rtol=0, atol=1e-13)
    run.nodes[2].mix()
    run.generations = [2, 2, 2]
    run.push(2, run.nodes[2].step(zero, 0.1, run.links(2, 4), 0.0))
    run.settle()
    assert all(node.ready() for node in run.nodes)
    assert run.refused == 2
    torch.testing.assert_close(run.sum(), total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_end_that_begins_a_new_life_is_gossiped_with_again(seed: int) -> None:
    """It takes the half along that it had done; nothing else is lost, and the edge goes by a new number."""
    run = swarm(4, "ring", seed=seed, iterations=2)
    run.gives_up = 0.01
    run.run(5)
    run.crash(2, PowerGossip(LAYOUT, F64, iterations=2), 3 + run.nodes[2].estimate())
    total = run.sum()
    X = run.run(10)[-1]
    refused = run.refused
    assert spread(run.run(40)[-1]) < 0.02 * spread(X)
    assert run.refused == refused
    torch.testing.assert_close(run.sum(), total, rtol=0, atol=1e-12)
    assert run.nodes[1].edges["2"].place == run.nodes[2].edges["1"].place
    assert run.nodes[1].edges["2"].place.number > 0
    assert run.nodes[0].edges["1"].place.number == 0


def test_ends_with_other_factors_notice_and_begin_again() -> None:
    run = swarm()
    run.gives_up = 0.01
    run.run(6)
    edge = run.nodes[1].edges["2"]
    edge.inputs = tuple(-V for V in edge.inputs)
    edge.check = factors.check_of(edge.inputs)
    total = run.sum()
    X = run.run(4)[-1]
    assert run.refused > 0
    refused = run.refused
    assert run.nodes[1].edges["2"].place.number == run.nodes[2].edges["1"].place.number > 0
    assert spread(run.run(40)[-1]) < 0.1 * spread(X)
    assert run.refused == refused
    torch.testing.assert_close(run.sum(), total, rtol=0, atol=1e-12)


def test_a_message_that_nobody_sends_is_the_neighbors_fault() -> None:
    run = swarm()
    run.run(4)
    i, j, message = run.sent[-1]
    node = run.nodes[j]
    assert isinstance(message.body, Portion)
    wrong = [
        replace(message, delivery="latest"),
        replace(message, key=Key(1, 3, FINAL)),
        replace(message, base=message.base[:-1]),
        replace(message, base=b"\xff" * len(message.base)),
        replace(message, body=Empty(LAYOUT.d, F64)),
        replace(message, body=Portion(LAYOUT.d, message.body.values[1:])),
        replace(message, body=Dense(torch.zeros(LAYOUT.d, dtype=F64))),
        replace(message, meaning=99),
    ]
    for one in wrong:
        with pytest.raises(RemoteError):
            node.receive(str(i), one, 0.0)


def test_its_options_are_taken() -> None:
    words = {"rank": "3", "iterations": "2", "diffusion": "auto", "warm-start": "off"}
    node = make("power-gossip", words, LAYOUT, F64)
    assert isinstance(node, PowerGossip)
    assert (node.s, node.diffusion, node.warm) == (2, None, False)
    assert [one.rank for one in node.tensors.matrices] == [3]
    node = make("power-gossip", {"diffusion": "1.3"}, LAYOUT, F64)
    assert isinstance(node, PowerGossip)
    assert (node.g, node.s, node.warm) == (1.3, 1, True)


def test_a_round_that_closes_under_a_later_one_keeps_its_local_steps() -> None:
    node = swarm(2).nodes[0]
    start, one = node.estimate().clone(), torch.ones(LAYOUT.d, dtype=F64)
    for round_ in (1, 2, 3):
        links = Links(
            Key(1, round_), {"1": 0.5}, frozenset("1"), 2, clear=frozenset("1"), graph=Graph("ring", 2, 0)
        )
        node.step(one, 0.1, links, 0.0)
    torch.testing.assert_close(node.mix(), start + 3 * one, rtol=0, atol=1e-14)
