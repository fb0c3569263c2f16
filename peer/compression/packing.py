"""Message bodies as bytes, little-endian. Lengths follow from the model, or are checked against it.

    Empty      nothing
    Dense      value type u8, blocks u8, scales, values
    Sparse     value type u8, blocks u8, varint length of the index section, index section, scales, values
    Quantized  blocks u8, step f64, symbol section
    Half       start u8, value type u8, blocks u8, scales, values
    Recalled   blocks u8, step f64, check u32, symbol section (read with its link's history)

blocks: 0 the whole vector is one block, 1 every tensor of the model is. Scales come with int8 values, and
with fp16 values of a value type of their own, one per block, in the session's dtype. Sections are `golomb`'s
three streams; what the index section holds says `indices`. `read_body` checks every count, length and number
before it uses it (CodecError), and takes memory in proportion to d at most.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import (
    MAX_SYMBOL,
    Body,
    Dense,
    Empty,
    Half,
    Layout,
    Quantized,
    Recalled,
    Sparse,
    half_of,
)
from peer.compression.golomb import BitReader, BitWriter, read_varint, varint
from peer.compression.indices import read_indices, write_indices
from peer.compression.quantize import read_symbols, write_symbols
from peer.compression.sparsify import INT8_LEVELS
from peer.errors import CodecError, DivergedError

EMPTY, DENSE, SPARSE, QUANTIZED, HALF, RECALLED = range(6)
KINDS: dict[type[Body], int] = {
    Empty: EMPTY,
    Dense: DENSE,
    Sparse: SPARSE,
    Quantized: QUANTIZED,
    Half: HALF,
    Recalled: RECALLED,
}
_TYPES: dict[torch.dtype, tuple[int, np.dtype[Any]]] = {
    torch.float32: (0, np.dtype("<f4")),
    torch.float16: (1, np.dtype("<f2")),
    torch.int8: (2, np.dtype("i1")),
    torch.float64: (3, np.dtype("<f8")),
}
_SCALED_HALF = 4
_BY_CODE = {code: dtype for dtype, (code, _) in _TYPES.items()} | {_SCALED_HALF: torch.float16}
_LARGEST = {torch.int8: float(INT8_LEVELS), torch.float16: torch.finfo(torch.float16).max}  # that is scaled
_STEP = struct.Struct("<d")
_RECALLED = struct.Struct("<dI")


class Cursor:
    """Reads fields off the front of some bytes; whatever is not there is a CodecError."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self._data) - self._at:
            raise CodecError(f"{what}: expected {size} bytes, found {len(self._data) - self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, limit: int, what: str) -> int:
        number, self._at = read_varint(self._data, self._at, limit, what)
        return number

    def rest(self) -> memoryview:
        return self.take(len(self._data) - self._at, "the rest")

    def finish(self) -> None:
        if self._at != len(self._data):
            raise CodecError(f"message: expected its end at byte {self._at}, found {len(self._data)} bytes")


def write_body(body: Body, layout: Layout | None = None) -> bytes:
    """layout: the model's, by which sets of indices that cluster get shorter. Raises DivergedError for values
    that are not finite."""
    match body:
        case Empty():
            return b""
        case Dense():
            return bytes((_code(body), body.blocks is not None)) + _packed_values(body)
        case Half():
            head = bytes((body.start, _code(body), body.blocks is not None))
            return head + _packed_values(body)
        case Sparse():
            writer = BitWriter()
            write_indices(writer, body.indices.cpu().numpy(), layout or Layout((body.size,)))
            section = writer.finish()
            head = bytes((_code(body), body.blocks is not None)) + varint(len(section))
            return head + section + _packed_values(body)
        case Quantized():
            symbols = body.symbols.cpu().numpy().astype(np.int64)
            assert int(np.abs(symbols).max()) <= MAX_SYMBOL, "a symbol is too large"
            writer = BitWriter()
            write_symbols(writer, symbols, body.blocks)
            return bytes((body.blocks is not None,)) + _STEP.pack(body.step) + writer.finish()
        case Recalled():
            head = bytes((body.blocks is not None,)) + _RECALLED.pack(body.step, body.check)
            return head + body.data


def read_body(kind: int, data: memoryview, layout: Layout, dtype: torch.dtype) -> Body:
    """The body of that kind for a model of this layout and dtype. Shares no memory with `data`."""
    cursor = Cursor(data)
    body: Body
    if kind == EMPTY:
        body = Empty(layout.d, dtype)
    elif kind == DENSE:
        stored, scaled, blocks = _read_type(cursor, layout, dtype)
        scales = _read_scales(cursor, stored, blocks, dtype) if scaled else None
        body = Dense(_read_values(cursor, layout.d, stored), dtype, scales, blocks)
    elif kind == SPARSE:
        body = _read_sparse(cursor, layout, dtype)
    elif kind == QUANTIZED:
        body = _read_quantized(cursor, layout, dtype)
    elif kind == HALF:
        body = _read_half(cursor, layout, dtype)
    elif kind == RECALLED:
        body = _read_recalled(cursor, layout, dtype)
    else:
        raise CodecError(f"body kind: expected 0..{RECALLED}, found {kind}")
    cursor.finish()
    return body


def _finite(values: Tensor) -> bool:
    """A sum is finite only if all is, and takes a tenth of the time; a large one proves nothing."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _code(body: Dense | Sparse | Half) -> int:
    if body.values.dtype == torch.float16 and body.scales is not None:
        return _SCALED_HALF
    return _TYPES[body.values.dtype][0]


def _packed_values(body: Dense | Sparse | Half) -> bytes:
    values = body.values.detach().cpu()
    if values.is_floating_point() and not _finite(values):
        raise DivergedError.found(float(values.abs().max()))
    packed = _packed(values)
    return packed if body.scales is None else _packed(body.scales.cpu()) + packed


def _packed(tensor: Tensor) -> bytes:
    return tensor.numpy().astype(_TYPES[tensor.dtype][1], copy=False).tobytes()


def _read_half(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Half:
    start = cursor.byte("start")
    if start > 1:
        raise CodecError(f"start: expected 0 or 1, found {start}")
    stored, scaled, blocks = _read_type(cursor, layout, dtype)
    scales = _read_scales(cursor, stored, blocks, dtype) if scaled else None
    values = _read_values(cursor, half_of(layout.d, start), stored)
    return Half(layout.d, start, values, dtype, scales, blocks)


def _read_sparse(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Sparse:
    stored, scaled, blocks = _read_type(cursor, layout, dtype)
    length = cursor.varint(layout.d // 4 + 64, "length of the index section")  # 1.08 bits each at most
    reader = BitReader(cursor.take(length, "index section"), 2 * layout.d)  # one number in a bit at most
    indices = read_indices(reader, layout)
    reader.finish()
    scales = _read_scales(cursor, stored, blocks, dtype) if scaled else None
    values = _read_values(cursor, len(indices), stored)
    return Sparse(layout.d, torch.from_numpy(indices), values, dtype, scales, blocks)


def _read_quantized(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Quantized:
    blocks = _read_blocks(cursor, layout)
    step = _sound_step(_STEP.unpack(cursor.take(_STEP.size, "step"))[0], dtype)
    section = _read_section(cursor, layout, 64)
    reader = BitReader(section, 3 * layout.d)
    symbols = read_symbols(reader, layout.d, blocks)
    reader.finish()
    largest = int(np.abs(symbols).max())
    if largest * step > torch.finfo(dtype).max:
        raise CodecError(f"symbols: expected finite values in {dtype}, found {largest} * {step}")
    return Quantized(torch.from_numpy(symbols), step, dtype, blocks)


def _read_recalled(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Recalled:
    blocks = _read_blocks(cursor, layout)
    step, check = _RECALLED.unpack(cursor.take(_RECALLED.size, "step and check value"))
    section = bytes(_read_section(cursor, layout, 256))
    return Recalled(layout.d, _sound_step(step, dtype), check, section, dtype, blocks)


def _sound_step(step: float, dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    if not limits.tiny <= step <= limits.max:
        raise CodecError(f"step: expected a normal positive number of {dtype}, found {step}")
    return step


def _read_section(cursor: Cursor, layout: Layout, heads: int) -> memoryview:
    """Coded symbols, which are read elsewhere. heads: bytes that groups take beside those of the tensors."""
    section = cursor.rest()
    longest = 3 * layout.d + 8 * len(layout.sizes) + heads  # 23 bits for the worst symbol
    if len(section) > longest:
        raise CodecError(f"symbols: expected at most {longest} bytes, found {len(section)}")
    return section


def _read_blocks(cursor: Cursor, layout: Layout) -> Layout | None:
    flag = cursor.byte("blocks")
    if flag > 1:
        raise CodecError(f"blocks: expected 0 or 1, found {flag}")
    return layout if flag else None


def _read_type(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> tuple[torch.dtype, bool, Layout | None]:
    """How values are stored, whether with scales, and the blocks of these."""
    code = cursor.byte("value type")
    if code not in _BY_CODE:
        raise CodecError(f"value type: expected one of {sorted(_BY_CODE)}, found {code}")
    stored = _BY_CODE[code]
    if stored == torch.float64 != dtype:
        raise CodecError(f"value type: expected one that fits a session of {dtype}, found {stored}")
    return stored, stored == torch.int8 or code == _SCALED_HALF, _read_blocks(cursor, layout)


def _read_values(cursor: Cursor, count: int, stored: torch.dtype) -> Tensor:
    numbers = _read_array(cursor, count, stored, "values")
    if stored == torch.int8:
        if count and int(numbers.min()) < -INT8_LEVELS:
            raise CodecError(f"values: expected int8 from -{INT8_LEVELS}, found {int(numbers.min())}")
    elif not np.isfinite(numbers).all():
        at = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise CodecError(f"values: expected finite numbers, found {numbers[at]} at {at}")
    return torch.from_numpy(numbers)


def _read_scales(cursor: Cursor, stored: torch.dtype, blocks: Layout | None, dtype: torch.dtype) -> Tensor:
    scales = _read_array(cursor, 1 if blocks is None else len(blocks.sizes), dtype, "scales")
    largest = torch.finfo(dtype).max / _LARGEST[stored]
    wrong = ~((scales >= 0) & (scales <= largest))  # NaN is wrong too
    if wrong.any():
        raise CodecError(f"scales: expected numbers from 0 to {largest}, found {scales[wrong][0]}")
    return torch.from_numpy(scales)


def _read_array(cursor: Cursor, count: int, dtype: torch.dtype, what: str) -> npt.NDArray[Any]:
    stored = _TYPES[dtype][1]
    raw = cursor.take(count * stored.itemsize, what)
    return np.frombuffer(raw, dtype=stored).astype(stored.newbyteorder("="))
