"""Message bodies as bytes, little-endian. Lengths follow from the model, or are checked against it.

    Empty      nothing
    Dense      7 zeros, values: numbers of 8 bytes and of 4 then begin at a multiple of 8 from the message's
               beginning, and can be used where they lie
    Sparse     varint length of the index section, index section, values
    Strided    step u16, start u16, values
    Drawn      seed u32, count u32, values
    LowRank    rank u8, values: the factors
    Quantized  blocks u8, step f64, symbol section
    Recalled   blocks u8, step f64, check u32, symbol section (read with its link's history)
    Pair       two of Dense
    Portion    count u32, 3 zeros, values: where no base comes before, they begin as Dense's do

Values are `value_bytes`' matter, indices `indices`'. blocks: 0 the whole vector is coded as one, 1 each
tensor of the model is. Sections are `golomb`'s three streams; of a long model's symbols, those of each chunk
(chunks.py). `read_body` checks every count, length and number before it uses it (CodecError), and takes
memory in proportion to d at most.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence

import torch

from peer.compression.bodies import (
    MAX_SYMBOL,
    Body,
    Dense,
    Drawn,
    Empty,
    Layout,
    LowRank,
    Pair,
    Portion,
    Quantized,
    Recalled,
    Sparse,
    Strided,
    drawn,
    strided_below,
    strided_in,
    those_in,
)
from peer.compression.chunks import joined_longest, peak_symbol
from peer.compression.cursor import Cursor
from peer.compression.golomb import BitReader, BitWriter, varint
from peer.compression.history import longest_sections as longest_recalled
from peer.compression.indices import read_indices, write_indices
from peer.compression.low_rank import bound, factors
from peer.compression.quantize import longest_sections, read_symbols, write_symbols
from peer.compression.value_bytes import Piece, code_of, read_values, write_values
from peer.compression.values import Coding
from peer.errors import CodecError
from peer.grammar import MAX_GROUPS, MAX_RANK

EMPTY, DENSE, SPARSE, QUANTIZED, STRIDED, RECALLED, DRAWN, LOW_RANK, PAIR, PORTION = range(10)
KINDS: dict[type[Body], int] = {
    Empty: EMPTY,
    Dense: DENSE,
    Sparse: SPARSE,
    Quantized: QUANTIZED,
    Strided: STRIDED,
    Recalled: RECALLED,
    Drawn: DRAWN,
    LowRank: LOW_RANK,
    Pair: PAIR,
    Portion: PORTION,
}
_PADDING, _FILLER = bytes(7), bytes(3)
_STEP = struct.Struct("<d")
_RECALLED = struct.Struct("<dI")
_STRIDED = struct.Struct("<HH")
_DRAWN = struct.Struct("<II")
_COUNT = struct.Struct("<I")


def write_body(body: Body, layout: Layout | None = None) -> list[Piece]:
    """In pieces. layout: the model's, by which sets of indices that cluster get shorter. Raises DivergedError
    for values that are not finite."""
    match body:
        case Empty():
            return []
        case Dense():
            return [_PADDING, *write_values(body)]
        case Strided():
            return [_STRIDED.pack(body.step, body.start), *write_values(body)]
        case Drawn():
            return [_DRAWN.pack(body.seed, body.values.numel()), *write_values(body)]
        case LowRank():
            return [bytes((body.rank,)), *write_values(body)]
        case Pair():
            return [*write_body(body.first), *write_body(body.second)]
        case Portion():
            return [_COUNT.pack(body.values.numel()), _FILLER, *write_values(body)]
        case Sparse():
            writer = BitWriter()
            write_indices(writer, body.indices.cpu().numpy(), layout or Layout((body.size,)))
            section = writer.finish()
            return [varint(len(section)), section, *write_values(body)]
        case Quantized():
            symbols = body.symbols.cpu().numpy()
            assert peak_symbol(symbols) <= MAX_SYMBOL, "a symbol is too large"
            head = bytes((body.blocks is not None,)) + _STEP.pack(body.step)
            return [head, *write_symbols(symbols, body.blocks)]
        case Recalled():
            head = bytes((body.blocks is not None,)) + _RECALLED.pack(body.step, body.check)
            return [head, body.data]


def read_body(kind: int, cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Body:
    """The body of that kind for a model of this layout and dtype: all that is left there."""
    body: Body
    if kind == EMPTY:
        body = Empty(layout.d, dtype)
    elif kind == DENSE:
        body = _read_dense(cursor, layout, dtype)
    elif kind in _READERS:
        body = _READERS[kind](cursor, layout, dtype)
    else:
        raise CodecError(f"body kind: expected 0..{PORTION}, found {kind}")
    cursor.finish()
    return body


def coming_body(kind: int, cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Dense | None:
    """A vector as it is, in the session's own type, of which the first bytes are there: its values are still
    to come. None of any other body, and where they cannot be used where they lie."""
    if kind != DENSE or sys.byteorder != "little":
        return None
    if cursor.left != len(_PADDING) + 1 + layout.d * dtype.itemsize:
        return None
    padding, code = bytes(cursor.take(len(_PADDING), "padding")), cursor.byte("value type")
    if padding != _PADDING or code != code_of(dtype):
        return None
    return Dense(torch.frombuffer(cursor.rest(), dtype=dtype), came=True)


def _values(
    read: tuple[torch.Tensor, Coding | None, float | None], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.dtype, Coding | None]:
    return read[0], dtype, read[1]


def _read_dense(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Dense:
    _take_zeros(cursor, _PADDING)
    read = read_values(cursor, layout.d, layout, lambda: layout.sizes, dtype)
    return Dense(*_values(read, dtype), came=True, peak=read[2])


def _take_zeros(cursor: Cursor, padding: bytes) -> None:
    if bytes(cursor.take(len(padding), "padding")) != padding:
        raise CodecError("padding: expected zeros before the values")


def _read_pair(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Pair:
    return Pair(_read_dense(cursor, layout, dtype), _read_dense(cursor, layout, dtype))


def _read_portion(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Portion:
    (count,) = _COUNT.unpack(cursor.take(_COUNT.size, "count"))
    if not 1 <= count <= layout.d:
        raise CodecError(f"count: expected 1 to {layout.d}, found {count}")
    _take_zeros(cursor, _FILLER)
    read = read_values(cursor, count, Layout((count,)), lambda: (count,), dtype)
    return Portion(layout.d, *_values(read, dtype), peak=read[2])


def _read_strided(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Strided:
    step, start = _STRIDED.unpack(cursor.take(_STRIDED.size, "step and start"))
    if not 2 <= step <= MAX_GROUPS:
        raise CodecError(f"step: expected 2 to {MAX_GROUPS}, found {step}")
    if start >= step:
        raise CodecError(f"start: expected 0 to {step - 1}, found {start}")
    count = strided_below(layout.d, start, step)
    read = read_values(cursor, count, layout, lambda: strided_in(layout, start, step), dtype)
    return Strided(layout.d, start, step, *_values(read, dtype))


def _read_drawn(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Drawn:
    seed, count = _DRAWN.unpack(cursor.take(_DRAWN.size, "seed and count"))
    if not 1 <= count <= layout.d:
        raise CodecError(f"count: expected 1 to {layout.d}, found {count}")
    read = read_values(cursor, count, layout, lambda: those_in(layout, drawn(layout.d, count, seed)), dtype)
    return Drawn(layout.d, seed, *_values(read, dtype))


def _read_low_rank(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> LowRank:
    rank = cursor.byte("rank")
    if not 1 <= rank <= MAX_RANK:
        raise CodecError(f"rank: expected 1 to {MAX_RANK}, found {rank}")
    inner = factors(layout, rank)
    read = read_values(cursor, inner.d, inner, lambda: inner.sizes, dtype)
    body = LowRank(layout, rank, *_values(read, dtype))
    largest = bound(body.factors(), layout, rank)
    if not largest <= torch.finfo(dtype).max:
        raise CodecError(f"factors: expected finite products in {dtype}, found up to {largest}")
    return body


def _read_sparse(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Sparse:
    length = cursor.varint(layout.d // 4 + 64, "length of the index section")  # 1.08 bits each at most
    reader = BitReader(cursor.take(length, "index section"), 2 * layout.d)  # one number in a bit at most
    indices = torch.from_numpy(read_indices(reader, layout))
    reader.finish()
    read = read_values(cursor, len(indices), layout, lambda: those_in(layout, indices), dtype)
    return Sparse(layout.d, indices, *_values(read, dtype))


def _read_quantized(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Quantized:
    blocks = _read_blocks(cursor, layout)
    step = _sound_step(_STEP.unpack(cursor.take(_STEP.size, "step"))[0], dtype)
    section = _read_section(cursor, longest_sections(layout.d, layout))
    symbols = read_symbols(section, layout.d, blocks)
    largest = peak_symbol(symbols)
    if largest * step > torch.finfo(dtype).max:
        raise CodecError(f"symbols: expected finite values in {dtype}, found {largest} * {step}")
    return Quantized(torch.from_numpy(symbols), step, dtype, blocks)


def _read_recalled(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> Recalled:
    blocks = _read_blocks(cursor, layout)
    step, check = _RECALLED.unpack(cursor.take(_RECALLED.size, "step and check value"))
    section = bytes(_read_section(cursor, longest_recalled(layout)))
    return Recalled(layout.d, _sound_step(step, dtype), check, section, dtype, blocks)


def _sound_step(step: float, dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    if not limits.tiny <= step <= limits.max:
        raise CodecError(f"step: expected a normal positive number of {dtype}, found {step}")
    return step


def _read_section(cursor: Cursor, longest: Sequence[int]) -> memoryview:
    """Coded symbols, which are read elsewhere. longest: bytes of each chunk at most."""
    section, most = cursor.rest(), joined_longest(longest)
    if len(section) > most:
        raise CodecError(f"symbols: expected at most {most} bytes, found {len(section)}")
    return section


def _read_blocks(cursor: Cursor, layout: Layout) -> Layout | None:
    flag = cursor.byte("blocks")
    if flag > 1:
        raise CodecError(f"blocks: expected 0 or 1, found {flag}")
    return layout if flag else None


_READERS: dict[int, Callable[[Cursor, Layout, torch.dtype], Body]] = {
    SPARSE: _read_sparse,
    QUANTIZED: _read_quantized,
    STRIDED: _read_strided,
    RECALLED: _read_recalled,
    DRAWN: _read_drawn,
    LOW_RANK: _read_low_rank,
    PAIR: _read_pair,
    PORTION: _read_portion,
}
