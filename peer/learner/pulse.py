"""What a learner tells its daemon of how training goes: loss, seconds per step, metrics."""

from __future__ import annotations

import math
import time
from typing import Any

REPORT_S = 1.0  # between two reports: what a person watching `status` can follow
MEMORY = 0.95  # weight of the past in loss and step time (guess)


class Pulse:
    """Running figures of one learner. Times are of the training thread's own clock, waiting left out."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self._loss: float | None = None
        self._step_s: float | None = None
        self._started: float | None = None
        self._worked_s = 0.0  # since the last exchange
        self._reported = -math.inf
        self._has_told_loss = False

    def start(self) -> None:
        """A local step begins."""
        self._started = time.monotonic()

    def step(self, loss: float | None) -> float:
        """A local step is done, with this loss; how long it took, s."""
        took_s = 0.0
        if self._started is not None:
            took_s = time.monotonic() - self._started
            self._step_s = _blend(self._step_s, took_s)
            self._worked_s += took_s
        if loss is not None and math.isfinite(loss):
            self._loss = _blend(self._loss, loss)
        return took_s

    def worked(self) -> float:
        """Seconds of local steps since this was last asked."""
        worked_s, self._worked_s = self._worked_s, 0.0
        return worked_s

    def due(self) -> bool:
        """Is it time for a report? For the first one with a loss it is at once."""
        is_first = self._loss is not None and not self._has_told_loss
        return is_first or time.monotonic() >= self._reported + REPORT_S

    def report(self) -> dict[str, Any]:
        """The figures, as fields of a report frame."""
        self._reported, self._has_told_loss = time.monotonic(), self._loss is not None
        return {"loss": self._loss, "metrics": self.metrics, "step_s": self._step_s}


def _blend(past: float | None, new: float) -> float:
    return new if past is None else MEMORY * past + (1 - MEMORY) * new
