"""Faults of four devices on a switch, each at one of them in turn: what lan/campaign.py measures. Those of
the network are in lines.py.

A function takes the devices, who is hit, and the sheet for its figures; it raises AssertionError where
something is broken that must hold (lan/intact.py, and the sum of weights).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from lan.bridge import Switch, Wired
from lan.device import PATIENCE_S
from lan.intact import checkpoints_load, finite, nothing_refused
from lan.measuring import (
    DAEMON,
    DIP,
    DIP_GOAL_S,
    LEARNER,
    WINDOW_S,
    Pulse,
    all_train,
    imports,
    seconds,
    start_again,
)
from lan.watching import (
    MASS,
    NAME,
    TASK,
    Logged,
    as_good_as,
    distances,
    during,
    epoch,
    everyone_trains,
    is_whole,
    key_of,
    one_generation,
    rounds_later,
    settled_weight,
    states,
    weighs,
    weight_between_rounds,
    well,
    whole,
)
from peer.learner.checkpoint import EVERY_S

BASE_S = 12.0  # before a fault
LOST_S = 20.0  # between crash and start, at the most
PART = ".ckpt-*.tmp"  # of a checkpoint that is being written
IMPORTS = "  imports by themselves"
ROUND_CLOSED, TAKES_UP = "round closed", "takes up a generation"  # logged
CUT_SHORT = re.compile(r"bytes of parcel \d+ had come")
RATE = "1mbit"
FRAME = 10_000  # bytes; a device says less of itself in so short a time, and a parcel has more
STOPPED_S = (1.0, 10.0, 60.0)
DEAD_S = 30.0  # who stands still for longer is dead for the others, and they go on without its weight
LOST_SHARES = 3.0  # of what the killed one held last: it may have been handed as much again, twice
LOOKS = 8  # at the weight; on a slow line some is nearly always on its way


@dataclass
class Sheet:
    """What was seen of one row: by name the unit, the goal, and each figure. story: names begin with it."""

    goals: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    seen: dict[str, list[float]] = field(default_factory=dict)
    story: str = ""

    def of(self, story: str) -> Sheet:
        """The same sheet, for one of several stories."""
        return replace(self, story=f"{story}: ")

    def note_start(self, what: str, seconds: float, imported: float, goal_s: float) -> None:
        """A start, with its imports and without: less the least seen, as this machine's load adds to them."""
        self.note(f"{what}, with imports", seconds, "s")
        self.note(IMPORTS, imported, "s")
        least = min(self.seen[self._named(IMPORTS)])
        self.note(f"{what}, without", seconds - least, "s", goal_s)

    def note(self, what: str, value: float, unit: str, goal: float | None = None) -> None:
        what = self._named(what)
        self.goals[what] = unit, goal
        self.seen.setdefault(what, []).append(value)

    def _named(self, what: str) -> str:
        name = what.lstrip()
        return f"{what.removesuffix(name)}{self.story}{name}"


def without(devices: Sequence[Wired], one: Wired) -> list[Wired]:
    return [device for device in devices if device is not one]


# --- kill -9 ----------------------------------------------------------------------------------------------


def killed(lan: Switch, devices: Sequence[Wired], victim: Wired, sheet: Sheet, dice: random.Random) -> None:
    others, imported = without(devices, victim), imports(DAEMON, LEARNER)
    before, pulse = Pulse(others), Pulse(others)
    during(lan, BASE_S, before.look)
    written = max(path.stat().st_mtime for path in kept(victim))
    sheet.note("killed: age of its checkpoint", time.time() - written, "s", EVERY_S)
    victim.crash()
    checkpoints_load(victim)
    during(lan, dice.uniform(0, LOST_S), pulse.look)
    started_s = start_again(lan, victim, pulse.look)
    sheet.note_start("  from its start until it trains", started_s, imported, 15.0)
    during(lan, 2 * WINDOW_S, pulse.look)
    sheet.note(f"  others below {DIP:.0%} of their rounds", pulse.dipped_s(before.mean()), "s", DIP_GOAL_S)
    all_train(lan, devices)
    lan.wait("one generation", lambda: one_generation(devices))
    nothing_refused(devices)
    finite(devices)
    well(devices)


def killed_while_writing(lan: Switch, devices: Sequence[Wired], sheet: Sheet) -> None:
    """Whoever is the next to write a checkpoint is killed while it does."""
    imported = imports(DAEMON, LEARNER)
    lan.wait("each has a checkpoint", lambda: all(map(kept, devices)))
    victim = kill_a_writer(devices)
    parts = [path.stat().st_size for path in victim.state.glob(f"sessions/*/{PART}")]
    sheet.note("killed while it writes a checkpoint: a part of it is left", len(parts), "")
    sheet.note("  of so much", sum(parts) / 1e6, "MB")
    checkpoints_load(victim)
    before = kept(victim)
    started_s = start_again(lan, victim, lambda: None)
    sheet.note_start("killed while it writes: until it trains", started_s, imported, 15.0)
    assert victim.session(NAME)["checkpoint_age_s"] is not None, f"it has not found {before}"
    assert not list(victim.state.glob(f"sessions/*/{PART}")), "what was left is still there"
    all_train(lan, devices)
    rounds_later(lan, 3, devices)  # with whole models that late, somebody may just have closed some alone
    nothing_refused(devices)
    finite(devices)
    well(devices)


def kept(device: Wired) -> list[Path]:
    return list(device.state.glob("sessions/*/ckpt-*.peerd"))


def kill_a_writer(devices: Sequence[Wired]) -> Wired:
    """The first that begins to write a checkpoint, with SIGKILL, at once: its processes are known by then."""
    folders = [(path, device) for device in devices for path in device.state.glob("sessions/*")]
    known = {device: [os.pidfd_open(pid) for pid in device.namespace.processes()] for device in devices}
    deadline = time.monotonic() + EVERY_S + PATIENCE_S
    try:
        while True:
            for folder, device in folders:
                if any(fnmatch(name, PART) for name in os.listdir(folder)):
                    for process in known[device]:
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                    device.crash()  # and what has been started since
                    return device
            assert time.monotonic() < deadline, "nobody writes a checkpoint"
            time.sleep(0.0005)
    finally:
        for process in itertools.chain(*known.values()):
            os.close(process)


def killed_while_sending(
    lan: Switch, devices: Sequence[Wired], victim: Wired, sheet: Sheet, _: random.Random
) -> None:
    others, imported = without(devices, victim), imports(DAEMON, LEARNER)
    for device in devices:
        device.shape(loss=0.0, rate=RATE)
    rounds_later(lan, 5, devices)
    total, held = most_weight(lan, devices) if weighs(devices) else 0.0, victim.session(NAME)["weight"]
    known = max(distances(others))
    cut_short = Logged(others, CUT_SHORT)
    wait_for_a_parcel(victim)
    victim.crash()
    for device in devices:
        device.unshape()
    rounds_later(lan, 3, others)
    nothing_refused(others)
    sheet.note("  parcels cut short by it, and nothing applied", sum(cut_short.counts()), "")
    started_s = start_again(lan, victim, lambda: None)
    sheet.note_start("killed while it sends: until it trains", started_s, imported, 15.0)
    all_train(lan, devices)
    rounds_later(lan, 3, devices)
    if weighs(devices):
        left = most_weight(lan, devices)
        assert left < total * (1 + MASS), f"weight was made: {total} before, {left} now"
        assert left > total - LOST_SHARES * held, f"{total} before, {left} now, and it held {held}"
        sheet.note("  weight lost, of what it held", 100 * (total - left) / held, "%")
    else:
        lan.wait("one generation", lambda: one_generation(devices))
    lan.wait(f"they know what was known, {known:.2g}", lambda: as_good_as(known, devices))
    nothing_refused(devices)
    finite(devices)
    well(devices)


def wait_for_a_parcel(device: Wired) -> None:
    """Until one of its parcels is on its way. Of a whole model that is not said, but what it sends grows."""
    deadline, before = time.monotonic() + PATIENCE_S, device.session(NAME)
    while True:
        now = device.session(NAME)
        grows = now["generation"] is not None and now["bytes_sent"] > before["bytes_sent"] + FRAME
        if grows or any(row["unacked"] for row in now["links"] if row["direction"] == "out"):
            return
        assert time.monotonic() < deadline, f"{device.name} never sends"
        before = now
        time.sleep(0.01)


def most_weight(lan: Switch, devices: Sequence[Wired]) -> float:
    """The most that was seen to lie still between rounds."""
    seen: list[float] = []

    def looked() -> bool:
        seen.extend(total for total in [weight_between_rounds(devices)] if total is not None)
        return len(seen) >= LOOKS

    lan.wait("moments between rounds", looked)
    return max(seen)


# --- SIGSTOP ----------------------------------------------------------------------------------------------


class Closings:
    """When devices close rounds, by the lines they log: those bear whole seconds only. A thread looks."""

    def __init__(self, devices: Sequence[Wired]) -> None:
        self._logs = {device.log: device.log.stat().st_size for device in devices}  # read so far
        self._at: dict[Path, list[float]] = {log: [] for log in self._logs}
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Closings:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._reader.join()

    def _read(self) -> None:
        while not self._over.wait(0.02):
            for path, read in self._logs.items():
                with path.open("rb") as log:
                    log.seek(read)
                    new = log.read()
                self._logs[path] += len(new)
                self._at[path] += [time.monotonic()] * new.count(ROUND_CLOSED.encode())

    def lasted(self) -> list[list[float]]:
        """Of each device, seconds from round to round."""
        return [[later - at for at, later in itertools.pairwise(ats)] for ats in self._at.values()]


def longest_but_the_first_stall(lasted: Sequence[float], median: float) -> float:
    stall = next((k for k, span in enumerate(lasted) if span > 2 * median), None)
    return max(span for k, span in enumerate(lasted) if k != stall)


def stopped(
    lan: Switch,
    devices: Sequence[Wired],
    victim: Wired,
    sheet: Sheet,
    _: random.Random,
    *,
    spans_s: Sequence[float] = STOPPED_S,
) -> None:
    for span_s in spans_s:
        stopped_for(lan, span_s, devices, victim, sheet)


def stopped_for(lan: Switch, span_s: float, devices: Sequence[Wired], victim: Wired, sheet: Sheet) -> None:
    others, total, peer = without(devices, victim), whole(lan, devices), victim.peer
    dies = span_s > DEAD_S
    with Closings(others) as before:
        during(lan, BASE_S, lambda: None)
    usual = list(itertools.chain(*before.lasted()))
    median, kept = statistics.median(usual), None
    with Closings(others) as fault:
        victim.freeze()
        during(lan, span_s, lambda: None)
        if dies:
            kept = whole(lan, others)
        shut_out = ShutOut(lan, others, peer) if dies and total is None else None
        victim.thaw()
        back_s = seconds(lambda: all_train(lan, devices))
        during(lan, 2 * WINDOW_S, lambda: None)
    what = f"stopped for {span_s:.0f} s"
    sheet.note(f"{what}: until all train", back_s, "s", 10.0)
    sheet.note("  others' longest round before, in median rounds", max(usual) / median, "")
    sheet.note(f"  {what}: others' longest", max(max(spans) for spans in fault.lasted()) / median, "")
    rest = max(longest_but_the_first_stall(spans, median) for spans in fault.lasted())
    sheet.note(f"  {what}: others' longest but each one's first stall", rest / median, "", 2.0)
    rounds_later(lan, 3, devices)
    if dies and total is not None and kept is not None:
        now = settled_weight(lan, devices)
        assert kept - MASS < now < total + MASS, f"{total} before, {kept} without it, {now} with it again"
    else:
        is_whole(lan, devices, total)
    if shut_out is not None:
        sheet.note(f"  {what}: rounds without it that others closed when it was back", shut_out.rounds(), "")
        nothing_refused(devices)
    finite(devices)
    well(devices)


class ShutOut:
    """One that stands still has no place in the generation of the others. Nothing that it sends may be in a
    round of theirs before they take up another generation; their logs say who was heard in each."""

    def __init__(self, lan: Switch, others: Sequence[Wired], peer: str) -> None:
        def without_it() -> bool:
            return everyone_trains(others) and one_generation(others)

        lan.wait("a generation without it", without_it)
        rounds_later(lan, 3, others)
        self._peer, self._read = peer, {device.log: device.log.stat().st_size for device in others}

    def rounds(self) -> int:
        """Of the others, from the beginning of this until they have another generation."""
        count = 0
        for log, read in self._read.items():
            since = log.read_bytes()[read:].decode(errors="replace")
            until, another, _ = since.partition(TAKES_UP)
            assert another, f"{log} tells of no other generation"
            closed = [line for line in until.splitlines() if ROUND_CLOSED in line]
            heard = [line for line in closed if self._peer in line]
            assert not heard, f"{log}: messages of a generation that was over were applied: {heard}"
            count += len(closed)
        return count


# --- leaving and joining ----------------------------------------------------------------------------------


def switched_off(
    lan: Switch, devices: Sequence[Wired], leaver: Wired, sheet: Sheet, _: random.Random
) -> None:
    others, peer = without(devices, leaver), leaver.peer
    rounds_later(lan, 5, devices)
    total, before = whole(lan, devices), epoch(devices)
    ended_s, known_s = terminate(leaver, others, peer)
    sheet.note("SIGTERM: until it has ended", ended_s, "s", 5.0)
    sheet.note("  from its end until all know that it left", max(0.0, known_s - ended_s), "s", 2.0)
    assert not list(leaver.namespace.processes()), "its learner is still there"
    checkpoints_load(leaver)
    lan.wait("the others train without it", lambda: everyone_trains(others))
    is_whole(lan, others, total, after=before)
    before = epoch(others)
    lan.start(leaver)
    all_train(lan, devices)
    is_whole(lan, devices, total, after=before)
    finite(devices)
    well(devices)


def terminate(leaver: Wired, others: Sequence[Wired], peer: str) -> tuple[float, float]:
    """SIGTERM: seconds until its daemon has ended, with exit code 0, and until the others know."""
    began, daemon = time.monotonic(), leaver.daemon
    assert daemon is not None
    leaver.daemon = None
    daemon.send_signal(signal.SIGTERM)
    ended_s = known_s = 0.0
    while not (ended_s and known_s):
        now_s = time.monotonic() - began
        assert now_s < PATIENCE_S, f"{leaver.name}: ended after {ended_s:.1f} s, known after {known_s:.1f} s"
        ended_s = ended_s or now_s * (daemon.poll() is not None)
        known_s = known_s or now_s * (states(others, peer) == {"left"})
        time.sleep(0.02)
    assert daemon.returncode == 0, f"{leaver.name} ended with {daemon.returncode}"
    return ended_s, known_s


def joined_late(
    lan: Switch,
    devices: Sequence[Wired],
    sheet: Sheet,
    task: Path = TASK,
    wire: Callable[[Wired], None] = lambda late: None,
) -> None:
    """A new device joins, and leaves again. wire: makes its line what it is."""
    late, total = lan.add(f"late{len(lan.devices) - len(devices)}"), 1.0 if weighs(devices) else None
    before = epoch(devices)
    wire(late)
    lan.start(late)
    known, imported = max(distances(devices)), imports(LEARNER)
    how = ("--key", key_of(devices[0]), "--task", str(task), "--shard", f"mean/{len(devices)}")
    began, joining = time.monotonic(), late.spawn("join", NAME, *how)
    lan.wait("its first local steps", lambda: late.session(NAME).get("loss") is not None)
    took_s = time.monotonic() - began
    sheet.note_start(f"late to {len(devices)} devices: until its first local steps", took_s, imported, 10.0)
    assert joining.wait(PATIENCE_S) == 0
    together = [*devices, late]
    lan.wait("all see it", lambda: everyone_trains(together))
    is_whole(lan, together, total, after=before)  # a newcomer takes weight and makes none
    before = epoch(devices)
    lan.wait("a first figure of it", lambda: late.session(NAME)["metrics"])
    lan.wait(f"they know what was known, {known:.2g}", lambda: as_good_as(known, together))
    finite(together)
    well(together, left=True)
    late.ok("leave", NAME)
    assert late.stop() == 0
    lan.wait("the others train on", lambda: everyone_trains(devices))
    is_whole(lan, devices, total, after=before)  # it leaves all that it had
