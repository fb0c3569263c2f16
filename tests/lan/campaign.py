"""Faults again and again on four devices, or eight: tables beside their goals, for `make soak`.

Real daemons on a switch, with paced learners (lan/paced.py). A row's number is that of the reliability
note's test plan (section f), and so are its goals. The fifth, a cut, is measured by lan/recovery.py. Counts
are small unless --full asks for the note's own.

    campaign.py --rows 2,4 --times 3      two rows, three times as often

A row over its goal is marked, and nothing fails. What must never happen is another matter: weight made, or
lost without a crash, numbers that are not finite, a refused update, a checkpoint that does not load, a
traceback, another exit code, a device listed twice. That ends the row and is told with the devices' logs, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lan.bridge import Switch, Wired
from lan.faults import (
    Sheet,
    joined_late,
    killed,
    killed_while_sending,
    killed_while_writing,
    stopped,
    switched_off,
)
from lan.intact import clean_logs
from lan.lines import FAR, LOSSY, SLOW, Line, deaf_to_all, deaf_to_one, moved, spoiled
from lan.measuring import jiffies, judged, show
from lan.watching import begin, rounds_later, varied

COUNT = 4
PUSH = ("--algorithm", "difference-push", "--topology", "complete")
DENSE = ("--algorithm", "sgp", "--topology", "exponential")  # 80 kB in each parcel
SPARSE = ("--algorithm", "difference-push", "--topology", "exponential")
TREE = ("--algorithm", "relay-sum", "--topology", "spanning-tree")
LONG = ("--local-steps", "4")  # noise is less of longer rounds
SETTLED_ROUNDS = 10
WRITES = 10  # kills in the write of a checkpoint, at the most
SMALL, LARGE = 20_000, 2_500_000  # parameters of the task's model
STEP_S, LARGE_STEP_S = 0.15, 1.0
MANY = 8
LATE_ROUNDS, FEW_ROUNDS = 500, 50  # of two steps, before somebody joins: the note's, and for a look

Fault = Callable[[Switch, Sequence[Wired], Wired, Sheet, random.Random], None]
Story = Callable[[Switch, Sheet, int, int], None]


def again(fault: Fault, *terms: str) -> Story:
    """A session with these terms, in which the fault hits one device after the other."""

    def story(lan: Switch, sheet: Sheet, times: int, seed: int) -> None:
        devices, dice = begin(lan, COUNT, *terms), random.Random(seed)
        rounds_later(lan, SETTLED_ROUNDS, devices)
        for number in range(times):
            fault(lan, devices, devices[(number + 1) % COUNT], of(sheet, terms), dice)

    return story


def of(sheet: Sheet, terms: Sequence[str]) -> Sheet:
    """For what is seen of a session with these terms: its algorithm names it."""
    return sheet.of(terms[terms.index("--algorithm") + 1])


def anybody(fault: Fault, *terms: str) -> Story:
    """The same with eight devices, and the fault hits any of them."""

    def story(lan: Switch, sheet: Sheet, times: int, seed: int) -> None:
        devices, dice = begin(lan, MANY, *terms), random.Random(seed)
        rounds_later(lan, SETTLED_ROUNDS, devices)
        for _ in range(times):
            fault(lan, devices, dice.choice(devices), of(sheet, terms), dice)

    return story


def writing(lan: Switch, sheet: Sheet, times: int, _: int) -> None:
    """A model of 10 MB takes its time to be written."""
    devices = begin(lan, MANY, *SPARSE, task=large(lan))
    for _ in range(min(times, WRITES)):
        killed_while_writing(lan, devices, of(sheet, SPARSE))


def on(line: Line, pace: str = "lockstep", terms: Sequence[str] = DENSE) -> Story:
    def story(lan: Switch, sheet: Sheet, times: int, _: int) -> None:
        devices = begin(lan, COUNT, *terms, "--local-steps", "1", "--pace", pace)
        rounds_later(lan, SETTLED_ROUNDS, devices)
        spoiled(lan, devices, times, of(sheet, terms), line=line, pace=pace)

    return story


def late(*terms: str) -> Story:
    def story(lan: Switch, sheet: Sheet, times: int, _: int) -> None:
        devices = begin(lan, COUNT, *terms)
        long_before(lan, devices, times)
        for _ in range(times):
            joined_late(lan, devices, of(sheet, terms))

    return story


def late_and_large(lan: Switch, sheet: Sheet, times: int, _: int) -> None:
    """Eight devices, a model of 10 MB, and 100 Mbit/s for each of them."""
    task = large(lan)
    devices = begin(lan, MANY, *SPARSE, task=task)
    for device in devices:
        fast(device)
    long_before(lan, devices, times)
    for _ in range(times):
        joined_late(lan, devices, of(sheet, SPARSE), task, fast)


def long_before(lan: Switch, devices: Sequence[Wired], times: int) -> None:
    """So long before somebody joins; shorter for a look."""
    for _ in range(0, LATE_ROUNDS if times >= ROWS[23].note else FEW_ROUNDS, SETTLED_ROUNDS):
        rounds_later(lan, SETTLED_ROUNDS, devices)  # no more at once than patience is for


def large(lan: Switch) -> Path:
    """Paced so that coding eight such models leaves this machine's cores half idle, too."""
    steps = {f"STEP_S = {STEP_S}\n": f"STEP_S = {LARGE_STEP_S}\n"}
    return varied(lan, "large", {f"DIM = {SMALL:_}\n": f"DIM = {LARGE:_}\n", **steps})


def fast(device: Wired) -> None:
    device.shape(loss=0.0, rate="100mbit", burst="64kb")


@dataclass(frozen=True)
class Row:
    """A row of the plan. note: how often it asks for it; look: how often will do for a look."""

    look: int
    note: int
    stories: tuple[Story, ...]
    of: str = f"{COUNT} devices"


def stops(fault: Fault) -> tuple[Story, ...]:
    return again(fault, *PUSH, *LONG), again(fault, *TREE, *LONG)


ROWS = {
    2: Row(3, 100, (anybody(killed, *PUSH), anybody(killed, *TREE), writing), f"{MANY} devices"),
    3: Row(3, 500, (again(killed_while_sending, *DENSE), again(killed_while_sending, *TREE))),
    4: Row(1, 20, stops(stopped)),
    6: Row(
        1, 10, tuple(again(deaf, *terms) for deaf in (deaf_to_one, deaf_to_all) for terms in (TREE, PUSH))
    ),
    7: Row(
        3,  # minutes
        10,
        (
            on(SLOW, "free"),
            *(on(line) for line in (SLOW, LOSSY, FAR)),
            *(on(line, terms=TREE) for line in (SLOW, LOSSY, FAR)),
        ),
    ),
    8: Row(4, 20, (again(moved, *PUSH), again(moved, *TREE))),
    20: Row(4, 100, (again(switched_off, *PUSH), again(switched_off, *TREE))),
    23: Row(3, 50, (late(*PUSH), late(*TREE), late_and_large), f"{COUNT} devices, and {MANY}"),
}


def told(story: Story, sheet: Sheet, times: int, seed: int) -> str:
    """Tell a story on a switch of its own. Returns what broke, if anything."""
    lan = Switch()
    try:
        story(lan, sheet, times, seed)
        clean_logs(lan)
    except AssertionError as error:
        logs = [f"--- log of {device.name}\n{device.log_tail()}" for device in lan.devices.values()]
        return "\n".join([str(error), lan.summary(), *logs])
    finally:
        lan.close()
    return ""


def table(number: int, sheet: Sheet, busy: float) -> Table:
    title = f"row {number}, {ROWS[number].of}"
    found = Table("seen", "figure", "median", "worst", "goal", "", title=title)
    for name, seen in sheet.seen.items():
        found.add_row(str(len(seen)), *judged(name, seen, *sheet.goals[name]))
    found.add_row("", *judged("this machine's cores busy", [100 * busy], "%", 50.0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="numbers in the plan")
    parser.add_argument("--times", type=int, default=1, help="so many times as often")
    parser.add_argument("--seed", type=int, default=0, help="of when and for how long")
    parser.add_argument(
        "--stop", type=float, action="append", metavar="SECONDS", help="row 4's, in this order"
    )
    parser.add_argument("--full", action="store_true", help="as often as the note asks for: half a day")
    asked = parser.parse_args()
    code, complaints = 0, Console(stderr=True, markup=False, highlight=False)
    if asked.stop:
        ROWS[4] = replace(ROWS[4], stories=stops(partial(stopped, spans_s=asked.stop)))
    for number in map(int, asked.rows.split(",")):
        row, sheet, began = ROWS[number], Sheet(), jiffies(())
        for story in row.stories:
            times = asked.times * (row.note if asked.full else row.look)
            if broken := told(story, sheet, times, asked.seed):
                complaints.print(f"row {number} is broken: {broken}", soft_wrap=True)
                code = 1
        total, busy, _ = (now - before for now, before in zip(jiffies(()), began, strict=True))
        show(table(number, sheet, busy / total))
    return code


if __name__ == "__main__":
    sys.exit(main())
