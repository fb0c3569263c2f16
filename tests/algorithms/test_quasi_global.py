"""D-PSGD's relatives that send whole models as it does: quasi-global momentum, and the mean of all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from algorithms.meeting import LR, metropolis_of
from algorithms.trees import F64, Grove
from peer.algorithms import make
from peer.algorithms.quasi_global import QuasiGlobal
from peer.algorithms.whole_model import WholeModel
from peer.compression.bodies import Layout
from reference.d_psgd import d_psgd_round
from reference.quasi_global import quasi_global_round

D = 5
LAYOUT = Layout((D,))


def problem(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """a, b of quadratics; models to begin with."""
    g = torch.Generator().manual_seed(n)
    a, b, X = torch.rand(3, n, D, generator=g, dtype=F64)
    return 0.5 + a, 6 * b, X


def grove(name: str, options: dict[str, str], spec: str, n: int, seed: int = 0) -> Grove:
    """Its learning rate is 0.1."""
    nodes = [make(name, options, LAYOUT, F64) for _ in range(n)]
    whole = [node for node in nodes if isinstance(node, WholeModel)]
    swarm = Grove(whole, LAYOUT, [], W=metropolis_of(spec, n), seed=seed)
    return swarm.begin(list(problem(n)[2]))


@pytest.mark.parametrize(("spec", "n"), [("ring", 6), ("grid", 6), ("chain", 4)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_models_are_those_of_the_matrix_form(spec: str, n: int, beta: float) -> None:
    a, b, X = problem(n)
    swarm, M = grove("qg-d-psgd", {"beta": str(beta)}, spec, n), torch.zeros_like(X)
    for found in swarm.run(12, lambda i, x, t: -LR * a[i] * (x - b[i])):
        X, M = quasi_global_round(X, a * (X - b), M, metropolis_of(spec, n), LR, beta)
        torch.testing.assert_close(found, X, rtol=1e-10, atol=1e-10)
    kept = torch.stack([node.m for node in swarm.nodes if isinstance(node, QuasiGlobal)])
    torch.testing.assert_close(kept, M, rtol=1e-10, atol=1e-10)


def test_momentum_makes_steps_of_one_direction_add_up() -> None:
    """To 1 / (1 - beta) of them, as momentum does."""
    n = 6
    a, b, _ = problem(n)
    best = (a * b).sum(0) / a.sum(0)

    def error(name: str, options: dict[str, str], lr: float = 0.02) -> float:
        X = grove(name, options, "ring", n).run(60, lambda i, x, t: -lr * a[i] * (x - b[i]))[
            -1
        ]  # LR x curvature a / 5
        return float((X.mean(0) - best).norm())

    assert error("qg-d-psgd", {"beta": "0.5"}) < 0.5 * error("d-psgd", {})


def test_final_rounds_are_an_exact_mean_without_momentum() -> None:
    n = 4
    a, b, _ = problem(n)
    swarm = grove("qg-d-psgd", {}, "ring", n)
    swarm.run(3, lambda i, x, t: -LR * a[i] * (x - b[i]))
    before = torch.stack([node.estimate() for node in swarm.nodes])
    swarm.W = metropolis_of("complete", n)
    X = swarm.average(1)[-1]
    torch.testing.assert_close(X, before.mean(0).expand(n, D), rtol=1e-12, atol=1e-12)


def test_all_reduce_has_the_mean_of_all_models_after_every_round() -> None:
    n = 5
    a, b, X = problem(n)
    for found in grove("all-reduce", {}, "complete", n).run(4, lambda i, x, t: -LR * a[i] * (x - b[i])):
        mean = (X - LR * a * (X - b)).mean(0)
        torch.testing.assert_close(found, mean.expand(n, D), rtol=1e-12, atol=1e-12)
        X = d_psgd_round(X, -LR * a * (X - b), metropolis_of("complete", n))
