"""The one training loop: local steps on a task's batches, with `attach` between them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from peer.errors import DataError
from peer.learner.attach import Swarm
from peer.learner.task import Task, said, tell_mixed
from peer.learner.uncompiled import step_without_compiler
from peer.schedule import Schedule

EVALUATE_EVERY = 8  # rounds (guess)
EVALUATE_SHARE = 0.1  # of the time at most (guess)


def train(
    swarm: Swarm, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any]
) -> None:
    """Train on `endless` batches until the session is finished or this device leaves. Raises DataError,
    DivergedError."""
    session = swarm.descriptor
    schedule = Schedule.of(session.options, session.rounds * session.local_steps)
    metrics = _Metrics(swarm, task, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    metrics.evaluate()
    tell_mixed(task, model)
    swarm.on_mixed = lambda: tell_mixed(task, model)
    batch = next(batches)
    swarm.loss_now = lambda: _loss(task, model, batch)
    while not swarm.done:
        factor = schedule.factor(swarm.steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * rate
        loss = local_step(task, model, optimizer, batch)
        batch = next(batches)
        if not math.isfinite(loss):
            swarm.roll_back(loss)
        elif swarm.step(loss):
            metrics.mixed()
    if swarm.finished:
        swarm.settle()
        metrics.evaluate()


def _loss(task: Task, model: nn.Module, batch: Any) -> float:
    with torch.no_grad():
        return float(task.loss(model, batch))


def local_step(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> float:
    """One optimizer step, left out when the loss is not finite. Gives the loss. Raises DataError when
    gradients or optimizer fail: started anew, the learner would come to the same."""
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(model, batch)
    value = float(loss.detach())
    if math.isfinite(value):
        try:
            loss.backward()
            with step_without_compiler(optimizer):
                optimizer.step()
        except Exception as error:
            raise DataError(f"task {task.name}: a step along its loss failed: {said(error)}") from error
    return value


def endless(task: Task, shard: str | None, device: torch.device) -> Iterator[Any]:
    """The task's batches, begun again when they end. The first is made at once, so that a shard that is not
    known or has nothing in it shows before others count on this device. Raises DataError."""
    batches = task.batches(shard, device)
    return chain(_some(batches, task, shard), _again(task, shard, device))


def _again(task: Task, shard: str | None, device: torch.device) -> Iterator[Any]:
    while True:
        yield from _some(task.batches(shard, device), task, shard)


def _some(batches: Iterator[Any], task: Task, shard: str | None) -> Iterator[Any]:
    """`batches`, if there is a first one. Raises DataError."""
    first = list(islice(batches, 1))
    if not first:
        where = f"task {task.name}: no batches for shard '{shard or 'all'}'"
        raise DataError(f"{where}; look at --data and --shard")
    return chain(first, batches)


class _Metrics:
    """Evaluates the mixed model now and then, and never for more than a tenth of the time."""

    def __init__(self, swarm: Swarm, task: Task, model: nn.Module) -> None:
        self._swarm, self._task, self._model = swarm, task, model
        self._rounds = 0
        self._not_before = -math.inf

    def mixed(self) -> None:
        """The model is a newly mixed one: time to look at it?"""
        self._rounds += 1
        if self._rounds >= EVALUATE_EVERY and time.monotonic() >= self._not_before:
            self.evaluate()

    def evaluate(self) -> None:
        """Evaluate and report."""
        self._rounds, started = 0, time.monotonic()
        self._model.eval()
        found = self._task.evaluate(self._model)
        self._model.train()
        now = time.monotonic()
        self._not_before = now + (now - started) / EVALUATE_SHARE
        if found:
            self._swarm.report(found)
