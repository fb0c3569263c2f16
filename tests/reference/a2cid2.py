"""A2CiD2 with all nodes in one tensor, by the matrix exponential of its paper."""

from __future__ import annotations

import torch
from torch import Tensor


def flow(X: Tensor, X_tilde: Tensor, eta: float, dt: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) (x, x~) for each node, A = eta [[-1, 1], [1, -1]]. X, X_tilde: n x d; dt: n."""
    A = eta * torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=X.dtype)
    both = torch.matrix_exp(dt[:, None, None] * A) @ torch.stack([X, X_tilde], dim=1)
    return both[:, 0], both[:, 1]


def pair(X: Tensor, X_tilde: Tensor, i: int, j: int, alpha: float) -> tuple[Tensor, Tensor]:
    """E = (e_i - e_j)(e_i - e_j)^T: X - E X / 2, X~ - alpha E X."""
    e = torch.zeros(len(X), dtype=X.dtype)
    e[i], e[j] = 1.0, -1.0
    E = torch.outer(e, e)
    return X - E @ X / 2, X_tilde - alpha * E @ X
