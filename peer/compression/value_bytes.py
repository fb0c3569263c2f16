"""Values as bytes, little-endian:

    value type u8, then, but for fp32 and fp64, exponent i16, scales (bits of bfloat16) u16 each, numbers

int4: two numbers a byte as number + 8, the first in the low half; sign: a bit each, 1 below zero, the first
in the highest; both padded with zeros. How many scales and numbers there are is known without being said.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import Dense, Portion, Valued
from peer.compression.cursor import Cursor
from peer.compression.layout import Layout, bound_of, is_finite
from peer.compression.values import (
    FIRST_NORMAL,
    VALUE_TYPES,
    Coding,
    block_lengths,
    exponents,
    highest_exponent,
)
from peer.errors import CodecError, DivergedError

FP64 = 3
_NAMES = {kind.code: name for name, kind in VALUE_TYPES.items()} | {FP64: "fp64"}
_BITS = {"int4": 4, "sign": 1}  # for each number; 8 at least with the others
_EXPONENT = struct.Struct("<h")


Piece = bytes | memoryview


def write_values(body: Valued) -> list[Piece]:
    """In pieces, which may be views of the body's own memory. Raises DivergedError for values that are not
    finite."""
    numbers = body.values.detach().cpu()
    known = isinstance(body, Dense | Portion) and body.peak is not None
    if numbers.is_floating_point() and not known and not is_finite(numbers):
        raise DivergedError.found(float(numbers.abs().max()))
    coding = body.coding
    if coding is None:
        return [bytes((code_of(numbers.dtype),)), _floats_as_bytes(numbers)]
    head = bytes((VALUE_TYPES[coding.type].code,)) + _EXPONENT.pack(coding.exponent)
    scales: Piece = b"" if coding.scales is None else _floats_as_bytes(coding.scales)
    pack = _PACK.get(coding.type)
    return [head, scales, _floats_as_bytes(numbers) if pack is None else pack(numbers)]


def code_of(dtype: torch.dtype) -> int:
    """The value type of numbers as they are, float32 or float64."""
    return FP64 if dtype == torch.float64 else VALUE_TYPES["fp32"].code


def read_values(
    cursor: Cursor, count: int, blocks: Layout, counts: Callable[[], Sequence[int]], dtype: torch.dtype
) -> tuple[Tensor, Coding | None, float | None]:
    """`count` numbers, so many in each of `blocks`, their coding, and without one a bound of |numbers|."""
    code = cursor.byte("value type")
    if code not in _NAMES:
        raise CodecError(f"value type: expected one of {sorted(_NAMES)}, found {code}")
    name = _NAMES[code]
    if (least_bytes := (count * _BITS.get(name, 8) + 7) // 8) > cursor.left:
        raise CodecError(f"values: expected {least_bytes} bytes at least, found {cursor.left}")
    if name == "fp64" and dtype != torch.float64:
        raise CodecError(f"value type: expected one that fits a session of {dtype}, found {name}")
    if name in ("fp32", "fp64"):
        found, peak = _read_floats(cursor, count, "<f4" if name == "fp32" else "<f8")
        return found, None, peak
    kind = VALUE_TYPES[name]
    (exponent,) = _EXPONENT.unpack(cursor.take(_EXPONENT.size, "exponent"))
    least, most = exponents(dtype)
    most = most if kind.block else highest_exponent(kind, dtype)
    if not least <= exponent <= most:
        raise CodecError(f"exponent: expected {least} to {most}, found {exponent}")
    if kind.block == 0:
        numbers = (_read_halves if name == "fp16" else _read_bfloats)(cursor, count)
        return numbers, Coding(name, exponent), None
    scales = _read_scales(cursor, len(block_lengths(counts(), kind.block)), exponent, kind.largest, dtype)
    return _READ[name](cursor, count), Coding(name, exponent, scales, blocks), None


# --- floating point ----------------------------------------------------------------------------------


def _floats_as_bytes(numbers: Tensor) -> memoryview:
    array = numbers.cpu().view(torch.int16).numpy() if numbers.dtype == torch.bfloat16 else numbers.numpy()
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return array.view(np.uint8).data


def _read_floats(cursor: Cursor, count: int, stored: str) -> tuple[Tensor, float]:
    array = _read_array(cursor, count, stored, "values", may_be_view=True)
    numbers = torch.from_numpy(array)
    peak = bound_of(numbers) if count else 0.0
    if not math.isfinite(peak):
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise CodecError(f"values: expected finite numbers, found {array[at]} at {at}")
    return numbers, peak


def _read_halves(cursor: Cursor, count: int) -> Tensor:
    return _read_floats(cursor, count, "<f2")[0]


def _read_bfloats(cursor: Cursor, count: int) -> Tensor:
    numbers = torch.from_numpy(_read_array(cursor, count, "<i2", "values")).view(torch.bfloat16)
    largest = VALUE_TYPES["bf16"].largest
    wrong = ~(numbers.abs() <= largest)  # NaN is wrong too
    if wrong.any():
        raise CodecError(f"values: expected numbers to {largest:g}, found {float(numbers[wrong][0])}")
    return numbers


def _read_scales(cursor: Cursor, count: int, exponent: int, largest: float, dtype: torch.dtype) -> Tensor:
    bits = _read_array(cursor, count, "<i2", "scales")
    numbers = (bits.astype(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    limits = torch.finfo(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.ldexp(numbers.astype(np.float64), exponent)
    fits = (bits >= FIRST_NORMAL) & (scales >= limits.tiny) & (scales <= limits.max / largest)  # not NaN
    wrong = ~fits & (bits != 0)
    if wrong.any():
        raise CodecError(
            f"scales: expected zero or a number from {limits.tiny} to {limits.max / largest}, "
            f"found {scales[wrong][0]}"
        )
    return torch.from_numpy(bits).view(torch.bfloat16)


# --- levels and signs --------------------------------------------------------------------------------


def _bytes_of_levels(numbers: Tensor) -> bytes:
    return numbers.numpy().tobytes()


def _read_levels(cursor: Cursor, count: int) -> Tensor:
    numbers = _read_array(cursor, count, "i1", "values")
    if count and int(numbers.min()) < -127:
        raise CodecError(f"values: expected int8 from -127, found {int(numbers.min())}")
    return torch.from_numpy(numbers)


def _bytes_of_halves_of_bytes(numbers: Tensor) -> bytes:
    halves = np.zeros(numbers.numel() + numbers.numel() % 2, dtype=np.uint8)
    halves[: numbers.numel()] = numbers.numpy() + 8
    return (halves[0::2] | halves[1::2] << 4).tobytes()


def _read_halves_of_bytes(cursor: Cursor, count: int) -> Tensor:
    packed = _read_array(cursor, (count + 1) // 2, "u1", "values")
    halves = np.stack((packed & 15, packed >> 4), axis=1).reshape(-1)
    if halves[count:].any():
        raise CodecError(f"values: expected zero padding, found {halves[count:][0]}")
    if count and int(halves[:count].min()) == 0:
        raise CodecError("values: expected int4 from -7, found -8")
    return torch.from_numpy(halves[:count].astype(np.int8) - np.int8(8))


def _bytes_of_signs(numbers: Tensor) -> bytes:
    return np.packbits(numbers.numpy() < 0).tobytes()


def _read_signs(cursor: Cursor, count: int) -> Tensor:
    bits = np.unpackbits(_read_array(cursor, (count + 7) // 8, "u1", "values"))
    if bits[count:].any():
        raise CodecError("values: expected zero padding after the signs, found ones")
    return torch.from_numpy(1 - 2 * bits[:count].astype(np.int8))


_PACK: dict[str, Callable[[Tensor], bytes]] = {
    "int8": _bytes_of_levels,
    "int4": _bytes_of_halves_of_bytes,
    "sign": _bytes_of_signs,
}
_READ: dict[str, Callable[[Cursor, int], Tensor]] = {
    "int8": _read_levels,
    "int4": _read_halves_of_bytes,
    "sign": _read_signs,
}


def _read_array(
    cursor: Cursor, count: int, stored: str, what: str, *, may_be_view: bool = False
) -> npt.NDArray[Any]:
    kind = np.dtype(stored)
    raw = cursor.take(count * kind.itemsize, what)
    array = np.frombuffer(raw, dtype=kind)
    usable = kind.isnative and array.flags.aligned and array.flags.writeable  # torch warns of what is not
    if may_be_view and cursor.lasting and usable:
        return array
    return array.astype(kind.newbyteorder("="))
