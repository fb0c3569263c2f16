"""Chunks of a parcel: cut from a payload, as bytes on the wire and back, in as few copies as can be.

A chunk on the wire is a LinkFrame (proto/peer.proto) that has this one field. Through protobuf its bytes
would be copied twice more, into memory that is new each time: 0.4 ms for 256 KiB against 5 us, measured.
"""

from __future__ import annotations

import asyncio

from xxhash import xxh3_128

from peer.events import Payload
from peer.wire import peer_pb2 as pb

CHUNK_BYTES = 256 * 1024  # 0.1 s at 20 Mbit/s
LONG_CHUNK_BYTES = 512 * 1024  # where links are quick: a seventh less CPU time, of 1 MiB no less
QUICK_S = 0.2  # a chunk that was sent within it was quick
QUICK_RUN = 32  # so many in a row are more than the 4 MB that gRPC and the kernel hold for a slow link
_BYTES = 2  # protobuf's wire type of bytes
_TAG = pb.LinkFrame.DESCRIPTOR.fields_by_name["chunk"].number << 3 | _BYTES
_LONGEST_COUNT = 4  # bytes of a count of bytes below 2^28


class Digest:
    """XXH3 of a parcel, 128 bits: is what came what was sent? It keeps nobody from forging: a member could as
    well send what it likes, and TLS keeps out everybody else. SHA-256 at both ends takes 1.1 ns a byte where
    processors have instructions for it, which a Raspberry Pi 4's has not; this takes 0.03."""

    def __init__(self) -> None:
        self._hash = xxh3_128()

    def update(self, data: bytes | memoryview) -> None:
        self._hash.update(data)

    def value(self) -> bytes:
        return self._hash.digest()


class ChunkSize:
    """Of the chunks that one stream sends. On a slow link short ones show often that a parcel moves."""

    def __init__(self) -> None:
        self._quick = 0  # in a row

    @property
    def now(self) -> int:
        return LONG_CHUNK_BYTES if self._quick >= QUICK_RUN else CHUNK_BYTES

    def sent(self, took_s: float) -> None:
        self._quick = self._quick + 1 if took_s < QUICK_S else 0


def part_of(payload: Payload, at: int, size: int) -> memoryview:
    """A part of an outgoing payload, a shared buffer or a bytes object: to be released before anything else
    happens to that."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return memoryview(payload)[at : at + size]
    part = getattr(payload, "part", None)
    assert part is not None, f"a payload of type {type(payload).__name__} cannot be read"
    data = part(at, size)
    assert isinstance(data, memoryview)
    return data


async def is_there(payload: Payload, end: int) -> bool:
    """Wait until an outgoing payload is filled up to there. False: it never will be."""
    growth = getattr(payload, "growth", None)
    if growth is None or growth.filled >= end:
        return True
    changed = asyncio.Event()
    growth.on_change = changed.set
    while growth.filled < end and not growth.failed:
        await changed.wait()
        changed.clear()
    return bool(growth.filled >= end)


def chunk_to_wire(data: bytes | memoryview) -> bytes:
    """The LinkFrame that has this chunk."""
    return b"".join((bytes((_TAG,)), _count(len(data)), data))


def chunk_from_wire(frame: bytes) -> memoryview | None:
    """The chunk of a LinkFrame that has nothing else, as a view. None: protobuf may know what it is."""
    if not frame or frame[0] != _TAG:
        return None
    length = 0
    for i, byte in enumerate(frame[1 : 1 + _LONGEST_COUNT]):
        length |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            data = memoryview(frame)[2 + i :]
            return data if len(data) == length else None
    return None


def _count(number: int) -> bytes:
    """As protobuf writes it: 7 bits a byte, the lowest first."""
    said = bytearray()
    while number >= 0x80:
        said.append(number & 0x7F | 0x80)
        number >>= 7
    said.append(number)
    return bytes(said)
