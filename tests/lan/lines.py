"""What a bad network does to four devices on a switch: what lan/campaign.py measures, as in faults.py."""

from __future__ import annotations

import math
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lan.bridge import Switch, Wired
from lan.device import Json
from lan.faults import TAKES_UP, Sheet, without
from lan.intact import finite, nothing_refused
from lan.measuring import Pulse, all_train, seconds
from lan.watching import (
    MASS,
    NAME,
    Logged,
    distances,
    during,
    is_whole,
    known_at,
    one_generation,
    rounds_later,
    sessions,
    settled_weight,
    weighs,
    weight_between_rounds,
    well,
)

BASE_S = 12.0  # before a fault
DEAF_TO_ONE_S = 90.0  # a tree goes around it: 10 s until an end says so, 10 more, 32 to weigh trees again
DEAF_TO_ALL_S = 60.0  # who hears nobody is dead after 8 to 32 s
GENERATION_S = 15.0  # at most one new in this time
DIES, CHANGES = re.compile("is silent: taken for dead"), re.compile(TAKES_UP)
YIELDS = re.compile("starts over with the model of the other half")


# --- one way ----------------------------------------------------------------------------------------------


def deaf_to_one(
    lan: Switch, devices: Sequence[Wired], victim: Wired, sheet: Sheet, dice: random.Random
) -> None:
    """The victim does not hear one of those it sends to, which hears it."""
    to = {row["peer"] for row in victim.session(NAME)["links"] if row["direction"] == "out"}
    beside = [device for device in without(devices, victim) if device.peer in to]
    deaf(lan, devices, victim, [dice.choice(beside)], sheet)


def deaf_to_all(lan: Switch, devices: Sequence[Wired], victim: Wired, sheet: Sheet, _: random.Random) -> None:
    """The victim hears nobody, and all hear it: for the others it dies, and for it the others."""
    deaf(lan, devices, victim, without(devices, victim), sheet)


def deaf(
    lan: Switch, devices: Sequence[Wired], victim: Wired, unheard: Sequence[Wired], sheet: Sheet
) -> None:
    others, alone = without(devices, victim), len(unheard) > 1
    what = f"deaf to {'all' if alone else 'one'}"
    books = Books(lan, devices) if weighs(devices) else None
    before, pulse = Pulse(others), Pulse(others)
    during(lan, BASE_S, before.look)
    deaths, changes, began = Logged(devices, DIES), Logged(devices, CHANGES), time.monotonic()
    for other in unheard:
        victim.ignore(other)
    during(lan, DEAF_TO_ALL_S if alone else DEAF_TO_ONE_S, pulse.look)
    kept = settled_weight(lan, others) if alone and books is not None else 0.0
    farthest = max(distances(devices))
    victim.hear_again()
    sheet.note(f"{what}: farthest from the common minimum, at its end", 1000 * farthest, "/1000")
    sheet.note(
        f"  {what}: the others' rounds, below before by", 100 * (1 - pulse.mean() / before.mean()), "%"
    )
    sheet.note(f"  {what}: until all train", seconds(lambda: all_train(lan, devices)), "s")
    sheet.note(f"  {what}: taken for dead", sum(deaths.counts()), "", None if alone else 0.0)
    if books is not None:
        books.close(what, sheet, kept=kept)
    else:
        lan.wait("one generation", lambda: one_generation(devices))
        often = max(changes.counts())
        sheet.note(f"  {what}: new generations, on one device", often, "")
        part = often * GENERATION_S / (time.monotonic() - began)
        sheet.note(f"  {what}: in {GENERATION_S:.0f} s of that time", part, "", 1.0)
    finite(devices)
    well(devices)


class Books:
    """Of the weight of these devices, from now on: none may be made, and none lost but by those who take over
    the model of the other half, and give up what they hold (reliability note, section c)."""

    def __init__(self, lan: Switch, devices: Sequence[Wired]) -> None:
        self._lan, self._devices = lan, devices
        self._yields = Logged(devices, YIELDS)
        self.total = settled_weight(lan, devices)

    def close(self, what: str, sheet: Sheet, *, kept: float) -> None:
        """kept: what those had that stayed together."""
        rounds_later(self._lan, 3, self._devices)
        yielded, total = sum(self._yields.counts()), self.total
        least = kept if yielded else total
        self._lan.wait(f"there is weight of {least}", lambda: self._now() > least - MASS)
        now = settled_weight(self._lan, self._devices)
        assert now < total + MASS, f"{total} before, {now} in the end"
        sheet.note(f"  {what}: start over with another's model", yielded, "")
        sheet.note(
            f"  {what}: weight given up by these", 100 * max(0.0, total - now) if yielded else 0.0, "%"
        )

    def _now(self) -> float:
        """Nothing where some of it may be on its way."""
        return weight_between_rounds(self._devices) or 0.0


# --- bad lines --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What each device's line is like. mend: makes it as it was, and returns how many packets were lost that
    should not have been, if they are counted. deaths: false ones that an hour of one device may have.
    bytes_s: what it carries."""

    name: str
    spoil: Callable[[Wired], object]
    mend: Callable[[Wired], int | None]
    deaths: float = 0.0
    bytes_s: int | None = None


def crossing_two(loss: float) -> float:
    """What a port may lose for this to be lost between two devices."""
    return 1 - math.sqrt(1 - loss)


SLOW = Line(
    "5% loss, 1mbit",
    lambda device: device.shape(loss=crossing_two(0.05), rate="1mbit"),
    lambda device: device.unshape(),
    bytes_s=125_000,
)
LOSSY = Line(
    "20% loss",
    lambda device: device.lose(crossing_two(0.2)),
    lambda device: device.lose_nothing(),
    deaths=1.0,
)
FAR = Line("200 ms each way", lambda device: device.delay(0.1), lambda device: device.undelay())


def spoiled(
    lan: Switch, devices: Sequence[Wired], minutes: int, sheet: Sheet, *, line: Line, pace: str
) -> None:
    """What was lost is sent again: in lockstep no weight may be missing."""
    what, weighed = f"{line.name}, {pace}", weighs(devices) and pace == "lockstep"
    books = Books(lan, devices) if weighed else None
    before, pulse = Pulse(devices), Pulse(devices)
    usual_s = sent_a_second(lan, devices, BASE_S, before.look)
    memory: dict[str, list[float]] = {device.name: [] for device in devices}
    trips: list[float] = []

    def look() -> None:
        pulse.look()
        for device in devices:
            status = device.status()
            memory[device.name].append(status["rss_mb"])
            trips.extend(row["rtt_ms"] for row in rows(status) if row["rtt_ms"] is not None)

    deaths, began = Logged(devices, DIES), time.monotonic()
    for device in devices:
        line.spoil(device)
    during(lan, BASE_S, lambda: None)
    for _ in range(minutes):
        for usual, sent in zip(usual_s, sent_a_second(lan, devices, 60.0, look), strict=True):
            carried(sheet, what, sent, usual, line, pace)
    hours = len(devices) * (time.monotonic() - began) / 3600
    sheet.note(f"  {what}: rounds, below before by", 100 * (1 - pulse.mean() / before.mean()), "%")
    sheet.note(f"  {what}: round trip that peers measure", statistics.median(trips), "ms")
    sheet.note(f"  {what}: taken for dead, in {hours:.2f} node-hours", sum(deaths.counts()), "")
    sheet.note(f"  {what}: that is an hour", sum(deaths.counts()) / hours, "", line.deaths)
    for seen in memory.values():
        quarter = len(seen) // 4
        grown = statistics.median(seen[-quarter:]) / statistics.median(seen[:quarter]) - 1
        sheet.note(f"  {what}: a daemon's memory, last quarter over first", 100 * grown, "%", 5.0)
    lost = [line.mend(device) for device in devices]
    if None not in lost:
        sheet.note(f"  {what}: packets that were lost against the plan", sum(filter(None, lost)), "", 0.0)
    all_train(lan, devices)
    rounds_later(lan, 3, devices)
    if books is not None:
        books.close(what, sheet, kept=0.0)
    if not weighs(devices):
        is_whole(lan, devices, None)
        nothing_refused(devices)
    finite(devices)
    well(devices)


def rows(status: Json) -> list[Json]:
    return [row for session in status["sessions"] for row in session["links"]]


def sent_a_second(
    lan: Switch, devices: Sequence[Wired], span_s: float, look: Callable[[], None]
) -> list[float]:
    """Bytes, by each of these."""
    before, began = [session["bytes_sent"] for session in sessions(devices)], time.monotonic()
    during(lan, span_s, look)
    after, span_s = [session["bytes_sent"] for session in sessions(devices)], time.monotonic() - began
    return [(now - was) / span_s for was, now in zip(before, after, strict=True)]


def carried(sheet: Sheet, what: str, sent: float, usual: float, line: Line, pace: str) -> None:
    """What a device sent in a second of a minute."""
    sheet.note(f"{what}: sent in a second", sent / 1000, "kB")
    sheet.note(f"  {what}: below before by", 100 * (1 - sent / usual), "%")
    if line.bytes_s is not None:
        goal = 40.0 if pace == "free" else None  # in lockstep the line rests while a device trains
        sheet.note(f"  {what}: of the rate not used", 100 * (1 - sent / line.bytes_s), "%", goal)


# --- another address --------------------------------------------------------------------------------------


def moved(lan: Switch, devices: Sequence[Wired], mover: Wired, sheet: Sheet, _: random.Random) -> None:
    others, peer, total = without(devices, mover), mover.peer, 1.0 if weighs(devices) else None
    rounds_later(lan, 5, devices)
    began = time.monotonic()
    mover.move()
    lan.wait("everybody has it at its new address", lambda: known_at(others, mover, peer))
    all_train(lan, devices)
    sheet.note("another address: until all train", time.monotonic() - began, "s", 20.0)
    is_whole(lan, devices, total)
    finite(devices)
    well(devices)
