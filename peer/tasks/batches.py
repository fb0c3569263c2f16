"""Batches without end from a device's part of a data set."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from peer.errors import DataError
from peer.learner.task import Settings

Batch = tuple[Tensor, Tensor]  # features, labels


def shuffled(features: Tensor, labels: Tensor, batch: int, order: int) -> Iterator[Batch]:
    """Endless batches, each example once per pass, in an order decided by `order`. What does not fill a
    batch waits for the next pass; fewer examples than `batch` make batches of them all."""
    rng = random.Random(order)
    size = min(batch, len(labels))
    while True:
        everyone = list(range(len(labels)))
        rng.shuffle(everyone)
        places = torch.tensor(everyone, device=labels.device)
        for start in range(0, len(labels) - size + 1, size):
            chosen = places[start : start + size]
            yield features[chosen], labels[chosen]


def held_out(settings: Settings) -> int:
    """How many training examples are held out, to evaluate on instead of the test set: the option
    `validation`. Raises DataError."""
    text = settings.option("validation", "0")
    if not text.isdecimal():
        raise DataError(f"option validation={text}: expected a number of examples")
    return int(text)
