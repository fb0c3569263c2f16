"""Fewer values, or smaller ones: top-k per tensor, and the types values travel in.

What is lost is the caller's to keep: residual = v - body.dense() (error feedback, Karimireddy et al. 2019).
Every function here takes finite input only, and gives finite values back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import Layout, peak_of

INT8_LEVELS = 127
SAMPLED, SAMPLE = 1 << 15, 1 << 12  # so many values are sampled, at least this many of them or 1 %; measured
DEVIATIONS = 4.0  # of a sample's count, that the guess is on the safe side; guess
PIECE = 1 << 17  # values; half a megabyte, which a Pi's second cache holds

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def top_k(v: Tensor, layout: Layout, fraction: float) -> Tensor:
    """Indices of the `fraction` of largest |v| of each tensor, at least 1 of each: int64, increasing.

    Ties go to the lower index, so the result does not depend on the machine.
    """
    values = v.detach().cpu().numpy()
    parts = []
    for start, stop in pairwise(layout.bounds):
        block = values[start:stop]
        parts.append(_largest(block, min(max(1, round(fraction * len(block))), len(block))) + start)
    return torch.from_numpy(np.concatenate(parts))


def _largest(values: Floats, k: int) -> Ints:
    """Indices of the k largest |values|, increasing.

    A sample gives a threshold that leaves a few more than k candidates, among which the exact one is found;
    a sample that misleads only costs the search among all.
    """
    threshold = _guess(values, k)
    candidates: Ints = _above(values, threshold) if threshold > 0 else np.arange(len(values))
    if len(candidates) < k:
        candidates = np.arange(len(values))
    magnitudes = np.abs(values[candidates])
    least = np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k]
    chosen = magnitudes > least
    ties = np.flatnonzero(magnitudes == least)
    chosen[ties[: k - int(np.count_nonzero(chosen))]] = True
    largest: Ints = candidates[chosen]
    return largest


def _guess(values: Floats, k: int) -> float:
    """A magnitude that most likely at least k of the values reach; 0 where it is not worth a guess."""
    n = len(values)
    if n < SAMPLED or k > n // 4:
        return 0.0
    sample = np.abs(values[:: max(1, n // max(SAMPLE, n // 100))])
    expected = k * len(sample) / n
    rank = min(len(sample), math.ceil(expected + DEVIATIONS * math.sqrt(expected) + DEVIATIONS))
    return float(np.partition(sample, len(sample) - rank)[len(sample) - rank])


def _above(values: Floats, threshold: float) -> Ints:
    """Where |values| is at least that, increasing; in pieces that stay in the cache."""
    buffer = np.empty(min(len(values), PIECE), dtype=values.dtype)
    found = []
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        magnitudes = np.abs(piece, out=buffer[: len(piece)])
        found.append(np.flatnonzero(magnitudes >= threshold) + start)
    return np.concatenate(found)


def to_half(v: Tensor) -> tuple[Tensor, Tensor]:
    """(values, scale) of v: v ~ values * scale, values in fp16, scale [1] a power of two in the dtype of v.

    The largest is brought to between 2^14 and 2^15, so that nothing exceeds the type's range, and what is
    small only because everything is (a share of little mass) keeps its 11 bits. In the topmost binade of v it
    lies below 2^16, so that any value of the type times the scale is finite, as whoever reads it demands.
    """
    limits, largest = torch.finfo(v.dtype), torch.finfo(torch.float16).max
    _, exponent = math.frexp(peak_of(v))
    highest = math.frexp(limits.max / largest)[1] - 1
    scale = 2.0 ** min(max(exponent - 15, math.frexp(limits.tiny)[1]), highest)
    return (v / scale).clamp_(-largest, largest).to(torch.float16), torch.tensor([scale], dtype=v.dtype)


def to_int8(v: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(values, scales) of v cut into blocks of these sizes: v ~ values * scale, scale = max |v| / 127.

    A block too small for a normal scale becomes zero. scales: one per block, the dtype of v.
    """
    limits = torch.finfo(v.dtype)
    bounds = accumulate(sizes, initial=0)
    peaks = torch.stack([v[start:stop].abs().max() for start, stop in pairwise(bounds)])
    scales = (peaks / INT8_LEVELS).clamp(max=limits.max / (INT8_LEVELS + 1))
    scales[scales < limits.tiny] = 0
    levels = v / scales.clamp(min=limits.tiny).repeat_interleave(torch.tensor(sizes), output_size=v.numel())
    return levels.round_().clamp_(-INT8_LEVELS, INT8_LEVELS).to(torch.int8), scales
