"""Long vectors of symbols in chunks, so that what coding them takes does not grow with the model.

    at most CHUNK parameters    a section
    more                        varint length, section   of each CHUNK of them, and of what remains

A section is `golomb`'s three streams, complete for itself. Nothing of a chunk is needed for the next, and so
nothing but the symbols, what is known of them beforehand (history.py) and the coded bytes is ever as long as
the model. `coding_bytes` bounds what all of it takes, whatever a frame says: a section that is longer than
any can be is refused before it is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from peer.compression.golomb import read_varint, varint
from peer.errors import CodecError

CHUNK = 1 << 19  # measured at 2^22, 1 and 1/4 bit: 0.2 and 0.4 % more bytes than in one; 2^16 0.7 and 2.3 %
MODEL_BYTES = 5  # for each parameter of the model: two of its symbol, three of its class and place in it
WORKING_BYTES = 96  # for each of a chunk (measured: 26 at 1 bit, 71 at 12, 92 for a frame made to take most)
LENGTH_BYTES = 5  # of a varint, at most

Symbols = tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]
"""Of a chunk: magnitudes, and which are negative (of a zero it does not matter)."""


def chunks(d: int, width: int = 1) -> list[slice]:
    """0 to d in pieces that make up a chunk each, but for the last. width: of one of the d, if not 1."""
    size = max(1, CHUNK // width)
    return [slice(start, min(start + size, d)) for start in range(0, d, size)]


def coding_bytes(d: int) -> int:
    """What coding or reading d symbols takes at most, besides the vector and the coded bytes."""
    return MODEL_BYTES * d + WORKING_BYTES * min(d, CHUNK)


def in_chunks(symbols: npt.NDArray[np.int16]) -> Iterator[Symbols]:
    for chunk in chunks(len(symbols)):
        yield np.abs(symbols[chunk]), symbols[chunk] < 0


def peak_symbol(symbols: npt.NDArray[np.int16]) -> int:
    """The largest magnitude, without a vector of magnitudes."""
    return max(int(symbols.max()), -int(symbols.min()))


def joined(sections: Sequence[bytes]) -> list[bytes]:
    """One section of each chunk, as pieces of what travels."""
    if len(sections) == 1:
        return list(sections)
    return [piece for section in sections for piece in (varint(len(section)), section)]


def joined_bytes(lengths: Sequence[int]) -> int:
    """The length of what `joined` makes of sections of these lengths."""
    return sum(lengths) + (sum(len(varint(length)) for length in lengths) if len(lengths) > 1 else 0)


def longest(d: int, groups: int, heads: int) -> list[int]:
    """Bytes that the section of each chunk takes at most: 23 bits for the worst symbol. groups: of how many
    each position tells; heads: bytes besides."""
    sizes = [chunk.stop - chunk.start for chunk in chunks(d)]
    return [3 * size + 8 * min(groups, size) + heads for size in sizes]


def joined_longest(most: Sequence[int]) -> int:
    return sum(most) + (LENGTH_BYTES * len(most) if len(most) > 1 else 0)


def apart(data: memoryview, most: Sequence[int]) -> Iterator[memoryview]:
    """The sections again. most: bytes of each (`longest`). Raises CodecError, when it comes to it."""
    at = 0
    for limit in most:
        length = len(data)
        if len(most) > 1:
            length, at = read_varint(data, at, limit, "length of a chunk")
        if length > min(limit, len(data) - at):
            raise CodecError(f"chunk: expected at most {limit} bytes and {length}, found {len(data) - at}")
        yield data[at : at + length]
        at += length
    if at != len(data):
        raise CodecError(f"chunks: expected their end at byte {at}, found {len(data)} bytes")
