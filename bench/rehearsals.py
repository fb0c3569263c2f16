"""Rehearsals for tables: each in a process of its own, their figures kept as JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: small models are no faster with more

from rich.console import Console
from rich.progress import track

COSTS = ("rehearsed", "local steps", "bare CPU s", "rehearsal CPU s", "ratio", "beyond, ms per step", "load")
Job = TypeVar("Job")
Found = TypeVar("Found")


def rehearsed(words: str, folder: str | None = None) -> dict[str, Any]:
    """The report of `peerd rehearse` with these words, and `cpu_s`. folder: of the task's data."""
    from cli.rehearse import command, request_of
    from peer.learner.devices import use_threads
    from peer.rehearsal import report
    from peer.rehearsal.plan import Plan
    from peer.rehearsal.play import Play
    from peer.rehearsal.trainer import Trainer

    use_threads()
    began, cpu = time.monotonic(), time.process_time()
    data = ("--data", folder) if folder is not None else ()
    asked = command.make_context("rehearse", [*words.split(), *data]).params
    plan = Plan.from_request(request_of(asked))
    play = Play(plan, Trainer(plan))
    play.play()
    return {**report.figures(play, time.monotonic() - began), "cpu_s": time.process_time() - cpu}


def all_of(do: Callable[[Job], Found], jobs: Sequence[Job], workers: int, what: str) -> Iterator[Found]:
    """What `do` finds of each job, in order, each as soon as it is there."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from track(pool.map(do, jobs), what, total=len(jobs), console=Console(stderr=True))


def costs(row: dict[str, Any]) -> tuple[str, ...]:
    """Of a case of rehearsal.py, under COSTS."""
    bare, rehearsed = row["bare_s"], row["rehearsed_s"]
    beyond = 1e3 * (rehearsed - bare) / row["steps"]
    seconds = (f"{bare:.2f}", f"{rehearsed:.2f}", f"{rehearsed / bare:.2f}", f"{beyond:.2f}")
    return (row["what"], f"{row['steps']:,}", *seconds, f"{row['load']:.1f}")
