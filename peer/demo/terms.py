"""What is shown: the session's terms, and what a run of the demo yields. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peer import catalogue
from peer.errors import PeerdError
from peer.placing import Placing
from peer.schedule import Schedule

TASK, METRIC, SEED = "spoken-digits", "accuracy", 0
ALGORITHM, TOPOLOGY = catalogue.DEFAULT_ALGORITHM, catalogue.DEFAULT_TOPOLOGY
LOCAL_STEPS = catalogue.DEFAULT_LOCAL_STEPS
EVALUATIONS = 40  # points of a learning curve
TOGETHER = "demo"  # the session's name

Curve = list[tuple[int, float]]  # (local step, accuracy in [0, 1])


class DemoError(PeerdError):
    """A device failed or time ran out; the message names logs."""


def shards(devices: int) -> list[str]:
    """One speaker's voice per device while there are enough speakers, else equal parts of all."""
    if devices <= len(catalogue.SPEAKERS):
        return [f"speaker={speaker}" for speaker in catalogue.SPEAKERS[:devices]]
    return [f"{k}/{devices}" for k in range(devices)]


def placing(rounds: int) -> Placing:
    """Where the rounds of a session of so many close."""
    return Placing(LOCAL_STEPS, rounds, Schedule.of({}, rounds * LOCAL_STEPS))


@dataclass(slots=True)
class Outcome:
    """What one device achieved. first_link_s: from its create or join to its first link."""

    shard: str
    peer: str = ""
    alone: Curve = field(default_factory=list)
    together: Curve = field(default_factory=list)
    bytes_sent: int | None = None
    bytes_dense: int | None = None
    reduction: float | None = None
    first_link_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The device's entry in the JSON of `peerd demo`."""
        return {
            "peer": self.peer,
            "shard": self.shard,
            "alone": self.alone[-1][1] if self.alone else None,
            "together": self.together[-1][1] if self.together else None,
            "bytes_sent": self.bytes_sent,
            "bytes_dense": self.bytes_dense,
            "reduction": self.reduction,
            "first_link_s": self.first_link_s,
        }
