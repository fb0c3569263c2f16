"""Which entries travel: the largest, of each tensor or of all, or those that the turn says.

What is left out is the caller's to keep: residual = v - body.dense() (error feedback, Karimireddy et al.
2019). A turn is the number of a round; the same turn gives the same entries on every machine. The largest are
found with numpy on the CPU and with torch on a tensor's own device otherwise, by the same steps and with the
same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.layout import Layout, is_finite, peak_of
from peer.compression.portable import words
from peer.errors import DivergedError

SAMPLED, SAMPLE = (
    1 << 15,
    1 << 12,
)  # so many values are sampled, at least this many of them or 1 %; measured
DEVIATIONS = 3.0  # of a sample's count, on the safe side: 1 guess of 3,600 was too high; measured
PIECE = 1 << 17  # values; half a megabyte, which a Pi's second cache holds

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def top_k(v: Tensor, layout: Layout, fraction: float) -> Tensor:
    """Indices of the `fraction` of largest |v| of each tensor, at least 1 of each: int64, increasing, on the
    CPU.

    Ties go to the lower index, so the result does not depend on the machine.
    """
    return top_entries(v, layout, fraction)[0]


def global_top_k(v: Tensor, fraction: float) -> Tensor:
    """The same of the whole vector."""
    return global_top_entries(v, fraction)[0]


def top_entries(v: Tensor, layout: Layout, fraction: float) -> tuple[Tensor, Tensor]:
    """`top_k`, and the values there. Raises DivergedError unless all of v is finite."""
    return _largest_of_each(
        v.detach(), [(*span, share_of(span[1] - span[0], fraction)) for span in layout.spans]
    )


def global_top_entries(v: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """`global_top_k`, and the values there. Raises DivergedError unless all of v is finite."""
    return _largest_of_each(v.detach(), [(0, v.numel(), share_of(v.numel(), fraction))])


def share_of(count: int, fraction: float) -> int:
    """So many of `count` entries, at least 1."""
    return min(max(1, round(fraction * count)), count)


def seed_of(turn: int) -> int:
    """What entries are drawn by in that turn: 32 bits."""
    return int(words(turn, 1)[0] >> np.uint64(32))


def group_of(turn: int, groups: int) -> int:
    """Which of the groups has its turn. Each has one in `groups` turns that follow each other; the order
    starts at another one each time, so that none keeps step with the cycle of a topology's links."""
    return int((turn + int(words(turn // groups, 1)[0] >> np.uint64(32))) % groups)


# --- the largest -------------------------------------------------------------------------------------


def _largest_of_each(v: Tensor, parts: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Of each part (start, stop, k) the k largest: their indices in v, and the values there, on the CPU."""
    if v.device.type != "cpu":
        if not is_finite(v):
            raise DivergedError.found(peak_of(v))
        found = torch.cat([largest_on_device(v[start:stop], k).add_(start) for start, stop, k in parts])
        return found.cpu(), v[found].cpu()
    values = v.numpy()
    indices, kept = zip(*(_largest(values[start:stop], k) for start, stop, k in parts), strict=True)
    for here, (start, _, _) in zip(indices, parts, strict=True):
        np.add(here, start, out=here)
    return torch.from_numpy(np.concatenate(indices)), torch.from_numpy(np.concatenate(kept))


def _largest(values: Floats, k: int) -> tuple[Ints, Floats]:
    """Indices of the k largest |values|, increasing, and these values.

    A sample gives a threshold that leaves a few more than k candidates, among which the exact one is found;
    a sample that misleads only costs the search among all. What is not finite is a candidate whatever the
    threshold, and refused.
    """
    threshold = _guess(values, k)
    candidates, kept = _above(values, threshold) if threshold > 0 else (np.arange(0), values)
    if len(candidates) < k:
        candidates, kept = np.arange(len(values)), values
    magnitudes = np.abs(kept)
    if not math.isfinite(peak := float(magnitudes.max())):
        raise DivergedError.found(peak)
    least = _of_rank(magnitudes, k)
    chosen = np.flatnonzero(magnitudes >= least)
    if len(chosen) > k:
        ties = np.flatnonzero(magnitudes[chosen] == least)
        chosen = np.delete(chosen, ties[k - len(chosen) :])
    return candidates.take(chosen), kept.take(chosen)


def _of_rank(magnitudes: Floats, k: int) -> float:
    """The k-th largest."""
    at = len(magnitudes) - k
    return float(np.partition(magnitudes, at)[at])


def largest_on_device(values: Tensor, k: int) -> Tensor:
    """`_largest` in operations of torch, on whatever device the values are."""
    magnitudes, n = values.abs(), values.numel()
    if (step := _sampled_step(n, k)) > 0:
        sample = magnitudes[::step]
        threshold = sample.topk(_rank(n, k, len(sample)), sorted=False).values.min()
        candidates = torch.nonzero(magnitudes >= threshold).reshape(-1)
        if len(candidates) >= k:
            return candidates[_exactly(magnitudes[candidates], k)]
    return _exactly(magnitudes, k)


def _exactly(magnitudes: Tensor, k: int) -> Tensor:
    """Indices of the k largest, increasing; of those that are the least of them the first."""
    least = magnitudes.topk(k, sorted=False).values.min()
    found = torch.nonzero(magnitudes >= least).reshape(-1)
    if (extra := len(found) - k) > 0:
        tied = magnitudes[found] == least
        found = found[~tied | (tied.cumsum(0) <= tied.sum() - extra)]
    return found


def _sampled_step(n: int, k: int) -> int:
    """Every so-many-th value is looked at first; 0 where it is not worth it."""
    return 0 if n < SAMPLED or k > n // 4 else max(1, n // max(SAMPLE, n // 100))


def _rank(n: int, k: int, sampled: int) -> int:
    """The magnitude of this rank in a sample is most likely reached by at least k of n values."""
    expected = k * sampled / n
    return min(sampled, math.ceil(expected + DEVIATIONS * math.sqrt(expected) + DEVIATIONS))


def _guess(values: Floats, k: int) -> float:
    """A magnitude that most likely at least k of the values reach; 0 where it is not worth a guess."""
    n = len(values)
    step = _sampled_step(n, k)
    if step == 0:
        return 0.0
    sample = np.abs(values[::step])
    return _of_rank(sample, _rank(n, k, len(sample)))


def _above(values: Floats, threshold: float) -> tuple[Ints, Floats]:
    """Where |values| is at least that, or not a number, increasing, and these values; in pieces that stay in
    the cache. Of what is smaller one holds, that it is below the threshold or at most its negative; of all
    others both or neither."""
    flags, others = np.empty((2, min(len(values), PIECE)), dtype=np.bool_)
    found, kept = [], []
    for start in range(0, len(values), PIECE):
        piece = values[start : start + PIECE]
        below = np.less(piece, threshold, out=flags[: len(piece)])
        beneath = np.less_equal(piece, -threshold, out=others[: len(piece)])
        here = np.flatnonzero(np.equal(below, beneath, out=below))
        kept.append(piece.take(here))
        found.append(np.add(here, start, out=here))
    return np.concatenate(found), np.concatenate(kept)
