"""Difference-push in matrix form: all nodes in one tensor, all replicas in another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def difference_push_round(
    X: Tensor, w: Tensor, H: Tensor, U: Tensor, P: Tensor, C: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """X: n x d numerators, w: weights, H[j, i]: what j knows of i, U: local updates, P[j, i]: shares."""
    X, H = X + U, H.clone()
    Z, A = X / w[:, None], torch.zeros_like(P)  # A[j, i]: units of weight that go from i to j
    for j, i in ((P > 0) & ~torch.eye(len(w), dtype=torch.bool)).nonzero().tolist():
        v = Z[i] - H[j, i]
        q = C(v)
        D = (v - q).square().sum() / v.square().sum() if v.any() else torch.zeros(())
        H[j, i] = H[j, i] + q
        A[j, i] = min(P[j, i], 1 - D.sqrt(), 0.5) * w[i]
    moved = A[:, :, None] * H
    return X + moved.sum(1) - moved.sum(0), w + A.sum(1) - A.sum(0), H
