"""Local steps of all peers of a rehearsal, on one model that each takes its turn with.

What is each peer's own is its data, its optimizer (momentum included) and its order of batches, by a seed of
its own; its model is a flat vector that is written into the shared module and read from it again. The
learning rate is the task's, times the schedule's factor (peer/schedule.py), times what the algorithm
asks for. Counters a model keeps in integer buffers are shared by all peers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peer.compression.bodies import Layout
from peer.errors import DivergedError
from peer.learner.flat import FlatModel
from peer.learner.loop import endless, local_step
from peer.learner.task import Settings, Task, load_task, seeded_model, tell_mixed
from peer.learner.uncompiled import make_without_compiler
from peer.placing import Placing
from peer.rehearsal.plan import Plan
from peer.schedule import Schedule

CPU = torch.device("cpu")


@dataclass(slots=True)
class _Pupil:
    """One peer's own."""

    task: Task
    batches: Iterator[Any]
    optimizer: torch.optim.Optimizer
    rates: list[float]


class Trainer:
    """The plan's task on the plan's split. Raises DataError when the data is not there."""

    def __init__(self, plan: Plan) -> None:
        session = plan.session
        self._plan, self.placing = plan, Placing.of(session)
        self.schedule = Schedule.of(session.options, plan.steps)
        tasks = [self._task(number) for number in range(plan.peers)]
        self._module = seeded_model(tasks[0], session.seed)
        self._flat = FlatModel(self._module)
        self._flat.gather()
        self.initial, self.layout = self._flat.read(), Layout(self._flat.sizes, self._flat.rows)
        self.parameters = self._flat.parameters
        make_without_compiler()
        self._pupils = {
            name: self._pupil(tasks[number], plan.shard(number)) for number, name in enumerate(plan.names())
        }
        self._judge = tasks[0]
        self._module.train()

    def _task(self, number: int) -> Task:
        plan, session = self._plan, self._plan.session
        settings = Settings(
            seed=session.seed,
            order=random.Random(f"peerd rehearsal {session.seed} {number}").getrandbits(63),
            batch=session.batch,
            lr=session.lr,
            momentum=session.momentum,
            data=plan.data,
            options=session.options,
        )
        return load_task(session.task, settings, Path(plan.task_file) if plan.task_file else None)

    def _pupil(self, task: Task, shard: str) -> _Pupil:
        optimizer = task.optimizer(self._module.parameters())
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        return _Pupil(task, endless(task, shard, CPU), optimizer, rates)

    def train(self, peer: str, z: Tensor, round_: int, lr_scale: float = 1.0) -> tuple[Tensor, float]:
        """The change of `z` by a round's local steps, and the learning rate of the last one. Raises
        DivergedError."""
        pupil = self._pupils[peer]
        self._flat.write(z)
        tell_mixed(pupil.task, self._module)
        lr = 0.0
        for step in range(self.placing.first(round_), self.placing.first(round_ + 1)):
            factor = lr_scale * self.schedule.factor(step)
            for group, rate in zip(pupil.optimizer.param_groups, pupil.rates, strict=True):
                group["lr"] = factor * rate
            lr = factor * pupil.rates[0]
            loss = local_step(pupil.task, self._module, pupil.optimizer, next(pupil.batches))
            if not math.isfinite(loss):
                raise DivergedError(f"{peer} diverged in round {round_}: its loss is {loss}; lower --lr")
        return self._flat.read() - z, lr

    def bare_steps(self, rounds: int) -> None:
        """As many local steps as these rounds have, of all peers in turn, and nothing else: what a rehearsal
        is measured against."""
        for _ in range(self.placing.first(rounds)):
            for pupil in self._pupils.values():
                local_step(pupil.task, self._module, pupil.optimizer, next(pupil.batches))

    def evaluate(self, z: Tensor) -> tuple[str, float] | None:
        """The task's first figure of a model, by name; None for a task without any."""
        self._flat.write(z)
        self._module.eval()
        found = self._judge.evaluate(self._module)
        self._module.train()
        return next(iter(found.items()), None)
