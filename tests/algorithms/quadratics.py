"""Unlike quadratics f_i(z) = (z - b_i)' A_i (z - b_i) / 2, whose sum has one known minimum.

Drawn in the same order as by the numpy program that the fixtures in these tests come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algorithms.swarm import Swarm

D = 40


@dataclass(frozen=True)
class Quadratics:
    """A: n x d x d, eigenvalues .5 to 2; b: n x d around 2; best: the minimum of the sum."""

    A: Tensor
    b: Tensor
    best: Tensor

    @classmethod
    def draw(cls, n: int) -> Quadratics:
        g = np.random.default_rng(100 + n)
        A = []
        for _ in range(n):
            basis = np.linalg.qr(g.standard_normal((D, D))).Q
            A.append(basis @ np.diag(g.uniform(0.5, 2.0, D)) @ basis.T)
        b = 2.0 + g.standard_normal((n, D))
        A_, b_ = torch.tensor(np.stack(A)), torch.tensor(b)
        return cls(A_, b_, torch.linalg.solve(A_.sum(0), torch.einsum("nij,nj->i", A_, b_)))

    def gradients(self, Z: Tensor) -> Tensor:
        return torch.einsum("nij,nj->ni", self.A, Z - self.b)


def start() -> Tensor:
    """The model everyone begins with."""
    return torch.tensor(np.random.default_rng(7).standard_normal(D))


def train(swarm: Swarm, problem: Quadratics, steps: int) -> Tensor:
    """Full gradients, steps of 0.1/(1 + t/200); the models at the end, n x d."""
    Z = torch.stack([node.estimate() for node in swarm.nodes])
    for t in range(steps):
        U = -0.1 / (1 + t / 200) * problem.gradients(Z)
        Z = torch.stack(swarm.exchange(list(U)))
    return Z


def error(Z: Tensor, problem: Quadratics) -> float:
    """|mean model - minimum|."""
    return float((Z.mean(0) - problem.best).norm())


def spread(Z: Tensor) -> float:
    """Largest deviation of any entry of any model from the mean model."""
    return float((Z - Z.mean(0)).abs().max())
