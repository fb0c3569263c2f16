"""CHOCO-SGD in matrix form, with a replica of every model: all nodes in one tensor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def choco_round(
    X: Tensor, U: Tensor, known: Tensor, W: Tensor, gamma: float, C: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """X: n x d models, U: local updates, known: what neighbors know of X; both afterwards."""
    half = X + U
    known = known + C(half - known)
    return half + gamma * (W @ known - known), known
