"""D-PSGD with quasi-global momentum in matrix form: all nodes in one tensor."""

from __future__ import annotations

from torch import Tensor


def quasi_global_round(
    X: Tensor, G: Tensor, M: Tensor, W: Tensor, lr: float, beta: float
) -> tuple[Tensor, Tensor]:
    """X: n x d models, G: gradients, M: momentum; X and M afterwards."""
    after = W @ (X - lr * (beta * M + G))
    return after, beta * M + (1 - beta) * (X - after) / lr
