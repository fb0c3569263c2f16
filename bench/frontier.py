"""Accuracy of mean and worst peer against bytes, relative to whole models at every step.

    python -P bench/frontier.py DIR [--row NAME]… [--seeds N] [--workers N] [--choose] [--list]

`make bench` prints the table when the folder of Fashion-MNIST is given, as an argument or in FASHION_MNIST.
Each row is compared with a dense run of its own: SGP with one step a round, the same graph, data, seed and
number of steps. All figures are after the final rounds, whose bytes count.

Where a row has several settings, `--choose` rehearses each of them with seed 0, on training examples held out
for validation, and writes the best into results/frontier_chosen.json. The table is of what is written there,
else of the first one, with all training and all test examples. Its figures go to results/frontier.json, where
rows that were not run again stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: small models are no faster with more

from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
FRONTIER, CHOSEN = RESULTS / "frontier.json", RESULTS / "frontier_chosen.json"
SEEDS = 3
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


def rows() -> dict[str, Row]:
    found: list[Row] = []
    for graph in ("exponential", "ring"):
        for steps in (2048, 4096):
            found += clothes(f"iid {graph} {steps}", f"{CLOTHES} --topology {graph} --steps {steps}", steps)
        found += skewed(
            f"dirichlet {graph} 2048", f"{CLOTHES} --topology {graph} --steps 2048 --split dirichlet=0.1"
        )
        found += digits(f"digits {graph} 2400", f"{DIGITS} --topology {graph} --steps 2400")
    return {row.name: row for row in found}


def clothes(name: str, common: str, steps: int) -> list[Row]:
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in RATES))
    goal, H = (466.0, 16) if steps == 2048 else (1000.0, 32)
    bits = (466 / goal * H / 16) * (
        1.0 if "exponential" in name else 0.85
    )  # a ring's final rounds open links anew
    ours = [
        f"{OURS} --lr {lr} --local-steps {h} --option bits={b:.3g} {placing}".strip()
        for lr, h, b, placing in (
            ("0.05", H, bits, ""),
            ("0.05", H, bits, "--option placing=steps"),
            ("0.05", H // 2, bits / 2, ""),
            ("0.025", H, bits, ""),
            ("0.1", H, bits, ""),
        )
    ]
    papers = [
        f"{PAPERS} --lr 0.05 --compression topk={share},fp16 --option gamma={gamma}"
        for share, gamma in (("0.1%", "auto"), ("0.1%", "0.005"))
    ]
    wider = [
        f"{PAPERS} --lr 0.05 --compression topk=1%,fp16 --option gamma={gamma}" for gamma in ("auto", "0.02")
    ]
    return [
        dense,
        Row(f"{name} 120x", common, (f"{OURS} --lr 0.05 --option preset=dense",), dense.name),
        Row(f"{name} {goal:.0f}x", common, tuple(ours), dense.name, goal),
        Row(f"{name} sparse-push 0.1%", common, tuple(papers), dense.name),
        Row(f"{name} sparse-push 1%", common, tuple(wider), dense.name),
    ]


def skewed(name: str, common: str) -> list[Row]:
    bits = "1" if "exponential" in name else "0.85"
    ours = f"{OURS} --lr 0.05 --local-steps 16 --option bits={bits}"
    near = f"{OURS} --lr 0.05 --local-steps 4 --option bits=1"
    adjusted = [f"--option logit-adjustment={tau}" for tau in ("0.5", "0.25", "1")]
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in RATES))
    return [
        dense,
        Row(f"{name} 466x", common, (ours, f"{ours} --option placing=steps"), dense.name, 466.0),
        Row(f"{name} 466x adjusted", common, tuple(f"{ours} {how}" for how in adjusted), dense.name, 466.0),
        Row(f"{name} 120x", common, (near,), dense.name),
        Row(f"{name} 120x adjusted", common, tuple(f"{near} {how}" for how in adjusted), dense.name),
        Row(
            f"{name} sparse-push 1%", common, (f"{PAPERS} --lr 0.05 --compression topk=1%,fp16",), dense.name
        ),
    ]


def digits(name: str, common: str) -> list[Row]:
    dense = Row(f"{name} dense", common, tuple(f"{DENSE} --lr {lr}" for lr in ("0.02", "0.05")))
    ours = f"{OURS} --local-steps 16 --option bits={'1' if 'exponential' in name else '0.85'}"
    settings = [
        f"{ours} --lr {lr} {how}".strip() for lr in ("0.02", "0.05") for how in ("", "--option placing=steps")
    ]
    frugal = tuple(f"{OURS} --option preset=frugal --lr {lr}" for lr in ("0.02", "0.05"))
    return [
        dense,
        Row(f"{name} 466x", common, tuple(settings), dense.name, 466.0),
        Row(f"{name} frugal", common, frugal, dense.name),
        Row(
            f"{name} sparse-push 1%", common, (f"{PAPERS} --lr 0.02 --compression topk=1%,fp16",), dense.name
        ),
    ]


# --- one rehearsal ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    words: str
    folder: str


def rehearsed(job: Job) -> dict[str, Any]:
    """In a process of its own: the figures that count."""
    from cli.rehearse import command, request_of
    from peer.learner.devices import use_threads
    from peer.rehearsal import report
    from peer.rehearsal.plan import Plan
    from peer.rehearsal.play import Play
    from peer.rehearsal.trainer import Trainer

    use_threads()
    began, cpu = time.monotonic(), time.process_time()
    words = job.words.split()
    asked = command.make_context(
        "rehearse", [*words, *(("--data", job.folder) if CLOTHES in job.words else ())]
    )
    plan = Plan.from_request(request_of(asked.params))
    play = Play(plan, Trainer(plan))
    play.play()
    found = report.figures(play, time.monotonic() - began)
    spread = {key: found[key] for key in ("consensus_distance", "mass_error", "wall_s")}
    before = found["metric_before_final_rounds"]
    return {
        "words": job.words,
        "mean": found["metric"]["mean"],
        "worst": found["metric"]["worst"],
        "worst_before_final_rounds": before["worst"],
        "mean_before_final_rounds": before["mean"],
        "sent_per_peer": found["bytes"]["sent_per_peer"],
        **spread,
        "cpu_s": time.process_time() - cpu,
    }


def all_of(jobs: Sequence[Job], workers: int, what: str) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = track(pool.map(rehearsed, jobs), what, total=len(jobs), console=Console(stderr=True))
        return list(found)


# --- choosing --------------------------------------------------------------------------------------------


def choose(asked: Sequence[Row], folder: str, workers: int) -> None:
    """By the mean peer on examples held out."""
    to_run = [(row, setting) for row in asked for setting in row.settings if len(row.settings) > 1]
    jobs = [
        Job(f"{row.common} {setting} --option validation={_held_out(row)}", folder) for row, setting in to_run
    ]
    known = read(CHOSEN)
    for (row, setting), found in zip(to_run, all_of(jobs, workers, "choosing"), strict=True):
        tried = known.setdefault(row.name, {"tried": {}})["tried"]
        tried[setting] = {key: found[key] for key in ("mean", "worst", "sent_per_peer")}
    for row in asked:
        if len(row.settings) > 1:
            tried = {setting: known[row.name]["tried"][setting] for setting in row.settings}
            known[row.name] = {"chosen": max(tried, key=lambda one: tried[one]["mean"]), "tried": tried}
    write(CHOSEN, known)


def _held_out(row: Row) -> int:
    return next(count for task, count in HELD_OUT.items() if row.common.startswith(task))


def setting_of(row: Row, chosen: dict[str, Any]) -> str:
    found: str = chosen.get(row.name, {}).get("chosen", row.settings[0])
    return found if found in row.settings else row.settings[0]


# --- the table -------------------------------------------------------------------------------------------


def run(asked: Sequence[Row], folder: str, seeds: int, workers: int) -> dict[str, Any]:
    """Figures of these rows, and of the dense ones they are compared with, beside those known."""
    chosen, known = read(CHOSEN), read(FRONTIER)
    todo = [(row, seed) for row in asked for seed in range(seeds)]
    jobs = [Job(f"{row.common} {setting_of(row, chosen)} --seed {seed}", folder) for row, seed in todo]
    for row in asked:
        known[row.name] = {"setting": setting_of(row, chosen), "seeds": []}
    for (row, _), found in zip(todo, all_of(jobs, workers, "rehearsing"), strict=True):
        known[row.name]["seeds"].append(found)
    write(FRONTIER, known)
    return known


def with_dense(asked: Iterable[Row], every: dict[str, Row]) -> list[Row]:
    names = dict.fromkeys(name for row in asked for name in (row.against, row.name) if name)
    return [every[name] for name in names]


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
    dense = known[row.against]["seeds"] if row.against in known else []
    lost = {
        what: [100 * (d[what] - m[what]) for d, m in zip(dense, mine, strict=False)]
        for what in ("mean", "worst")
    }
    ratio = (
        statistics.fmean(d["sent_per_peer"] / m["sent_per_peer"] for d, m in zip(dense, mine, strict=False))
        if dense
        else 1.0
    )
    before = _of(mine, "worst_before_final_rounds")
    return [
        row.name,
        f"{ratio:.0f}x{_reached(row, ratio, lost['worst'])}",
        f"{statistics.fmean(_of(mine, 'mean')):.2f}",
        f"{statistics.fmean(_of(mine, 'worst')):.2f}",
        *(_with_error(lost[what]) for what in ("mean", "worst")),
        f"{statistics.fmean(before):.2f}",
        f"{statistics.fmean(m['cpu_s'] for m in mine):.0f}",
    ]


def _of(seeds: Sequence[dict[str, Any]], what: str) -> list[float]:
    return [100 * one[what] for one in seeds]


def _with_error(values: Sequence[float]) -> str:
    if not values:
        return "–"
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{error}"


def _reached(row: Row, ratio: float, worst_lost: Sequence[float]) -> str:
    if not row.goal or not worst_lost:
        return ""
    return (
        " ✓"
        if ratio >= row.goal and statistics.fmean(worst_lost) <= 1
        else f" (goal: {row.goal:.0f}x, 1 point)"
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(path: Path, known: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    every = rows()
    parser = argparse.ArgumentParser(description="Fewest bytes at least loss: peerd's frontier.")
    parser.add_argument("folder", nargs="?", default=os.environ.get("FASHION_MNIST"), metavar="DIR")
    parser.add_argument("--row", action="append", choices=list(every), metavar="NAME", help="one of --list")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--choose", action="store_true", help="settings, on examples held out")
    parser.add_argument("--list", action="store_true", help="the rows there are")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(every))
        return
    if not asked.folder:
        print("frontier: name the folder of Fashion-MNIST in FASHION_MNIST to have this table")
        return
    wanted = with_dense([every[name] for name in asked.row or every], every)
    if asked.choose:
        choose(wanted, asked.folder, asked.workers)
        return
    known = run(wanted, asked.folder, asked.seeds, asked.workers)
    Console(width=None if sys.stdout.isatty() else 150).print(table(known, every))


if __name__ == "__main__":
    main()
