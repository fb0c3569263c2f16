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
