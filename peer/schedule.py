"""The learning rate over a session's local steps, as a factor of the optimizer's own rate.

A bounded session warms up, stays constant to 40 % of its steps and falls to 1 % along a cosine; one without
an end stays constant after the warm-up. Steps are the session's (round x local steps), not the device's:
who joins late trains at the rate of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from peer.errors import ConfigError

WARMUP = 50  # steps; this and the next two from sparse_push_experiments, its setting for all runs
CONSTANT_PART = 0.4
FINAL_FACTOR = 0.01
KINDS = ("constant", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """`kind`: constant, cosine or step. steps: of the whole session, 0 for no end. decay: for `step`,
    (part of the session, factor) in order; factors multiply."""

    kind: str = "constant"
    warmup: int = WARMUP
    steps: int = 0
    decay: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, str], steps: int) -> Schedule:
        """From the session's options `schedule`, `warmup` and `lr-decay` ("0.75:0.1,0.9:0.1"). Raises
        ConfigError."""
        kind = options.get("schedule", "cosine" if steps else "constant")
        if kind not in KINDS:
            raise ConfigError(f"option schedule={kind}: known are {', '.join(KINDS)}")
        if kind != "constant" and not steps:
            raise ConfigError(f"option schedule={kind} needs a session with an end; give it --rounds")
        warmup = options.get("warmup", str(WARMUP))
        if not warmup.isdecimal():
            raise ConfigError(f"option warmup={warmup}: expected a number of steps")
        decay = _decay(options.get("lr-decay", "0.75:0.1,0.9:0.1")) if kind == "step" else ()
        return cls(kind, int(warmup), steps, decay)

    def factor(self, step: int) -> float:
        """The factor for local step `step`, counted from 0; in (0, 1]."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = step / self.steps if self.steps else 0.0
        if self.kind == "cosine" and done > CONSTANT_PART:
            part = min(1.0, (done - CONSTANT_PART) / (1 - CONSTANT_PART))
            return rise * (FINAL_FACTOR + (1 - FINAL_FACTOR) * (1 + math.cos(math.pi * part)) / 2)
        if self.kind == "step":
            return rise * math.prod(factor for at, factor in self.decay if done >= at)
        return rise


def _decay(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [tuple(map(float, part.split(":"))) for part in text.split(",")]
        decay = tuple((at, factor) for at, factor in pairs)
    except ValueError as error:
        raise ConfigError(
            f"option lr-decay={text}: expected parts and factors, as in 0.75:0.1,0.9:0.1"
        ) from error
    if not all(0 < at < 1 and 0 < factor <= 1 for at, factor in decay):
        raise ConfigError(f"option lr-decay={text}: parts lie between 0 and 1, factors too")
    return decay
