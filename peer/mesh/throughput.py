"""How many bytes each link takes in the time of this device's local steps: what `--compression auto` goes by.

    rate     bytes of a parcel by the seconds from its beginning to its acknowledgement; the best of the last
             RECENT, since one may be late because the neighbor is
    steps    smoothed time of a round's local steps
    hides    HIDDEN of rate times steps, and at most GROWTH of the largest parcel that has gone: what is small
             takes its time for the way and not for its bytes, and says little of a large one

Pure. Bytes are bytes on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from peer.events import PeerId

RECENT = 8  # parcels
GAIN = 0.125  # of the newest round's local steps; as in patience.py
HIDDEN = 0.8  # the rest is for what is uneven; guess
GROWTH = 4.0  # at a time; guess


class Throughput:
    """Of one node's out-links."""

    def __init__(self) -> None:
        self._going: dict[PeerId, tuple[int, float]] = {}  # size, and when it began
        self._samples: dict[PeerId, deque[tuple[int, float]]] = {}  # sizes and seconds
        self._steps_s = 0.0

    def began(self, dst: PeerId, size: int, now: float) -> None:
        """A parcel begins to go, or begins again."""
        self._going[dst] = size, now

    def answered(self, dst: PeerId, now: float) -> None:
        size, began = self._going.pop(dst, (0, now))
        if now > began:
            self._samples.setdefault(dst, deque(maxlen=RECENT)).append((size, now - began))

    def broke_off(self, dst: PeerId) -> None:
        """The stream is gone: what comes on the next one says nothing of this one's time."""
        self._going.pop(dst, None)

    def worked(self, seconds: float) -> None:
        """A round's local steps took so long."""
        self._steps_s += (GAIN if self._steps_s else 1.0) * (seconds - self._steps_s)

    def hides(self, dsts: Iterable[PeerId]) -> dict[PeerId, int]:
        """Bytes for each of these links; links that have carried nothing yet are left out."""
        return {dst: self._of(self._samples[dst]) for dst in dsts if dst in self._samples and self._steps_s}

    def _of(self, samples: deque[tuple[int, float]]) -> int:
        rate = max(size / seconds for size, seconds in samples)
        largest = max(size for size, _ in samples)
        return int(min(HIDDEN * rate * self._steps_s, GROWTH * largest))
