"""One stream of one directed link: whole frames in, whole frames out.

A parcel travels as Begin, chunks, End, and is never interleaved with another. It counts at End alone, when
length and digest hold: a gRPC stream that ends says nothing about completeness (a cancelled or killed client
ends it like a finished one). Its length is checked before memory is taken. Whatever breaks a rule is a
RemoteError that ends the stream, and what had come of a parcel is given back.

Writing waits for gRPC, so at most one chunk of a parcel is copied at a time, and each is put where it belongs
as it comes: no end holds more of a parcel than its payload. A payload is read chunk by chunk, without keeping
a view: closing it while it is being sent ends the stream and nothing worse. It may be sent while the learner
still fills it, and how far a long one has come is told while it comes. The loop that does this has
everything else of the daemon to do as well; one chunk keeps it from that for well under a millisecond.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from peer.errors import PeerdError, RemoteError
from peer.events import (
    Ack,
    Direction,
    Frame,
    FrameHeard,
    Open,
    Opened,
    Parcel,
    PeerId,
    Progress,
    Refuse,
)
from peer.mesh.channels import GONE
from peer.mesh.chunks import (
    LONG_CHUNK_BYTES,
    ChunkSize,
    Digest,
    chunk_from_wire,
    chunk_to_wire,
    is_there,
    part_of,
)
from peer.mesh.contacts import Contact
from peer.mesh.frames import (
    Begin,
    Chunk,
    End,
    SmallFrame,
    WireFrame,
    begin_of,
    frame_from_wire,
    frame_to_wire,
    parse,
)
from peer.mesh.heap import LONG, keep_chunks
from peer.wire import peer_pb2 as pb

MAX_QUEUED = 64  # frames; links keep one parcel and a few answers out at a time
PROGRESS_S = 0.2  # no more often than this is Progress reported
TELL_BYTES = 16 << 20  # so often it is told how far a longer parcel has come; a tenth of a second at 1 Gbit/s
SETTLE_S = 5.0  # after this long a sender's own stream gives way to one the receiver dials


class Buffer(Protocol):
    """Where an incoming parcel is put (peer.shared_buffer.SharedBuffer is one)."""

    def __len__(self) -> int: ...
    def write(self, at: int, data: memoryview) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Intake:
    """limit(): the longest parcel taken now, bytes. make(length): memory for one. coming(src, begin, buffer,
    filled): so much of a long one has come; what it is worth is not known before its end."""

    limit: Callable[[], int]
    make: Callable[[int], Buffer]
    coming: Callable[[PeerId, Begin, Buffer, int], None] = lambda src, begin, buffer, filled: None


class Pipe(Protocol):
    """A gRPC call, seen from either end."""

    async def read(self) -> object: ...
    async def write(self, message: bytes, /) -> None: ...


@dataclass(slots=True)
class _Arriving:
    begin: Begin
    buffer: Buffer
    filled: int
    digest: Digest
    tell_at: int  # bytes


class LinkStream:
    """`run` moves frames until either end closes; `send` and `close` never wait."""

    def __init__(
        self, contact: Contact, direction: Direction, pipe: Pipe, intake: Intake, dialed: bool
    ) -> None:
        self.peer: PeerId = contact.peer
        self.direction: Direction = direction
        self.dialed_by_sender = dialed == (direction == "out")
        self.closed = False
        self.reason = ""
        self.ended = asyncio.Event()
        self._contact = contact
        self._pipe = pipe
        self._intake = intake
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue(MAX_QUEUED)
        self._arriving: _Arriving | None = None
        self._chunk_size = ChunkSize()
        self._on_event: Callable[[FrameHeard | Progress], None] = lambda event: None
        self._born = self._progress_at = asyncio.get_running_loop().time()

    def yields_to(self, newer: LinkStream) -> bool:
        """A newer stream replaces an older one. Only when both ends have dialed at the same time must they
        agree on one: the one the sender dialed."""
        fresh = asyncio.get_running_loop().time() - self._born < SETTLE_S
        return not (fresh and self.dialed_by_sender and not newer.dialed_by_sender)

    def send(self, frame: Frame) -> None:
        """Queue a frame. A queue that is full closes the stream; the node re-sends on the next one."""
        try:
            self._outbox.put_nowait(frame)
        except asyncio.QueueFull:
            self.close(f"{MAX_QUEUED} frames wait to be sent")

    def close(self, reason: str) -> None:
        """No event comes out of this stream any more; `run` returns soon."""
        if not self.closed:
            self.closed, self.reason = True, reason + self._give_back()
            self.ended.set()

    async def run(self, on_event: Callable[[FrameHeard | Progress], None]) -> None:
        """Move frames until the stream is closed here or over there; `reason` then says why."""
        self._on_event = on_event
        works = [asyncio.create_task(work) for work in (self._read(), self._write(), self._wait())]
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                if not work.cancelled():  # gRPC cancels a reader when the other end cancels the call
                    work.result()
            self.close("the other end broke off")
        except PeerdError as error:
            if isinstance(error, RemoteError) and not self.closed:
                self._contact.reject(str(error))
            self.close(str(error))
        except GONE as error:
            self.close(_why(error))
        finally:
            self.close("the call was cancelled")
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _wait(self) -> None:
        await self.ended.wait()

    # --- out -------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            frame = await self._outbox.get()
            if self.closed:
                return  # half a parcel may be out, and nothing may follow it
            if isinstance(frame, Parcel):
                await self._write_parcel(frame)
            else:
                await self._put(frame)

    async def _write_parcel(self, parcel: Parcel) -> None:
        length = len(parcel.payload)
        assert length, "a parcel has at least its message's head"
        if length >= LONG:
            keep_chunks()
        await self._put(begin_of(parcel))
        digest, at, clock = Digest(), 0, asyncio.get_running_loop().time
        while at < length:
            size = self._chunk_size.now
            if not await is_there(parcel.payload, min(at + size, length)):
                self.close(f"parcel {parcel.number} was taken away while it was sent: its learner is gone")
            if self.closed:
                return  # another stream sends it now, perhaps
            began = clock()
            try:
                with part_of(parcel.payload, at, size) as data:
                    digest.update(data)
                    frame = chunk_to_wire(data)
            except (PeerdError, ValueError) as error:  # what a closed SharedBuffer or memoryview raises
                self.close(f"parcel {parcel.number} was taken away while it was sent: {error}")
                return
            await self._put_bytes(frame)
            self._chunk_size.sent(clock() - began)
            at += size
            self._say_progress()
        if not self.closed:
            await self._put(End(digest.value()))

    async def _put(self, frame: WireFrame) -> None:
        await self._put_bytes(frame_to_wire(frame).SerializeToString())

    async def _put_bytes(self, data: bytes) -> None:
        await self._pipe.write(data)
        self._contact.bytes_sent += len(data)
        self._contact.frame_bytes_sent += len(data)

    # --- in --------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while not self.closed:
            data = await self._pipe.read()
            if not isinstance(data, bytes) or self.closed:  # grpc.aio.EOF
                return
            self._contact.bytes_received += len(data)
            chunk = chunk_from_wire(data)
            if chunk is None:
                self._take(frame_from_wire(parse(pb.LinkFrame, data)))
            else:
                self._take(Chunk(chunk))

    def _take(self, frame: WireFrame) -> None:
        match frame:
            case Begin() if self.direction == "in":
                self._begin(frame)
            case Chunk(data) if self.direction == "in":
                self._chunk(memoryview(data))
            case End(digest) if self.direction == "in":
                self._end(digest)
            case Open() if self.direction == "in":
                self._hear(frame)
            case Opened() | Ack() | Refuse() if self.direction == "out":
                self._hear(frame)
            case _:
                raise RemoteError(f"a frame {type(frame).__name__} on the {self.direction}-stream")

    def _hear(self, frame: SmallFrame | Parcel) -> None:
        if self._arriving is not None:
            raise RemoteError(f"a frame {type(frame).__name__} in the middle of a parcel")
        self._on_event(FrameHeard(self.peer, self.direction, frame))

    def _begin(self, begin: Begin) -> None:
        if self._arriving is not None:
            raise RemoteError(f"parcel {begin.number} begins before {self._arriving.begin.number} has ended")
        limit = self._intake.limit()
        if begin.length > limit:
            raise RemoteError(f"a parcel of {begin.length} bytes; this session's model allows {limit}")
        try:
            buffer = self._intake.make(begin.length)
        except OSError as error:
            raise _no_memory(begin, error) from error
        if begin.length >= LONG:
            keep_chunks()
        self._arriving = _Arriving(begin, buffer, 0, Digest(), TELL_BYTES)

    def _chunk(self, data: memoryview) -> None:
        arriving = self._arriving
        if arriving is None:
            raise RemoteError("a chunk outside of a parcel")
        end = arriving.filled + len(data)
        if not 0 < len(data) <= LONG_CHUNK_BYTES or end > arriving.begin.length:
            raise RemoteError(f"a chunk of {len(data)} bytes at {arriving.filled} of {arriving.begin.length}")
        try:
            arriving.buffer.write(arriving.filled, data)
        except OSError as error:
            raise _no_memory(arriving.begin, error) from error
        arriving.digest.update(data)
        arriving.filled = end
        if arriving.tell_at <= end < arriving.begin.length:
            arriving.tell_at = end + TELL_BYTES
            self._intake.coming(self.peer, arriving.begin, arriving.buffer, end)
        self._say_progress()

    def _end(self, digest: bytes) -> None:
        arriving = self._arriving
        if arriving is None:
            raise RemoteError("an end outside of a parcel")
        begin = arriving.begin
        if arriving.filled != begin.length:
            raise RemoteError(f"parcel {begin.number} ends after {arriving.filled} of {begin.length} bytes")
        if arriving.digest.value() != digest:
            raise RemoteError(f"the checksum of parcel {begin.number} does not hold")
        self._arriving = None
        self._hear(Parcel(begin.epoch, begin.number, begin.key, arriving.buffer, begin.delivery))

    def _give_back(self) -> str:
        """What had come of a parcel counts for nothing. Says so."""
        if self._arriving is None:
            return ""
        arriving, self._arriving = self._arriving, None
        arriving.buffer.close()
        begin = arriving.begin
        return f"; {arriving.filled} of {begin.length} bytes of parcel {begin.number} had come"

    def _say_progress(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._progress_at and not self.closed:
            self._progress_at = now + PROGRESS_S
            self._on_event(Progress(self.peer, self.direction))


def _no_memory(begin: Begin, error: OSError) -> PeerdError:
    return PeerdError(f"no memory for a parcel of {begin.length} bytes: {error.strerror}")


def _why(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
