"""What a message says about one flat vector of d parameters, and how to read it back as a tensor.

`dense()` is elementwise (one cast, at most one multiplication, in the session's dtype), so that sender and
receiver get the same bits out of the same body on any machine. `blocks` are the tensors of the model where
they are scaled or coded each on its own; None: the whole vector is one block. Bytes are `codec`'s matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor

from peer.errors import CodecError

MAX_SYMBOL = 2**15 - 1  # of a Quantized body; guess: 16 bits per parameter, and exact in float32
VALUE_TYPES = (torch.float32, torch.float16, torch.int8, torch.float64)


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


def peak_of(v: Tensor) -> float:
    """The largest |v|; not finite unless all of v is. In one pass, without a vector of magnitudes."""
    least, most = torch.aminmax(v)
    return max(-float(least), float(most)) if bool(least <= most) else math.nan


class _Comparable:
    """Equality field by field, tensors bit for bit in value and dtype."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]  # every subclass is a dataclass
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # type: ignore[assignment]  # tensors have no value hash


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@dataclass(frozen=True, slots=True, eq=False)
class Empty(_Comparable):
    """Nothing: the zero vector, or "the model of that digest" if the message's meaning says so."""

    size: int
    dtype: torch.dtype = torch.float32

    def dense(self) -> Tensor:
        return torch.zeros(self.size, dtype=self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Dense(_Comparable):
    """All d values: float32, float64 (`dtype` too, then), float16, with a scale or without, or int8 with one
    scale per block."""

    values: Tensor
    dtype: torch.dtype = torch.float32
    scales: Tensor | None = None
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.scales, self.blocks, self.size)

    @property
    def size(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        values = self.values.to(self.dtype)
        if self.scales is None:
            return values
        if self.blocks is None:
            return values * self.scales
        return values * self.scales.repeat_interleave(torch.tensor(self.blocks.sizes), output_size=self.size)


@dataclass(frozen=True, slots=True, eq=False)
class Half(_Comparable):
    """Every second value, from entry `start` (0 or 1) on; zero elsewhere. Value types as in `Dense`.

    Scales are those of the whole vector's blocks.
    """

    size: int
    start: int
    values: Tensor
    dtype: torch.dtype = torch.float32
    scales: Tensor | None = None
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.scales, self.blocks, self.size)
        assert self.start in (0, 1) and self.values.numel() == half_of(self.size, self.start)

    @classmethod
    def of(cls, whole: Dense, start: int) -> Self:
        """Half of the values of `whole`."""
        values = whole.values[start::2].clone()
        return cls(whole.size, start, values, whole.dtype, whole.scales, whole.blocks)

    def dense(self) -> Tensor:
        values = torch.zeros(self.size, dtype=self.values.dtype)
        values[self.start :: 2] = self.values
        return Dense(values, self.dtype, self.scales, self.blocks).dense()


def half_of(size: int, start: int) -> int:
    """How many of `size` entries there are from `start` on, every second one."""
    return (size - start + 1) // 2


@dataclass(frozen=True, slots=True, eq=False)
class Sparse(_Comparable):
    """Values at strictly increasing int64 `indices`, zero elsewhere. Value types as in `Dense`."""

    size: int
    indices: Tensor
    values: Tensor
    dtype: torch.dtype = torch.float32
    scales: Tensor | None = None
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.scales, self.blocks, self.size)
        assert self.indices.dtype == torch.int64 and self.indices.shape == self.values.shape

    def dense(self) -> Tensor:
        values = self.values.to(self.dtype)
        if self.scales is not None:
            values = values * (self.scales if self.blocks is None else self.scales[self._block_of_index()])
        return torch.zeros(self.size, dtype=self.dtype).index_copy_(0, self.indices, values)

    def _block_of_index(self) -> Tensor:
        assert self.blocks is not None
        return torch.searchsorted(torch.tensor(self.blocks.bounds), self.indices, right=True) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Quantized(_Comparable):
    """symbols * step; symbols int32, |symbol| <= MAX_SYMBOL; `step` a normal number of `dtype`."""

    symbols: Tensor
    step: float
    dtype: torch.dtype = torch.float32
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        assert self.symbols.dtype == torch.int32 and self.symbols.dim() == 1
        assert torch.finfo(self.dtype).tiny <= self.step <= torch.finfo(self.dtype).max, f"step {self.step}"
        assert self.blocks is None or self.blocks.d == self.size

    @property
    def size(self) -> int:
        return self.symbols.numel()

    def dense(self) -> Tensor:
        return self.symbols.to(self.dtype) * torch.tensor(self.step, dtype=self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Recalled(_Comparable):
    """A Quantized body whose symbols are coded by what both ends of a link remember: `history.History.read`.

    check: over that memory and the symbols.
    """

    size: int
    step: float
    check: int
    data: bytes
    dtype: torch.dtype = torch.float32
    blocks: Layout | None = None

    def dense(self) -> Tensor:
        raise CodecError("symbols that only their link's memory explains, where none is kept")


Body = Empty | Dense | Sparse | Quantized | Half | Recalled


def _check_values(values: Tensor, scales: Tensor | None, blocks: Layout | None, size: int) -> None:
    assert values.dim() == 1 and values.dtype in VALUE_TYPES, f"values: {values.dtype}, {tuple(values.shape)}"
    scaled = {torch.int8: (True,), torch.float16: (True, False)}.get(values.dtype, (False,))
    assert (scales is not None) in scaled, f"scales: {scales}, with {values.dtype}"
    assert blocks is None or blocks.d == size, "the blocks do not add up to the vector"
    assert scales is None or scales.numel() == (1 if blocks is None else len(blocks.sizes))
