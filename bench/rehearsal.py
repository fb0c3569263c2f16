"""What a rehearsal costs beyond the SGD steps it is made of, as a table. Part of `make bench`.

The same local steps are taken twice: in a rehearsal, and bare, one after the other on one model with nothing
in between. Seconds are CPU's, of one thread: what it takes on a machine that does nothing else.
Fashion-MNIST is used when its folder is given, as an argument or in FASHION_MNIST; else numbers drawn at
random take its place, which cost the same.

    PYTHONPATH=bench python -P bench/rehearsal.py [DIR] [--json FILE]

Beside them is how many processes wanted to compute meanwhile: CPU seconds of a busy machine are longer ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: small models are no faster with more

import click
import rehearsals
from kept import keep
from rich.console import Console
from rich.table import Table

from cli.rehearse import command, request_of
from peer.learner.devices import use_threads
from peer.rehearsal.plan import Plan
from peer.rehearsal.play import Play
from peer.rehearsal.trainer import Trainer

LIKE_FASHION = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

def batches(shard, device, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(3750, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (3750,), generator=generator)
    while True:
        chosen = torch.randint(3750, (batch,), generator=generator)
        yield pictures[chosen], labels[chosen]

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
ALGORITHMS = ("sgp", "difference-push", "relay-sum")
TREES = {"relay-sum": "binary-tree"}
LONG = 2000  # rounds of the last case


@dataclass(frozen=True)
class Case:
    """What is rehearsed: words of the command line."""

    what: str
    words: tuple[str, ...]


def cases(folder: str | None, task_file: Path) -> list[Case]:
    mlp = ("--task", str(task_file))
    name = "MLP 784-128-10, 16 peers, batch 16"
    if folder is not None:
        mlp, name = (
            ("--task", "fashion-mnist", "--option", "model=mlp", "--data", folder),
            f"{name}, its data",
        )
    tasks = (
        (name, (*mlp, "--peers", "16", "--batch", "16", "--lr", "0.05", "--steps", "320")),
        (
            "quadratic, 64 peers",
            ("--task", "quadratic", "--peers", "64", "--momentum", "0", "--steps", "320"),
        ),
    )
    every = [
        Case(f"{what}, {algorithm}", (*words, *network_of(algorithm)))
        for what, words in tasks
        for algorithm in ALGORITHMS
    ]
    what, words = tasks[1]
    long = (*words[:-1], str(LONG), *network_of("sgp"))
    return [*every, Case(f"{what}, sgp, {LONG} rounds", long)]


def network_of(algorithm: str) -> tuple[str, ...]:
    """One local step in a round, but for the algorithm that is made for many."""
    steps = () if algorithm == "difference-push" else ("--local-steps", "1")
    return ("--algorithm", algorithm, "--topology", TREES.get(algorithm, "exponential"), *steps)


def plan_of(words: tuple[str, ...]) -> Plan:
    asked: dict[str, Any] = command.make_context("rehearse", list(words)).params
    return Plan.from_request(request_of(asked))


def rehearsed_s(plan: Plan) -> float:
    play = Play(plan, Trainer(plan))
    began = time.process_time()
    play.play()
    return time.process_time() - began


def bare_s(plan: Plan) -> float:
    trainer = Trainer(plan)
    began = time.process_time()
    trainer.bare_steps(plan.session.rounds)
    return time.process_time() - began


def measured(every: Iterable[Case]) -> Iterator[dict[str, Any]]:
    """load: the mean number of processes that wanted a core, over the last minute of the case."""
    for case in every:
        plan = plan_of(case.words)
        bare, rehearsed = bare_s(plan), rehearsed_s(plan)
        yield {
            "what": case.what,
            "steps": plan.peers * plan.steps,
            "bare_s": bare,
            "rehearsed_s": rehearsed,
            "load": os.getloadavg()[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a rehearsal costs beyond its SGD steps.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FASHION_MNIST"), metavar="DIR")
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    use_threads()
    with tempfile.TemporaryDirectory() as temporary:
        task_file = Path(temporary) / "like_fashion.py"
        task_file.write_text(LIKE_FASHION)
        found = list(measured(cases(asked.folder or None, task_file)))
    table = Table(*rehearsals.COSTS, title="peerd rehearse")
    for row in found:
        table.add_row(*rehearsals.costs(row))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if asked.json:
        keep(asked.json, {"rows": found})


if __name__ == "__main__":
    try:
        main()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
