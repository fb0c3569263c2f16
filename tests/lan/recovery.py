"""How soon eight devices are themselves again after a fault: a table beside its goals, for `make soak`.

Real daemons on a switch, with paced learners (lan/paced.py). The others' rounds are counted in windows of
WINDOW_S; a dip is the time for which they close fewer than 70 % of what they did before. A row over its goal
is marked, and nothing fails: these are not tests. Where others keep this machine busy the figures say little:
the last two rows tell.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.table import Table

from lan.bridge import Switch, Wired
from lan.measuring import (
    DAEMON,
    DIP,
    DIP_GOAL_S,
    LEARNER,
    WINDOW_S,
    Pulse,
    all_train,
    imports,
    jiffies,
    judged,
    seconds,
    show,
    start_again,
)
from lan.watching import (
    begin,
    distances,
    during,
    everyone_trains,
    one_generation,
    rounds,
    sessions,
    slow,
)

COUNT = 8
TIMES = 3  # each device is killed, stopped and parted so often
BASE_S = 15.0  # before the fault
LOST_S = 12.0  # between crash and start: long enough to be declared dead
STOPPED_S, CUT_S = 10.0, 30.0
# row 5 of the reliability note's test plan, as the next line
APART_GOAL_S, WORD_GOAL_S, AGREED_GOAL_S = 40.0, 3.0, 20.0
SLOWER_GOAL, WORSE_GOAL, BACK_GOAL = 20.0, 20.0, 50.0  # %, %, rounds
FAULTS = "killed", "stopped", "cut"
CLOSE = 0.25  # to the common minimum, which halves stay some 0.35 away from


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
    apart: list[float] = field(default_factory=list)  # until each half has taken all of the other for dead
    words: list[float] = field(
        default_factory=list
    )  # where it has: from the end of the cut to the first word
    agreed: list[float] = field(default_factory=list)  # from its end until all are on one generation
    slower: list[float] = field(default_factory=list)  # a half's rounds while it is cut off: % below before
    worse: list[float] = field(default_factory=list)  # the farthest after it: % above the better half before
    back: list[float] = field(default_factory=list)  # rounds from its end until all know what that knew
    dips: dict[str, list[float]] = field(default_factory=dict)  # seconds below DIP, by fault
    depths: list[float] = field(default_factory=list)  # the slowest window, as a share of before
    busy: list[float] = field(default_factory=list)  # of this machine's cores
    ours: list[float] = field(default_factory=list)  # the devices' part of that


def base(lan: Switch, devices: Sequence[Wired], figures: Figures) -> float:
    """Rounds a second before a fault."""
    began, pulse = jiffies(devices), Pulse(devices)
    during(lan, BASE_S, pulse.look)
    total, busy, ours = (now - before for now, before in zip(jiffies(devices), began, strict=True))
    figures.busy.append(busy / total)
    figures.ours.append(ours / total * COUNT / len(devices))
    return pulse.mean()


def dip(fault: str, pulse: Pulse, before: float, figures: Figures) -> None:
    figures.dips.setdefault(fault, []).append(pulse.dipped_s(before))
    figures.depths.append(min(rate for _, rate in pulse.rates()) / before)


def crash(lan: Switch, devices: Sequence[Wired], victim: Wired, figures: Figures) -> None:
    others = [device for device in devices if device is not victim]
    before, pulse = base(lan, others, figures), Pulse(others)
    victim.crash()
    during(lan, LOST_S, pulse.look)
    figures.imports.append(imports(DAEMON, LEARNER))
    figures.started.append(start_again(lan, victim, pulse.look))
    during(lan, 2 * WINDOW_S, pulse.look)
    dip("killed", pulse, before, figures)
    lan.wait("all train", lambda: everyone_trains(devices))


def stop(lan: Switch, devices: Sequence[Wired], victim: Wired, figures: Figures) -> None:
    others = [device for device in devices if device is not victim]
    before, pulse = base(lan, others, figures), Pulse(others)
    victim.freeze()
    during(lan, STOPPED_S, pulse.look)
    victim.thaw()
    figures.thawed.append(seconds(lambda: all_train(lan, devices)))
    during(lan, 2 * WINDOW_S, pulse.look)
    dip("stopped", pulse, before, figures)


def cut(lan: Switch, devices: Sequence[Wired], figures: Figures, cut_s: float) -> None:
    lan.wait("all are close", lambda: max(distances(devices)) < CLOSE)
    before, pulse = base(lan, devices, figures), Pulse(devices)
    half, apart = COUNT // 2, False
    halves = devices[:half], devices[half:]
    of_halves = [Pulse(members) for members in halves]
    lan.split(*halves)
    began = time.monotonic()

    def look() -> None:
        nonlocal apart
        for each in (pulse, *of_halves):
            each.look()
        if not apart and all(s["members"] == half for s in sessions(devices)):
            apart = True
            figures.apart.append(time.monotonic() - began)

    during(lan, cut_s, look)
    figures.slower += [100 * (1 - 2 * each.mean() / before) for each in of_halves]
    after = After(devices, min(halves, key=lambda members: max(distances(members))))
    lan.heal()
    healed = time.monotonic()
    with lan.throughout(after.look):
        if apart:
            lan.wait("a word comes across", lambda: any(s["members"] > half for s in sessions(devices)))
            figures.words.append(time.monotonic() - healed)
        all_train(lan, devices)
        figures.healed.append(time.monotonic() - healed)
        lan.wait("all are on one generation", lambda: one_generation(devices))
        figures.agreed.append(time.monotonic() - healed)
        during(lan, 2 * WINDOW_S, pulse.look)
        lan.wait("all know what the better half knew", lambda: after.back is not None)
    dip("cut", pulse, before, figures)
    figures.worse.append(after.worse)
    figures.back.append(after.back or 0)


class After:
    """What devices know after a cut, beside what the better half of them knew in the end."""

    def __init__(self, devices: Sequence[Wired], better: Sequence[Wired]) -> None:
        self._devices, self._better = devices, better
        self._known, self._began = max(distances(better)), rounds(better)
        self.worse = -math.inf  # the farthest at any look, in % above that
        self.back: int | None = None  # rounds of the better half until all know it

    def look(self) -> None:
        far = distances(self._devices)
        farthest = max(filter(math.isfinite, far))
        self.worse = max(self.worse, 100 * (farthest / self._known - 1))
        if self.back is None and max(far) <= self._known:
            self.back = max(now - self._began[name] for name, now in rounds(self._better).items())


def measure(kind: Kind, times: int, cut_s: float, faults: Sequence[str]) -> Figures:
    figures = Figures()
    lan = Switch()
    try:
        terms = ("--algorithm", kind.algorithm, "--topology", kind.topology)
        devices = begin(lan, COUNT, *terms, task=slow(lan))
        for number in range(times):
            victim = devices[1 + number % (COUNT - 1)]
            if "killed" in faults:
                crash(lan, devices, victim, figures)
            if "stopped" in faults:
                stop(lan, devices, victim, figures)
            if "cut" in faults:
                cut(lan, devices, figures, cut_s)
    finally:
        lan.close()
    return figures


def table(kind: Kind, figures: Figures, cut_s: float) -> Table:
    title = f"{kind.algorithm} on {kind.topology}, {COUNT} devices"
    found = Table("seen", "figure", "median", "worst", "goal", "", title=title)

    def row(what: str, seen: Sequence[float], unit: str, goal: float | None = None) -> None:
        if seen:
            found.add_row(str(len(seen)), *judged(what, seen, unit, goal))

    bare = [total - imported for total, imported in zip(figures.started, figures.imports, strict=True)]
    row("killed: from its start until it trains, without imports", bare, "s", kind.goal_s)
    row("  with imports", figures.started, "s")
    row(f"stopped for {STOPPED_S:.0f} s: until all train", figures.thawed, "s")
    row(f"cut 4+4 for {cut_s:.0f} s: from its end until all train", figures.healed, "s")
    row("  from its beginning until nobody sees the other half", figures.apart, "s", APART_GOAL_S)
    row("  from its end until the first is seen", figures.words, "s", WORD_GOAL_S)
    row("  from its end until one generation", figures.agreed, "s", AGREED_GOAL_S)
    row("  while it lasts, a half's rounds, below before by", figures.slower, "%", SLOWER_GOAL)
    row("  farthest after it, above the better half by", figures.worse, "%", WORSE_GOAL)
    row("  from its end until all know what that half knew", figures.back, "rounds", BACK_GOAL)
    for fault, dips in figures.dips.items():
        row(f"{fault}: others below {DIP:.0%} of their rounds", dips, "s", DIP_GOAL_S)
    row("fewest rounds in a window, below before by", [100 * (1 - d) for d in figures.depths], "%")
    row("this machine's cores busy, before a fault", [100 * b for b in figures.busy], "%", 50.0)
    row("  by these devices", [100 * b for b in figures.ours], "%")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--cut", type=float, default=CUT_S, metavar="SECONDS", help="for how long it is cut")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="this one only; may be repeated")
    asked = parser.parse_args()
    for kind in KINDS:
        show(table(kind, measure(kind, asked.times, asked.cut, asked.fault or FAULTS), asked.cut))


if __name__ == "__main__":
    main()
