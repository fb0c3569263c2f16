"""Chunks on the wire against protobuf's own bytes, and the digest."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import PeerdError, RemoteError
from peer.mesh import frames
from peer.mesh.chunks import (
    CHUNK_BYTES,
    LONG_CHUNK_BYTES,
    QUICK_RUN,
    QUICK_S,
    ChunkSize,
    Digest,
    chunk_from_wire,
    chunk_to_wire,
    part_of,
)
from peer.mesh.frames import Chunk, End, frame_from_wire, frame_to_wire
from peer.shared_buffer import SharedBuffer
from peer.wire import peer_pb2 as pb

LENGTHS = st.sampled_from(
    [0, 1, 127, 128, 129, 16_383, 16_384, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]
)


@given(LENGTHS)
def test_a_chunk_is_what_protobuf_makes_of_it(length: int) -> None:
    data = bytes(range(256)) * (length // 256 + 1)
    data = data[:length]
    said = chunk_to_wire(data)
    assert said == frame_to_wire(Chunk(data)).SerializeToString()
    found = chunk_from_wire(said)
    assert found is not None
    assert found == data


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x2a" + rest))
def test_what_is_read_as_a_chunk_is_one_to_protobuf_too(data: bytes) -> None:
    found = chunk_from_wire(data)
    if found is not None:
        assert frame_from_wire(frames.parse(pb.LinkFrame, data)) == Chunk(bytes(found))


def test_what_has_more_than_a_chunk_is_left_to_protobuf() -> None:
    end = frame_to_wire(End(bytes(16))).SerializeToString()
    both = chunk_to_wire(b"abc") + end
    assert chunk_from_wire(both) is None
    assert frame_from_wire(frames.parse(pb.LinkFrame, both)) == End(bytes(16))
    for other in (end, b"", b"\x2a", b"\x2a\x05abc", b"\x2a" + b"\xff" * 12):
        assert chunk_from_wire(other) is None
    with pytest.raises(RemoteError, match="no LinkFrame"):
        frames.parse(pb.LinkFrame, b"\x2a\x05abc")


def test_the_digest_is_xxh3() -> None:
    digest = Digest()
    for part in (b"one", memoryview(b"two"), b""):
        digest.update(part)
    assert digest.value() == xxhash.xxh3_128_digest(b"onetwo")


def test_parts_of_a_payload_are_copies_of_no_more_than_is_asked_for() -> None:
    with SharedBuffer.of(b"abcdefgh") as buffer:
        for payload in (b"abcdefgh", bytearray(b"abcdefgh"), memoryview(b"abcdefgh"), buffer):
            assert [part_of(payload, at, 3) for at in (0, 3, 6)] == [b"abc", b"def", b"gh"]
    with pytest.raises(PeerdError, match="closed"):
        part_of(buffer, 0, 3)


def test_chunks_are_long_where_a_link_has_been_quick_for_more_than_it_may_hold_back() -> None:
    size = ChunkSize()
    for _ in range(QUICK_RUN):
        assert size.now == CHUNK_BYTES
        size.sent(QUICK_S / 2)
    assert size.now == LONG_CHUNK_BYTES
    size.sent(QUICK_S)
    for _ in range(QUICK_RUN):
        assert size.now == CHUNK_BYTES
        size.sent(0.0)
    assert size.now == LONG_CHUNK_BYTES
