"""Messages on their way to the daemon: put together in the memory in which they are handed over.

A model that goes to the neighbors as it is lies there from the beginning (`Rooms`); it is not written to by
anybody who has it, so the daemon may still be sending it while it is averaged here. It may be laid over the
model that its local steps began from, which nobody needs any more: that lies in a room of this process, or in
the message of a neighbor, whose place the mean has taken. Not if that has been given to somebody itself.

A long message is handed over before it is put together, so that its first part is on the wire while the last
is still made (`Filling`).
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.compression.bodies import Dense
from peer.compression.codec import DENSE_HEAD_BYTES, Encoded
from peer.compression.value_bytes import Piece
from peer.shared_buffer import STRETCH, Reserve, SharedBuffer

Filling = Iterator[int]
"""Puts a message into its buffer, and says after each stretch how many bytes are there."""


@dataclass(eq=False, slots=True)
class _Room:
    buffer: SharedBuffer
    head: bytes | None = None  # of the message that its model has become


class Rooms:
    """Shared buffers in which a flat model lies, behind room for the head of the message that it may become.
    Each lives as long as its model."""

    def __init__(self, reserve: Reserve) -> None:
        self.reserve = reserve
        self._rooms: dict[int, _Room] = {}  # by where the model lies
        self._unlaid: tuple[Tensor, Iterable[Tensor]] | None = None  # a model's place, and what it is made of
        self.torn = False  # a model is laid over another one, or that failed: it is neither now

    def lay(
        self, pieces: Iterable[Tensor], size: int, dtype: torch.dtype, over: Tensor | None = None
    ) -> Tensor:
        """A model of that size, put together of these pieces, flat on the CPU. over: a model that nobody
        reads any more; if it lies in a room, and no message was made of it there, it becomes this one: when
        its message is put together, or `finish` is called, which must be before anybody reads it."""
        assert self._unlaid is None, "a model is still to be laid"
        if over is not None and self._is_free(over, size, dtype):
            self.torn, self._unlaid = True, (over, pieces)
            if sys.byteorder != "little":
                self.finish()  # what is sent there is a copy, made before it could be laid
            return over
        buffer, at = self.reserve.make(DENSE_HEAD_BYTES + size * dtype.itemsize), DENSE_HEAD_BYTES
        try:
            for piece in pieces:
                values = piece.contiguous().view(torch.uint8).numpy().data
                buffer.write(at, values)
                at += len(values)
            assert at == len(buffer), f"pieces of {at} bytes for a room of {len(buffer)}"
            model = torch.frombuffer(buffer.view(), dtype=dtype, offset=DENSE_HEAD_BYTES)
        except BaseException:
            buffer.close()
            raise
        self._keep(buffer, model, model.data_ptr())
        return model

    @property
    def unlaid(self) -> bool:
        """Is there a model yet to be laid?"""
        return self._unlaid is not None

    def filling(self, buffer: SharedBuffer) -> Filling:
        """What lays the model that is to be in this buffer, if one is; to be used up."""
        if self._unlaid is None or self._rooms[self._unlaid[0].data_ptr()].buffer is not buffer:
            return iter(())
        (over, pieces), self._unlaid = self._unlaid, None
        return self._laid(over, pieces)

    def _laid(self, over: Tensor, pieces: Iterable[Tensor]) -> Filling:
        at, stretch = 0, STRETCH // over.dtype.itemsize
        for piece in pieces:
            for part in piece.split(stretch):
                over[at : at + len(part)].copy_(part)
                at += len(part)
                yield DENSE_HEAD_BYTES + at * over.dtype.itemsize
        assert at == len(over), f"pieces of {at} numbers for a model of {len(over)}"
        self.torn = False

    def finish(self) -> None:
        """Lay what is still to be laid."""
        if self._unlaid is not None:
            (over, pieces), self._unlaid = self._unlaid, None
            exhaust(self._laid(over, pieces))

    def _is_free(self, model: Tensor, size: int, dtype: torch.dtype) -> bool:
        room = self._rooms.get(model.data_ptr())
        return room is not None and room.head is None and model.dtype == dtype and model.shape == (size,)

    def came(self, message: SharedBuffer) -> None:
        """It may be a model's message, and be let go of by all but those who look at it: then the model's
        place is a room as long as it is looked at."""
        if len(message) <= DENSE_HEAD_BYTES:
            return
        view = message.view()
        where = torch.frombuffer(view, dtype=torch.uint8).data_ptr() + DENSE_HEAD_BYTES
        self._keep(SharedBuffer(os.dup(message.fileno()), len(message)), view.obj, where)

    def _keep(self, buffer: SharedBuffer, while_lives: object, where: int) -> None:
        room = self._rooms[where] = _Room(buffer)
        weakref.finalize(while_lives, self._clear, where, room).atexit = False

    def _clear(self, where: int, room: _Room) -> None:
        if self._rooms.get(where) is room:  # else another one's memory is there already
            del self._rooms[where]
        room.buffer.close()

    def of(self, message: Encoded) -> SharedBuffer | None:
        """The buffer that is this message, if its body lies in a room and the head is the first one there."""
        body = message.message.body
        room = self._rooms.get(body.values.data_ptr()) if isinstance(body, Dense) else None
        if room is None or len(message) != len(room.buffer) or sys.byteorder != "little":
            return None
        head = b"".join(message.parts[:-1])
        if room.head is None:
            room.buffer.write(0, head)
            room.head = head
        return room.buffer if room.head == head else None


def exhaust(filling: Filling) -> None:
    for _ in filling:
        pass


def _written(buffer: SharedBuffer, parts: Iterable[Piece]) -> Filling:
    at = 0
    for part in parts:
        for start in range(0, len(part), STRETCH):
            stretch = memoryview(part)[start : start + STRETCH]
            buffer.write(at, stretch)
            at += len(stretch)
            yield at


class Outbox:
    """For one batch of messages. Holds the last one's buffer, since the next may be the same message to
    another neighbor; what the daemon was given of it is the daemon's own."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._last: tuple[Encoded, SharedBuffer] | None = None

    def put(self, message: Encoded) -> SharedBuffer:
        """A buffer that holds this message, valid until the next call."""
        buffer, filling = self.begin(message)
        exhaust(filling)
        return buffer

    def begin(self, message: Encoded) -> tuple[SharedBuffer, Filling]:
        """The same, with what fills it: to be used up before the next call."""
        if (lies_there := self._rooms.of(message)) is not None:
            return lies_there, self._rooms.filling(lies_there)
        if self._last is not None and message.is_like(self._last[0]):
            return self._last[1], iter(())
        self._rooms.finish()  # which this may be made of
        self.close()
        self._last = message, self._rooms.reserve.make(len(message))
        return self._last[1], _written(self._last[1], message.parts)

    def close(self) -> None:
        if self._last is not None:
            self._last[1].close()
            self._last = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
