"""How soon eight devices are themselves again after a fault: a table beside its goals, for `make soak`.

Real daemons on a switch, with paced learners (lan/paced.py). The others' rounds are counted in windows of
WINDOW_S; a dip is the time for which they close fewer than 70 % of what they did before. A row over its goal
is marked, and nothing fails: these are not tests. Where others keep this machine busy the figures say little:
the last two rows tell.
"""

from __future__ import annotations

import argparse
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
from lan.watching import begin, during, everyone_trains

COUNT = 8
TIMES = 3  # each device is killed, stopped and parted so often
BASE_S = 15.0  # before the fault
LOST_S = 12.0  # between crash and start: long enough to be declared dead
STOPPED_S, CUT_S = 10.0, 30.0


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


def cut(lan: Switch, devices: Sequence[Wired], figures: Figures) -> None:
    before, pulse = base(lan, devices, figures), Pulse(devices)
    lan.split(devices[: COUNT // 2], devices[COUNT // 2 :])
    during(lan, CUT_S, pulse.look)
    lan.heal()
    figures.healed.append(seconds(lambda: all_train(lan, devices)))
    during(lan, 2 * WINDOW_S, pulse.look)
    dip("cut", pulse, before, figures)


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


def table(kind: Kind, figures: Figures) -> Table:
    title = f"{kind.algorithm} on {kind.topology}, {COUNT} devices"
    found = Table("figure", "median", "worst", "goal", "", title=title)

    def row(what: str, seen: Sequence[float], unit: str, goal: float | None = None) -> None:
        found.add_row(*judged(what, seen, unit, goal))

    bare = [total - imported for total, imported in zip(figures.started, figures.imports, strict=True)]
    row("killed: from its start until it trains, without imports", bare, "s", kind.goal_s)
    row("  with imports", figures.started, "s")
    row(f"stopped for {STOPPED_S:.0f} s: until all train", figures.thawed, "s")
    row(f"cut 4+4 for {CUT_S:.0f} s: from its end until all train", figures.healed, "s")
    for fault, dips in figures.dips.items():
        row(f"{fault}: others below {DIP:.0%} of their rounds", dips, "s", DIP_GOAL_S)
    row("fewest rounds in a window, below before by", [100 * (1 - d) for d in figures.depths], "%")
    row("this machine's cores busy, before a fault", [100 * b for b in figures.busy], "%", 50.0)
    row("  by these devices", [100 * b for b in figures.ours], "%")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=TIMES)
    times = parser.parse_args().times
    for kind in KINDS:
        show(table(kind, measure(kind, times)))


if __name__ == "__main__":
    main()
