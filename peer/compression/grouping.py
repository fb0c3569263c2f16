"""Entries sorted by class, so that each class can be coded as a set of its own."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

LOW_BITS = 16  # of a place, that are kept of each entry


class Grouping:
    """Entries sorted by class, cut into groups: a class below `smallest` is joined with those that follow, a
    rest with the last group."""

    def __init__(self, order: npt.NDArray[np.intp], bounds: list[int]) -> None:
        self.order, self.bounds = order, bounds

    @classmethod
    def of(cls, classes: npt.NDArray[np.integer], smallest: int) -> Self:
        order = np.argsort(classes, kind="stable")
        bounds = [0]
        following = np.arange(1, int(classes.max(initial=0)) + 2)
        for bound in np.searchsorted(classes, following, sorter=order).tolist():
            if bound - bounds[-1] >= smallest:
                bounds.append(bound)
        if bounds[-1] != len(classes):
            bounds = [*bounds[: max(1, len(bounds) - 1)], len(classes)]
        return cls(order, bounds)


class KeptGrouping:
    """A grouping while it is not used: two bytes an entry, not eight. What is left out is the same over long
    runs, for inside a class places increase."""

    def __init__(self, grouping: Grouping) -> None:
        high = (grouping.order >> LOW_BITS).astype(np.uint16)
        self._low, self._bounds = grouping.order.astype(np.uint16), grouping.bounds
        self._starts = [0, *(np.flatnonzero(high[1:] != high[:-1]) + 1).tolist()]
        self._high = high[self._starts].tolist()

    def grouping(self) -> Grouping:
        order = self._low.astype(np.intp)
        for start, stop, high in zip(self._starts, [*self._starts[1:], None], self._high, strict=True):
            if high:
                order[start:stop] += high << LOW_BITS
        return Grouping(order, self._bounds)
