"""Thin factors of a model's tensors: PowerGossip's linear algebra, the same bits at both ends of an edge.

    Q <- orth(Q), P = D Q      odd iterations; D = X_hi - X_lo, rows x columns; of each end its X Q travels
    P <- orth(P), Q = D^T P    even ones
    P Q^T                      what D is taken for

A tensor is a matrix of first axis x rest, and is factored where rank (rows + columns) numbers are fewer than
its own; the others go as they are. Factors are float64 on the CPU, whatever the model is. What both ends must
have the same bits of (draws, `orthonormal`, `Change`) is elementwise in a fixed order: sums are halved and
halved again, never left to a library. Only a product with the model is not, and that travels.

Gram-Schmidt is the authors', with 1e-8 added to each norm. A column of less than that, or one of which those
before it leave nothing, would stay nothing for ever, at equal models or beyond the rank of their difference:
it is drawn anew, at both ends the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.layout import Layout
from peer.compression.low_rank import factored
from peer.compression.portable import fractions

Doubles = npt.NDArray[np.float64]

EPS = 1e-8  # the authors' code: algorithms.orthogonalize
LEAST = 1e-6  # what is left of a column, by its norm, is no more than float32's rounding below that; guess
CHECK_BYTES = 8


# --- which tensors ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor that is factored: where it lies in the model, and its shape."""

    start: int
    stop: int
    rows: int
    columns: int
    rank: int

    def of(self, x: Tensor) -> Tensor:
        return x[self.start : self.stop].view(self.rows, self.columns)


class Tensors:
    """Those of a layout that are factored at this rank, and the others. A factor of odd iterations' results
    is as long as the matrix has rows, one of even ones' as it has columns."""

    def __init__(self, layout: Layout, rank: int) -> None:
        spans = [(*span, *shape) for span, shape in zip(layout.spans, layout.shapes, strict=True)]
        self.matrices = tuple(
            Matrix(start, stop, m, k, min(m, k, rank))
            for start, stop, m, k in spans
            if factored((m, k), rank)
        )
        self.plain = tuple((start, stop) for start, stop, m, k in spans if not factored((m, k), rank))
        self.plain_size = sum(stop - start for start, stop in self.plain)

    def product_size(self, it: int) -> int:
        """Numbers in the products of iteration `it`."""
        return sum(one.rank * (one.rows if it % 2 else one.columns) for one in self.matrices)

    def products(self, x: Tensor, inputs: Sequence[Doubles], it: int) -> Tensor:
        """X Q of every matrix, or X^T P: flat, one after the other, in the model's type."""
        parts = []
        for one, V in zip(self.matrices, inputs, strict=True):
            X = one.of(x) if it % 2 else one.of(x).T
            parts.append((X @ torch.from_numpy(V).to(x.dtype)).reshape(-1))
        return torch.cat(parts) if parts else x.new_zeros(0)

    def unfactored(self, x: Tensor) -> Tensor:
        """The entries of all other tensors."""
        return torch.cat([x[start:stop] for start, stop in self.plain]) if self.plain else x.new_zeros(0)

    def outputs(self, difference: Tensor, it: int) -> tuple[Doubles, ...]:
        """The factors that iteration `it` comes to. difference: of the two ends' products."""
        numbers, at, found = difference.numpy().astype(np.float64), 0, []
        for one in self.matrices:
            length = one.rows if it % 2 else one.columns
            found.append(numbers[at : at + length * one.rank].reshape(length, one.rank))
            at += length * one.rank
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Change:
    """What one iteration adds to a model: P Q^T of every matrix, and something of the other tensors' entries.

    The factors are of the model's type.
    """

    P: tuple[Tensor, ...] = ()
    Q: tuple[Tensor, ...] = ()
    plain: Tensor | None = None

    def added_to(self, x: Tensor, tensors: Tensors, sign: int = 1) -> Tensor:
        x, sum_ = x.clone(), torch.add if sign > 0 else torch.sub
        for one, P, Q in zip(tensors.matrices if self.P else (), self.P, self.Q, strict=True):
            D = P[:, :1] * Q[:, 0]
            for c in range(1, one.rank):
                D += P[:, c : c + 1] * Q[:, c]
            sum_(one.of(x), D, out=one.of(x))
        at = 0
        for start, stop in tensors.plain if self.plain is not None else ():
            assert self.plain is not None
            sum_(x[start:stop], self.plain[at : at + stop - start], out=x[start:stop])
            at += stop - start
        return x


def change(
    inputs: Sequence[Doubles],
    outputs: Sequence[Doubles],
    it: int,
    rate: float,
    plain: Tensor | None,
    dtype: torch.dtype,
) -> Change:
    """rate P Q^T, and what is added to the other tensors: with -rate the same bits but for the sign."""
    given = tuple(torch.from_numpy(V).to(dtype) for V in inputs)
    fresh = tuple(torch.from_numpy(rate * U).to(dtype) for U in outputs)
    return Change(fresh, given, plain) if it % 2 else Change(given, fresh, plain)


# --- the same at both ends -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draws:
    """Numbers from -1 to 1 that both ends of an edge have: by a hash of what they both know of it. warm: a
    factor is drawn once, and not for each iteration."""

    salt: bytes
    lo: int
    hi: int
    number: int
    warm: bool = True

    def factor(self, it: int, which: int, length: int, rank: int) -> Doubles:
        """What iteration `it` begins with, for lack of a result of the one before."""
        name = it % 2 if self.warm else it
        return self._numbers(("factor", name, which), length * rank).reshape(length, rank)

    def column(self, it: int, which: int, column: int, length: int) -> Doubles:
        """In place of one that has become nothing."""
        return self._numbers(("column", it, which, column), length)

    def _numbers(self, place: tuple[object, ...], count: int) -> Doubles:
        name = repr((self.salt, self.lo, self.hi, self.number, *place)).encode()
        return fractions(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"), count)


def begun(tensors: Tensors, draws: Draws, it: int, before: Sequence[Doubles] | None) -> tuple[Doubles, ...]:
    """The orthonormal factors of iteration `it`. before: what the last one came to, if it is to go on."""
    found = []
    for which, one in enumerate(tensors.matrices):
        length = one.columns if it % 2 else one.rows
        V = draws.factor(it, which, length, one.rank) if before is None else before[which]
        found.append(
            orthonormal(V, lambda c, which=which, length=length: draws.column(it, which, c, length))  # type: ignore[misc]
        )
    return tuple(found)


def orthonormal(V: Doubles, anew: Callable[[int], Doubles]) -> Doubles:
    """Column by column: divided by its norm, and its part in the later ones taken out. anew: draws one."""
    V = V.copy()
    norms = [_norm(V[:, c]) for c in range(V.shape[1])]
    for c, norm in enumerate(norms):
        v = V[:, c]
        if not (left := _norm(v)) >= max(EPS, LEAST * norm):
            v = anew(c)
            for b in range(c):
                v = v - _dot(V[:, b], v) * V[:, b]
            left = _norm(v)
        V[:, c] = v / (left + EPS)
        for later in range(c + 1, V.shape[1]):
            V[:, later] -= _dot(V[:, c], V[:, later]) * V[:, c]
    return V


def check_of(factors: Sequence[Doubles]) -> bytes:
    """Over the bits of all of them."""
    digest = hashlib.blake2b(digest_size=CHECK_BYTES)
    for V in factors:
        digest.update(np.ascontiguousarray(V, dtype="<f8").tobytes())
    return digest.digest()


def _norm(v: Doubles) -> float:
    peak = float(np.abs(v).max())
    if peak == 0 or not math.isfinite(peak):
        return 0.0
    scaled = v / peak
    return peak * math.sqrt(_dot(scaled, scaled))


def _dot(a: Doubles, b: Doubles) -> float:
    """Elementwise, and the sum by halves: the same bits on any machine."""
    terms = a * b
    while len(terms) > 1:
        if len(terms) % 2:
            terms = np.append(terms, 0.0)
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    return float(terms[0])
