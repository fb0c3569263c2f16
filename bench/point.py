"""One point of the frontier between real daemons, from the first round to the end, beside its rehearsal.

    PYTHONPATH=tests:bench python -P bench/point.py [--seeds N] [--json FILE]

Spoken digits, six devices with a speaker each, the setting of results/frontier.json's row: the session is
made and joined with `peerd`, all begin together when everybody has the initial model (digits_from_start.py),
and it ends by itself with its final rounds. Compared are the bytes of all messages from there on, and the
accuracy of each device's exported model. The interface carries more: TLS, HTTP/2, TCP, probes and records of
members.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import frontier
from kept import keep, read
from rehearsals import rehearsed
from rich.console import Console
from rich.table import Table
from wire import Bytes, Look, look

from cli.rehearse import command, request_of
from lan.device import Device, Network  # tests/, see the Makefile
from peer.catalogue import SPEAKERS
from peer.rehearsal.plan import Plan

SESSION, ROW = "point", "digits exponential 2400 goal"
BEGUN = "has mass and trains round=0"  # what a device's log says
TASK_FILE = Path(__file__).with_name("digits_from_start.py")
PATIENCE_S = 1200.0


@dataclass(frozen=True)
class Point(Bytes):
    """interface: from the first round on. dense, dense_worst: whole models at every step, as the frontier has
    them. Accuracies of the mean device and the worst."""

    seed: int
    rounds: int
    dense: float
    dense_worst: float
    rehearsed_mean: float
    rehearsed_worst: float
    mean: float
    worst: float


def between_daemons(words: list[str], rounds: int, seed: int) -> tuple[Look, Look, list[float]]:
    """When all have a model and at the session's end, and what each device's final model achieves."""
    with held(len(SPEAKERS)) as (network, devices):
        parts = [
            ("--task", str(TASK_FILE), "--data", str(network.folder), "--shard", f"speaker={name}")
            for name in SPEAKERS
        ]
        terms = ("--rounds", str(rounds), "--seed", str(seed), *words)
        devices[0].ok("create", SESSION, *terms, *parts[0], "--interface", "lo")
        key = devices[0].ok("key", SESSION).out.split()[-1]
        for device, part in zip(devices[1:], parts[1:], strict=True):
            device.peerd("join", SESSION, "--key", key, *part, "--interface", "lo", "--timeout", "0")
        network.wait("all have a model", lambda: all(_has_begun(d) for d in devices))
        before = look(network, devices, SESSION)
        (network.folder / "begin").touch()
        network.wait("the session has ended", lambda: all(_is_over(d) for d in devices), PATIENCE_S)
        after = look(network, devices, SESSION)
        files = [str(network.folder / f"{d.name}.safetensors") for d in devices]
        for device, file in zip(devices, files, strict=True):
            device.ok("export", SESSION, "-o", file)
        return before, after, _accuracies(files, rounds)


@contextmanager
def held(count: int) -> Iterator[tuple[Network, list[Device]]]:
    """So many devices whose daemons run."""
    network = Network()
    try:
        devices = [network.add(f"d{i}") for i in range(count)]
        network.start(*devices)
        yield network, devices
    finally:
        network.close()


def _has_begun(device: Device) -> bool:
    return BEGUN in device.log.read_text(errors="replace")


def _is_over(device: Device) -> bool:
    return bool(device.session(SESSION)["state"] == "stopped")


def _accuracies(files: list[str], rounds: int) -> list[float]:
    evaluation = [sys.executable, "-P", "-m", "peer.demo.final", *files]
    printed = subprocess.run(evaluation, check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in printed.splitlines()]
    assert all(one["round"] >= rounds for one in found), f"not final models: {found}"
    return [one["accuracy"] for one in found]


def measured(seed: int) -> Point:
    """Both, with this seed."""
    row, known = frontier.rows()[ROW], read(frontier.FRONTIER)
    setting, dense = known[ROW]["setting"], known[row.against]["seeds"][seed]
    words = f"{row.common} {setting} --seed {seed}"
    found, rounds = rehearsed(words), _rounds(words)
    before, after, accuracies = between_daemons(_as_created(words), rounds, seed)
    count = len(accuracies)
    return Point(
        rehearsed=found["bytes"]["sent_per_peer"],
        messages=(sum(after.messages) - sum(before.messages)) / count,
        interface=(after.interface - before.interface) / count,
        seed=seed,
        rounds=rounds,
        dense=dense["sent_per_peer"],
        dense_worst=dense["worst"],
        rehearsed_mean=found["metric"]["mean"],
        rehearsed_worst=found["metric"]["worst"],
        mean=statistics.fmean(accuracies),
        worst=min(accuracies),
    )


def _as_created(words: str) -> list[str]:
    """The words of `peerd rehearse` for `peerd create`, but for what is given apart from them."""
    given, made = words.split(), []
    while given:
        name = given.pop(0)
        if name == "--final-rounds":
            continue
        value = given.pop(0)
        if name in ("--schedule", "--warmup"):
            made += ["--option", f"{name[2:]}={value}"]
        elif name not in ("--task", "--split", "--peers", "--steps", "--seed"):
            made += [name, value]
    return made


def _rounds(words: str) -> int:
    plan = Plan.from_request(request_of(command.make_context("rehearse", words.split()).params))
    return plan.session.rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", help="write the figures there")
    asked = parser.parse_args()
    known = len(read(frontier.FRONTIER).get(frontier.rows()[ROW].against, {"seeds": []})["seeds"])
    if asked.seeds > known:
        parser.error(f"frontier.json has {known} seeds of what is compared with; run bench/frontier.py first")
    points = []
    table = Table(title=f"{ROW}: per device, from the first round to the end of the final ones")
    for title in ("seed", "rehearsed", "messages", "apart", "interface", "of messages", "fewer bytes"):
        table.add_column(title, justify="right")
    for title in ("dense worst", "rehearsed mean, worst", "daemons' mean, worst"):
        table.add_column(title, justify="right")
    for seed in range(asked.seeds):
        point = measured(seed)
        points.append(point)
        table.add_row(
            str(seed),
            f"{point.rehearsed:,.0f}",
            f"{point.messages:,.0f}",
            f"{point.apart:+.2%}",
            f"{point.interface:,.0f}",
            f"{point.interface / point.messages:.2f}x",
            f"{point.dense / point.messages:.0f}x",
            f"{point.dense_worst:.2%}",
            f"{point.rehearsed_mean:.2%}, {point.rehearsed_worst:.2%}",
            f"{point.mean:.2%}, {point.worst:.2%}",
        )
        if asked.json:
            keep(Path(asked.json), [asdict(one) | {"apart": one.apart} for one in points])
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    main()
