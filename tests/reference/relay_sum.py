"""RelaySum in closed form: all nodes in one tensor, no messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relay_sum_round(Y: Sequence[Tensor], tau: Tensor, fill: Tensor | None) -> Tensor:
    """x_i^{t+1} = 1/n sum_j y_j^{t - tau_ij}. Y: n x d of every round so far, before mixing; tau: n x n.

    fill: n x d, stands in for what is older than the first round; None: the mean over those there are.
    """
    t, n = len(Y) - 1, len(tau)
    X = torch.zeros_like(Y[-1])
    for i in range(n):
        terms = [Y[t - int(tau[i, j])][j] for j in range(n) if tau[i, j] <= t]
        S, c = torch.stack(terms).sum(0), len(terms)
        X[i] = S / c if fill is None else (S + (n - c) * fill[i]) / n
    return X


def relay_grad_round(X: Tensor, U: Sequence[Tensor], tau: Tensor) -> Tensor:
    """x_i^{t+1} = x_i^t + 1/n sum_j u_j^{t - tau_ij}."""
    return X + relay_sum_round(U, tau, torch.zeros_like(X))
