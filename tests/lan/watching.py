"""What tests on a switch ask of a session: begin it on several devices, and look at all of them at once.

A device may be in several sessions: what is asked of devices is asked of all that they are in.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lan.bridge import Switch, Wired
from lan.device import PATIENCE_S, Json
from peer.learner.loop import EVALUATE_EVERY

NAME = "home"
TASK = Path(__file__).with_name("paced.py")
PORT = 7700  # of the founder
STEPS = ("--local-steps", "2")  # a round takes a third of a second
NO_WORSE, NOISE = 1.2, 0.1  # reliability note, section f, row 5; of the metric: training begins at 1.1
RATE, SLOW_RATE = "lr=0.05", "lr=0.02"  # at the slow one who is reset takes 23 rounds to what a half knows
SHOWN = EVALUATE_EVERY + 1  # rounds, after which each device's figure is a new one
MASS = 1e-6  # single precision, summed over some hundred rounds


def begin(lan: Switch, count: int, *terms: str, task: Path = TASK) -> list[Wired]:
    """So many devices in one session, all of them training."""
    return begin_all(lan, count, {NAME: terms}, task)


def varied(lan: Switch, name: str, lines: Mapping[str, str]) -> Path:
    """The task with some lines others."""
    task, text = lan.folder / f"{name}.py", TASK.read_text()
    for was, now in lines.items():
        assert text.count(was) == 1, f"{TASK} does not have '{was}' once"
        text = text.replace(was, now)
    task.write_text(text)
    return task


def slow(lan: Switch) -> Path:
    """The task at a rate at which who has lost a model is seen to have lost it: figures are from every eighth
    round."""
    return varied(lan, "slow", {RATE: SLOW_RATE})


def begin_all(lan: Switch, count: int, terms: Mapping[str, Sequence[str]], task: Path = TASK) -> list[Wired]:
    """So many devices in sessions of these names, all of them training."""
    devices = [lan.add(f"d{k}") for k in range(count)]
    lan.start(*devices)
    founder, *others = devices
    shards, joining = [f"{k}/{len(devices)}" for k in range(len(devices))], []
    for number, (name, asked) in enumerate(terms.items()):
        here = ("--listen", f":{PORT + number}", "--shard", shards[0])
        founder.ok("create", name, "--task", str(task), *STEPS, *here, *asked)
        key = key_of(founder, name)
        for device, shard in zip(others, shards[1:], strict=True):
            joining.append(device.spawn("join", name, "--key", key, "--task", str(task), "--shard", shard))
    assert [process.wait(120) for process in joining] == [0] * len(joining)
    lan.wait(f"{len(devices)} devices train", lambda: everyone_trains(devices))
    return devices


def key_of(device: Wired, name: str = NAME) -> str:
    return device.ok("key", name).out.split()[-1]


def sessions(devices: Iterable[Wired], name: str | None = None) -> list[Json]:
    """Of this name, or all that they are in."""
    seen = []
    for device in devices:
        of_this = [s for s in device.status()["sessions"] if name in (None, s["name"])]
        assert of_this, f"{device.name} is in no session {name or ''}"
        seen += of_this
    return seen


def everyone_trains(devices: Sequence[Wired], members: int | None = None) -> bool:
    """All of these, and each sees so many members alive; none but these unless told. One that has just been
    started may answer before it takes its sessions up."""
    expected = len(devices) if members is None else members
    seen = [device.status()["sessions"] for device in devices]
    return all(seen) and all(
        s["state"] == "training" and s["members"] == expected for of_one in seen for s in of_one
    )


def rounds(devices: Iterable[Wired]) -> dict[str, int]:
    """By device and session."""
    return {f"{d.name} {s['name']}": s["round"] or 0 for d in devices for s in sessions([d])}


def rounds_later(lan: Switch, count: int, devices: Sequence[Wired]) -> None:
    """Wait until each of these has closed so many more rounds."""
    before = rounds(devices)
    lan.wait(
        f"{count} more rounds on {sorted(before)}",
        lambda: all(now >= before[name] + count for name, now in rounds(devices).items()),
    )


def during(lan: Switch, seconds: float, look: Callable[[], None]) -> None:
    """Look again and again for so long: how long a fault lasts is part of the story."""
    until = time.monotonic() + seconds

    def over() -> bool:
        look()
        return time.monotonic() >= until

    lan.wait(f"{seconds:.0f} s have passed", over, seconds + PATIENCE_S)


def links(devices: Iterable[Wired], peer: str) -> list[Json]:
    """The rows that these devices have about one peer."""
    return [link for s in sessions(devices) for link in s["links"] if link["peer"] == peer]


def states(devices: Iterable[Wired], peer: str) -> set[str]:
    return {link["state"] for link in links(devices, peer)}


def known_at(devices: Iterable[Wired], mover: Wired, peer: str) -> bool:
    """Do all of these have a peer at the address that it has now?"""
    rows = links(devices, peer)
    return bool(rows) and all(
        row["state"] == "alive" and row["address"].rpartition(":")[0] == mover.host for row in rows
    )


def one_generation(devices: Iterable[Wired]) -> bool:
    """In each session."""
    seen = {(s["name"], s["generation"], s["graph"]) for s in sessions(devices)}
    return len(seen) == len({name for name, _, _ in seen})


def well(devices: Sequence[Wired], *, left: bool = False) -> None:
    """Nobody has anything to complain of, nobody is listed twice, and no stranger is. left: some have left,
    and are listed still."""
    for device in devices:
        status = device.status()
        assert status["health"] == [], f"{device.name}: {status['health']}"
        for session in status["sessions"]:
            seen = [link for link in session["links"] if not (left and link["state"] == "left")]
            rows = [(link["peer"], link["direction"]) for link in seen]
            assert len(rows) == len(set(rows)), f"{device.name} lists somebody twice: {rows}"
            assert {peer for peer, _ in rows} <= {other.peer for other in devices}


def distances(devices: Iterable[Wired], name: str | None = None) -> list[float]:
    """The metric on each device; infinite where it is not known yet."""
    return [s["metrics"].get("distance", float("inf")) for s in sessions(devices, name)]


def as_good_as(known: float, devices: Iterable[Wired], name: str | None = None) -> bool:
    """Does each of these know what was known to somebody, or more?"""
    return max(distances(devices, name)) <= no_worse_than(known)


def no_worse_than(known: float) -> float:
    return max(NO_WORSE * known, NOISE)


def none_worse(known: float, devices: Sequence[Wired]) -> None:
    """Each of these, if it shows a figure, knows what was known to somebody: for `Switch.throughout`."""
    for device in devices:
        for far in filter(math.isfinite, distances([device])):
            assert far <= no_worse_than(known), f"{device.name} is {far:.3f} away, and {known:.3f} was known"


def weight_between_rounds(devices: Sequence[Wired], name: str | None = None) -> float | None:
    """Sum of push-sum weights, when all have just closed the same round; what came late is not in it."""
    before, after = sessions(devices, name), sessions(devices, name)
    weights = [s["weight"] for s in after]
    if len({s["round"] for s in (*before, *after)}) != 1 or None in weights:
        return None
    return float(sum(weights))


def comes_to(devices: Sequence[Wired], weight: float, name: str | None = None) -> bool:
    total = weight_between_rounds(devices, name)
    return total is not None and abs(total - weight) < MASS


def weighs(devices: Sequence[Wired]) -> bool:
    """Does what each holds here have a weight? Where it has not, all agree on a graph, a generation."""
    return all(session["generation"] is None for session in sessions(devices))


def settled_weight(lan: Switch, devices: Sequence[Wired]) -> float:
    """The sum that three moments have in common: at one alone something late may be on its way, which counts
    with the next round."""
    seen: dict[int, float] = {}

    def agreed() -> float | None:
        weight = weight_between_rounds(devices)
        if weight is not None:
            seen[max(rounds(devices).values())] = weight
        last = list(seen.values())[-3:]
        return last[0] if len(last) == 3 and max(last) - min(last) < MASS else None

    return lan.wait("no weight is in flight, three times", agreed)


def whole(lan: Switch, devices: Sequence[Wired]) -> float | None:
    """The weight of these, if it is one that has any."""
    return settled_weight(lan, devices) if weighs(devices) else None


def is_whole(lan: Switch, devices: Sequence[Wired], weight: float | None, *, after: int = 0) -> None:
    """Wait until these have all of it. Where there is none, until they are on one graph of a later epoch than
    this, and stay there."""
    if weight is not None:
        lan.wait(f"all of {weight} is there", lambda: comes_to(devices, weight))
    else:
        on_one_graph(lan, devices, after=after)


def epoch(devices: Iterable[Wired], name: str | None = None) -> int:
    """The latest of the generations that these are in."""
    return max(session["generation"] or 0 for session in sessions(devices, name))


def on_one_graph(lan: Switch, devices: Sequence[Wired], name: str | None = None, *, after: int = 0) -> None:
    """Wait until all are, on one of a later epoch than this, and train on it."""

    def agreed() -> bool:
        return one_generation(devices) and epoch(devices, name) > after

    lan.wait("one generation", agreed)
    rounds_later(lan, 3, devices)
    assert agreed(), "and they stay on it"


class Logged:
    """How often devices log something, from now on."""

    def __init__(self, devices: Sequence[Wired], what: re.Pattern[str]) -> None:
        self._devices, self._what = devices, what
        self._before = self._counts()

    def _counts(self) -> list[int]:
        return [len(self._what.findall(d.log.read_text(errors="replace"))) for d in self._devices]

    def counts(self) -> list[int]:
        """By device."""
        return [now - was for now, was in zip(self._counts(), self._before, strict=True)]
