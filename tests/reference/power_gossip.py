"""PowerGossip in matrix form: all nodes' tensors together, every edge's factors in one place.

P = D Q, Q = D^T P in turn, the input orthonormal;  X_lo += g W P Q^T,  X_hi -= g W P Q^T
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.algorithms.factors import Draws


@dataclass
class Edge:
    lo: int
    hi: int
    draws: Draws
    came_to: dict[int, Tensor] = field(default_factory=dict)  # of the last iteration, by matrix


def orth(V: Tensor) -> Tensor:
    """Gram-Schmidt, 1e-8 added to each norm."""
    V = V.clone()
    for c in range(V.shape[1]):
        V[:, c] /= V[:, c].norm() + 1e-8
        V[:, c + 1 :] -= torch.outer(V[:, c], V[:, c] @ V[:, c + 1 :])
    return V


def round_of(
    X: list[Tensor], edges: list[Edge], W: Tensor, t: int, s: int, rank: int, g: float, *, warm: bool
) -> list[Tensor]:
    """X: n x rows x columns each. t: from 0; the first round does nothing."""
    for it in range(t * s, (t + 1) * s if t else 0):
        after = [one.clone() for one in X]
        for edge in edges:
            for which, x in enumerate(X):
                D = x[edge.hi] - x[edge.lo] if it % 2 else (x[edge.hi] - x[edge.lo]).T
                length, r = D.shape[1], min(*D.shape, rank)
                drawn = not warm or which not in edge.came_to
                V = (
                    torch.from_numpy(edge.draws.factor(it, which, length, r))
                    if drawn
                    else edge.came_to[which]
                )
                V = orth(V)
                U = edge.came_to[which] = D @ V
                change = g * W[edge.lo, edge.hi] * (U @ V.T if it % 2 else V @ U.T)
                after[which][edge.lo] += change
                after[which][edge.hi] -= change
        X = after
    return X
