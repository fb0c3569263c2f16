"""What is rehearsed, as one frozen record, and how its words are written. No torch here: what is mistyped is
said at once.

`Plan.from_request` reads what `cli/rehearse.py` hands over: a session's descriptor, as `create` makes it, and
words for what happens to its devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peer import catalogue
from peer.config import MAX_MEMBERS, Descriptor
from peer.errors import UsageError

MAX_LOSS = 0.9  # beyond this no frame gets through in a reasonable time (guess)
SPLITS = ("iid", "dirichlet=ALPHA", "natural")

_NUMBER = r"([0-9]*\.?[0-9]+)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclass(frozen=True, slots=True)
class Churn:
    """`share` of the peers go in every `every` rounds, and as many come back."""

    share: float
    every: int


@dataclass(frozen=True, slots=True)
class Slow:
    """`count` peers take `factor` times as long for their local steps."""

    count: int
    factor: float


@dataclass(frozen=True, slots=True)
class Partition:
    """From round `first` on the one half does not hear the other, until round `last`."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    """session: its terms; rounds above 0. bandwidth_bps: 0 without a limit. final_rounds: are there any after
    those? words: as they were written."""

    session: Descriptor
    peers: int
    split: str
    task_file: str | None
    data: str | None
    latency_s: tuple[float, float]
    bandwidth_bps: float
    loss: float
    churn: Churn | None
    slow: tuple[Slow, ...]
    partitions: tuple[Partition, ...]
    final_rounds: bool
    words: Mapping[str, str | None]

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> Plan:
        """Raises UsageError."""
        words = request["words"]
        plan = cls(
            session=Descriptor.from_dict(request["session"]),
            peers=request["peers"],
            split=request["split"],
            task_file=request["task_file"],
            data=request["data"],
            latency_s=parse_latency(words["latency"]),
            bandwidth_bps=parse_bandwidth(words["bandwidth"]) if words["bandwidth"] else 0.0,
            loss=parse_share(words["loss"], "--loss", MAX_LOSS) if words["loss"] else 0.0,
            churn=parse_churn(words["churn"]) if words["churn"] else None,
            slow=parse_slow(words["slow"]) if words["slow"] else (),
            partitions=parse_partitions(words["partition"]) if words["partition"] else (),
            final_rounds=request["final_rounds"],
            words=words,
        )
        plan.check()
        return plan

    def check(self) -> None:
        """Raises UsageError for what does not go together."""
        if not 2 <= self.peers <= MAX_MEMBERS:
            raise UsageError(f"--peers is 2 to {MAX_MEMBERS}, not {self.peers}")
        catalogue.check_shard(self.session.task, self.shard(self.peers - 1))
        if sum(slow.count for slow in self.slow) > self.peers:
            raise UsageError(f"--slow names more than the {self.peers} peers there are")
        for partition in self.partitions:
            if partition.last > self.session.rounds:
                raise UsageError(
                    f"--partition heals by the end, round {self.session.rounds}, not at {partition.last}"
                )

    @property
    def steps(self) -> int:
        """Local steps of each peer."""
        return self.session.rounds * self.session.local_steps

    def names(self) -> list[str]:
        """The peers' ids, in order."""
        return [f"p{number:03d}" for number in range(self.peers)]

    def shard(self, number: int) -> str:
        """The part of the data that a peer has. Raises UsageError for a split that is not known."""
        part = f"{number}/{self.peers}"
        if self.split == "iid":
            return part
        if self.split == "natural" or self.split.startswith("dirichlet="):
            return f"{self.split}:{part}"
        raise UsageError(f"--split is one of {', '.join(SPLITS)}, not '{self.split}'")

    def slowness(self, number: int) -> float:
        """How many times longer a peer's local steps take; the last ones are the slow ones."""
        place = self.peers - number
        for slow in self.slow:
            if place <= slow.count:
                return slow.factor
            place -= slow.count
        return 1.0

    def arguments(self) -> dict[str, Any]:
        """What was asked for, with defaults filled in: the report's `arguments`."""
        session, options = self.session, self.session.options
        return {
            "task": self.task_file or session.task,
            "algorithm": session.algorithm,
            "topology": session.topology,
            "peers": self.peers,
            "rounds": session.rounds,
            "steps": self.steps,
            "local_steps": session.local_steps,
            "batch": session.batch,
            "lr": session.lr,
            "momentum": session.momentum,
            "schedule": options["schedule"],
            "warmup": int(options["warmup"]),
            "lr_decay": options.get("lr-decay") if options["schedule"] == "step" else None,
            "compression": session.compression or catalogue.algorithm(session.algorithm).compression,
            "split": self.split,
            "final_rounds": self.final_rounds,
            "options": {key: value for key, value in sorted(options.items()) if "." in key},
            **self.words,
            "data": self.data,
        }


# --- how things are written ----------------------------------------------------------------------------


def parse_latency(text: str) -> tuple[float, float]:
    """`5ms..50ms`, or `20ms` for all frames, as (least, most) seconds. Raises UsageError."""
    least, dots, most = text.partition("..")
    bounds = _seconds(least), _seconds(most if dots else least)
    if bounds[0] is None or bounds[1] is None or bounds[0] > bounds[1] or bounds[1] > 60:
        raise UsageError(f"--latency is written '5ms..50ms' or '20ms', up to a minute, not '{text}'")
    return bounds[0], bounds[1]


def _seconds(text: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}(us|ms|s)", text.strip())
    return float(found[1]) * _SECONDS[found[2]] if found else None


def parse_bandwidth(text: str) -> float:
    """`20mbit` in bits per second. Raises UsageError."""
    found = re.fullmatch(rf"{_NUMBER}(kbit|mbit|gbit)", text.strip().lower())
    if not found or not float(found[1]):
        raise UsageError(f"--bandwidth is written '500kbit', '20mbit' or '1gbit', per second, not '{text}'")
    return float(found[1]) * _BITS[found[2]]


def parse_share(text: str, what: str, most: float = 1.0) -> float:
    """`5%`, from 0 to `most`. Raises UsageError."""
    found = re.fullmatch(rf"{_NUMBER}%", text.strip())
    if not found or float(found[1]) > 100 * most:
        raise UsageError(f"{what} is written in percent, up to {100 * most:g}%, as in '5%', not '{text}'")
    return float(found[1]) / 100


def parse_churn(text: str) -> Churn:
    """`20%/100`: a fifth of the peers in every 100 rounds. Raises UsageError."""
    share, slash, every = text.partition("/")
    if not slash or not re.fullmatch("[1-9][0-9]{0,8}", every.strip()) or int(every) < 4:
        raise UsageError(f"--churn is written '20%/100': so many peers in every so many rounds, not '{text}'")
    return Churn(parse_share(share, "the share of --churn"), int(every))


def parse_slow(text: str) -> tuple[Slow, ...]:
    """`2:3x`, or several with commas. Raises UsageError."""
    found = []
    for word in text.split(","):
        parts = re.fullmatch(rf"([1-9][0-9]{{0,3}}):{_NUMBER}x", word.strip())
        if not parts or not 1 <= float(parts[2]) <= 1000:
            raise UsageError(f"--slow is written '2:3x': so many peers, times as long, not '{word}'")
        found.append(Slow(int(parts[1]), float(parts[2])))
    return tuple(found)


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """`100-200:half`, or several with commas, one after the other. Raises UsageError."""
    found: list[Partition] = []
    for word in text.split(","):
        parts = re.fullmatch("([0-9]{1,9})-([0-9]{1,9}):half", word.strip())
        partition = Partition(int(parts[1]), int(parts[2])) if parts else Partition(0, 0)
        if partition.first >= partition.last or (found and partition.first < found[-1].last):
            raise UsageError(
                f"--partition is written '100-200:half': its first round, the one it heals in; not '{word}'"
            )
        found.append(partition)
    return tuple(found)
