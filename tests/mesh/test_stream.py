"""What one stream makes of a parcel: how long its chunks are, and that the other end takes them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from peer.events import FrameHeard, Key, Open, Parcel, Progress
from peer.mesh import chunks, stream
from peer.mesh.chunks import CHUNK_BYTES, LONG_CHUNK_BYTES, QUICK_RUN, chunk_from_wire
from peer.mesh.contacts import Contact
from peer.mesh.frames import Begin, frame_from_wire, parse
from peer.mesh.heap import LONG
from peer.mesh.stream import Intake, LinkStream
from peer.shared_buffer import Growth, SharedBuffer
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


async def until(seen: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if seen():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("not within a minute")


async def test_a_parcel_is_sent_as_far_as_it_is_filled() -> None:
    content = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
    pipe, buffer = Pipe(), SharedBuffer.create(len(content))
    buffer.growth = growth = Growth()
    out = LinkStream(Contact(PEER), "out", pipe, Intake(lambda: 0, SharedBuffer.create), dialed=True)
    writing = asyncio.create_task(out._write_parcel(Parcel(1, 1, Key(), buffer, "latest")))
    await until(lambda: len(pipe.written) == 1)
    for filled, there in ((CHUNK_BYTES - 1, 0), (2 * CHUNK_BYTES + 1, 2), (len(content), 4)):
        buffer.write(growth.filled, content[growth.filled : filled])
        growth.reach(filled, last=filled == len(content))
        await until(lambda there=there: len(chunks_in(pipe.written)) == there)  # type: ignore[misc]  # a default
        await asyncio.sleep(0.01)
        assert len(chunks_in(pipe.written)) == there
    await writing
    sent_bytes = [chunk for chunk in map(chunk_from_wire, pipe.written) if chunk is not None]
    assert b"".join(sent_bytes) == content
    assert not out.closed
    buffer.close()


async def test_a_parcel_that_is_given_up_before_it_is_filled_ends_the_stream() -> None:
    pipe, buffer = Pipe(), SharedBuffer.create(2 * CHUNK_BYTES)
    buffer.growth = growth = Growth()
    out = LinkStream(Contact(PEER), "out", pipe, Intake(lambda: 0, SharedBuffer.create), dialed=True)
    writing = asyncio.create_task(out._write_parcel(Parcel(1, 1, Key(), buffer, "latest")))
    growth.reach(CHUNK_BYTES)
    await until(lambda: len(chunks_in(pipe.written)) == 1)
    buffer.close()  # its learner is gone
    await writing
    assert out.closed and "taken away" in out.reason
    assert len(chunks_in(pipe.written)) == 1


async def test_nothing_follows_a_parcel_that_was_taken_away_while_it_was_sent() -> None:
    """The other end would take it for a broken rule, and say that this device may be broken."""
    pipe, buffer = Pipe(), SharedBuffer.create(CHUNK_BYTES)
    out = LinkStream(Contact(PEER), "out", pipe, Intake(lambda: 0, SharedBuffer.create), dialed=True)
    buffer.close()  # its learner is gone
    for frame in (Open(1, 1), Parcel(1, 1, Key(), buffer, "mass"), Open(1, 2)):
        out.send(frame)
    await asyncio.wait_for(out.run(lambda event: None), 10)
    assert "taken away" in out.reason
    opened, begun = (frame_from_wire(parse(pb.LinkFrame, data)) for data in pipe.written)
    assert opened == Open(1, 1) and isinstance(begun, Begin)


async def test_what_is_sent_on_a_stream_that_is_closed_goes_nowhere() -> None:
    pipe = Pipe()
    out = LinkStream(Contact(PEER), "out", pipe, Intake(lambda: 0, SharedBuffer.create), dialed=True)
    writing = asyncio.create_task(out._write())
    await asyncio.sleep(0)  # it waits for something to send
    out.close("another one is better")
    out.send(Open(1, 1))
    await asyncio.wait_for(writing, 10)
    assert pipe.written == []


async def test_how_far_a_long_parcel_has_come_is_told_but_not_that_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "TELL_BYTES", 2 * CHUNK_BYTES)
    told, content = list[tuple[str, int, int, bytes]](), bytes(range(256)) * (6 * CHUNK_BYTES // 256)

    def coming(src: str, begin: Begin, buffer: stream.Buffer, filled: int) -> None:
        assert isinstance(buffer, SharedBuffer)
        told.append((src, begin.number, filled, buffer.read(0, filled)))

    intake = Intake(lambda: len(content), SharedBuffer.create, coming)
    into = LinkStream(Contact(PEER), "in", Pipe(), intake, dialed=True)
    for frame in await sent(content, content[: 2 * CHUNK_BYTES]):
        chunk = chunk_from_wire(frame)
        into._take(
            frame_from_wire(parse(pb.LinkFrame, frame)) if chunk is None else stream.Chunk(bytes(chunk))
        )
    assert told == [(PEER, 1, filled, content[:filled]) for filled in (2 * CHUNK_BYTES, 4 * CHUNK_BYTES)]
