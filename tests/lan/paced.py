"""A task file as a user gives one, at the pace of a small machine: a quadratic that takes its time for each
step, so that eight learners leave this machine's cores half idle.

A shard is `k/n`: f_k(x) = 1/2 ||x - c_k||². `mean/n` is the mean of the n, which moves no optimum. The metric
`distance` is the root mean square over coordinates from the mean of all c_k: half of eight devices that train
by themselves stay some 0.35 away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

DIM = 20_000
STEP_S = 0.15
known: dict[str, Tensor] = {}  # best: the mean minimizer, from the first batch on


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(DIM))


def minimizer(k: int) -> Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(k))


def mean(n: int) -> Tensor:
    return torch.stack([minimizer(k) for k in range(n)]).mean(dim=0)


def model() -> nn.Module:
    return Point()


def batches(shard: str | None, device: torch.device) -> Iterator[Tensor]:
    k, _, n = (shard or "0/1").partition("/")
    known["best"] = mean(int(n))
    target = known["best"] if k == "mean" else minimizer(int(k))
    while True:
        time.sleep(STEP_S)
        yield target.to(device)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model.x - batch).square().sum() / 2


def optimizer(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


@torch.no_grad()
def evaluate(model: nn.Module) -> dict[str, float]:
    return {"distance": (model.x.cpu() - known["best"]).square().mean().sqrt().item()}
