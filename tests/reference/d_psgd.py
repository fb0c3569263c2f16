"""D-PSGD in matrix form: all nodes in one tensor."""

from __future__ import annotations

from torch import Tensor


def d_psgd_round(X: Tensor, U: Tensor, W: Tensor) -> Tensor:
    """X: n x d models, U: n x d local updates, W: symmetric, rows sum to 1."""
    return W @ (X + U)


def metropolis(n: int, edges: list[tuple[int, int]]) -> Tensor:
    """W_ij = 1 / (1 + the larger degree) on edges."""
    A = Tensor([[0.0] * n] * n).double()
    for a, b in edges:
        A[a, b] = A[b, a] = 1.0
    degree = A.sum(0)
    W = A / (1 + degree[:, None].maximum(degree[None, :]))
    return W + (1 - W.sum(1)).diag()
