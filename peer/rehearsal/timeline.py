"""Virtual time: what is to happen, and when. Equal times keep the order in which they were asked for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timeline:
    """`now` is in seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._order = itertools.count()

    def at(self, delay_s: float, action: Callable[..., object], *args: object) -> None:
        """Call `action(*args)` when so much time has passed."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action, args))

    def when(self, time: float, action: Callable[..., object], *args: object) -> None:
        """Call `action(*args)` at this time."""
        heapq.heappush(self._heap, (time, next(self._order), action, args))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Let time pass, until the predicate holds after some event or the time is over."""
        end, heap, pop = self.now + seconds, self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, action, args = pop(heap)
            action(*args)
            if until is not None and until():
                return
        self.now = end
