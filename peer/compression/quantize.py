"""A whole vector at a budget of bits per parameter: dead-zone uniform quantizer, entropy-coded.

    symbol = sign(v) floor(|v|/step + 0.4)          one step for the whole model

Values within 0.6 step of zero become zero, which costs little and keeps the large ones exact; the step is
found by search on the exact coded size. Symbols are coded as

    which are non-zero, tensor by tensor;  of those, which exceed 1;  of those, 2;  of those, 3;
    the rest of the magnitude in Rice code;  one bit per sign

in `golomb`'s sets of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import MAX_SYMBOL, Layout, Quantized
from peer.compression.golomb import BitMeter, BitReader, BitSink, Ints
from peer.errors import DivergedError

ROUNDING = 0.4  # as in the experiments that chose difference-push; not varied
LEVELS = 3  # magnitudes told apart by sets of positions before Rice code takes over (guess)
SMALLEST_GROUP = 64  # tensors below this share a group: 1-2 bytes each otherwise (guess)
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
    size_of: Callable[[Ints, npt.NDArray[np.bool_]], int] | None = None,
    guess: float = 0.0,
) -> Quantized:
    """`v` at no more than `bits` per parameter, all side information included, or 32 bytes if that is more.

    v: flat, float32 or float64. size_of: bytes that symbols of these magnitudes (int64) take, and which are
    negative; as a Quantized body, unless they are coded otherwise. guess: where to begin the search for the
    step, as the last one of a link. Raises DivergedError unless v is finite.
    """
    values = v.detach().cpu().numpy()
    magnitudes = np.abs(values)
    peak = float(magnitudes.max())
    if not math.isfinite(peak):
        raise DivergedError.found(peak)
    budget = max(math.floor(bits * len(values) / 8), SMALLEST_BUDGET)
    negative = values < 0
    step, symbols = _within(
        budget,
        magnitudes,
        peak,
        (lambda s: size_of(s, negative)) if size_of is not None else (lambda s: coded_bytes(s, blocks)),
        guess,
    )
    symbols32 = symbols.astype(np.int32)
    np.negative(symbols32, out=symbols32, where=negative)
    return Quantized(torch.from_numpy(symbols32), step, v.dtype, blocks)


def coded_bytes(symbols: Ints, blocks: Layout | None) -> int:
    """Exact length of a Quantized body with these symbols (signs do not matter)."""
    meter = BitMeter()
    write_symbols(meter, symbols, blocks)
    return STEP_BYTES + len(meter)


def _within(
    budget: int,
    magnitudes: npt.NDArray[np.floating],
    peak: float,
    size_of: Callable[[Ints], int],
    guess: float = 0.0,
) -> tuple[float, Ints]:
    """The smallest step found whose symbols take at most `budget` bytes; all zero if there is none.

    The size falls by about 1 bit per parameter when the step doubles, from 16 at the finest: interpolation
    finds the step in a third of the tries, and every third try halves the bracket whatever the sizes are.
    guess: a step to try first, 0 for none; near it the size is taken for a power of the step, which two tries
    tell.
    """
    limits = np.finfo(magnitudes.dtype)
    finest, coarsest = max(peak / MAX_SYMBOL, float(limits.tiny)), min(2 * peak, float(limits.max))
    best = 1.0, np.zeros(len(magnitudes), dtype=np.int64)
    if peak == 0 or finest >= coarsest:
        return best
    if TINY_BYTES * len(magnitudes) <= budget:
        step = float(magnitudes.dtype.type(finest))
        symbols = _symbols(magnitudes, step)
        if size_of(symbols) <= budget:
            return step, symbols
    fine, most = math.log(finest), 2.0 * len(magnitudes) + budget
    coarse, least = math.log(coarsest), 0.0
    middle, slope = math.log(guess) if guess > 0 else math.inf, SLOPE
    before: tuple[float, float] | None = None
    for attempt in range(1, MOST_TRIES + 1):
        if not fine < middle < coarse:
            share = 0.5 if attempt % 3 == 0 else (most - AIM * budget) / (most - least)
            middle = fine + min(max(share, 0.05), 0.95) * (coarse - fine)
        step = float(magnitudes.dtype.type(min(max(math.exp(middle), finest), coarsest)))
        symbols = _symbols(magnitudes, step)
        size = size_of(symbols)
        if size > budget:
            fine, most = middle, size
        else:
            coarse, least, best = middle, size, (step, symbols)
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


def _symbols(magnitudes: npt.NDArray[np.floating], step: float) -> Ints:
    """Magnitudes of the symbols, kept where symbol * step is still a finite number."""
    largest = int(min(MAX_SYMBOL, float(np.finfo(magnitudes.dtype).max) / step))
    number = magnitudes.dtype.type
    symbols: Ints = (magnitudes / number(step) + number(ROUNDING)).astype(np.int64)
    return np.minimum(symbols, largest, out=symbols)


def _groups(d: int, blocks: Layout | None) -> list[int]:
    """Bounds of the groups coded each on its own: tensors, small ones joined with those that follow."""
    if blocks is None:
        return [0, d]
    groups = [0]
    for bound in blocks.bounds[1:]:
        if bound - groups[-1] >= SMALLEST_GROUP:
            groups.append(bound)
    if groups[-1] != d:
        groups = [*groups[:-1], d] if len(groups) > 1 else [0, d]
    return groups


def write_symbols(sink: BitSink, symbols: Ints, blocks: Layout | None) -> None:
    """Code `symbols` (int64) into `sink`."""
    ones = np.flatnonzero(symbols)
    groups = _groups(len(symbols), blocks)
    cuts = np.searchsorted(ones, groups)
    for (start, stop), (first, last) in zip(pairwise(groups), pairwise(cuts), strict=True):
        sink.positions(stop - start, ones[first:last] - start)
    values = symbols[ones]
    magnitudes = np.abs(values)
    for level in range(1, LEVELS + 1):
        above = np.flatnonzero(magnitudes > level)
        sink.positions(len(magnitudes), above)
        magnitudes = magnitudes[above]
    sink.rice(magnitudes - LEVELS - 1)
    sink.fixed((values < 0).astype(np.int64), 1)


def read_symbols(reader: BitReader, d: int, blocks: Layout | None) -> npt.NDArray[np.int32]:
    """The inverse of `write_symbols`; raises CodecError."""
    groups = _groups(d, blocks)
    ones = np.concatenate([reader.positions(stop - start) + start for start, stop in pairwise(groups)])
    magnitudes = np.ones(len(ones), dtype=np.int64)
    left = np.arange(len(ones))
    for _ in range(LEVELS):
        left = left[reader.positions(len(left))]
        magnitudes[left] += 1
    magnitudes[left] += reader.rice(len(left), MAX_SYMBOL - LEVELS - 1)
    negative = reader.fixed(len(ones), 1).astype(np.bool_)
    symbols = np.zeros(d, dtype=np.int32)
    symbols[ones] = np.where(negative, -magnitudes, magnitudes)
    return symbols
