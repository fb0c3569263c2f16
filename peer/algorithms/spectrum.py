"""What the eigenvalues of an agreed graph's Metropolis weights W say of gossip on it.

Every member computes them of the same graph. Libraries differ in the last bits, so nothing that members must
do alike hangs on fewer digits than are sure.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from peer.graphs import Adjacency, metropolis

SURE = 1e-9  # eigenvalues of matrices of some hundred rows are the same to this on every machine (guess)


@lru_cache(maxsize=64)
def eigenvalues(beside: Adjacency) -> tuple[float, ...]:
    """Of W, ascending; the last is 1."""
    rows = metropolis(beside)
    W = np.array([[row.get(place, 0.0) for place in range(len(rows))] for row in rows])
    return tuple(float(value) for value in np.linalg.eigvalsh(W))


def slowest(beside: Adjacency) -> float:
    """lambda: what a plain round leaves of the worst disagreement; 0 for a node alone."""
    return max(map(abs, eigenvalues(beside)[:-1]), default=0.0)


def accelerated(lam: float) -> float:
    """eta of Liu and Morse's gossip, the best for many rounds: (1 - s) / (1 + s), s = sqrt(1 - lambda^2)."""
    s = math.sqrt(max(0.0, 1 - lam * lam))
    return (1 - s) / (1 + s)


def left_over(beside: Adjacency, R: int, eta: float) -> float:
    """What R rounds of z_r+1 = (1 + eta) W z_r - eta z_r-1, z_-1 = z_0, leave of the worst disagreement at
    the most: max |p_R| over the eigenvalues but 1."""
    return max((abs(_polynomial(value, R, eta)) for value in eigenvalues(beside)[:-1]), default=0.0)


def _polynomial(value: float, R: int, eta: float) -> float:
    before, here = 1.0, 1.0
    for _ in range(R):
        before, here = here, (1 + eta) * value * here - eta * before
    return here
