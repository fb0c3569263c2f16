"""RelaySum against D-PSGD on data that differs from peer to peer, as a table. Part of `make bench` when
the folder of Fashion-MNIST is given, as an argument or in FASHION_MNIST.

MLP 784-128-10, 16 peers, batch 16, 600 rounds of one local step at a constant rate without momentum, three
seeds (of the split, the initial model and the batches). A decayed rate hides most of what shows here.
"""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import dataclass

import rehearsals
from rich.console import Console
from rich.progress import track
from rich.table import Table

SAME = (
    "--task fashion-mnist --option model=mlp --peers 16 --batch 16 --rounds 600 --local-steps 1 --momentum 0"
)
CASES = {
    "D-PSGD on a ring, rate 0.2": "--algorithm d-psgd --topology ring --lr 0.2",
    "RelaySum on a binary tree, rate 0.5": (
        "--algorithm relay-sum --topology binary-tree --lr 0.5 --option lr-correction=off"
    ),
    "the same, rate 0.15 times the correction": "--algorithm relay-sum --topology binary-tree --lr 0.15",
}
ALPHAS = ("10", "0.01")
SEEDS = 3


@dataclass(frozen=True)
class Result:
    """Accuracies: mean of the peers by seed, the worst peer of all seeds, the averaged model by seed."""

    means: list[float]
    worst: float
    averaged: list[float]

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.means):.3f}" if len(self.means) > 1 else ""
        mean, averaged = statistics.fmean(self.means), statistics.fmean(self.averaged)
        return f"{mean:.3f}{spread}, worst {self.worst:.3f}, averaged {averaged:.3f}"


def rehearsed(words: str, folder: str, seeds: int) -> Result:
    found = [rehearsals.rehearsed(f"{words} --seed {seed}", folder)["metric"] for seed in range(seeds)]
    averaged = [one["averaged_model"] for one in found]
    return Result([one["mean"] for one in found], min(one["worst"] for one in found), averaged)


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FASHION_MNIST")
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else SEEDS
    if folder is None:
        print("heterogeneity: name the folder of Fashion-MNIST in FASHION_MNIST to have this table")
        return
    runs = [(case, alpha) for case in CASES for alpha in ALPHAS]
    results = {
        (case, alpha): rehearsed(f"{SAME} {CASES[case]} --split dirichlet={alpha}", folder, seeds)
        for case, alpha in track(runs, "rehearsing", console=Console(stderr=True))
    }
    title = f"accuracy over all test pictures, {seeds} seeds"
    table = Table("", *(f"alpha {alpha}" for alpha in ALPHAS), title=title)
    for case in CASES:
        table.add_row(case, *(str(results[case, alpha]) for alpha in ALPHAS))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
