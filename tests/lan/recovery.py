"""How soon eight devices are themselves again after a fault: a table beside its goals, for `make soak`.

Real daemons on a switch, with paced learners (lan/paced.py). Seconds until a killed device trains again are
counted from its start, less what its imports take by themselves at the same time: a Pi's are another matter.
The others' rounds are counted in windows of WINDOW_S; a dip is the time for which they close fewer than 70 %
of what they did before. A row over its goal is marked, and nothing fails: these are not tests. Where others
keep this machine busy the figures say little: the last two rows tell.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lan.bridge import Switch, Wired
from lan.watching import NAME, begin, during, everyone_trains, rounds, rounds_later

COUNT = 8
TIMES = 3  # each device is killed, stopped and parted so often
BASE_S, WINDOW_S = 15.0, 3.0  # before the fault; a window has eight rounds
LOST_S = 12.0  # between crash and start: long enough to be declared dead
STOPPED_S, CUT_S = 10.0, 30.0
DIP, DIP_GOAL_S = 0.7, 15.0  # issue's goal: 30 % for 15 s
IMPORTS = (  # the daemon's and the learner's, with what the first optimizer imports
    "import peer.__main__, peer.daemon.app, peer.daemon.control",
    "import peer.learner.__main__, torch; torch.optim.SGD([torch.zeros(1)], lr=0.1)",
)


class Kind(NamedTuple):
    """What is measured, and how soon a killed device should train again."""

    algorithm: str
    topology: str
    goal_s: float


KINDS = (Kind("difference-push", "exponential", 15.0), Kind("relay-sum", "binary-tree", 30.0))


@dataclass
class Figures:
    """Of one kind, a figure per fault."""

    started: list[float] = field(default_factory=list)  # until it trains, imports and all
    imports: list[float] = field(default_factory=list)
    thawed: list[float] = field(default_factory=list)
    healed: list[float] = field(default_factory=list)
    dips: list[float] = field(default_factory=list)  # seconds below DIP
    depths: list[float] = field(default_factory=list)  # the slowest window, as a share of before
    busy: list[float] = field(default_factory=list)  # of this machine's cores
    ours: list[float] = field(default_factory=list)  # the devices' part of that


class Pulse:
    """Rounds closed by these devices, over time."""

    def __init__(self, devices: Sequence[Wired]) -> None:
        self._devices = devices
        self._seen: list[tuple[float, int]] = []

    def look(self) -> None:
        self._seen.append((time.monotonic(), sum(rounds(self._devices).values())))

    def rates(self) -> list[tuple[float, float]]:
        """(seconds until the next look, rounds a second in the window that begins here)."""
        found, end = [], 0
        for start, (at, count) in enumerate(self._seen):
            while end < len(self._seen) and self._seen[end][0] - at < WINDOW_S:
                end += 1
            if end == len(self._seen):
                break
            later, then = self._seen[end]
            found.append((self._seen[start + 1][0] - at, (then - count) / (later - at)))
        return found


def jiffies(devices: Sequence[Wired]) -> tuple[float, float, float]:
    """Of all cores since boot: all, busy, and of that what these devices' processes have had."""
    numbers = [float(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    ours = 0.0
    for pid in [pid for device in devices for pid in device.namespace.processes()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ours += float(fields[11]) + float(fields[12])  # user, system
    return sum(numbers), sum(numbers) - numbers[3] - numbers[4], ours  # less idle and iowait


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def imports() -> float:
    run = [[sys.executable, "-P", "-c", line] for line in IMPORTS]
    return seconds(lambda: [subprocess.run(command, check=True) for command in run])


def base(lan: Switch, devices: Sequence[Wired], figures: Figures) -> float:
    """Rounds a second before a fault."""
    began, pulse = jiffies(devices), Pulse(devices)
    during(lan, BASE_S, pulse.look)
    total, busy, ours = (now - before for now, before in zip(jiffies(devices), began, strict=True))
    figures.busy.append(busy / total)
    figures.ours.append(ours / total * COUNT / len(devices))
    return statistics.mean(rate for _, rate in pulse.rates())


def dip(pulse: Pulse, before: float, figures: Figures) -> None:
    rates = pulse.rates()
    figures.dips.append(sum(span for span, rate in rates if rate < DIP * before))
    figures.depths.append(min(rate for _, rate in rates) / before)


def crash(lan: Switch, devices: Sequence[Wired], victim: Wired, figures: Figures) -> None:
    others = [device for device in devices if device is not victim]
    before, pulse = base(lan, others, figures), Pulse(others)
    victim.crash()
    during(lan, LOST_S, pulse.look)
    figures.imports.append(imports())
    began = time.monotonic()
    victim.start()

    def trains() -> bool:
        pulse.look()
        return victim.answers() and (victim.session(NAME).get("round") or 0) > 0

    lan.wait("it trains again", trains)
    figures.started.append(time.monotonic() - began)
    during(lan, 2 * WINDOW_S, pulse.look)
    dip(pulse, before, figures)
    lan.wait("all train", lambda: everyone_trains(devices))


def stop(lan: Switch, devices: Sequence[Wired], victim: Wired, figures: Figures) -> None:
    others = [device for device in devices if device is not victim]
    before, pulse = base(lan, others, figures), Pulse(others)
    victim.freeze()
    during(lan, STOPPED_S, pulse.look)
    victim.thaw()
    figures.thawed.append(seconds(lambda: all_train(lan, devices)))
    during(lan, 2 * WINDOW_S, pulse.look)
    dip(pulse, before, figures)


def cut(lan: Switch, devices: Sequence[Wired], figures: Figures) -> None:
    before, pulse = base(lan, devices, figures), Pulse(devices)
    lan.split(devices[: COUNT // 2], devices[COUNT // 2 :])
    during(lan, CUT_S, pulse.look)
    lan.heal()
    figures.healed.append(seconds(lambda: all_train(lan, devices)))
    during(lan, 2 * WINDOW_S, pulse.look)
    dip(pulse, before, figures)


def all_train(lan: Switch, devices: Sequence[Wired]) -> None:
    lan.wait("all train", lambda: everyone_trains(devices))
    rounds_later(lan, 1, devices)


def measure(kind: Kind, times: int) -> Figures:
    figures = Figures()
    lan = Switch()
    try:
        devices = begin(lan, COUNT, "--algorithm", kind.algorithm, "--topology", kind.topology)
        for number in range(times):
            victim = devices[1 + number % (COUNT - 1)]
            crash(lan, devices, victim, figures)
            stop(lan, devices, victim, figures)
            cut(lan, devices, figures)
    finally:
        lan.close()
    return figures


def show(kind: Kind, figures: Figures) -> None:
    title = f"{kind.algorithm} on {kind.topology}, {COUNT} devices"
    table = Table("figure", "median", "worst", "goal", "", title=title)

    def row(what: str, seen: Sequence[float], unit: str, goal: float | None = None) -> None:
        worst = max(seen)
        verdict = "" if goal is None else "ok" if worst <= goal else "OVER"
        wanted = "" if goal is None else f"{goal:g} {unit}"
        table.add_row(what, f"{statistics.median(seen):.1f} {unit}", f"{worst:.1f} {unit}", wanted, verdict)

    bare = [total - imported for total, imported in zip(figures.started, figures.imports, strict=True)]
    row("killed: from its start until it trains, without imports", bare, "s", kind.goal_s)
    row("  with imports", figures.started, "s")
    row(f"stopped for {STOPPED_S:.0f} s: until all train", figures.thawed, "s")
    row(f"cut 4+4 for {CUT_S:.0f} s: from its end until all train", figures.healed, "s")
    row(f"others below {DIP:.0%} of their rounds, after each of these", figures.dips, "s", DIP_GOAL_S)
    row("  fewest rounds in a window, below before by", [100 * (1 - d) for d in figures.depths], "%")
    row("this machine's cores busy, before a fault", [100 * b for b in figures.busy], "%", 50.0)
    row("  by these devices", [100 * b for b in figures.ours], "%")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES)
    times = parser.parse_args().times
    for kind in KINDS:
        show(kind, measure(kind, times))


if __name__ == "__main__":
    main()
