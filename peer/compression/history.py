"""What both ends of a link remember of the symbols it has carried, and symbols coded with that in mind.

    a <- a - (a >> 2) + 16 min(|q|, 3)        activity, uint8, at most 195
    e <- e - (e >> 2) + 8 clip(q, -3, 3)      drift, int8, |e| <= 99; floor in both shifts

Where a model moves and in which direction is steady over time, and follows its tensors' rows and columns. So
before a parcel both ends know of every parameter how likely it moves: from a and e, and the mean of a over
its row and its column (of the tensor as first axis x rest). By that likelihood, to powers of two, parameters
are put into CLASSES, each of which is coded as a set of its own; signs by the drift. No table travels,
nothing is sequential.

Only integer sums and elementwise float32 operations decide on a class, so that all machines find the same.
Where both ends do not remember the same, the check value says so before anything is applied.
"""

from __future__ import annotations

import zlib
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import MAX_SYMBOL, Body, Layout, Quantized, Recalled
from peer.compression.golomb import BitMeter, BitReader, BitSink, BitWriter, Grouping, Ints
from peer.compression.quantize import LEVELS, SMALLEST_GROUP, quantize
from peer.errors import CodecError, UnknownBaseError

CLASSES = 14
SMALLEST_LEVEL, SMALLEST_SIGN = 128, 32  # groups of the levels and of the signs below this are joined
SMALLEST_MODEL = 4096  # below it heads and check value cost more than a memory saves (guess)
SIDE_BYTES = 13  # step, check value and the flag for blocks, written by `codec`
NUMBERS = 4  # of the unary stream, for each parameter, at most
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
        self._recollection: Recollection | None = None

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
        a = self.a - (self.a >> 2) + (np.minimum(np.abs(symbols), 3).astype(np.uint8) << 4)
        e = self.e - (self.e >> 2) + 8 * np.clip(symbols, -3, 3).astype(np.int8)
        return type(self)(self.layout, a, e, self.count + 1, body.step)

    def recall(self, body: Body) -> Body:
        """`body` coded with this in mind, for `read`; as it is where that is of no use."""
        if not isinstance(body, Quantized) or not self.is_of_use:
            return body
        symbols = body.symbols.numpy()
        writer = BitWriter()
        self._recollect().write(writer, np.abs(symbols).astype(np.int64), symbols < 0)
        data = writer.finish()
        return Recalled(body.size, body.step, self._check(symbols), data, body.dtype, body.blocks)

    def coded_bytes(self, magnitudes: Ints, negative: npt.NDArray[np.bool_]) -> int:
        """Exact length of what `recall` makes of these symbols. negative: of a zero it does not matter."""
        meter = BitMeter()
        self._recollect().write(meter, magnitudes, negative)
        return SIDE_BYTES + len(meter)

    def read(self, body: Recalled) -> Quantized:
        """Raises UnknownBaseError where the sender remembers something else."""
        if self.count == 0:
            raise UnknownBaseError("symbols that build on what a link remembers, and this one is new")
        try:
            reader = BitReader(memoryview(body.data), NUMBERS * body.size)
            symbols = self._recollect().read(reader)
            reader.finish()
        except CodecError as error:
            raise UnknownBaseError(f"symbols that do not fit what is remembered: {error}") from error
        if self._check(symbols) != body.check:
            raise UnknownBaseError("symbols whose check value says that the link is remembered otherwise")
        largest, most = int(np.abs(symbols).max()), torch.finfo(body.dtype).max
        if largest * body.step > most:
            raise CodecError(f"symbols: expected finite values, found {largest} * {body.step}")
        return Quantized(torch.from_numpy(symbols), body.step, body.dtype, body.blocks)

    def _check(self, symbols: npt.NDArray[np.int32]) -> int:
        """Over what is remembered and these symbols: 32 bits."""
        before = zlib.crc32(self.e.tobytes(), zlib.crc32(self.a.tobytes(), min(self.count, 3)))
        return zlib.crc32(symbols.astype("<i2").tobytes(), before)

    def _recollect(self) -> Recollection:
        if self._recollection is None:
            self._recollection = Recollection(self)
        return self._recollection


class Recollection:
    """A history made ready for coding: what is common to all tries of one parcel, nine bytes a parameter."""

    def __init__(self, history: History) -> None:
        self.classes = classes(history)
        self._drift = history.e
        self._grouping = Grouping(self.classes, SMALLEST_GROUP)

    def write(self, sink: BitSink, magnitudes: Ints, negative: npt.NDArray[np.bool_]) -> None:
        some = magnitudes != 0
        sink.grouped(some, self._grouping)
        ones = np.flatnonzero(some)
        magnitudes, coarse, drift = magnitudes[ones], self.classes[ones] >> 1, self._drift[ones]
        for level in range(1, LEVELS + 1):
            above = magnitudes > level
            sink.grouped(above, Grouping(coarse, SMALLEST_LEVEL))
            magnitudes, coarse = magnitudes[above], coarse[above]
        sink.rice(magnitudes - LEVELS - 1)
        sink.grouped(negative[ones] ^ (drift < 0), _signs(drift))

    def read(self, reader: BitReader) -> npt.NDArray[np.int32]:
        ones = np.flatnonzero(reader.grouped(self._grouping))
        coarse, drift = self.classes[ones] >> 1, self._drift[ones]
        magnitudes, left = np.ones(len(ones), dtype=np.int64), np.arange(len(ones))
        for _ in range(LEVELS):
            left = left[reader.grouped(Grouping(coarse[left], SMALLEST_LEVEL))]
            magnitudes[left] += 1
        magnitudes[left] += reader.rice(len(left), MAX_SYMBOL - LEVELS - 1)
        negative = reader.grouped(_signs(drift)) ^ (drift < 0)
        symbols = np.zeros(len(self.classes), dtype=np.int32)
        symbols[ones] = np.where(negative, -magnitudes, magnitudes)
        return symbols


def _signs(drift: npt.NDArray[np.int8]) -> Grouping:
    return Grouping(np.minimum(np.abs(drift) >> 3, 3).astype(np.uint8), SMALLEST_SIGN)


def classes(history: History) -> npt.NDArray[np.uint8]:
    """Of every parameter: 0, most likely zero, to CLASSES - 1."""
    found = np.empty(history.layout.d, dtype=np.uint8)
    for (start, stop), (rows, columns) in zip(history.layout.spans, history.layout.shapes, strict=True):
        a = history.a[start:stop].reshape(rows, columns)
        found[start:stop] = _classes(a, history.e[start:stop], history.count)
    return found


def _classes(a: npt.NDArray[np.uint8], e: npt.NDArray[np.int8], count: int) -> npt.NDArray[np.uint8]:
    """No mean(), no float sum, no fused operation: they differ between machines."""
    rows, columns = a.shape
    mean = _f(a.sum(dtype=np.int64)) / _f(rows * columns) + _f(2**-7)
    row = a.sum(axis=1, dtype=np.int64).astype(_f) / _f(columns) + _f(0.05) * mean
    row = np.minimum(row, _f(8) * mean)
    column = a.sum(axis=0, dtype=np.int64).astype(_f) / _f(rows) / mean + _f(0.05)
    column = np.minimum(column, _f(8)) * (_f(4) / _f(min(count, 3)))
    likelihood = row[:, None] * column[None, :]
    likelihood += a
    likelihood = likelihood.reshape(-1) + np.abs(e)
    exponent = (likelihood.view(np.uint32) >> np.uint32(23)).astype(np.int16) - 124
    found: npt.NDArray[np.uint8] = np.clip(exponent, 0, CLASSES - 1).astype(np.uint8)
    return found


def recalling(layout: Layout, v: Tensor, bits: float, history: History | None) -> Quantized:
    """`v` at no more than `bits` per parameter (quantize.py), as it is coded with this history."""
    if history is None or not history.is_of_use:
        return quantize(v, bits, layout)
    return quantize(v, bits, layout, history.coded_bytes, history.step)
