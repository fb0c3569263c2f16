"""The tensors of a model inside its flat vector, and equality of what holds tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise

import torch
from torch import Tensor

DOTTED = 1 << 31  # numbers; a product of longer vectors is not to be had everywhere
SUMMED = 4  # bytes of a number: sums of shorter ones take many times as long as their peak


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes (parameter counts) of the model's tensors, in the order of the flat vector. rows: lengths of
    their first axes; (): every tensor is one row."""

    sizes: tuple[int, ...]
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert self.sizes and min(self.sizes) > 0, f"a layout has tensors of at least 1 entry: {self.sizes}"
        assert all(size % rows == 0 for size, (rows, _) in zip(self.sizes, self.shapes, strict=True))

    @property
    def d(self) -> int:
        return sum(self.sizes)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where tensors start, and d."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where each tensor starts and ends."""
        return tuple(pairwise(self.bounds))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of each tensor, as a matrix: first axis x rest."""
        rows = self.rows or (1,) * len(self.sizes)
        return tuple((r, size // r) for r, size in zip(rows, self.sizes, strict=True))


class Comparable:
    """Equality field by field, of those that compare, tensors bit for bit in value and dtype."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = [f.name for f in fields(self) if f.compare]  # type: ignore[arg-type]  # every subclass is a dataclass
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # type: ignore[assignment]  # tensors have no value hash


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def is_finite(v: Tensor) -> bool:
    """Is all of v? A finite sum says so, and is soon found where it is of no smaller type than the values."""
    if v.dtype.itemsize >= SUMMED and math.isfinite(float(v.sum())):
        return True
    return v.numel() == 0 or math.isfinite(peak_of(v))


def peak_of(v: Tensor) -> float:
    """The largest |v|; not finite unless all of v is. In one pass, without a vector of magnitudes."""
    least, most = torch.aminmax(v)
    return max(-float(least), float(most)) if bool(least <= most) else math.nan


def bound_of(v: Tensor) -> float:
    """No less than the largest |v|, of a vector, but for rounding, and squares that are 0: not finite unless
    all of v is. In half of `peak_of`'s time, which only squares too large for their type need: their sum is
    no less than any of them."""
    squares = float(torch.dot(v, v)) if v.dtype.itemsize >= SUMMED and v.numel() < DOTTED else math.inf
    return math.sqrt(squares) if math.isfinite(squares) else peak_of(v)


def largest(peaks: Iterable[float]) -> float:
    """Of the peaks of several vectors, that of all of them: nan if one of them is."""
    found = list(peaks)
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)
