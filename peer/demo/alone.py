"""One device learning without the others: `python -m peer.demo.alone SHARD STEPS ORDER`.

The same task, model, optimizer and schedule as in a session, without exchanges. Prints one JSON line per
evaluation: {"step", "accuracy"}.
"""

from __future__ import annotations

import json
import sys

import torch

from peer.demo.terms import EVALUATIONS, METRIC, SEED, TASK
from peer.learner.loop import local_step
from peer.learner.task import Settings, load_task, seeded_model
from peer.learner.uncompiled import make_without_compiler
from peer.schedule import Schedule


def train(shard: str, steps: int, order: int) -> None:
    """Train for `steps` local steps on `shard`; `order` is this device's own seed."""
    torch.set_num_threads(1)  # several devices share this machine
    task = load_task(TASK, Settings(seed=SEED, order=order))
    model = seeded_model(task, SEED)
    make_without_compiler()
    optimizer = task.optimizer(model.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = Schedule.of({}, steps)
    batches = task.batches(shard, torch.device("cpu"))
    every = max(1, steps // EVALUATIONS)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.factor(step)
        local_step(task, model, optimizer, next(batches))
        if (step + 1) % every == 0 or step + 1 == steps:
            accuracy = task.evaluate(model)[METRIC]
            sys.stdout.write(json.dumps({"step": step + 1, "accuracy": accuracy}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
