"""DeTAG, DSGT and D2: an oracle's trajectories, what the papers claim, and what ports of them got wrong.

gossip.json holds the problem f_i(x) = sum_k a_ik (x_k - b_ik)^2 / 2 of an independent numpy program, on a
ring of 6 from x = 0, and all models after some updates at learning rate 0.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.meeting import F64, LR, Meeting, metropolis_of, still
from peer.algorithms import make
from peer.algorithms.d2 import D2, allowed
from peer.algorithms.detag import DeTAG, fitted, rounds_for
from peer.algorithms.gradient_tracking import DSGT
from peer.algorithms.lossless import Lossless
from peer.algorithms.spectrum import accelerated, eigenvalues, left_over, slowest
from peer.compression.bodies import Layout
from peer.graphs import Graph, adjacency
from reference import tracking
from reference.d_psgd import d_psgd_round
from reference.defacto import defacto, factors

FOUND: dict[str, Any] = json.loads(Path(__file__).with_name("gossip.json").read_text())
Made = Callable[[Layout], Lossless]


class Problem:
    """n quadratics of d coordinates each."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        self.optimum = (a * b).sum(0) / a.sum(0)
        self.n, self.layout = len(a), Layout((a.shape[1],))

    @classmethod
    def draw(cls, n: int, d: int = 4) -> Problem:
        g = torch.Generator().manual_seed(n)
        a, b = torch.rand(2, n, d, generator=g, dtype=F64)
        return cls(0.5 + 1.5 * a, 10 * b - 5)

    def gradients(self, X: Tensor) -> Tensor:
        return self.a * (X - self.b)

    def update(self, lr: float = LR) -> Callable[[int, Tensor, int], Tensor]:
        return lambda i, x, t: -lr * self.a[i] * (x - self.b[i])

    def error(self, X: Tensor) -> float:
        return float(((X - self.optimum) ** 2).sum(1).mean())

    def meeting(
        self, made: Made, spec: str = "ring", W: Tensor | None = None, *, lr: float = LR, seed: int = 0
    ) -> Meeting:
        nodes = {i: made(self.layout) for i in range(self.n)}
        swarm = Meeting(nodes, self.layout, spec, W, seed=seed, lr=lr, late=0.1)
        return swarm.begin([torch.zeros(self.layout.d, dtype=F64)] * self.n)

    def best(self, run: Callable[[float], Tensor]) -> float:
        """The least error over a grid of learning rates."""
        return min(self.error(run(lr)) for lr in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5))


ORACLE = Problem(torch.tensor(FOUND["a"], dtype=F64), torch.tensor(FOUND["b"], dtype=F64))
RING = Graph("ring", 6, 0).adjacency
START = torch.zeros(6, 4, dtype=F64)


def detag(**options: Any) -> Made:
    return lambda layout: DeTAG(layout, F64, **options)


def dsgt(layout: Layout) -> Lossless:
    return DSGT(layout, F64)


def d2(**options: Any) -> Made:
    return lambda layout: D2(layout, F64, **options)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- the oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "made", "known", "exchanges"),
    [
        ("detag", detag(), True, 2),
        ("dsgt", dsgt, True, 1),
        ("d2", d2(lazy=False), False, 1),
        ("d2 lazy", d2(), True, 1),
    ],
)
def test_models_are_those_of_the_oracle(run: str, made: Made, known: bool, exchanges: int) -> None:
    """On the ring of 6, W itself is at -1/3 and D2 would not use it: it is handed weights alone."""
    swarm = ORACLE.meeting(made, W=None if known else metropolis_of("ring", 6))
    models = swarm.run(50 * exchanges, ORACLE.update())
    for t, expected in FOUND["runs"][run].items():
        same(models[int(t) * exchanges - 1], torch.tensor(expected, dtype=F64))


def test_constants_are_those_of_the_oracle() -> None:
    same(torch.tensor([slowest(RING), accelerated(slowest(RING))]),
         torch.tensor([FOUND["lambda"], FOUND["eta"]]))  # fmt: skip
    same(ORACLE.optimum, torch.tensor(FOUND["optimum"], dtype=F64))


@pytest.mark.parametrize(("spec", "n"), [("ring", 7), ("grid", 6), ("exponential", 5), ("complete", 4)])
def test_models_are_those_of_the_matrix_form(spec: str, n: int) -> None:
    problem, W = Problem.draw(n), metropolis_of(spec, n)
    X = torch.zeros(n, 4, dtype=F64)
    R, eta = fitted(Graph(spec, n, 0).adjacency, "auto", "auto")
    found = problem.meeting(detag(beta=0.5), spec).run(6 * R, problem.update())
    for got, form in zip(found[R - 1 :: R], tracking.detag(X, W, problem.gradients, LR, R, eta, 6, 0.5),
                         strict=True):  # fmt: skip
        same(got, form)
    for made, forms in (
        (dsgt, tracking.dsgt(X, W, problem.gradients, LR, 8)),
        (d2(), tracking.d2(X, (W + torch.eye(n)) / 2, problem.gradients, LR, 8)),
    ):
        for got, form in zip(problem.meeting(made, spec).run(8, problem.update()), forms, strict=True):
            same(got, form)


# --- what the papers claim -----------------------------------------------------------------------------


def test_the_models_come_to_the_minimum_where_those_of_d_psgd_stall() -> None:
    W, problem = metropolis_of("ring", 6), ORACLE

    def plain(lr: float) -> Tensor:
        X = START
        for _ in range(400):
            X = d_psgd_round(X, -lr * problem.gradients(X), W)
        return X

    assert problem.best(plain) > 1e-2
    for made, rounds in ((detag(), 200), (dsgt, 120), (d2(), 120)):
        found = problem.meeting(made).run(rounds, problem.update())
        assert problem.error(found[-1]) < 1e-6


def test_acceleration_takes_fewer_rounds_and_the_more_so_on_a_longer_ring() -> None:
    """The note's table, in small: 2 vectors a round both."""
    gains = []
    for n in (6, 16):
        problem, W, X = Problem.draw(n), metropolis_of("ring", n), torch.zeros(n, 4, dtype=F64)
        lam = slowest(adjacency("ring", n))
        R, eta = math.ceil(math.log(n) / 2 / math.sqrt(1 - lam)), accelerated(lam)
        rounds = [
            min(self_or_none(problem, tracking.detag(X, W, problem.gradients, lr, R, eta, 500 // R), R)
                for lr in (0.1, 0.2, 0.3, 0.5)),
            min(self_or_none(problem, tracking.dsgt(X, W, problem.gradients, lr, 500), 1)
                for lr in (0.02, 0.05, 0.1, 0.2, 0.3)),
        ]  # fmt: skip
        gains.append(rounds[1] / rounds[0])
    assert gains[0] > 1.2 and gains[1] > 2 and gains[1] > gains[0], gains


def self_or_none(problem: Problem, found: list[Tensor], R: int) -> float:
    """Rounds to an error of 1e-8."""
    return next((R * (k + 1) for k, X in enumerate(found) if problem.error(X) < 1e-8), math.inf)


def test_detag_with_one_round_and_no_acceleration_is_dsgt_one_step_later() -> None:
    one = ORACLE.meeting(detag(R=1, eta=0.0)).run(80, ORACLE.update())
    same(one[0], START)
    W, X = metropolis_of("ring", 6), START
    Y, G = torch.zeros_like(X), torch.zeros_like(X)
    for found in one:
        X, Y, G = W @ X - LR * W @ Y, W @ Y + ORACLE.gradients(X) - G, ORACLE.gradients(X)
        same(found, X)
    assert ORACLE.error(one[-1]) < 1e-5


@pytest.mark.parametrize("made", [detag(), detag(beta=0.6), dsgt])
def test_the_trackers_mean_is_the_gradients_mean_whatever_happens(made: Made) -> None:
    """After phases, in the middle of one, after an abort, a crash, a join."""
    swarm = ORACLE.meeting(made)
    update = ORACLE.update()

    def check() -> None:
        nodes = [node for node in swarm.nodes.values() if isinstance(node, DeTAG | DSGT)]
        y = torch.stack([node.y if isinstance(node, DeTAG) else node.Wy for node in nodes])
        g = torch.stack([node.v if isinstance(node, DeTAG) else node.g for node in nodes])
        same(y.mean(0), g.mean(0), 1e-12)

    swarm.run(8, update)
    check()
    swarm.run(1, update)
    swarm.new_generation()
    check()
    swarm.run(4, update)
    check()
    for i in (0, 3):  # in the middle of an exchange
        swarm.push(i, update)
    del swarm.nodes[2]
    swarm.new_generation()
    check()
    swarm.run(4, update)
    check()
    swarm.nodes[2] = made(ORACLE.layout)
    swarm.nodes = dict(sorted(swarm.nodes.items()))
    swarm.nodes[2].know(START[0])
    swarm.nodes[2].begin(swarm.nodes[1].estimate(), 1.0)
    swarm.new_generation()
    check()
    found = swarm.run(80, update)
    check()
    assert ORACLE.error(found[-1]) < 0.1 * ORACLE.error(START)


@pytest.mark.parametrize("made", [detag(R=3), dsgt, d2()])
def test_gossip_keeps_the_mean_of_the_models_though_an_exchange_is_dropped(made: Made) -> None:
    """Nobody has finished it when the generation changes: those beside a broken link, all of them."""
    problem = Problem.draw(3)
    swarm = problem.meeting(made)
    swarm.nodes = dict(swarm.nodes)
    for i, node in swarm.nodes.items():
        node.x = torch.full((4,), float(i), dtype=F64)
    mean = swarm.X.mean(0)
    for _ in range(4):
        swarm.run(2, still)
        swarm.broken = {(0, 1), (1, 2), (2, 0)}
        swarm.run(1, still)
        swarm.new_generation()
        swarm.broken.clear()
        same(swarm.X.mean(0), mean, 1e-12)
    assert float((swarm.run(12, still)[-1] - mean).abs().max()) < 1e-5


def test_defacto_is_centralized_sgd() -> None:
    """A reference: exact averages after as many rounds as the factors, none of which is a gossip matrix."""
    W = torch.eye(6, dtype=F64)
    for one in (many := factors(RING)):
        W = one @ W
    assert len(many) == 6, "twice the depth"
    same(W, torch.full((6, 6), 1 / 6, dtype=F64))
    central = torch.zeros(4, dtype=F64)
    for X in defacto(START, RING, ORACLE.gradients, LR, 40):
        central = central - LR * ORACLE.gradients(central.expand(6, 4)).mean(0)
        same(X, central.expand(6, 4))
    found = ORACLE.meeting(detag()).run(200, ORACLE.update())
    assert ORACLE.error(found[-1]) < 1e-5


# --- pitfalls ------------------------------------------------------------------------------------------


def test_the_previous_vector_of_accelerated_gossip_is_the_one_before_mixing() -> None:
    """Kept mixed it is another polynomial, which eigenvalues near -1 make grow."""
    W = 0.15 * metropolis_of("ring", 6) + 0.85 * (1.5 * metropolis_of("ring", 6) - 0.5 * torch.eye(6))
    lam, start = float(torch.linalg.eigvalsh(W).abs().sort().values[-2]), torch.eye(6, dtype=F64)[:, :1]
    layout, eta = Layout((1,)), accelerated(lam)
    nodes: dict[int, Lossless] = {i: DeTAG(layout, F64, R=40, eta=eta) for i in range(6)}
    found = Meeting(nodes, layout, W=W).begin(list(start)).run(40, still)[-1]
    same(found, tracking.accelerated_gossip(start, W, 40, eta))
    assert float((found - 1 / 6).abs().max()) < 1e-4
    assert float((tracking.mixed_previous(start, W, 40, eta) - 1 / 6).abs().max()) > 10


def test_the_tracker_begins_at_zero_as_the_gradient_before_the_first_does() -> None:
    """One that begins with the first gradient counts it twice for ever."""
    node = DeTAG(Layout((4,)), F64, R=1)
    assert not node.y.any() and not node.v.any()
    first = ORACLE.meeting(detag())
    first.run(2, ORACLE.update())
    y = torch.stack([node.y for node in first.nodes.values() if isinstance(node, DeTAG)])
    same(y, ORACLE.gradients(START))


def test_a_phases_gradients_are_taken_where_it_began_and_averaged() -> None:
    swarm = ORACLE.meeting(detag(R=3))
    swarm.run(6, ORACLE.update())
    x = swarm.X
    seen: list[Tensor] = []

    def update(i: int, x: Tensor, t: int) -> Tensor:
        seen.append(x)
        return ORACLE.update()(i, x, t)

    models = swarm.run(3, update)
    same(models[0], x)
    same(models[1], x)
    assert all(any(torch.equal(one, known) for known in x) for one in seen)
    assert float((models[2] - x).abs().max()) > 1e-3
    g = torch.stack([node.v for node in swarm.nodes.values() if isinstance(node, DeTAG)])
    same(g, ORACLE.gradients(x))


def test_momentum_of_the_tracker_is_that_of_the_paper() -> None:
    W = metropolis_of("ring", 6)
    found = ORACLE.meeting(detag(beta=0.7, R=2), lr=0.03).run(60, ORACLE.update(0.03))
    R, eta = 2, accelerated(slowest(RING))
    same(found[-1], tracking.detag(START, W, ORACLE.gradients, 0.03, R, eta, 30, 0.7)[-1])
    assert ORACLE.error(found[-1]) < ORACLE.error(
        tracking.detag(START, W, ORACLE.gradients, 0.03, R, eta, 30)[-1]
    )


def test_what_a_phase_leaves_of_a_disagreement_is_what_its_polynomial_says() -> None:
    for spec, n in (("ring", 6), ("ring", 32), ("grid", 12)):
        W = metropolis_of(spec, n)
        for R, eta in ((1, 0.0), (2, 0.2), (5, 0.6)):
            left = tracking.accelerated_gossip(torch.eye(n, dtype=F64), W, R, eta) - 1 / n
            norm = float(torch.linalg.matrix_norm(left, 2))
            assert left_over(adjacency(spec, n), R, eta) == pytest.approx(norm, abs=1e-9)


def test_an_eta_that_would_make_models_part_is_shrunk() -> None:
    ring = adjacency("ring", 32)
    eta = accelerated(slowest(ring))
    assert left_over(ring, 1, eta) > 1.29, "too large for a single round"
    for n in range(2, 65):
        for R in (1, 2, 3, 4, 8):
            beside = adjacency("ring", n)
            assert left_over(beside, *fitted(beside, R, "auto")) <= slowest(beside) + 1e-9 < 1
            assert left_over(beside, *fitted(beside, R, 0.99)) <= slowest(beside) + 1e-9
    assert fitted(ring, 1, "auto") == (1, eta / 2)
    assert fitted(RING, "auto", "auto") == (2, pytest.approx(FOUND["eta"]))


def test_rounds_of_a_phase_are_the_theorys_up_to_four() -> None:
    found = {n: rounds_for(n, slowest(adjacency("ring", n))) for n in (1, 2, 3, 4, 6, 8, 16, 64)}
    assert found == {1: 1, 2: 1, 3: 1, 4: 1, 6: 2, 8: 3, 16: 4, 64: 4}
    assert fitted(adjacency("complete", 9), "auto", "auto") == (2, 0.0)


def test_no_graph_lacks_weight_of_its_own_and_so_all_of_them_mix() -> None:
    """A ring of even length without it would swap two halves for ever."""
    for spec in ("ring", "grid", "exponential", "complete", "chain", "binary-tree"):
        for n in (2, 3, 4, 6, 8, 9, 16):
            beside = Graph(spec, n, 0).adjacency
            assert slowest(beside) < 1 - 1e-3
            assert eigenvalues(beside)[-1] == pytest.approx(1)


def test_d2_grows_without_bound_below_a_third_and_so_is_lazy_there() -> None:
    W = metropolis_of("grid", 16)
    problem, X = Problem.draw(16), torch.zeros(16, 4, dtype=F64)
    assert eigenvalues(Graph("grid", 16, 0).adjacency)[0] == pytest.approx(-0.6)
    assert problem.error(tracking.d2(X, W, problem.gradients, LR, 200)[-1]) > 1e6
    asked = problem.meeting(d2(lazy=False), "grid").run(60, problem.update())
    assert problem.error(asked[-1]) < 1e-2
    assert not allowed(eigenvalues(RING)), "a ring of even length is on it"
    odd = Problem.draw(7).meeting(d2(lazy=False))
    odd.run(1, still)
    assert {node.halves for node in odd.nodes.values() if isinstance(node, D2)} == {False}


def test_options_are_what_is_built() -> None:
    asked = make("detag", {"rounds": "3", "eta": "0.2", "momentum": "0.9"}, Layout((4,)), F64)
    assert isinstance(asked, DeTAG) and (asked.asked, asked.beta) == ((3, 0.2), 0.9)
    usual = make("detag", {}, Layout((4,)), F64)
    assert isinstance(usual, DeTAG) and (usual.asked, usual.beta) == (("auto", "auto"), 0.0)
    for text, lazy in (("on", True), ("off", False)):
        one = make("d2", {"lazy": text}, Layout((4,)), F64)
        assert isinstance(one, D2) and one.lazy is lazy
