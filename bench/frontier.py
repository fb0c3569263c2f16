"""Accuracy of mean and worst peer against bytes, relative to whole models at every step.

    PYTHONPATH=bench python -P bench/frontier.py DIR [--row NAME]… [--seeds N] [--workers N] [--list]
                                                     [--choose] [--seeds-to-choose N]

`make bench` prints the table when the folder of Fashion-MNIST is given, as an argument or in FASHION_MNIST.
Each row is compared with a dense run of its own: SGP with one step a round, the same graph, data, seed and
number of steps. All figures are after the final rounds, whose bytes count.

Where a row has several settings, `--choose` rehearses each of them with one seed or `--seeds-to-choose`, on
training examples held out for validation, and writes the best into results/frontier_chosen.json. The table
is of what is written there, else of the first one, with all training and all test examples. A setting with
which training diverges for one of the table's seeds gives way to the next best. Figures go to
results/frontier.json, where rows that were not run again stay as they are.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import rehearsals
from kept import RESULTS, read, write
from rehearsals import all_of
from rich.console import Console
from rich.table import Table

from peer.errors import DivergedError

FRONTIER, CHOSEN = RESULTS / "frontier.json", RESULTS / "frontier_chosen.json"
SEEDS = 3
MOST_LOST = 1.0  # points of the worst peer's accuracy, for a goal to be reached
CLOTHES = "--task fashion-mnist --peers 8 --momentum 0.9 --schedule cosine --warmup 50 --final-rounds"
DIGITS = "--task spoken-digits --split natural --peers 6 --schedule cosine --warmup 50 --final-rounds"
HELD_OUT = {CLOTHES: 5000, DIGITS: 300}
DENSE = "--algorithm sgp --local-steps 1"
OURS = "--algorithm difference-push"
PAPERS = "--algorithm sparse-push --local-steps 1"
RATES = ("0.05", "0.025", "0.1")


@dataclass(frozen=True)
class Row:
    """One line of the table. settings: words of `peerd rehearse` to choose from, the first without a choice.
    against: the row it is compared with, "" for a dense one. goal: so many times fewer bytes at a loss of at
    most a point."""

    name: str
    common: str
    settings: tuple[str, ...]
    against: str = ""
    goal: float = 0.0


# Bits per parameter that reach a goal: a ring's final rounds open links, which takes a seventh of all bytes.
BITS = {("exponential", 2048): 1.0, ("exponential", 4096): 0.95, ("ring", 2048): 0.88, ("ring", 4096): 0.8}
# Eighths of the goal's steps between exchanges, where it is missed, in search of the most that hold.
BETWEEN = {("exponential", 2048): 5, ("ring", 2048): 7}
# Of the goal's own rows: as many as it leaves. The others were measured first, and save a little more.
AT_GOAL = BITS | {("exponential", 2048): 1.04, ("ring", 2048): 0.91}


def rows() -> dict[str, Row]:
    found: list[Row] = []
    for graph in ("exponential", "ring"):
        for steps in (2048, 4096):
            found += alike(
                f"iid {graph} {steps}", f"{CLOTHES} --topology {graph} --steps {steps}", graph, steps
            )
        common = f"{CLOTHES} --topology {graph} --steps 2048 --split dirichlet=0.1"
        found += skewed(f"dirichlet {graph} 2048", common, BITS[graph, 2048])
        found += digits(
            f"digits {graph} 2400", f"{DIGITS} --topology {graph} --steps 2400", BITS[graph, 2048]
        )
    return {row.name: row for row in found}


def alike(name: str, common: str, graph: str, steps: int) -> list[Row]:
    """Fashion-MNIST in equal random parts. The rows below the goal are for the case that it is missed."""
    goal, H, bits = (466.0 if steps == 2048 else 1000.0), steps // 128, BITS[graph, steps]
    below = {4: "half", 6: "three quarters"}
    if (graph, steps) in BETWEEN:
        below[BETWEEN[graph, steps]] = "between"

    def ours(H: int, bits: float, lr: str = "0.05", how: str = "") -> str:
        return f"{OURS} --lr {lr} --local-steps {H} --option bits={bits:g} {how}".strip()

    most = AT_GOAL[graph, steps]
    settings = (
        ours(H, most),
        ours(H, most, how="--option placing=steps"),
        ours(H // 2, most / 2),
        ours(3 * H // 2, 1.5 * most),
        ours(2 * H, 2 * most),
        ours(H, most, "0.035"),
        ours(H, most, "0.07"),
    )
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in RATES))
    return [
        dense,
        Row(f"{name} dense preset", common, (f"{OURS} --lr 0.05 --option preset=dense",), dense.name),
        *(
            Row(f"{name} {which}", common, (ours(part * H // 8, bits),), dense.name, part / 8 * goal)
            for part, which in sorted(below.items())
        ),
        *([Row(f"{name} further", common, (ours(H, bits),), dense.name)] if most != bits else []),
        Row(f"{name} goal", common, settings, dense.name, goal),
        Row(f"{name} sparse-push 0.1%", common, papers("0.1%", "auto", "0.005"), dense.name),
        Row(f"{name} sparse-push 1%", common, papers("1%", "auto", "0.02"), dense.name),
    ]


def skewed(name: str, common: str, bits: float) -> list[Row]:
    """A few kinds of clothes for each peer."""
    far, slower, slowest = (
        f"{OURS} --lr {lr} --local-steps 16 --option bits={bits:g}" for lr in ("0.05", "0.035", "0.025")
    )
    near = f"{OURS} --lr 0.05 --option preset=dense"
    adjusted = [f"--option logit-adjustment={tau}" for tau in ("0.5", "0.25", "1")]
    distilled = [f"--option not-true-distillation={weight}" for weight in ("1", "0.5", "0.25")]
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in RATES))
    return [
        dense,
        Row(f"{name} dense preset", common, (near,), dense.name),
        Row(f"{name} dense preset, adjusted", common, tuple(f"{near} {how}" for how in adjusted), dense.name),
        Row(
            f"{name} dense preset, distilled", common, tuple(f"{near} {how}" for how in distilled), dense.name
        ),
        Row(
            f"{name} goal", common, (far, f"{far} --option placing=steps", slower, slowest), dense.name, 466.0
        ),
        Row(f"{name} goal, adjusted", common, tuple(f"{far} {how}" for how in adjusted), dense.name, 466.0),
        Row(f"{name} goal, distilled", common, tuple(f"{far} {how}" for how in distilled), dense.name, 466.0),
        Row(f"{name} sparse-push 1%", common, papers("1%", "auto", "0.02"), dense.name),
    ]


def digits(name: str, common: str, bits: float) -> list[Row]:
    """A speaker for each peer."""
    rates = ("0.02", "0.05")
    far = [f"{OURS} --lr {lr} --local-steps 16 --option bits={bits:g}" for lr in rates]
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in rates))
    frugal = tuple(f"{OURS} --lr {lr} --option preset=frugal" for lr in rates)
    return [
        dense,
        Row(f"{name} goal", common, (*far, f"{far[0]} --option placing=steps"), dense.name, 466.0),
        Row(f"{name} frugal", common, frugal, dense.name),
        Row(f"{name} sparse-push 1%", common, papers("1%", "auto", "0.02", lr="0.02"), dense.name),
    ]


def papers(share: str, *gammas: str, lr: str = "0.05") -> tuple[str, ...]:
    """Sparse-Push as it is published: an exchange after each step, of the largest entries of the model."""
    return tuple(
        f"{PAPERS} --lr {lr} --compression topk={share},fp16 --option gamma={gamma}" for gamma in gammas
    )


# --- one rehearsal ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    words: str
    folder: str


def rehearsed(job: Job) -> dict[str, Any]:
    """The figures that count. Where training diverges they say so."""
    try:
        found = rehearsals.rehearsed(job.words, job.folder if CLOTHES in job.words else None)
    except DivergedError as error:
        return {"words": job.words, "diverged": str(error), "mean": 0.0, "worst": 0.0, "sent_per_peer": 0.0}
    before, kept = (
        found["metric_before_final_rounds"],
        ("consensus_distance", "mass_error", "wall_s", "cpu_s"),
    )
    return {
        "words": job.words,
        "mean": found["metric"]["mean"],
        "worst": found["metric"]["worst"],
        "worst_before_final_rounds": before["worst"],
        "mean_before_final_rounds": before["mean"],
        "sent_per_peer": found["bytes"]["sent_per_peer"],
        **{key: found[key] for key in kept},
    }


# --- choosing --------------------------------------------------------------------------------------------


def choose(asked: Sequence[Row], folder: str, workers: int, seeds: int) -> None:
    """By the mean peer on examples held out, in the mean of so many seeds. What was tried before with as many
    is not again."""
    known = read(CHOSEN)
    to_run = [
        (row, setting, seed)
        for row in asked
        for setting in row.settings
        if len(row.settings) > 1 and _tries(known, row, setting) < seeds
        for seed in range(seeds)
    ]
    jobs = [
        Job(f"{row.common} {setting} --option validation={_held_out(row)} --seed {seed}", folder)
        for row, setting, seed in to_run
    ]
    found = zip(to_run, all_of(rehearsed, jobs, workers, "choosing"), strict=True)
    for (row, setting), group in groupby(found, key=lambda pair: pair[0][:2]):
        each = [one for _, one in group]
        what = {key: statistics.fmean(one[key] for one in each) for key in ("mean", "worst", "sent_per_peer")}
        if any("diverged" in one for one in each):
            what = dict.fromkeys(what, 0.0)
        known.setdefault(row.name, {"tried": {}})["tried"][setting] = what | {"seeds": seeds}
        write(CHOSEN, known)
    for row in asked:
        if len(row.settings) > 1:
            tried = {setting: known[row.name]["tried"][setting] for setting in row.settings}
            known[row.name] = {**known[row.name], "tried": tried}
            known[row.name]["chosen"] = _best(known[row.name])
    write(CHOSEN, known)


def _tries(known: dict[str, Any], row: Row, setting: str) -> int:
    """With so many seeds it was tried before."""
    tried = known.get(row.name, {}).get("tried", {}).get(setting)
    return tried.get("seeds", 1) if tried is not None else 0


def _best(of_row: dict[str, Any]) -> str:
    """Of the settings tried, but for those that diverged later; "" if none is left."""
    left = {how: found["mean"] for how, found in of_row["tried"].items() if found["mean"] > 0}
    for setting in of_row.get("diverged", []):
        left.pop(setting, None)
    return max(left, key=left.__getitem__, default="")


def _give_way(row: Row, setting: str) -> bool:
    """Training diverged with this setting: is there another to take its place?"""
    chosen = read(CHOSEN)
    of_row = chosen.get(row.name, {"tried": {}})
    of_row["diverged"] = [*of_row.get("diverged", []), setting]
    best = _best(of_row)
    if best:
        chosen[row.name] = {**of_row, "chosen": best}
        write(CHOSEN, chosen)
    return bool(best)


def _held_out(row: Row) -> int:
    return next(count for task, count in HELD_OUT.items() if row.common.startswith(task))


def setting_of(row: Row, chosen: dict[str, Any]) -> str:
    found: str = chosen.get(row.name, {}).get("chosen", row.settings[0])
    return found if found in row.settings else row.settings[0]


# --- what is lost ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A row beside its dense one: so many times fewer bytes, and points lost with each seed."""

    ratio: float
    mean: list[float]
    worst: list[float]

    @property
    def holds(self) -> bool:
        """The worst peer loses MOST_LOST at most, in the mean over seeds."""
        return statistics.fmean(self.worst) <= MOST_LOST


def compared(row: Row, known: dict[str, Any]) -> Compared | None:
    """None for a dense row, where figures of both for the same seeds are missing, or training diverged."""
    if row.name not in known or row.against not in known:
        return None
    dense, its = known[row.against]["seeds"], known[row.name]["seeds"]
    if has_diverged(its) or has_diverged(dense) or len(its) != len(dense):
        return None
    pairs = list(zip(dense, its, strict=True))
    mean, worst = ([100 * (d[what] - m[what]) for d, m in pairs] for what in ("mean", "worst"))
    return Compared(statistics.fmean(d["sent_per_peer"] / m["sent_per_peer"] for d, m in pairs), mean, worst)


# --- the table -------------------------------------------------------------------------------------------


def run(asked: Sequence[Row], folder: str, seeds: int, workers: int) -> dict[str, Any]:
    """Figures of these rows beside those known, which are written down as they come in."""
    known = read(FRONTIER)
    while asked:
        _run(asked, known, folder, seeds, workers)
        diverged = [row for row in asked if has_diverged(known[row.name]["seeds"])]
        asked = [row for row in diverged if _give_way(row, known[row.name]["setting"])]
    return known


def _run(asked: Sequence[Row], known: dict[str, Any], folder: str, seeds: int, workers: int) -> None:
    chosen = read(CHOSEN)
    todo = [(row, seed) for row in asked for seed in range(seeds)]
    jobs = [Job(f"{row.common} {setting_of(row, chosen)} --seed {seed}", folder) for row, seed in todo]
    for (row, seed), found in zip(todo, all_of(rehearsed, jobs, workers, "rehearsing"), strict=True):
        if seed == 0:
            known[row.name] = {"setting": setting_of(row, chosen), "seeds": []}
        known[row.name]["seeds"].append(found)
        write(FRONTIER, known)


def has_diverged(seeds: Sequence[dict[str, Any]]) -> bool:
    return any("diverged" in one for one in seeds)


def with_dense(asked: Sequence[Row], every: dict[str, Row], seeds: int) -> list[Row]:
    """And the rows they are compared with, unless those are known."""
    chosen, known, named = read(CHOSEN), read(FRONTIER), {row.name for row in asked}

    def is_known(row: Row) -> bool:
        found = known.get(row.name, {"setting": "", "seeds": []})
        return found["setting"] == setting_of(row, chosen) and len(found["seeds"]) >= seeds

    dense = (every[row.against] for row in asked if row.against and row.against not in named)
    return [*dict.fromkeys(row for row in dense if not is_known(row)), *asked]


def table(known: dict[str, Any], every: dict[str, Row]) -> Table:
    made = Table(
        "", "bytes", "mean", "worst", "mean lost", "worst lost", "before final rounds", "CPU s",
        title="accuracy in %, points lost against dense, ± standard error over seeds",
    )  # fmt: skip
    for row in every.values():
        if row.name in known:
            made.add_row(*_cells(row, known))
    return made


def _cells(row: Row, known: dict[str, Any]) -> list[str]:
    mine = known[row.name]["seeds"]
    if has_diverged(mine):
        return [row.name, "diverged", *["–"] * 6]
    found, before = compared(row, known), percent(mine, "worst_before_final_rounds")
    return [
        row.name,
        "1x" if found is None else f"{found.ratio:.0f}x{_reached(row, found)}",
        f"{percent(mine, 'mean'):.2f}",
        f"{percent(mine, 'worst'):.2f}",
        *(("–", "–") if found is None else (with_error(found.mean), with_error(found.worst))),
        f"{before:.2f}",
        f"{statistics.fmean(m['cpu_s'] for m in mine):.0f}",
    ]


def percent(seeds: Sequence[dict[str, Any]], what: str) -> float:
    """Mean over seeds."""
    return statistics.fmean(100 * one[what] for one in seeds)


def with_error(values: Sequence[float]) -> str:
    """Their mean and its standard error."""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


def _reached(row: Row, found: Compared) -> str:
    if not row.goal:
        return ""
    holds = found.ratio >= row.goal and found.holds
    return " ✓" if holds else f" (goal: {row.goal:.0f}x, {MOST_LOST:g} point)"


def main() -> None:
    every = rows()
    parser = argparse.ArgumentParser(description="Fewest bytes at least loss: peerd's frontier.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FASHION_MNIST"), metavar="DIR")
    parser.add_argument("--row", action="append", choices=list(every), metavar="NAME", help="one of --list")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--choose", action="store_true", help="settings, on examples held out")
    parser.add_argument("--seeds-to-choose", type=int, default=1, metavar="N")
    parser.add_argument("--list", action="store_true", help="the rows there are")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(every))
        return
    if not asked.folder:
        print("frontier: name the folder of Fashion-MNIST in FASHION_MNIST to have this table")
        return
    wanted = [every[name] for name in asked.row or every]
    if asked.choose:
        choose(wanted, asked.folder, asked.workers, asked.seeds_to_choose)
        return
    known = run(with_dense(wanted, every, asked.seeds), asked.folder, asked.seeds, asked.workers)
    Console(width=None if sys.stdout.isatty() else 150).print(table(known, every))


if __name__ == "__main__":
    main()
