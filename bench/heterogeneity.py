"""RelaySum against D-PSGD on data that differs from peer to peer, as a table. Part of `make bench` when
the folder of Fashion-MNIST is given, as an argument or in FASHION_MNIST.

    PYTHONPATH=bench python -P bench/heterogeneity.py DIR [--seeds N] [--json FILE]

MLP 784-128-10, 16 peers, batch 16, 600 rounds of one local step at a constant rate without momentum, three
seeds (of the split, the initial model and the batches). A decayed rate hides most of what shows here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rehearsals
from kept import keep
from rich.console import Console
from rich.progress import track
from rich.table import Table

SAME = (
    "--task fashion-mnist --option model=mlp --peers 16 --batch 16 --rounds 600 --local-steps 1 --momentum 0"
)
ALPHAS = ("10", "0.01")
SEEDS = 3
MOST_LOST = 4.0  # points that the mean peer may lose from the first alpha to the last
LEAST_LOST = 10.0  # points that D-PSGD loses at least: with less the split would show nothing


@dataclass(frozen=True)
class Case:
    """A row of the table. goal: points the mean peer is to lose; at least so many where `below` is False."""

    name: str
    words: str
    goal: float = MOST_LOST
    below: bool = True


CASES = (
    Case("`d-psgd`, ring, `--lr 0.2`", "--algorithm d-psgd --topology ring --lr 0.2", LEAST_LOST, False),
    Case(
        "`relay-sum`, binary tree, `--lr 0.5 --option lr-correction=off`",
        "--algorithm relay-sum --topology binary-tree --lr 0.5 --option lr-correction=off",
    ),
    Case("`relay-sum`, binary tree, `--lr 0.15`", "--algorithm relay-sum --topology binary-tree --lr 0.15"),
)


def rehearsed(case: Case, alpha: str, folder: str, seeds: int) -> dict[str, Any]:
    """Accuracies over all test pictures by seed: of the mean peer, the worst, and the averaged model."""
    words = f"{SAME} {case.words} --split dirichlet={alpha}"
    found = [rehearsals.rehearsed(f"{words} --seed {seed}", folder)["metric"] for seed in range(seeds)]
    kept = ("mean", "worst", "averaged_model")
    return {
        "words": words,
        "alpha": alpha,
        "metric": found[0]["name"],
        "seeds": [{"seed": seed, **{key: one[key] for key in kept}} for seed, one in enumerate(found)],
    }


def cell(row: dict[str, Any]) -> str:
    """Mean over peers and seeds ± deviation over seeds, worst peer of all seeds, mean of averaged models."""
    seeds: Sequence[dict[str, float]] = row["seeds"]
    means = [one["mean"] for one in seeds]
    spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
    averaged = statistics.fmean(one["averaged_model"] for one in seeds)
    worst = min(one["worst"] for one in seeds)
    return f"{statistics.fmean(means):.3f}{spread}, worst {worst:.3f}, averaged {averaged:.3f}"


def rows(found: list[dict[str, Any]]) -> list[tuple[Case, list[dict[str, Any]]]]:
    """Of each case what was found with each alpha. Raises StopIteration where something is missing."""

    def of(case: Case, alpha: str) -> dict[str, Any]:
        words = f"{SAME} {case.words} --split dirichlet={alpha}"
        return next(row for row in found if row["words"] == words)

    return [(case, [of(case, alpha) for alpha in ALPHAS]) for case in CASES]


def lost(row: Sequence[dict[str, Any]]) -> float:
    """Points the mean peer loses from the first alpha to the last, in the mean over seeds."""
    first, last = (statistics.fmean(one["mean"] for one in row[at]["seeds"]) for at in (0, -1))
    return 100 * (first - last)


def main() -> None:
    parser = argparse.ArgumentParser(description="What unlike data costs RelaySum and D-PSGD.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FASHION_MNIST"), metavar="DIR")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args()
    if not asked.folder:
        print("heterogeneity: name the folder of Fashion-MNIST in FASHION_MNIST to have this table")
        return
    runs = [(case, alpha) for case in CASES for alpha in ALPHAS]
    found = [
        rehearsed(case, alpha, asked.folder, asked.seeds)
        for case, alpha in track(runs, "rehearsing", console=Console(stderr=True))
    ]
    title = f"accuracy over all test pictures, {asked.seeds} seeds"
    table = Table("", *(f"alpha {alpha}" for alpha in ALPHAS), "points lost", title=title)
    for case, row in rows(found):
        table.add_row(case.name, *map(cell, row), f"{lost(row):.1f}")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if asked.json:
        keep(asked.json, {"rows": found})


if __name__ == "__main__":
    main()
