"""DeTAG, DSGT and D2 in matrix form: all nodes in one tensor. X, Y, G: n x d; W: symmetric, rows sum to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradients = Callable[[Tensor], Tensor]


def accelerated_gossip(Z: Tensor, W: Tensor, R: int, eta: float) -> Tensor:
    before = Z
    for _ in range(R):
        Z, before = (1 + eta) * W @ Z - eta * before, Z
    return Z


def mixed_previous(Z: Tensor, W: Tensor, R: int, eta: float) -> Tensor:
    """What a port seen in the wild does instead: the previous vector is kept mixed."""
    before = Z
    for _ in range(R):
        mixed = W @ Z
        Z, before = (1 + eta) * mixed - eta * before, mixed
    return Z


def detag(
    X: Tensor, W: Tensor, gradients: Gradients, lr: float, R: int, eta: float, phases: int, beta: float = 0.0
) -> list[Tensor]:
    """X after each phase. beta: momentum inside the tracker."""
    Y, V, found = torch.zeros_like(X), torch.zeros_like(X), []
    for _ in range(phases):
        V, before = beta * V + gradients(X), V
        X, Y = accelerated_gossip(X, W, R, eta), accelerated_gossip(Y, W, R, eta)
        X, Y = X - lr * Y, Y + V - before
        found.append(X)
    return found


def dsgt(X: Tensor, W: Tensor, gradients: Gradients, lr: float, rounds: int) -> list[Tensor]:
    G = gradients(X)
    Y, found = G, []
    for _ in range(rounds):
        X = W @ X - lr * Y
        Y, G = W @ Y + gradients(X) - G, gradients(X)
        found.append(X)
    return found


def d2(X: Tensor, W: Tensor, gradients: Gradients, lr: float, rounds: int) -> list[Tensor]:
    before, steps, found = X, torch.zeros_like(X), []
    for t in range(rounds):
        U = -lr * gradients(X)
        V = X + U if t == 0 else 2 * X - before + U - steps
        before, steps, X = X, U, W @ V
        found.append(X)
    return found
