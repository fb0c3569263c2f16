"""SGP in matrix form: all nodes in one tensor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def sgp_round(
    X: Tensor, w: Tensor, U: Tensor, P: Tensor, Q: Callable[[Tensor], Tensor] = lambda v: v
) -> tuple[Tensor, Tensor]:
    """X: n x d numerators, w: n weights, U: n x d local updates, P[j, i]: share that i gives j."""
    X = X + U
    n = len(w)
    V = {(i, j): Q(P[j, i] * X[i]) for i in range(n) for j in range(n) if i != j and P[j, i] > 0}
    for (i, j), v in V.items():
        X[i] = X[i] - v
        X[j] = X[j] + v
    return X, P @ w
