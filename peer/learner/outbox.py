"""Messages on their way to the daemon: put together in the memory in which they are handed over.

A model that goes to the neighbors as it is lies there from the beginning (`Rooms`); it is not written to by
anybody who has it, so the daemon may still be sending it while it is averaged here.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from peer.compression.bodies import Dense, largest, peak_of
from peer.compression.codec import DENSE_HEAD_BYTES, Encoded
from peer.shared_buffer import Reserve, SharedBuffer

BLOCK = 1 << 17  # numbers that are looked at while they are in a processor's cache


class Rooms:
    """Shared buffers in which a flat model lies, behind room for the head of the message that it may become.
    Each lives as long as its model."""

    def __init__(self, reserve: Reserve) -> None:
        self.reserve = reserve
        self._rooms: dict[int, tuple[SharedBuffer, list[bytes]]] = {}  # by where the model lies; the head

    def lay(self, pieces: Iterable[Tensor], size: int, dtype: torch.dtype) -> tuple[Tensor, float]:
        """A model of that size, put together of these pieces, flat on the CPU, and its largest |value|."""
        buffer, at = self.reserve.make(DENSE_HEAD_BYTES + size * dtype.itemsize), DENSE_HEAD_BYTES
        peaks = []
        try:
            for piece in pieces:
                for block in piece.contiguous().split(BLOCK):
                    values = block.view(torch.uint8).numpy().data
                    buffer.write(at, values)
                    peaks.append(peak_of(block))
                    at += len(values)
            assert at == len(buffer), f"pieces of {at} bytes for a room of {len(buffer)}"
            model = torch.frombuffer(buffer.view(), dtype=dtype, offset=DENSE_HEAD_BYTES)
        except BaseException:
            buffer.close()
            raise
        where = model.data_ptr()
        self._rooms[where] = buffer, []
        weakref.finalize(model, self._clear, where).atexit = False
        return model, largest(peaks)

    def _clear(self, where: int) -> None:
        self._rooms.pop(where)[0].close()

    def of(self, message: Encoded) -> SharedBuffer | None:
        """The buffer that is this message, if its body lies in a room and the head is the first one there."""
        body = message.message.body
        room = self._rooms.get(body.values.data_ptr()) if isinstance(body, Dense) else None
        if room is None or len(message) != len(room[0]) or sys.byteorder != "little":
            return None
        buffer, heads = room
        head = b"".join(message.parts[:-1])
        if not heads:
            buffer.write(0, head)
            heads.append(head)
        return buffer if heads[0] == head else None


class Outbox:
    """For one batch of messages. Holds the last one's buffer, since the next may be the same message to
    another neighbor; what the daemon was given of it is the daemon's own."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._last: tuple[Encoded, SharedBuffer] | None = None

    def put(self, message: Encoded) -> SharedBuffer:
        """A buffer that holds this message, valid until the next call."""
        if (lies_there := self._rooms.of(message)) is not None:
            return lies_there
        if self._last is not None and message.is_like(self._last[0]):
            return self._last[1]
        self.close()
        self._last = message, self._rooms.reserve.of(*message.parts)
        return self._last[1]

    def close(self) -> None:
        if self._last is not None:
            self._last[1].close()
            self._last = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
