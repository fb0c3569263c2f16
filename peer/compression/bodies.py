"""What a message says about one flat vector of d parameters, and how to read it back as a tensor.

    all values                 Dense, LowRank (as factors), Quantized and Recalled (as symbols and a step)
    those that are said        Sparse
    those that a rule says     Strided (every n-th one), Drawn (by a seed)
    no vector of d parameters  Pair (two of them), Portion (fewer numbers, which their reader has a use for)

`dense()` is elementwise, in the session's dtype and in a fixed order, so that sender and receiver get the
same bits out of the same body on any machine. How numbers are made values, if they are not values already,
is `coding` (values.py). Bytes are `codec`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from peer.compression.layout import Comparable
from peer.compression.layout import Layout as Layout
from peer.compression.layout import is_finite as is_finite
from peer.compression.layout import largest as largest
from peer.compression.layout import peak_of as peak_of
from peer.compression.low_rank import factors, product
from peer.compression.portable import words
from peer.compression.values import VALUE_TYPES, Coding
from peer.errors import CodecError

MAX_SYMBOL = 2**15 - 1  # of a Quantized body; guess: 16 bits per parameter, and exact in float32


@dataclass(frozen=True, slots=True, eq=False)
class Empty(Comparable):
    """Nothing: the zero vector, or "the model of that digest" if the message's meaning says so."""

    size: int
    dtype: torch.dtype = torch.float32

    def dense(self) -> Tensor:
        return torch.zeros(self.size, dtype=self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Comparable):
    """All d values: float32 or float64 (`dtype` too, then), or numbers with a coding. came: they were read
    from bytes, so that nobody has them but this body. peak: no less than the largest |value|, finite, where
    somebody has looked, so that nobody else has to; None of values with a coding."""

    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None
    came: bool = field(default=False, compare=False)
    peak: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.coding, self.size)

    @property
    def size(self) -> int:
        return self.values.numel()

    def dense(self) -> Tensor:
        return _decoded(self.values, self.dtype, self.coding, lambda blocks: blocks.sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Strided(Comparable):
    """Every `step`-th value from entry `start` on; zero elsewhere. Values as in `Dense`."""

    size: int
    start: int
    step: int
    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.coding, self.size)
        assert 0 <= self.start < self.step
        assert self.values.numel() == strided_below(self.size, self.start, self.step)

    def dense(self) -> Tensor:
        values = _decoded(
            self.values, self.dtype, self.coding, lambda blocks: strided_in(blocks, self.start, self.step)
        )
        whole = torch.zeros(self.size, dtype=self.dtype)
        whole[self.start :: self.step] = values
        return whole


def strided_below(bound: int, start: int, step: int) -> int:
    """How many of start, start + step, ... are below a bound."""
    return max(0, bound - start + step - 1) // step


def strided_in(layout: Layout, start: int, step: int) -> list[int]:
    """How many of start, start + step, ... are in each tensor."""
    below = [strided_below(bound, start, step) for bound in layout.bounds]
    return [after - before for before, after in pairwise(below)]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse(Comparable):
    """Values at strictly increasing int64 `indices`, zero elsewhere. Values as in `Dense`."""

    size: int
    indices: Tensor
    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.coding, self.size)
        assert self.indices.dtype == torch.int64 and self.indices.shape == self.values.shape

    def dense(self) -> Tensor:
        values = _decoded(self.values, self.dtype, self.coding, lambda blocks: those_in(blocks, self.indices))
        return torch.zeros(self.size, dtype=self.dtype).index_copy_(0, self.indices, values)


def those_in(layout: Layout, indices: Tensor) -> list[int]:
    """How many of these increasing indices are in each tensor."""
    found: list[int] = np.diff(np.searchsorted(indices.numpy(), layout.bounds)).tolist()
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Drawn(Comparable):
    """Values at entries that a seed (u32) says, zero elsewhere. Values as in `Dense`."""

    size: int
    seed: int
    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.coding, self.size)
        assert 0 <= self.seed < 2**32 and 1 <= self.values.numel() <= self.size

    @property
    def indices(self) -> Tensor:
        return drawn(self.size, self.values.numel(), self.seed)

    def dense(self) -> Tensor:
        indices = self.indices
        values = _decoded(self.values, self.dtype, self.coding, lambda blocks: those_in(blocks, indices))
        return torch.zeros(self.size, dtype=self.dtype).index_copy_(0, indices, values)


def drawn(size: int, k: int, seed: int) -> Tensor:
    """k of `size` indices, strictly increasing: one of each i * size // k to (i + 1) * size // k."""
    cuts = np.arange(k + 1, dtype=np.uint64) * np.uint64(size) // np.uint64(k)
    return torch.from_numpy((cuts[:-1] + words(seed, k) % np.diff(cuts)).astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Comparable):
    """Tensors as products of rank-r factors, one after the other as `low_rank.factors` says. Their values as
    in `Dense`, in blocks inside each tensor's p and q."""

    layout: Layout
    rank: int
    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        _check_values(self.values, self.coding, factors(self.layout, self.rank).d)
        assert self.values.numel() == factors(self.layout, self.rank).d

    @property
    def size(self) -> int:
        return self.layout.d

    def factors(self) -> Tensor:
        return _decoded(self.values, self.dtype, self.coding, lambda blocks: blocks.sizes)

    def dense(self) -> Tensor:
        return product(self.factors(), self.layout, self.rank)


@dataclass(frozen=True, slots=True, eq=False)
class Quantized(Comparable):
    """symbols * step; symbols int16, |symbol| <= MAX_SYMBOL; `step` a normal number of `dtype`."""

    symbols: Tensor
    step: float
    dtype: torch.dtype = torch.float32
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        assert self.symbols.dtype == torch.int16 and self.symbols.dim() == 1
        assert torch.finfo(self.dtype).tiny <= self.step <= torch.finfo(self.dtype).max, f"step {self.step}"
        assert self.blocks is None or self.blocks.d == self.size

    @property
    def size(self) -> int:
        return self.symbols.numel()

    def dense(self) -> Tensor:
        return self.symbols.to(self.dtype).mul_(torch.tensor(self.step, dtype=self.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Recalled(Comparable):
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


@dataclass(frozen=True, slots=True, eq=False)
class Pair(Comparable):
    """Two vectors of d parameters each, as a model and what tracks a gradient."""

    first: Dense
    second: Dense

    def __post_init__(self) -> None:
        assert self.first.size == self.second.size and self.first.dtype == self.second.dtype

    @property
    def size(self) -> int:
        return self.first.size

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def dense(self) -> Tensor:
        raise CodecError("two vectors, where one is expected")


@dataclass(frozen=True, slots=True, eq=False)
class Portion(Comparable):
    """1 to d numbers, of which only the algorithm knows what they say of d parameters. Values and peak as in
    `Dense`, in blocks of their own."""

    size: int
    values: Tensor
    dtype: torch.dtype = torch.float32
    coding: Coding | None = None
    peak: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.values.dtype == torch.float64:
            object.__setattr__(self, "dtype", torch.float64)
        assert 1 <= self.values.numel() <= self.size
        _check_values(self.values, self.coding, self.values.numel())

    def numbers(self) -> Tensor:
        return _decoded(self.values, self.dtype, self.coding, lambda blocks: blocks.sizes)

    def dense(self) -> Tensor:
        raise CodecError(f"{self.values.numel()} numbers, where a vector of {self.size} is expected")


Body = Empty | Dense | Sparse | Quantized | Strided | Recalled | Drawn | LowRank | Pair | Portion
Valued = Dense | Sparse | Strided | Drawn | LowRank | Portion


def numbers_in(body: Body) -> tuple[Tensor, ...]:
    """All that the body brings: both of two vectors, the numbers of a portion, else the vector. Raises
    CodecError where only a link's memory explains it."""
    if isinstance(body, Pair):
        return body.first.dense(), body.second.dense()
    return (body.numbers() if isinstance(body, Portion) else body.dense(),)


def _decoded(
    values: Tensor, dtype: torch.dtype, coding: Coding | None, counts: Callable[[Layout], Sequence[int]]
) -> Tensor:
    """counts: how many of the values are in each tensor of these."""
    if coding is None:
        return values.to(dtype)
    return coding.values(values, dtype, counts(coding.blocks) if coding.blocks is not None else ())


def _check_values(values: Tensor, coding: Coding | None, size: int) -> None:
    stored = (torch.float32, torch.float64) if coding is None else (VALUE_TYPES[coding.type].stored,)
    assert values.dim() == 1 and values.dtype in stored, f"values: {values.dtype}, {tuple(values.shape)}"
    blocks = None if coding is None else coding.blocks
    assert blocks is None or blocks.d == size, "the blocks do not add up to the vector"
