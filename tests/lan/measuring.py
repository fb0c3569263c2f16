"""How the programs of `make soak` measure devices on a switch: rounds over time, seconds, rows beside goals.

Seconds until a killed device trains again are counted from its start, less what its imports take by
themselves at the same time: a Pi's are another matter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lan.bridge import Switch, Wired
from lan.watching import NAME, everyone_trains, rounds, rounds_later

WINDOW_S = 3.0  # some eight rounds
DIP, DIP_GOAL_S = 0.7, 15.0  # issue's goal: 30 % for 15 s
LEARNER = "import peer.learner.__main__"
DAEMON = "import peer.__main__, peer.daemon.app, peer.daemon.control"


class Pulse:
    """Rounds closed by these devices, over time."""

    def __init__(self, devices: Sequence[Wired]) -> None:
        self._devices = devices
        self._seen: list[tuple[float, int]] = []
        self._most: dict[str, int] = {}  # one that starts over has no round for a moment

    def look(self) -> None:
        for name, round_ in rounds(self._devices).items():
            self._most[name] = max(round_, self._most.get(name, 0))
        self._seen.append((time.monotonic(), sum(self._most.values())))

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

    def mean(self) -> float:
        """Rounds a second."""
        return statistics.mean(rate for _, rate in self.rates())

    def dipped_s(self, before: float) -> float:
        """Seconds below DIP of the rounds before."""
        return sum(span for span, rate in self.rates() if rate < DIP * before)


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


def imports(*lines: str) -> float:
    """Seconds for these imports, one after the other, each in a process of its own."""
    run = [[sys.executable, "-P", "-c", line] for line in lines]
    return seconds(lambda: [subprocess.run(command, check=True) for command in run])


def start_again(lan: Switch, device: Wired, look: Callable[[], None]) -> float:
    """Seconds from a device's start until it trains, imports and all."""
    began = time.monotonic()
    device.start()

    def trains() -> bool:
        """A round is closed and a local step taken: those that begin a tree are closed without any."""
        look()
        if not device.answers():
            return False
        session = device.session(NAME)
        return (session.get("round") or 0) > 0 and session.get("loss") is not None

    lan.wait("it trains again", trains)
    return time.monotonic() - began


def all_train(lan: Switch, devices: Sequence[Wired]) -> None:
    lan.wait("all train", lambda: everyone_trains(devices))
    rounds_later(lan, 1, devices)


def judged(what: str, seen: Sequence[float], unit: str, goal: float | None = None) -> tuple[str, ...]:
    """A row's cells: what, median, worst, goal, and whether the worst is over it."""
    worst = max(seen)
    verdict = "" if goal is None else "ok" if worst <= goal else "OVER"
    wanted = "" if goal is None else f"{goal:g} {unit}"
    return what, f"{statistics.median(seen):.1f} {unit}", f"{worst:.1f} {unit}", wanted, verdict


def show(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 120).print(table)
