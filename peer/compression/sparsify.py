"""Fewer values, or smaller ones: top-k per tensor, and the types values travel in.

What is lost is the caller's to keep: residual = v - body.dense() (error feedback, Karimireddy et al. 2019).
Every function here takes finite input only, and gives finite values back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from peer.compression.bodies import Layout

INT8_LEVELS = 127


def top_k(v: Tensor, layout: Layout, fraction: float) -> Tensor:
    """Indices of the `fraction` of largest |v| of each tensor, at least 1 of each: int64, increasing.

    Ties go to the lower index, so the result does not depend on the machine.
    """
    magnitudes = v.detach().abs().cpu().numpy()
    parts = []
    for start, stop in pairwise(layout.bounds):
        block = magnitudes[start:stop]
        k = min(max(1, round(fraction * len(block))), len(block))
        threshold = np.partition(block, len(block) - k)[len(block) - k]
        chosen = block > threshold
        ties = np.flatnonzero(block == threshold)
        chosen[ties[: k - int(np.count_nonzero(chosen))]] = True
        parts.append(np.flatnonzero(chosen) + start)
    return torch.from_numpy(np.concatenate(parts))


def clamp_to(v: Tensor, dtype: torch.dtype) -> Tensor:
    """`v` in a floating type; what exceeds its range becomes its largest number, never infinity."""
    if torch.finfo(dtype).max < torch.finfo(v.dtype).max:
        v = v.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return v.to(dtype, copy=True)


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
