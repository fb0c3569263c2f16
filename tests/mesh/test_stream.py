"""What one stream makes of a parcel: how long its chunks are, and that the other end takes them."""

from __future__ import annotations

import asyncio
import math

import pytest

from peer.events import FrameHeard, Key, Parcel, Progress
from peer.mesh import chunks, stream
from peer.mesh.chunks import CHUNK_BYTES, LONG_CHUNK_BYTES, QUICK_RUN, chunk_from_wire
from peer.mesh.contacts import Contact
from peer.mesh.frames import frame_from_wire, parse
from peer.mesh.heap import LONG
from peer.mesh.stream import Intake, LinkStream
from peer.shared_buffer import SharedBuffer
from peer.wire import peer_pb2 as pb

PEER = "p-" + "a" * 26


class Pipe:
    """Keeps what is written; nothing comes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def read(self) -> object:
        return await asyncio.Event().wait()

    async def write(self, message: bytes, /) -> None:
        self.written.append(message)


def chunks_in(written: list[bytes]) -> list[int]:
    found = (chunk_from_wire(frame) for frame in written)
    return [len(chunk) for chunk in found if chunk is not None]


async def sent(*payloads: bytes) -> list[bytes]:
    """The frames that parcels of these payloads are on one stream."""
    pipe = Pipe()
    out = LinkStream(Contact(PEER), "out", pipe, Intake(lambda: 0, SharedBuffer.create), dialed=True)
    for number, payload in enumerate(payloads, 1):
        await out._write_parcel(Parcel(1, number, Key(0, number), payload, "mass"))
    return pipe.written


async def test_a_quick_link_has_long_chunks_from_some_time_on_which_the_other_end_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "QUICK_S", math.inf)
    first = bytes(range(256)) * (CHUNK_BYTES // 256) * (QUICK_RUN // 2)
    second = first + bytes(2 * LONG_CHUNK_BYTES + 5)
    written = await sent(first, second)
    assert chunks_in(written) == [CHUNK_BYTES] * QUICK_RUN + [LONG_CHUNK_BYTES] * 2 + [5]
    heard: list[FrameHeard | Progress] = []
    into = LinkStream(
        Contact(PEER), "in", Pipe(), Intake(lambda: len(second), SharedBuffer.create), dialed=True
    )
    into._on_event = heard.append
    for frame in written:
        chunk = chunk_from_wire(frame)
        into._take(
            frame_from_wire(parse(pb.LinkFrame, frame)) if chunk is None else stream.Chunk(bytes(chunk))
        )
    parcels = [event.frame for event in heard if isinstance(event, FrameHeard)]
    for parcel, payload in zip(parcels, (first, second), strict=True):
        assert isinstance(parcel, Parcel) and isinstance(parcel.payload, SharedBuffer)
        assert parcel.payload.read(0, len(second) + 1) == payload
        parcel.payload.close()


async def test_a_slow_link_keeps_short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it says often that a parcel moves, which is what a round waits by."""
    monkeypatch.setattr(chunks, "QUICK_S", 0.0)
    payload = bytes((QUICK_RUN + 4) * CHUNK_BYTES)
    assert chunks_in(await sent(payload, payload)) == [CHUNK_BYTES] * 2 * (QUICK_RUN + 4)


@pytest.mark.parametrize(("length", "kept"), [(LONG - 1, 0), (LONG, 2)])
async def test_memory_of_chunks_is_kept_once_a_long_parcel_passes(
    length: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(stream, "keep_chunks", lambda: told.append(True))
    begin, *_ = await sent(bytes(length))
    into = LinkStream(Contact(PEER), "in", Pipe(), Intake(lambda: length, SharedBuffer.create), dialed=True)
    into._take(frame_from_wire(parse(pb.LinkFrame, begin)))
    assert len(told) == kept
    into.close("over")
