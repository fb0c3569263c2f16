"""The types values travel in: fewer bits for each, and what makes values of them again.

    value = number * scale of its block * 2^exponent

fp32         as they are, float64 in a float64 session; neither exponent nor scales
fp16, bf16   one exponent, no scales: the largest is brought to between 2^14 and 2^15, so that what is small
             only because everything is (a share of little mass) keeps its bits
int8, int4   numbers to 127 or 7 either side; blocks of 64 consecutive values inside a tensor, the last one
             shorter; scale = max |v| / 127 or 7 in 8 bits, rounded up, so that nothing is clipped
sign         1 or -1; the values of a tensor are one block; scale = mean |v| (Bernstein et al. 2018)

Scales are bfloat16, their exponent brought to that of the largest, and times 2^exponent normal numbers of the
session's type, or zero: a block too small for that becomes zero. In the topmost binade of that type scales
are rounded down instead. Finite input gives finite values. What is lost is the caller's to keep: residual =
v - value (error feedback, Karimireddy et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.layout import Comparable, Layout, peak_of

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK = 64  # a scale's two bytes are then a quarter of a bit for each value (platform measurements)
FIRST_NORMAL = 0x80  # of bfloat16, as bits


@dataclass(frozen=True, slots=True)
class ValueType:
    """code: on the wire. largest: |number|. block: values that share a scale, 0 for none, -1 for those of a
    tensor."""

    code: int
    stored: torch.dtype
    largest: float
    block: int = 0


VALUE_TYPES: dict[str, ValueType] = {
    "fp32": ValueType(0, torch.float32, torch.finfo(torch.float32).max),
    "fp16": ValueType(1, torch.float16, torch.finfo(torch.float16).max),
    "bf16": ValueType(4, torch.bfloat16, 65280.0),  # the last below 2^16, as fp16's 65504 is
    "int8": ValueType(2, torch.int8, 127.0, BLOCK),
    "int4": ValueType(5, torch.int8, 7.0, BLOCK),
    "sign": ValueType(6, torch.int8, 1.0, -1),
}


@dataclass(frozen=True, slots=True, eq=False)
class Coding(Comparable):
    """What makes values of the numbers of a body. type: of VALUE_TYPES but fp32. blocks: the tensors within
    which blocks are; None with types that have none. scales: bfloat16, one for each block."""

    type: str
    exponent: int = 0
    scales: Tensor | None = None
    blocks: Layout | None = None

    def __post_init__(self) -> None:
        blocked = VALUE_TYPES[self.type].block != 0
        assert (self.scales is not None) == (self.blocks is not None) == blocked, f"scales of {self.type}"
        assert self.scales is None or self.scales.dtype == torch.bfloat16

    def values(self, numbers: Tensor, dtype: torch.dtype, counts: Sequence[int]) -> Tensor:
        """counts: of the numbers that are in each of `blocks`."""
        unit = torch.tensor(2.0**self.exponent, dtype=dtype)
        if self.scales is None:
            return numbers.to(dtype) * unit
        lengths = block_lengths(counts, VALUE_TYPES[self.type].block)
        assert len(lengths) == self.scales.numel(), f"{len(lengths)} blocks, {self.scales.numel()} scales"
        scales = self.scales.to(dtype) * unit
        return numbers.to(dtype) * scales.repeat_interleave(
            torch.from_numpy(lengths), output_size=numbers.numel()
        )


def exponents(dtype: torch.dtype) -> tuple[int, int]:
    """The least and the largest e for which 2^e is a normal number."""
    limits = torch.finfo(dtype)
    return math.frexp(limits.tiny)[1] - 1, math.frexp(limits.max)[1] - 1


def block_lengths(counts: Sequence[int], block: int) -> Ints:
    """How many values are in each block, if so many are in each tensor."""
    counted = np.asarray(counts, dtype=np.int64)
    if block < 0:
        return counted[counted > 0]
    blocks = -(-counted // block)
    lengths = np.full(int(blocks.sum()), block, dtype=np.int64)
    last = np.cumsum(blocks)[counted > 0] - 1
    lengths[last] = counted[counted > 0] - (blocks[counted > 0] - 1) * block
    return lengths


def encoded(v: Tensor, values: str, blocks: Layout, counts: Sequence[int]) -> tuple[Tensor, Coding | None]:
    """Numbers, and what makes values of them again. v: flat, finite, on the CPU; counts: of its values that
    are in each tensor of `blocks`."""
    if values in ("", "fp32"):
        return v.clone(), None
    kind = VALUE_TYPES[values]
    if kind.block == 0:
        return _floats(v, values, kind)
    lengths = block_lengths(counts, kind.block)
    array, limits = v.numpy(), np.finfo(v.numpy().dtype)
    starts = np.cumsum(lengths) - lengths
    wanted, exponent = (_means if values == "sign" else _peaks)(array, starts, lengths, kind.largest)
    bits, exponent = _scales(wanted, exponent, kind.largest, limits, up=values != "sign")
    coding = Coding(values, exponent, torch.from_numpy(bits).view(torch.bfloat16), blocks)
    if values == "sign":
        return torch.from_numpy(np.where(array < 0, -1, 1).astype(np.int8)), coding
    scales = np.ldexp(_numbers(bits), exponent).astype(array.dtype)
    levels = array / np.repeat(np.where(scales > 0, scales, np.inf).astype(array.dtype), lengths)
    return torch.from_numpy(np.rint(levels).clip(-kind.largest, kind.largest).astype(np.int8)), coding


def _floats(v: Tensor, values: str, kind: ValueType) -> tuple[Tensor, Coding]:
    """No number of the type times 2^exponent is beyond the range of v's type, as readers demand."""
    if v.numel() == 0:
        return v.to(kind.stored), Coding(values)
    least, _ = exponents(v.dtype)
    exponent = min(max(math.frexp(peak_of(v))[1] - 15, least), highest_exponent(kind, v.dtype))
    numbers = (v / 2.0**exponent).clamp_(-kind.largest, kind.largest)
    return numbers.to(kind.stored), Coding(values, exponent)


def highest_exponent(kind: ValueType, dtype: torch.dtype) -> int:
    """With which the largest number of a type without scales is finite."""
    return math.frexp(torch.finfo(dtype).max / kind.largest)[1] - 1


def _peaks(v: Floats, starts: Ints, lengths: Ints, largest: float) -> tuple[Doubles, int]:
    peaks = np.maximum.reduceat(np.abs(v), starts) if len(starts) else np.zeros(0)
    return np.asarray(peaks, dtype=np.float64) / largest, 0


def _means(v: Floats, starts: Ints, lengths: Ints, largest: float) -> tuple[Doubles, int]:
    """As means * 2^exponent: a sum of large numbers would not be finite."""
    if not len(starts):
        return np.zeros(0), 0
    exponent = math.frexp(float(np.abs(v).max()))[1]
    sums = np.add.reduceat(np.ldexp(np.abs(v), -exponent), starts, dtype=np.float64)
    return sums / lengths, exponent


def _scales(
    wanted: Doubles, exponent: int, largest: float, limits: np.finfo[np.floating], *, up: bool
) -> tuple[npt.NDArray[np.int16], int]:
    """wanted * 2^exponent as bits of bfloat16, and the exponent that goes with these."""
    top = math.frexp(float(wanted.max(initial=0.0)))[1] - 1
    least, most = math.frexp(float(limits.tiny))[1] - 1, math.frexp(float(limits.max))[1] - 1
    shared = min(max(top + exponent, least), most)
    bits = _rounded(np.ldexp(wanted, exponent - shared), up=up)
    with np.errstate(over="ignore"):
        while (wrong := np.ldexp(_numbers(bits), shared) > float(limits.max) / largest).any():
            bits = bits - wrong.astype(np.int16)
    too_small = (bits < FIRST_NORMAL) | (np.ldexp(_numbers(bits), shared) < float(limits.tiny))
    return np.where(too_small, 0, bits).astype(np.int16), shared


def _rounded(numbers: Doubles, *, up: bool) -> npt.NDArray[np.int16]:
    """Numbers from 0 as bits of bfloat16."""
    single = numbers.astype(np.float32)
    if up:
        single = np.where(single < numbers, np.nextafter(single, np.float32(np.inf)), single)
    whole = single.view(np.uint32)
    rest = np.uint32(0xFFFF) if up else np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1))
    return ((whole + rest) >> np.uint32(16)).astype(np.int16)


def _numbers(bits: npt.NDArray[np.int16]) -> Doubles:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
