"""All algorithms on like and unlike data: at equal rounds, and at equal bytes.

    PYTHONPATH=bench python -P bench/algorithms.py DIR [--cell NAME]… [--column ALPHA]… [--seeds N]
                                                   [--workers N] [--choose] [--list] [--markdown]

Fashion-MNIST, MLP 784-128-10, 16 peers, batch 16, 600 local steps each at a constant rate without momentum,
on a network of 20 Mbit/s and 30 ms, one peer three times slower. Each algorithm on a ring and on another
graph, the exponential one where it can; dirichlet 10, 0.1 and 0.01; three seeds (of the split, the initial
model and the batches).

    rounds    an exchange after every local step
    bytes     as many local steps between two exchanges as it takes to send no more than BYTES in all

`--choose` finds each cell's rate by the mean peer with seed 0, on training examples held out for validation:
the two of FIRST, and from the best so far to its neighbors in RATES until none of them is better. A second
graph of an algorithm that has not been chosen for takes the rate of its first. What is tried and found goes
to results/algorithms.json, where cells that were not run again stay as they are. Where exchanges after every
step send no more than BYTES, both tables have the same run.
`make bench` runs one column again, of one seed, and prints the tables.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import rehearsals
from kept import RESULTS, read, write
from rehearsals import all_of
from rich.console import Console
from rich.table import Table

FOUND = RESULTS / "algorithms.json"
SAME = "--task fashion-mnist --option model=mlp --peers 16 --batch 16 --momentum 0"
NETWORK = "--bandwidth 20mbit --latency 30ms --slow 1:3x"
STEPS, HELD_OUT, SEEDS = 600, 5000, 3
ALPHAS = ("10", "0.1", "0.01")
RATES = ("0.0125", "0.025", "0.05", "0.1", "0.2", "0.4", "0.8", "1.6")
FIRST = ("0.1", "0.2")
FIRST_OF = {
    "detag": ("0.4", "0.8"),  # a step in R rounds, and R is 4 on a ring of 16; it came down from there
    "qg-d-psgd": ("0.025", "0.05"),  # its momentum of 0.9 makes each step ten
}
BYTES = 50e6  # by each peer: what D-PSGD sends on a ring in 61 exchanges
ALGORITHMS: dict[str, tuple[str, ...]] = {  # the ring where it can, and another of its graphs
    "difference-push": ("ring", "exponential"),
    "sgp": ("ring", "exponential"),
    "sparse-push": ("ring", "exponential"),
    "relay-sum": ("chain", "binary-tree"),
    "relay-sum-grad": ("chain", "binary-tree"),
    "d-psgd": ("ring", "exponential"),
    "qg-d-psgd": ("ring", "exponential"),
    "d2": ("ring", "exponential"),
    "dsgt": ("ring", "exponential"),
    "detag": ("ring", "exponential"),
    "choco-sgd": ("ring", "exponential"),
    "power-gossip": ("ring", "exponential"),
    "ad-psgd": ("ring", "exponential"),
    "a2cid2": ("ring", "exponential"),
    "all-reduce": ("complete",),
}


@dataclass(frozen=True)
class Cell:
    algorithm: str
    topology: str
    alpha: str
    equal: str = "rounds"

    @property
    def name(self) -> str:
        return f"{self.algorithm} {self.topology} {self.alpha} {self.equal}"

    def words(self, rate: str, local_steps: int) -> str:
        how = f"--algorithm {self.algorithm} --topology {self.topology} --split dirichlet={self.alpha}"
        return f"{SAME} {NETWORK} {how} --local-steps {local_steps} --steps {STEPS} --lr {rate}"

    @property
    def at_equal_rounds(self) -> Cell:
        return Cell(self.algorithm, self.topology, self.alpha)


def cells(equal: str) -> list[Cell]:
    return [
        Cell(algorithm, topology, alpha, equal)
        for algorithm, topologies in ALGORITHMS.items()
        for topology in topologies
        for alpha in ALPHAS
    ]


def every() -> dict[str, Cell]:
    return {cell.name: cell for equal in ("rounds", "bytes") for cell in cells(equal)}


# --- running ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    cell: Cell
    rate: str
    local_steps: int
    folder: str
    seed: int = 0
    validation: bool = False


def rehearsed(job: Job) -> dict[str, Any]:
    """The figures that count. Where training diverges they say so."""
    import torch

    from peer.errors import DivergedError

    words = f"{job.cell.words(job.rate, job.local_steps)} --seed {job.seed}"
    held_out = f" --option validation={HELD_OUT}" if job.validation else ""
    try:
        found = rehearsals.rehearsed(words + held_out, job.folder)
    except DivergedError as error:
        return {"words": words, "diverged": str(error), "mean": 0.0, "worst": 0.0, "averaged": 0.0}
    metric = found["metric"]
    return {
        "words": words,
        "mean": metric["mean"],
        "worst": metric["worst"],
        "averaged": metric["averaged_model"],
        "sent_per_peer": found["bytes"]["sent_per_peer"],
        "virtual_s": found["virtual_s"],
        "cpu_s": found["cpu_s"],
        "torch": torch.__version__.partition("+")[0],
    }


def local_steps(cell: Cell, known: dict[str, Any]) -> int | None:
    """Between two exchanges. At equal bytes it takes figures at equal rounds; None while there are none."""
    if cell.equal == "rounds":
        return 1
    of_rounds = known.get(cell.at_equal_rounds.name, {}).get("seeds", [])
    sent = [one["sent_per_peer"] for one in of_rounds if "sent_per_peer" in one]
    return math.ceil(STEPS / min(STEPS, int(BYTES * STEPS / max(sent)))) if sent else None


def choose(asked: Sequence[Cell], folder: str, workers: int) -> None:
    known = read(FOUND)
    while jobs := [
        Job(cell, rate, steps, folder, validation=True)
        for cell in asked
        if (steps := local_steps(cell, known)) is not None and not same_run(cell, steps)
        for rate in untried(cell, known.get(cell.name, {}).get("tried", {}))
    ]:
        for job, found in zip(jobs, all_of(rehearsed, jobs, workers, "choosing"), strict=True):
            tried = known.setdefault(job.cell.name, {}).setdefault("tried", {})
            tried[job.rate] = {"mean": found["mean"]}
            write(FOUND, known)


def untried(cell: Cell, tried: dict[str, Any]) -> list[str]:
    """The rates to try next; none when the best one is known."""
    if not tried:
        return list(FIRST_OF.get(cell.algorithm, FIRST))
    at = RATES.index(best_of(tried))
    return [rate for rate in RATES[max(0, at - 1) : at + 2] if rate not in tried]


def best_of(tried: dict[str, Any]) -> str:
    return max(tried, key=lambda rate: tried[rate]["mean"])


def same_run(cell: Cell, local_steps: int) -> bool:
    """Whether it is the one at equal rounds, which does not send too much."""
    return cell.equal == "bytes" and local_steps == 1


def run(asked: Sequence[Cell], folder: str, seeds: int, workers: int) -> dict[str, Any]:
    """Figures of these cells beside those known, which are written down as they come in."""
    known = read(FOUND)
    jobs = list(_jobs(asked, known, folder, seeds))
    for job, found in zip(jobs, all_of(rehearsed, jobs, workers, "rehearsing"), strict=True):
        about = known.setdefault(job.cell.name, {})
        before = about.get("seeds", [])
        about["seeds"] = [*before[: job.seed], found, *before[job.seed + 1 :]]
        about["local_steps"], about["rate"] = job.local_steps, job.rate
        write(FOUND, known)
    return known


def _jobs(asked: Sequence[Cell], known: dict[str, Any], folder: str, seeds: int) -> Iterator[Job]:
    for cell in asked:
        steps, rate = local_steps(cell, known), rate_of(cell, known)
        if steps is not None and rate is not None and not same_run(cell, steps):
            yield from (Job(cell, rate, steps, folder, seed) for seed in range(seeds))


def rate_of(cell: Cell, known: dict[str, Any]) -> str | None:
    """The best, if all that are to be tried have been; else that of the algorithm's first graph, if they have
    been there; else the best so far."""
    first = Cell(cell.algorithm, ALGORITHMS[cell.algorithm][0], cell.alpha, cell.equal)
    for one in (cell, _run_of(first, known)):
        tried = known.get(one.name, {}).get("tried", {})
        if not untried(one, tried):
            return best_of(tried)
    tried = known.get(cell.name, {}).get("tried", {})
    return best_of(tried) if tried else None


# --- the tables ------------------------------------------------------------------------------------------


def rows(known: dict[str, Any], equal: str) -> Iterator[list[str]]:
    for algorithm, topologies in ALGORITHMS.items():
        for topology in topologies:
            run = [_run_of(Cell(algorithm, topology, alpha, equal), known) for alpha in ALPHAS]
            found = [known.get(cell.name, {}) for cell in run]
            if any(one.get("seeds") for one in found):
                yield [algorithm, topology, *map(_accuracies, run, found), *_costs(found)]


def _costs(found: Sequence[dict[str, Any]]) -> list[str]:
    """Local steps between two exchanges, megabytes and virtual seconds, means of all seeds that there are."""
    steps = sorted({one["local_steps"] for one in found if one.get("seeds")})
    sent = [seed for one in found for seed in one.get("seeds", ()) if "sent_per_peer" in seed]
    if not sent:
        return [" to ".join(map(str, steps)), "–", "–"]
    megabytes = statistics.fmean(one["sent_per_peer"] for one in sent) / 1e6
    return [
        " to ".join(map(str, steps)),
        f"{megabytes:,.0f}" if megabytes > 100 else f"{megabytes:.3g}",
        f"{statistics.fmean(one['virtual_s'] for one in sent):.0f}",
    ]


def _run_of(cell: Cell, known: dict[str, Any]) -> Cell:
    steps = local_steps(cell, known)
    return cell.at_equal_rounds if steps is not None and same_run(cell, steps) else cell


def _accuracies(cell: Cell, found: dict[str, Any]) -> str:
    """Mean of the peers ± over seeds, the worst peer of all seeds, the averaged model; the rate, with a star
    where not all that are to be tried have been."""
    seeds = found.get("seeds", [])
    if not seeds:
        return "–"
    rate = found["rate"] + ("*" if untried(cell, found.get("tried", {})) else "")
    if any("diverged" in one for one in seeds):
        return f"diverged, lr {rate}"
    mean = [100 * one["mean"] for one in seeds]
    spread = f" ± {statistics.stdev(mean):.1f}" if len(mean) > 1 else ""
    worst, averaged = min(one["worst"] for one in seeds), statistics.fmean(one["averaged"] for one in seeds)
    return f"{statistics.fmean(mean):.1f}{spread}, {100 * worst:.1f}, {100 * averaged:.1f}; lr {rate}"


HEAD = (
    "algorithm",
    "topology",
    *(f"dirichlet {alpha}" for alpha in ALPHAS),
    "local steps",
    "MB sent",
    "virtual s",
)
TITLES = {
    "rounds": f"{STEPS} rounds of one local step",
    "bytes": f"{STEPS} local steps, at most {BYTES / 1e6:.0f} MB by each peer",
}


def show(known: dict[str, Any], *, markdown: bool) -> None:
    for equal, title in TITLES.items():
        found = list(rows(known, equal))
        if markdown:
            lines = [HEAD, ("---",) * len(HEAD), *found]
            print(f"\n**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
            continue
        table = Table(*HEAD, title=f"{title}: accuracy in %, mean ± seeds, worst peer, averaged model")
        for line in found:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 190).print(table)


def main() -> None:
    known = every()
    parser = argparse.ArgumentParser(description="All algorithms, at equal rounds and at equal bytes.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FASHION_MNIST"), metavar="DIR")
    parser.add_argument("--cell", action="append", choices=list(known), metavar="NAME", help="one of --list")
    parser.add_argument("--column", action="append", choices=ALPHAS, help="all cells of this alpha")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--choose", action="store_true", help="rates, on examples held out")
    parser.add_argument("--list", action="store_true", help="the cells there are")
    parser.add_argument("--markdown", action="store_true", help="the tables as the docs have them")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(known))
        return
    if asked.markdown:
        show(read(FOUND), markdown=True)
        return
    if not asked.folder:
        print("algorithms: name the folder of Fashion-MNIST in FASHION_MNIST to have these tables")
        return
    columns = asked.column or ([] if asked.cell else ALPHAS)
    wanted = [known[name] for name in asked.cell or ()]
    wanted += [cell for cell in known.values() if cell.alpha in columns]
    if asked.choose:
        choose(wanted, asked.folder, asked.workers)
    else:
        show(run(wanted, asked.folder, asked.seeds, asked.workers), markdown=False)


if __name__ == "__main__":
    main()
