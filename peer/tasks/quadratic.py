"""A task without data: every shard k/n has a minimizer c_k, and learning together means finding their mean.

    loss(x) = |x - c_k + noise|^2 / 2,    c_k ~ N(0, 1)^dim by the session's seed

Alone a device ends at its own c_k; `distance` is to the mean of all n, so it is near 0 only when averaging
works. Options: `dim`; `noise`, deviation of each coordinate of a gradient (0: exact gradients).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from peer.catalogue import TASKS
from peer.errors import DataError
from peer.learner.task import Settings, optimizer_of

LR = 0.1  # with momentum 0.9 about 1 % of the way is left after 50 steps (guess, then tried)

KNOWN = TASKS["quadratic"].options


class Point(nn.Module):
    """A model that is one vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(dim))


class Quadratic:
    """The task, see peer/learner/task.py. `shard` is `k/n`, 0/1 without one; batches must be asked for before
    `evaluate`, since they tell n."""

    name = "quadratic"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.dim = _whole(settings.option("dim", KNOWN["dim"].default))
        self.noise = _deviation(settings.option("noise", KNOWN["noise"].default))
        self.n = 1

    def minimizer(self, k: int) -> Tensor:
        """c_k, [dim]."""
        seed = zlib.crc32(f"minimizer {k} of {self._settings.seed}".encode())  # none of the initial model's
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))

    def mean_minimizer(self) -> Tensor:
        """The mean of c_0 … c_{n-1}, [dim]."""
        return torch.stack([self.minimizer(k) for k in range(self.n)]).mean(dim=0)

    def model(self) -> nn.Module:
        return Point(self.dim)

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Tensor]:
        k, self.n = _part(shard)
        return self._noisy(self.minimizer(k), device)

    def _noisy(self, center: Tensor, device: torch.device) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._settings.order)
        while True:
            noise = self.noise * torch.randn(self.dim, generator=generator) if self.noise else 0.0
            yield (center + noise).to(device)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, Point)
        return (model.x - batch).square().sum() / 2

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(parameters, self._settings, LR)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """distance: root mean square over coordinates, from the mean minimizer of all n shards."""
        assert isinstance(model, Point)
        error = model.x.cpu() - self.mean_minimizer()
        return {"distance": error.square().mean().sqrt().item()}


def _part(shard: str | None) -> tuple[int, int]:
    k, slash, n = (shard or "0/1").strip().partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise DataError(
            f"shard '{shard}' is not understood; the quadratic task knows k/n, 0/8 to 7/8 for eight devices"
        )
    return int(k), int(n)


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise DataError(f"option dim={text}: expected a whole number of at least 1")
    return int(text)


def _deviation(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise DataError(f"option noise={text}: expected a number from 0")
    return value


def create(settings: Settings) -> Quadratic:
    return Quadratic(settings)
