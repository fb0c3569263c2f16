"""DeFacto (Lu, De Sa, ICML 2021), which shows that the lower bound is met: phases of R rounds of gradients
and R of exact averaging by a factor sequence W_R-1 ... W_0 = 11'/n of matrices on the graph, whose rows sum
to 1.

The factors here: sums up a tree to its root, then the mean down again; R = 2 x its depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peer.graphs import Adjacency, hops_on
from reference.tracking import Gradients


def factors(beside: Adjacency) -> list[Tensor]:
    """Of a graph with place 0 as the root: exact after all of them, no sooner."""
    n, depth = len(beside), hops_on(beside, 0)
    parent = [min(beside[i], key=lambda j: depth[j]) if i else 0 for i in range(n)]
    below = [1.0] * n
    up, down = [], []
    for level in range(max(depth), 0, -1):
        W = torch.eye(n, dtype=torch.float64)
        down.insert(0, torch.eye(n, dtype=torch.float64))
        for i in (i for i in range(n) if depth[i] == level):
            down[0][i] = torch.eye(n, dtype=torch.float64)[parent[i]]
        for p in {parent[i] for i in range(n) if depth[i] == level}:
            own = below[p]
            for i in (i for i in range(n) if depth[i] == level and parent[i] == p):
                W[p, i], below[p] = below[i], below[p] + below[i]
            W[p, p] = own
            W[p] /= below[p]
        up.append(W)
    return up + down


def defacto(X: Tensor, beside: Adjacency, gradients: Gradients, lr: float, phases: int) -> list[Tensor]:
    """X after each phase, as centralized SGD has it: what is averaged is x - lr g."""
    found = []
    for _ in range(phases):
        X = X - lr * gradients(X)
        for W in factors(beside):
            X = W @ X
        found.append(X)
    return found
