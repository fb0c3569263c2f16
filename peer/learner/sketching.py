"""When a learner makes a sketch of its model (peer/sketch.py), for its daemon to tell the others.

Every SKETCH_S or so, and never for more than a part of the time; at a round that is a multiple of a power of
two, so that devices whose rounds take about as long make theirs of the same ones: only those can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from peer.learner.projection import project, tag_of
from peer.sketch import pack

SKETCH_S = 10.0  # between two: what a person watching `status` waits for; guess
SHARE = 0.02  # of the training thread's time at the most: 0.25 s for 25 million parameters (measured); guess


class Sketching:
    """Of one learner. clock: seconds on any steady scale."""

    def __init__(self, session: str, signature: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self.layout = tag_of(session, signature)
        self._session, self._clock = session, clock
        self._every = 1  # rounds, a power of two
        self._round, self._at = -1, -math.inf  # of the last one
        self._interval_s = SKETCH_S

    def is_due(self, round_: int) -> bool:
        """The model of this round is mixed: is one to be made of it?"""
        waited_s = self._clock() - self._at
        while self._every > 1 and waited_s > 2 * self._interval_s:
            self._every //= 2  # rounds take longer than they did
            waited_s /= 2
        return round_ < self._round or round_ // self._every > self._round // self._every

    def made(self, model: Tensor, round_: int) -> dict[str, Any]:
        """Fields of a report with the sketch; none where the model is not finite."""
        began = self._clock()
        body = pack(project(model, self._session))
        now = self._clock()
        self._interval_s = max(SKETCH_S, (now - began) / SHARE)
        rounds, took_s = round_ - self._round, now - self._at
        if self._round >= 0 and rounds > 0:
            wanted = self._interval_s * rounds / max(took_s, 1e-6)
            self._every = 1 << max(0, math.ceil(math.log2(wanted))) if wanted > 1 else 1
        self._round, self._at = round_, now
        if body is None:
            return {}
        return {"sketch": body, "sketch_round": round_, "sketch_layout": self.layout}
