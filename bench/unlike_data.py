"""What unlike data costs: RelaySum on a binary tree and D-PSGD on a ring, as a table. Part of `make bench`.

Fashion-MNIST, MLP 784-128-10, 16 peers, batch 16, 600 rounds of one local step at a constant rate, without
momentum, three seeds each: `peerd rehearse`, as a user would run it. Accuracy is that of all peers' models on
the whole test set. The folder of the data is the argument, or FASHION_MNIST. About ten minutes of one core.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COMMON = (
    "--task fashion-mnist --option model=mlp --peers 16 --batch 16 --rounds 600 --local-steps 1 --momentum 0 "
    "--schedule constant --warmup 20"
)
ON_A_TREE = "--algorithm relay-sum --topology binary-tree"
ALGORITHMS = {
    "D-PSGD, ring, 0.2": "--algorithm d-psgd --topology ring --lr 0.2",
    "RelaySum, binary tree, 0.5": f"{ON_A_TREE} --lr 0.5 --option lr-correction=off",
    "RelaySum, binary tree, 0.15 corrected": f"{ON_A_TREE} --lr 0.15",
}
ALPHAS = (10, 0.01)
SEEDS = (0, 1, 2)

Run = tuple[str, float, int]  # algorithm, alpha, seed


def rehearse(run: Run, data: str, folder: Path) -> dict[str, Any]:
    """The report's `metric` of one run."""
    name, alpha, seed = run
    file = folder / f"{abs(hash(run))}.json"
    words = f"{COMMON} {ALGORITHMS[name]} --split dirichlet={alpha} --seed {seed}".split()
    command = [
        str(Path(sys.executable).with_name("peerd")),
        "rehearse",
        *words,
        "--data",
        data,
        "--json",
        str(file),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metric: dict[str, Any] = json.loads(file.read_text())["metric"]
    return metric


def main() -> int:
    data = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FASHION_MNIST", "")
    if not data:
        print(
            "unlike data: not measured; name the folder of Fashion-MNIST's four files: "
            "make bench FASHION_MNIST=DIR"
        )
        return 0
    runs = [(name, alpha, seed) for name in ALGORITHMS for alpha in ALPHAS for seed in SEEDS]
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        metrics = dict(zip(runs, pool.map(lambda run: rehearse(run, data, Path(folder)), runs), strict=True))
    print("Fashion-MNIST, 16 peers, 600 rounds: mean over peers and three seeds ± deviation over seeds")
    print(
        f"{'algorithm, graph, rate':<40}{'alpha':>6}{'mean peer':>16}{'worst peer':>12}{'averaged model':>16}"
    )
    means = {}
    for name in ALGORITHMS:
        for alpha in ALPHAS:
            found = [metrics[name, alpha, seed] for seed in SEEDS]
            mean = [metric["mean"] for metric in found]
            means[name, alpha] = statistics.mean(mean)
            spread = f"{means[name, alpha]:.3f} ± {statistics.stdev(mean):.3f}"
            worst = min(metric["worst"] for metric in found)
            averaged = statistics.mean(metric["averaged_model"] for metric in found)
            print(f"{name:<40}{alpha:>6}{spread:>16}{worst:>12.3f}{averaged:>16.3f}")
    for name in ALGORITHMS:
        lost = 100 * (means[name, ALPHAS[0]] - means[name, ALPHAS[1]])
        print(f"{name}: alpha {ALPHAS[1]} costs {lost:.1f} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
