"""A task file for point.py: spoken digits, where no device ends its first local step before all have joined.

That is when the folder given with `--data` has a file `begin`. Until then whoever joins is given the initial
model, so all begin as in a rehearsal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from peer.learner.task import Settings
from peer.tasks.batches import Batch
from peer.tasks.spoken_digits import SpokenDigits

LOOK_S = 0.01
TASK = SpokenDigits(Settings())


def model() -> nn.Module:
    return TASK.model()


def batches(shard: str | None, device: torch.device, data: str, seed: int) -> Iterator[Batch]:
    own = SpokenDigits(Settings(order=seed)).batches(shard, device)
    yield next(own)  # a learner has one before it joins, and the next one in hand when it ends a step
    while not (Path(data) / "begin").exists():
        time.sleep(LOOK_S)
    yield from own


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return TASK.loss(model, batch)


def evaluate(model: nn.Module) -> dict[str, float]:
    return TASK.evaluate(model)
