"""Tensors as products of thin matrices, by power iteration (as in PowerSGD, Vogels, Karimireddy, Jaggi 2019).

    M ~ sum over c < r of p_c q_c^T        M: a tensor as first axis x rest; p_c, q_c: its rank-r factors

A tensor for which factors would not be smaller goes as it is. Starts are the same on every machine and at
every call; nothing is kept, so SWEEPS of the iteration stand for the warm start of the paper. `product` is
elementwise, multiplications and then additions in a fixed order, so that sender and receiver get the same
bits out of the same factors on any machine.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.layout import Layout
from peer.compression.portable import fractions

SWEEPS = 3  # of the power iteration; guess
Doubles = npt.NDArray[np.float64]


def factored(shape: tuple[int, int], rank: int) -> bool:
    rows, columns = shape
    return rank * (rows + columns) < rows * columns


@functools.lru_cache(maxsize=16)
def factors(layout: Layout, rank: int) -> Layout:
    """What travels, as a layout of its own: for each tensor its p_c and then its q_c, or its entries."""
    sizes: list[int] = []
    for shape, size in zip(layout.shapes, layout.sizes, strict=True):
        sizes += (rank * shape[0], rank * shape[1]) if factored(shape, rank) else (size,)
    return Layout(tuple(sizes))


def factorize(v: Tensor, layout: Layout, rank: int) -> Tensor:
    """The factors of all tensors, flat: `factors(layout, rank).d` numbers of v's type."""
    values, parts = v.detach().cpu().numpy(), []
    for number, ((start, stop), shape) in enumerate(zip(layout.spans, layout.shapes, strict=True)):
        entries = values[start:stop]
        parts.append(_factors(entries.reshape(shape), rank, number) if factored(shape, rank) else entries)
    return torch.from_numpy(np.concatenate(parts))


def _factors(M: npt.NDArray[np.floating], rank: int, number: int) -> npt.NDArray[np.floating]:
    """p_c, orthonormal, and then q_c = M^T p_c; M is brought into the range in which sums are finite."""
    rows, columns = M.shape
    peak = float(np.abs(M).max())
    if peak == 0:
        return np.zeros(rank * (rows + columns), dtype=M.dtype)
    safe = float(np.finfo(M.dtype).max) / (4 * rank * math.sqrt(rows * columns))
    exponent = math.frexp(peak)[1]
    scaled = np.ldexp(M, -exponent)
    q = fractions(number, rank * columns).reshape(rank, columns)
    for _ in range(SWEEPS):
        p = _orthonormal(q.astype(M.dtype) @ scaled.T)
        q = (p.astype(M.dtype) @ scaled).astype(np.float64)
    q = q * min(1.0, safe / peak)
    return np.concatenate([p.astype(M.dtype).reshape(-1), np.ldexp(q, exponent).astype(M.dtype).reshape(-1)])


def _orthonormal(vectors: npt.NDArray[np.floating]) -> Doubles:
    """Rows made orthonormal, one after the other; one that adds nothing to those before it becomes zero."""
    found = np.zeros(vectors.shape, dtype=np.float64)
    for c, row in enumerate(vectors.astype(np.float64)):
        size = math.sqrt(float(row @ row))
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            row = row - (found[:c] @ row) @ found[:c]
        left = math.sqrt(float(row @ row))
        if left > 1e-6 * size:
            found[c] = row / left
    return found


def product(numbers: Tensor, layout: Layout, rank: int) -> Tensor:
    """The whole vector. numbers: of `factors(layout, rank)`."""
    whole = torch.empty(layout.d, dtype=numbers.dtype)
    at = 0
    for (start, stop), (rows, columns) in zip(layout.spans, layout.shapes, strict=True):
        if not factored((rows, columns), rank):
            whole[start:stop] = numbers[at : at + stop - start]
            at += stop - start
            continue
        p = numbers[at : at + rank * rows].view(rank, rows, 1)
        at += rank * rows
        q = numbers[at : at + rank * columns].view(rank, 1, columns)
        at += rank * columns
        M = whole[start:stop].view(rows, columns)
        torch.mul(p[0], q[0], out=M)
        for c in range(1, rank):
            M += p[c] * q[c]
    return whole


def bound(numbers: Tensor, layout: Layout, rank: int) -> float:
    """No |value| of their product is above that."""
    largest, at = 0.0, 0
    for shape, size in zip(layout.shapes, layout.sizes, strict=True):
        if factored(shape, rank):
            cut, end = at + rank * shape[0], at + rank * (shape[0] + shape[1])
            p, q = (float(part.abs().max()) for part in (numbers[at:cut], numbers[cut:end]))
            largest, at = max(largest, rank * p * q), end
        else:
            largest, at = max(largest, float(numbers[at : at + size].abs().max())), at + size
    return largest
