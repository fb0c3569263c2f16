"""What both ends of a link remember of the symbols it has carried, and symbols coded with that in mind.

    a <- a - (a >> 2) + 16 min(|q|, 3)        activity, uint8, at most 195
    e <- e - (e >> 2) + 8 clip(q, -3, 3)      drift, int8, |e| <= 99; floor in both shifts

Where a model moves and in which direction is steady over time, and follows its tensors' rows and columns. So
before a parcel both ends know of every parameter how likely it moves: from a and e, and the mean of a over
its row and its column (of the tensor as first axis x rest). By that likelihood, to powers of two, parameters
are put into CLASSES, each of which is coded as a set of its own; signs by the drift. No table travels,
nothing is sequential. Classes are found tensor by tensor; what they are for is coded chunk by chunk
(chunks.py).

Only integer sums and elementwise float32 operations decide on a class, so that all machines find the same.
Where both ends do not remember the same, the check value says so before anything is applied.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import MAX_SYMBOL, Body, Layout, Quantized, Recalled
from peer.compression.chunks import (
    Symbols,
    apart,
    chunks,
    in_chunks,
    joined,
    joined_bytes,
    longest,
    peak_symbol,
)
from peer.compression.golomb import BitMeter, BitReader, BitSink, BitWriter
from peer.compression.grouping import Grouping, KeptGrouping
from peer.compression.quantize import LEVELS, SMALLEST_GROUP, quantize
from peer.errors import CodecError, UnknownBaseError

CLASSES = 14
SMALLEST_LEVEL, SMALLEST_SIGN = 128, 32  # groups of the levels and of the signs below this are joined
SMALLEST_MODEL = 4096  # below it heads and check value cost more than a memory saves (guess)
SIDE_BYTES = 13  # step, check value and the flag for blocks, written by `codec`
NUMBERS = 3  # of the unary stream, for each parameter: 0.382 in each of five sets at most, one in Rice code
HEAD_BYTES = 256  # of a section: of 14 classes, three times 7, and 4
_f = np.float32


class History:
    """After `count` parcels; never changed, `after` makes the next one. a, e: of every parameter. step: the
    last one, where the search for the next begins; 0 before there was any."""

    BYTES: ClassVar[int] = 2  # for each parameter, between parcels

    def __init__(
        self,
        layout: Layout,
        a: npt.NDArray[np.uint8],
        e: npt.NDArray[np.int8],
        count: int = 0,
        step: float = 0.0,
    ) -> None:
        self.layout, self.a, self.e, self.count, self.step = layout, a, e, count, step
        self._classes: npt.NDArray[np.uint8] | None = None
        self._kept: dict[tuple[int, int], KeptGrouping] = {}  # of chunks, for the next try
        self._last: Recollection | None = None

    @classmethod
    def fresh(cls, layout: Layout) -> Self:
        return cls(layout, np.zeros(layout.d, dtype=np.uint8), np.zeros(layout.d, dtype=np.int8))

    @property
    def is_of_use(self) -> bool:
        return self.count > 0 and self.layout.d >= SMALLEST_MODEL

    def after(self, body: Body) -> Self:
        """What is remembered once this parcel is taken. Of other bodies than symbols, nothing is."""
        if not isinstance(body, Quantized):
            return self
        symbols = body.symbols.numpy()
        a, e = np.empty_like(self.a), np.empty_like(self.e)
        for chunk in chunks(len(symbols)):
            moved = np.clip(symbols[chunk], -3, 3).astype(np.int8)
            a[chunk] = self.a[chunk] - (self.a[chunk] >> 2) + (np.abs(moved).astype(np.uint8) << 4)
            e[chunk] = self.e[chunk] - (self.e[chunk] >> 2) + 8 * moved
        return type(self)(self.layout, a, e, self.count + 1, body.step)

    def recall(self, body: Body) -> Body:
        """`body` coded with this in mind, for `read`; as it is where that is of no use."""
        if not isinstance(body, Quantized) or not self.is_of_use:
            return body
        symbols = body.symbols.numpy()
        sections = []
        for (magnitudes, negative), known in zip(in_chunks(symbols), self._recollections(), strict=True):
            writer = BitWriter()
            known.write(writer, magnitudes, negative)
            sections.append(writer.finish())
        data = b"".join(joined(sections))
        return Recalled(body.size, body.step, self._check(symbols), data, body.dtype, body.blocks)

    def coded_bytes(self, symbols: Iterable[Symbols]) -> int:
        """Exact length of what `recall` makes of these symbols, given chunk by chunk."""
        lengths = []
        for (magnitudes, negative), known in zip(symbols, self._recollections(), strict=True):
            meter = BitMeter()
            known.write(meter, magnitudes, negative)
            lengths.append(len(meter))
        return SIDE_BYTES + joined_bytes(lengths)

    def read(self, body: Recalled) -> Quantized:
        """Raises UnknownBaseError where the sender remembers something else."""
        if self.count == 0:
            raise UnknownBaseError("symbols that build on what a link remembers, and this one is new")
        try:
            symbols = self._read(memoryview(body.data))
        except CodecError as error:
            raise UnknownBaseError(f"symbols that do not fit what is remembered: {error}") from error
        if self._check(symbols) != body.check:
            raise UnknownBaseError("symbols whose check value says that the link is remembered otherwise")
        largest, most = peak_symbol(symbols), torch.finfo(body.dtype).max
        if largest * body.step > most:
            raise CodecError(f"symbols: expected finite values, found {largest} * {body.step}")
        return Quantized(torch.from_numpy(symbols), body.step, body.dtype, body.blocks)

    def _read(self, data: memoryview) -> npt.NDArray[np.int16]:
        """Raises CodecError."""
        symbols = np.zeros(self.layout.d, dtype=np.int16)
        found, sections = classes(self), apart(data, longest_sections(self.layout))
        for section, chunk in zip(sections, chunks(self.layout.d), strict=True):
            known = Recollection(chunk, found[chunk], self.e[chunk])
            reader = BitReader(section, NUMBERS * len(known.classes))
            known.read(reader, symbols[chunk])
            reader.finish()
        return symbols

    def _check(self, symbols: npt.NDArray[np.int16]) -> int:
        """Over what is remembered and these symbols: 32 bits."""
        check = zlib.crc32(self.e.data, zlib.crc32(self.a.data, min(self.count, 3)))
        for chunk in chunks(len(symbols)):
            check = zlib.crc32(np.ascontiguousarray(symbols[chunk], dtype="<i2").data, check)
        return check

    def _recollections(self) -> Iterator[Recollection]:
        """Of each chunk, for every try and for what is sent: meanwhile three bytes a parameter are kept."""
        if self._classes is None:
            self._classes = classes(self)
        cut = chunks(self.layout.d)
        for chunk in cut:
            place = chunk.start, chunk.stop
            if self._last is None or self._last.chunk != chunk:
                self._last, kept = None, self._kept.get(place)
                grouping = None if kept is None else kept.grouping()
                self._last = Recollection(chunk, self._classes[chunk], self.e[chunk], grouping)
                if kept is None and len(cut) > 1:
                    self._kept[place] = KeptGrouping(self._last.grouping)
            yield self._last


class Recollection:
    """A chunk of a history made ready for coding, nine bytes a parameter of it. grouping: found before."""

    def __init__(
        self,
        chunk: slice,
        classes: npt.NDArray[np.uint8],
        drift: npt.NDArray[np.int8],
        grouping: Grouping | None = None,
    ) -> None:
        self.chunk, self.classes, self._drift = chunk, classes, drift
        self.grouping = Grouping.of(classes, SMALLEST_GROUP) if grouping is None else grouping

    def write(
        self, sink: BitSink, magnitudes: npt.NDArray[np.int16], negative: npt.NDArray[np.bool_]
    ) -> None:
        some = magnitudes != 0
        sink.grouped(some, self.grouping)
        ones = np.flatnonzero(some)
        left, coarse, drift = magnitudes[ones].astype(np.int64), self.classes[ones] >> 1, self._drift[ones]
        for level in range(1, LEVELS + 1):
            above = left > level
            sink.grouped(above, Grouping.of(coarse, SMALLEST_LEVEL))
            left, coarse = left[above], coarse[above]
        sink.rice(left - LEVELS - 1)
        sink.grouped(negative[ones] ^ (drift < 0), _signs(drift))

    def read(self, reader: BitReader, symbols: npt.NDArray[np.int16]) -> None:
        """Into `symbols`, which are zero."""
        ones = np.flatnonzero(reader.grouped(self.grouping))
        coarse, drift = self.classes[ones] >> 1, self._drift[ones]
        magnitudes, left = np.ones(len(ones), dtype=np.int64), np.arange(len(ones))
        for _ in range(LEVELS):
            left = left[reader.grouped(Grouping.of(coarse[left], SMALLEST_LEVEL))]
            magnitudes[left] += 1
        rest = reader.rice(len(left), MAX_SYMBOL - LEVELS - 1)
        magnitudes[left] += rest
        negative = reader.grouped(_signs(drift)) ^ (drift < 0)
        symbols[ones] = np.where(negative, -magnitudes, magnitudes)


def longest_sections(layout: Layout) -> list[int]:
    """Bytes that each chunk of symbols takes at most."""
    return longest(layout.d, len(layout.sizes), HEAD_BYTES)


def _signs(drift: npt.NDArray[np.int8]) -> Grouping:
    return Grouping.of(np.minimum(np.abs(drift) >> 3, 3).astype(np.uint8), SMALLEST_SIGN)


def classes(history: History) -> npt.NDArray[np.uint8]:
    """Of every parameter: 0, most likely zero, to CLASSES - 1."""
    found = np.empty(history.layout.d, dtype=np.uint8)
    for (start, stop), (rows, columns) in zip(history.layout.spans, history.layout.shapes, strict=True):
        a, e = history.a[start:stop].reshape(rows, columns), history.e[start:stop].reshape(rows, columns)
        _classify(found[start:stop].reshape(rows, columns), a, e, history.count)
    return found


def _classify(
    found: npt.NDArray[np.uint8], a: npt.NDArray[np.uint8], e: npt.NDArray[np.int8], count: int
) -> None:
    """Of one tensor, in pieces of about a chunk. No mean(), no float sum, no fused operation: they differ
    between machines."""
    rows, columns = a.shape
    mean = _f(a.sum(dtype=np.int64)) / _f(rows * columns) + _f(2**-7)
    cut = chunks(columns)
    few = _of_rows(a, mean) if len(cut) > 1 else None  # every piece would sum them again
    for across in cut:
        column = a[:, across].sum(axis=0, dtype=np.int64).astype(_f) / _f(rows) / mean + _f(0.05)
        column = np.minimum(column, _f(8)) * (_f(4) / _f(min(count, 3)))
        for down in chunks(rows, len(column)):
            row = _of_rows(a[down], mean) if few is None else few[down]
            likelihood = row[:, None] * column[None, :]
            likelihood += a[down, across]
            likelihood += np.abs(e[down, across])
            exponent = (likelihood.view(np.uint32) >> np.uint32(23)).astype(np.int16) - 124
            found[down, across] = np.clip(exponent, 0, CLASSES - 1)


def _of_rows(a: npt.NDArray[np.uint8], mean: np.float32) -> npt.NDArray[np.float32]:
    row = a.sum(axis=1, dtype=np.int64).astype(_f) / _f(a.shape[1]) + _f(0.05) * mean
    capped: npt.NDArray[np.float32] = np.minimum(row, _f(8) * mean)
    return capped


def recalling(layout: Layout, v: Tensor, bits: float, history: History | None) -> Quantized:
    """`v` at no more than `bits` per parameter (quantize.py), as it is coded with this history."""
    if history is None or not history.is_of_use:
        return quantize(v, bits, layout)
    return quantize(v, bits, layout, history.coded_bytes, history.step)
