"""A whole vector at a budget of bits per parameter: dead-zone uniform quantizer, entropy-coded.

    symbol = sign(v) floor(|v|/step + 0.4)          one step for the whole model

Values within 0.6 step of zero become zero, which costs little and keeps the large ones exact; the step is
found by search on the exact coded size. Symbols are coded as

    which are non-zero, tensor by tensor;  of those, which exceed 1;  of those, 2;  of those, 3;
    the rest of the magnitude in Rice code;  one bit per sign

in `golomb`'s sets of positions, chunk by chunk (chunks.py). The search, too, goes through the vector chunk by
chunk, once for each try, and makes no other vector of its length than the symbols it ends with.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import MAX_SYMBOL, Layout, Quantized, peak_of
from peer.compression.chunks import Symbols, apart, chunks, in_chunks, joined, joined_bytes, longest
from peer.compression.golomb import BitMeter, BitReader, BitSink, BitWriter
from peer.errors import DivergedError

ROUNDING = 0.4  # as in the experiments that chose difference-push; not varied
LEVELS = 3  # magnitudes told apart by sets of positions before Rice code takes over (guess)
SMALLEST_GROUP = 64  # tensors below this share a group: 1-2 bytes each otherwise (guess)
NUMBERS = 3  # of the unary stream, for each parameter, at most
HEAD_BYTES = 64  # of a section, beside those of its tensors
STEP_BYTES = 9  # the step and the flag for blocks, written by `codec`
SMALLEST_BUDGET = 32  # bytes: below it, side information would leave nothing for the symbols (guess)
CLOSE_ENOUGH, AIM = 0.995, 0.9975  # of the budget: where the search for a step ends, and aims
TINY_BYTES = 3  # for each value: so few values are coded at the finest step, if they fit, without a search
FROM_GUESS = 4  # tries that go on from a guess in its own way (measured: two or three in all are enough)
SLOPE = -1.3  # of log size over log step near a guess, until two tries tell it (measured: -1.2 to -1.6)
STEEPEST, FLATTEST = -8.0, -0.3  # that two tries may tell (guess)
MOST_TRIES, NO_DIFFERENCE = 40, 1e-5  # the latter between steps, relative


def quantize(
    v: Tensor,
    bits: float,
    blocks: Layout | None = None,
    size_of: Callable[[Iterable[Symbols]], int] | None = None,
    guess: float = 0.0,
) -> Quantized:
    """`v` at no more than `bits` per parameter, all side information included, or 32 bytes if that is more.

    v: flat, float32 or float64. size_of: bytes that symbols take, chunk by chunk; as a Quantized body, unless
    they are coded otherwise. guess: where to begin the search for the step, as the last one of a link. Raises
    DivergedError unless v is finite.
    """
    flat = v.detach().cpu()
    values, peak = flat.numpy(), peak_of(flat)
    if not math.isfinite(peak):
        raise DivergedError.found(peak)
    budget = max(math.floor(bits * len(values) / 8), SMALLEST_BUDGET)
    size = size_of if size_of is not None else lambda symbols: coded_bytes(symbols, blocks)
    step = _within(budget, values, peak, lambda step: size(_symbols(values, step)), guess)
    symbols = np.zeros(len(values), dtype=np.int16)
    if step is not None:
        for chunk, (magnitudes, negative) in zip(chunks(len(values)), _symbols(values, step), strict=True):
            symbols[chunk] = np.negative(magnitudes, out=magnitudes, where=negative)
    return Quantized(torch.from_numpy(symbols), 1.0 if step is None else step, v.dtype, blocks)


def coded_bytes(symbols: Iterable[Symbols], blocks: Layout | None) -> int:
    """Exact length of a Quantized body with these symbols (signs do not matter)."""
    lengths: list[int] = []
    at = 0
    for magnitudes, negative in symbols:
        meter = BitMeter()
        _write(meter, magnitudes, negative, _groups(slice(at, at + len(magnitudes)), blocks))
        lengths.append(len(meter))
        at += len(magnitudes)
    return STEP_BYTES + joined_bytes(lengths)


def _within(
    budget: int,
    values: npt.NDArray[np.floating],
    peak: float,
    size_of: Callable[[float], int],
    guess: float = 0.0,
) -> float | None:
    """The smallest step found whose symbols take at most `budget` bytes; None if there is none.

    The size falls by about 1 bit per parameter when the step doubles, from 16 at the finest: interpolation
    finds the step in a third of the tries, and every third try halves the bracket whatever the sizes are.
    guess: a step to try first, 0 for none; near it the size is taken for a power of the step, which two tries
    tell.
    """
    limits = np.finfo(values.dtype)
    finest, coarsest = max(peak / MAX_SYMBOL, float(limits.tiny)), min(2 * peak, float(limits.max))
    best: float | None = None
    if peak == 0 or finest >= coarsest:
        return best
    if TINY_BYTES * len(values) <= budget:
        step = float(values.dtype.type(finest))
        if size_of(step) <= budget:
            return step
    fine, most = math.log(finest), 2.0 * len(values) + budget
    coarse, least = math.log(coarsest), 0.0
    middle, slope = math.log(guess) if guess > 0 else math.inf, SLOPE
    before: tuple[float, float] | None = None
    for attempt in range(1, MOST_TRIES + 1):
        if not fine < middle < coarse:
            share = 0.5 if attempt % 3 == 0 else (most - AIM * budget) / (most - least)
            middle = fine + min(max(share, 0.05), 0.95) * (coarse - fine)
        step = float(values.dtype.type(min(max(math.exp(middle), finest), coarsest)))
        size = size_of(step)
        if size > budget:
            fine, most = middle, size
        else:
            coarse, least, best = middle, size, step
        if CLOSE_ENOUGH * budget <= least or coarse - fine < NO_DIFFERENCE:
            break
        if guess > 0 and attempt <= FROM_GUESS and size > 0:
            now = middle, math.log(size / (AIM * budget))
            if before is not None and now[0] != before[0]:
                slope = min(max((now[1] - before[1]) / (now[0] - before[0]), STEEPEST), FLATTEST)
            middle, before = now[0] - now[1] / slope, now
        else:
            middle = math.inf
    return best


def _symbols(values: npt.NDArray[np.floating], step: float) -> Iterator[Symbols]:
    """Chunk by chunk, kept where symbol * step is still a finite number."""
    largest = int(min(MAX_SYMBOL, float(np.finfo(values.dtype).max) / step))
    number = values.dtype.type
    for chunk in chunks(len(values)):
        scaled = np.abs(values[chunk])
        scaled /= number(step)
        scaled += number(ROUNDING)
        np.minimum(scaled, number(largest), out=scaled)
        yield scaled.astype(np.int16), values[chunk] < 0


def _groups(chunk: slice, blocks: Layout | None) -> list[int]:
    """Bounds inside the chunk of the groups coded each on its own: tensors, or what of them is in it, small
    ones joined with those that follow."""
    size = chunk.stop - chunk.start
    if blocks is None:
        return [0, size]
    groups, bounds = [0], blocks.bounds
    for bound in bounds[bisect_right(bounds, chunk.start) : bisect_left(bounds, chunk.stop)]:
        if bound - chunk.start - groups[-1] >= SMALLEST_GROUP:
            groups.append(bound - chunk.start)
    if len(groups) > 1 and size - groups[-1] < SMALLEST_GROUP:
        groups.pop()
    return [*groups, size]


def write_symbols(symbols: npt.NDArray[np.int16], blocks: Layout | None) -> list[bytes]:
    """In pieces, for `read_symbols`."""
    sections = []
    for chunk, (magnitudes, negative) in zip(chunks(len(symbols)), in_chunks(symbols), strict=True):
        writer = BitWriter()
        _write(writer, magnitudes, negative, _groups(chunk, blocks))
        sections.append(writer.finish())
    return joined(sections)


def _write(
    sink: BitSink, magnitudes: npt.NDArray[np.int16], negative: npt.NDArray[np.bool_], groups: list[int]
) -> None:
    ones = np.flatnonzero(magnitudes)
    cuts = np.searchsorted(ones, groups)
    for (start, stop), (first, last) in zip(pairwise(groups), pairwise(cuts), strict=True):
        sink.positions(stop - start, ones[first:last] - start)
    left = magnitudes[ones].astype(np.int64)
    for level in range(1, LEVELS + 1):
        above = np.flatnonzero(left > level)
        sink.positions(len(left), above)
        left = left[above]
    sink.rice(left - LEVELS - 1)
    sink.fixed(negative[ones].astype(np.int64), 1)


def longest_sections(d: int, blocks: Layout | None) -> list[int]:
    """Bytes that each chunk of d symbols takes at most."""
    return longest(d, 1 if blocks is None else len(blocks.sizes), HEAD_BYTES)


def read_symbols(data: memoryview, d: int, blocks: Layout | None) -> npt.NDArray[np.int16]:
    """The inverse of `write_symbols`; raises CodecError."""
    symbols = np.zeros(d, dtype=np.int16)
    for chunk, section in zip(chunks(d), apart(data, longest_sections(d, blocks)), strict=True):
        reader = BitReader(section, NUMBERS * (chunk.stop - chunk.start))
        _read(reader, symbols[chunk], _groups(chunk, blocks))
        reader.finish()
    return symbols


def _read(reader: BitReader, symbols: npt.NDArray[np.int16], groups: list[int]) -> None:
    """Into `symbols`, which are zero."""
    ones = np.concatenate([reader.positions(stop - start) + start for start, stop in pairwise(groups)])
    magnitudes = np.ones(len(ones), dtype=np.int64)
    left = np.arange(len(ones))
    for _ in range(LEVELS):
        left = left[reader.positions(len(left))]
        magnitudes[left] += 1
    rest = reader.rice(len(left), MAX_SYMBOL - LEVELS - 1)
    magnitudes[left] += rest
    negative = reader.fixed(len(ones), 1).astype(np.bool_)
    symbols[ones] = np.where(negative, -magnitudes, magnitudes)
