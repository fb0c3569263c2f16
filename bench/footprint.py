"""What peerd costs a small device, as a table beside its targets. `make bench`.

CPU seconds are user + system of the whole process (wait4), medians of several runs; seconds are wall time on
whatever else this machine is doing. A row over its target is marked, and nothing fails: these are not tests.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lan.device import Device, Network  # tests/, see the Makefile
from peer.local import connect

RUNS = 7
JOINS = 3  # each loads torch, twice
SETTLE_S = 5.0  # a session has been waiting for so long: beacons are out, and nothing of its start is left
LAG_S = 10.0
LAG_HZ = 100
TORCH = "import torch"
SMALL = ("--task", "quadratic", "--option", "dim=100", "--interface", "lo")


@dataclass(frozen=True)
class Row:
    """One figure. target: what it should stay under, None when there is only the figure."""

    what: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""


def cpu_seconds(argv: list[str], env: dict[str, str]) -> float:
    """User + system seconds of one run of a command."""
    with Path(os.devnull).open("wb") as nowhere:
        process = subprocess.Popen(argv, env=env, stdout=nowhere, stderr=nowhere)
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}; run it by hand to see why")
    return usage.ru_utime + usage.ru_stime


def median_of(measure: Callable[[], float]) -> tuple[float, str]:
    """Median of RUNS runs after one that warms the page cache, and the range as a note."""
    measure()
    seen = [measure() for _ in range(RUNS)]
    return statistics.median(seen), spread(seen)


def spread(seen: list[float]) -> str:
    return f"{len(seen)} runs, {min(seen):.3f} to {max(seen):.3f}"


def commands(device: Device) -> list[Row]:
    script = str(Path(sys.executable).with_name("peerd"))
    rows = []
    for what, words, target in (("status", ["status"], 0.2), ("--help", ["--help"], 0.15)):
        value, note = median_of(lambda words=words: cpu_seconds([script, *words], device.environment()))
        rows.append(Row(f"CPU of peerd {what}", value, "s", target, note))
    bare, note = median_of(lambda: cpu_seconds([sys.executable, "-I", "-S", "-c", ""], device.environment()))
    rows.append(Row("CPU of a bare python, in the two above", bare, "s", None, note))
    return rows


def resident(pid: int) -> int:
    """VmRSS of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024  # kB there is KiB


def idle(network: Network, device: Device) -> Row:
    device.ok("create", "idle", *SMALL)
    network.wait("the session waits", lambda: device.session("idle").get("state") == "waiting")
    time.sleep(SETTLE_S)
    used = resident(int(device.status()["pid"]))
    device.ok("leave", "idle", "--forget")
    note = f"{used / 2**20:.1f} MiB, {SETTLE_S:.0f} s after it began to wait"
    return Row("resident memory, idle daemon, one session waiting", used / 1e6, "MB", 60, note)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def first_link(network: Network) -> list[Row]:
    """From `join` to its first link, of fresh devices that leave again; two others already train. The import
    of torch is measured after each."""
    founder, second = (network.add(name) for name in ("founder", "second"))
    network.start(founder, second)
    founder.ok("create", "join", *SMALL, "--shard", "0/3")
    key = founder.ok("key", "join").out.split()[-1]
    options = ("--key", key, "--task", "quadratic", "--interface", "lo")
    second.ok("join", "join", *options, "--shard", "1/3")
    joins, imports = [], []
    for number in range(JOINS):
        network.wait("two train", lambda: trains_with(founder, 2))
        newcomer = network.add(f"newcomer-{number}")
        network.start(newcomer)
        joins.append(seconds(lambda: newcomer.ok("join", "join", *options, "--shard", "2/3")))  # noqa: B023
        imports.append(seconds(lambda: subprocess.run([sys.executable, "-P", "-c", TORCH], check=True)))
        newcomer.ok("leave", "join", "--forget")
        newcomer.stop()
    for device in (second, founder):
        device.stop()
    joining, importing = statistics.median(joins), statistics.median(imports)
    return [
        Row("peerd join until its first link", joining, "s", None, spread(joins)),
        Row("torch imported, alone", importing, "s", None, spread(imports)),
        Row(
            "join until first link, without that", joining - importing, "s", 3, "the two medians' difference"
        ),
    ]


def trains_with(device: Device, members: int) -> bool:
    session = device.session("join")
    return bool(session.get("state") == "training" and session.get("members") == members)


def loop_lag(network: Network) -> list[Row]:
    """Round trips of the smallest request at LAG_HZ while this device's learner computes digits."""
    one, two = (network.add(name) for name in ("lag-one", "lag-two"))
    network.start(one, two)
    one.ok("create", "lag", "--task", "spoken-digits", "--shard", "speaker=theo", "--interface", "lo")
    key = one.ok("key", "lag").out.split()[-1]
    two.ok("join", "lag", "--key", key, "--shard", "speaker=lucas", "--interface", "lo")
    network.wait("both train", lambda: all(d.session("lag").get("state") == "training" for d in (one, two)))
    trips: list[float] = []
    with connect(one.socket) as client:
        began = due = time.perf_counter()
        while (now := time.perf_counter()) - began < LAG_S:
            if now < due:
                time.sleep(due - now)  # a metronome, not a wait for something
            trips.append(seconds(lambda: client.ask({"op": "sessions"}, 60)))
            due += 1 / LAG_HZ
    for device in (two, one):
        device.stop()
    ordered = sorted(trips)
    note = f"{len(trips)} round trips in {LAG_S:.0f} s, {os.cpu_count()} cores, 2 learners"
    return [
        Row(
            "daemon's loop while learners compute, median", ordered[len(ordered) // 2] * 1e3, "ms", None, note
        ),
        Row("  99 of 100 under", ordered[int(len(ordered) * 0.99)] * 1e3, "ms"),
        Row("  worst", ordered[-1] * 1e3, "ms"),
    ]


def show(rows: list[Row]) -> None:
    table = Table("figure", "measured", "target", "", "note", title="peerd footprint")
    for row in rows:
        verdict = "" if row.target is None else "ok" if row.value < row.target else "OVER"
        target = "" if row.target is None else f"< {row.target:g} {row.unit}"
        table.add_row(row.what, f"{row.value:.3g} {row.unit}", target, verdict, row.note)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> None:
    network = Network()
    try:
        device = network.add("idle")
        network.start(device)
        rows = [*commands(device), idle(network, device)]
        device.stop()
        rows += first_link(network)
        rows += loop_lag(network)
    finally:
        network.close()
    show(rows)


if __name__ == "__main__":
    main()
