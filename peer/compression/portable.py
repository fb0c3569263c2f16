"""Numbers that look random and are the same on every machine: splitmix64 (Steele, Lea, Flood 2014) in uint64
arrays, elementwise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def words(seed: int, count: int) -> Words:
    """`count` 64-bit numbers, of a seed from 0 to 2^64 - 1."""
    start = _mixed(np.array([seed], dtype=np.uint64) + _GOLDEN)
    return _mixed(start + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def fractions(seed: int, count: int) -> npt.NDArray[np.float64]:
    """From -1 to below 1."""
    numbers: npt.NDArray[np.float64] = (words(seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return numbers


def _mixed(x: Words) -> Words:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
