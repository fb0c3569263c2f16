"""Sparse-Push in matrix form: all nodes in one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sparse_push_round(
    X: Tensor, w: Tensor, E: Tensor, U: Tensor, P: Tensor, gamma: float, C: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """X: n x d numerators, w: weights, E: n x d errors, U: n x d local updates, P[j, i]: shares."""
    X = X + U
    S = X + E
    Q = torch.stack([C(s) for s in S])
    X = X + gamma * (P @ Q - Q)
    w = w + gamma * (P @ w - w)
    return X, w, S - Q


def deviation_round(
    X: Tensor,
    w: Tensor,
    E: Tensor,
    U: Tensor,
    P: Tensor,
    gamma: float,
    C: Callable[[Tensor], Tensor],
    x0: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with C applied to the deviations X - w x0 from the initial model x0."""
    Y, v, E = sparse_push_round(X - w[:, None] * x0, w, E, U, P, gamma, C)
    return Y + v[:, None] * x0, v, E


def scsp_round(X: Tensor, w: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """A final round: push-sum on whole models, no local steps, nothing owed is paid."""
    return P @ X, P @ w
