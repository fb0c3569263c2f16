"""From a compression spec ("topk=1%,fp16") to the function that turns a vector into a message body.

What there is has the same names in peer/grammar.py, as words without torch, and here: SPARSIFIERS, TRANSFORMS
and, in values.py, VALUE_TYPES. One more is an entry in each of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.catalogue import Compression
from peer.compression.bodies import (
    Body,
    Dense,
    Drawn,
    Layout,
    LowRank,
    Sparse,
    Strided,
    drawn,
    is_finite,
    peak_of,
    strided_in,
    those_in,
)
from peer.compression.low_rank import factorize, factors
from peer.compression.quantize import quantize
from peer.compression.sparsify import global_top_entries, group_of, seed_of, share_of, top_entries
from peer.compression.values import VALUE_TYPES, Coding, encoded
from peer.errors import DivergedError

HEAD_BYTES = 128  # of a message, at the most, besides its values and their scales

Compress = Callable[[Tensor, int], Body]
"""A vector's body in that turn, which is the round's number."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The values a sparsifier takes, on the CPU. counts: of them in each tensor. body: makes one of them."""

    values: Tensor
    counts: Sequence[int]
    body: Callable[[Tensor, Coding | None], Body]


def _by_index(indices: Tensor, kept: Tensor, v: Tensor, layout: Layout) -> Chosen:
    return Chosen(
        kept,
        those_in(layout, indices),
        lambda values, how: Sparse(layout.d, indices, values, v.dtype, how),
    )


def _topk(v: Tensor, layout: Layout, share: float, turn: int) -> Chosen:
    return _by_index(*top_entries(v, layout, share), v, layout)


def _globaltopk(v: Tensor, layout: Layout, share: float, turn: int) -> Chosen:
    return _by_index(*global_top_entries(v, share), v, layout)


def _randomk(v: Tensor, layout: Layout, share: float, turn: int) -> Chosen:
    seed = seed_of(turn)
    indices = drawn(layout.d, share_of(layout.d, share), seed)
    return Chosen(
        v[indices].cpu(),
        those_in(layout, indices),
        lambda values, how: Drawn(layout.d, seed, values, v.dtype, how),
    )


def _grouped(v: Tensor, layout: Layout, groups: float, turn: int) -> Chosen:
    return _stride(v, layout, group_of(turn, int(groups)), int(groups))


def _stride(v: Tensor, layout: Layout, start: int, step: int) -> Chosen:
    return Chosen(
        v[start::step].cpu(),
        strided_in(layout, start, step),
        lambda values, how: Strided(layout.d, start, step, values, v.dtype, how),
    )


def _lowrank(v: Tensor, layout: Layout, rank: float, values: str) -> Body:
    inner = factors(layout, int(rank))
    numbers, coding = encoded(factorize(v, layout, int(rank)), values, inner, inner.sizes)
    return LowRank(layout, int(rank), numbers, v.dtype, coding)


def _bits(v: Tensor, layout: Layout, bits: float, values: str) -> Body:
    return quantize(v, bits, layout)


SPARSIFIERS: dict[str, Callable[[Tensor, Layout, float, int], Chosen]] = {
    "topk": _topk,
    "globaltopk": _globaltopk,
    "randomk": _randomk,
    "grouped": _grouped,
}
SEE_THEMSELVES = {"topk", "globaltopk"}  # that what they are given is finite, without another pass
TRANSFORMS: dict[str, Callable[[Tensor, Layout, float, str], Body]] = {"lowrank": _lowrank, "bits": _bits}


@dataclass(frozen=True, slots=True)
class Compressor:
    """Makes bodies of flat vectors of `layout.d` entries of the session's `dtype`.

    "fp32" keeps values as they are: float64 in a float64 session. Nothing is random and nothing is kept
    between calls; a body shares no memory with its input. Calls raise DivergedError unless v is finite.
    """

    spec: Compression
    layout: Layout
    dtype: torch.dtype = torch.float32

    def __call__(self, v: Tensor, turn: int = 0) -> Body:
        """turn: the round's number; only sparsifiers that go by turns heed it."""
        spec, layout = self.spec, self.layout
        sees_itself = spec.sparsifier is not None and spec.sparsifier.name in SEE_THEMSELVES
        v = self._fitting(v) if sees_itself else self._finite(v)
        if spec.transform is not None:
            transform = TRANSFORMS[spec.transform.name]
            return transform(v.cpu(), layout, spec.transform.amount, spec.values)
        if spec.sparsifier is not None:
            choose = SPARSIFIERS[spec.sparsifier.name]
            return self._coded(choose(v, layout, spec.sparsifier.amount, turn))
        numbers, coding = encoded(v.cpu(), spec.values, layout, layout.sizes)
        return Dense(numbers, v.dtype, coding)

    def every(self, v: Tensor, start: int, step: int) -> Body:
        """Of every `step`-th entry from `start` on alone. For a spec that keeps all."""
        assert self.spec.sparsifier is None and self.spec.transform is None
        return self._coded(_stride(self._finite(v), self.layout, start, step))

    def _coded(self, chosen: Chosen) -> Body:
        return chosen.body(*encoded(chosen.values, self.spec.values, self.layout, chosen.counts))

    def _fitting(self, v: Tensor) -> Tensor:
        layout, dtype = self.layout, self.dtype
        assert v.dtype == dtype and v.shape == (layout.d,), (
            f"{v.shape} of {v.dtype}, not {layout.d} of {dtype}"
        )
        return v.detach()

    def _finite(self, v: Tensor) -> Tensor:
        v = self._fitting(v)
        if not is_finite(v):
            raise DivergedError.found(peak_of(v))
        return v


def compressor(spec: Compression, layout: Layout, dtype: torch.dtype = torch.float32) -> Compressor:
    """The compressor of `spec`."""
    return Compressor(spec, layout, dtype)


LADDER = ("fp32", "fp16", "int8")  # int4 is too coarse for whole models


class Fitting:
    """Whole vectors, for each link as exactly as it has room for; fp16 where nothing is known of it. And no
    more exactly than a budget has room for, if there is one."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        self.steps = [Compressor(Compression(values=values), layout, dtype) for values in LADDER]

    def fit(self, hides: int | None, most_bytes: int | None = None, *, of: int = 1) -> Compressor:
        """The first of the ladder that makes messages of so many bytes; the last one at any rate. hides: what
        the link takes meanwhile; most_bytes: what this device may send on it. of: the message has one of so
        many parts of the vector."""
        sizes = [_most_bytes(step, of) for step in self.steps]
        room = sizes[1] if hides is None else hides
        room = room if most_bytes is None else min(room, most_bytes)
        fits = (step for step, size in zip(self.steps, sizes, strict=True) if size <= room)
        return next(fits, self.steps[-1])

    def least_bytes(self, of: int = 1) -> int:
        """Of a message by the last of the ladder, at the most."""
        return _most_bytes(self.steps[-1], of)


def _most_bytes(one: Compressor, of: int) -> int:
    """Bytes of a message with a whole vector, or one of so many parts of it, at the most."""
    kind, count = VALUE_TYPES[one.spec.values], -(-one.layout.d // of)
    each = one.dtype.itemsize if one.spec.values == "fp32" else kind.stored.itemsize
    blocks = count // kind.block + len(one.layout.sizes) if kind.block > 0 else 0
    return HEAD_BYTES + count * each + 2 * blocks
