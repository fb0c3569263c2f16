"""Frames of the local socket as bytes: bounded msgpack maps, and descriptors beside them.

frame   = 4-byte big-endian length, then a msgpack map with "op"; at most 64 KiB
"fd"    = true in a frame: one file descriptor comes with it (SCM_RIGHTS)
"large" = a frame that did not fit: it lies in the shared buffer of that descriptor
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack

from peer.errors import PeerdError
from peer.shared_buffer import SharedBuffer

Frame = dict[str, Any]
MAX_FRAME = 65536  # bytes, length not counted: architecture.md section 2
MAX_LARGE = 1 << 22  # bytes of a frame in a shared buffer: a long status, a task file
_CHUNK = 1 << 16  # bytes asked of the socket at once


def pack(frame: Frame, fd: int | None = None) -> tuple[bytes, SharedBuffer | None]:
    """The bytes of one frame; with them the buffer the frame lies in, if it is too long to travel itself."""
    body = msgpack.packb({**frame, "fd": True} if fd is not None else frame)
    if len(body) <= MAX_FRAME:
        return struct.pack(">I", len(body)) + body, None
    if fd is not None or len(body) > MAX_LARGE:
        limit = MAX_FRAME if fd is not None else MAX_LARGE
        raise PeerdError(
            f"a frame {frame.get('op')!r} of {len(body)} bytes is too long; at most {limit} may be sent"
        )
    announced = msgpack.packb({"op": "large", "size": len(body), "fd": True})
    return struct.pack(">I", len(announced)) + announced, SharedBuffer.of(body)


class FrameReader:
    """Bytes and descriptors in, frames out. Raises PeerdError on nonsense and is dead after that."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: list[int]) -> None:
        self._bytes += data
        self._fds.extend(fds)

    def frames(self) -> Iterator[tuple[Frame, int | None]]:
        """Every whole frame there is, with the descriptor that belongs to it (the caller's from then on)."""
        while len(self._bytes) >= 4:
            (length,) = struct.unpack_from(">I", self._bytes)
            if length > MAX_FRAME:
                raise PeerdError(f"a frame of {length} bytes was announced; at most {MAX_FRAME} are allowed")
            if len(self._bytes) < 4 + length:
                return
            body = bytes(self._bytes[4 : 4 + length])
            del self._bytes[: 4 + length]
            yield self._whole(_unpack(body))

    def _whole(self, frame: Frame) -> tuple[Frame, int | None]:
        if frame.pop("fd", False) is not True:
            return frame, None
        if not self._fds:
            raise PeerdError(f"{frame['op']!r} announces a descriptor and none came")
        fd = self._fds.popleft()
        if frame["op"] != "large":
            return frame, fd
        size = frame.get("size")
        if not isinstance(size, int) or not 0 < size <= MAX_LARGE:
            os.close(fd)
            raise PeerdError(f"a frame in a buffer has at most {MAX_LARGE} bytes, not {size!r}")
        with SharedBuffer.from_fd(fd, size) as buffer:
            return _unpack(bytes(buffer.view())), None

    def close(self) -> None:
        """Close the descriptors nobody came for."""
        while self._fds:
            os.close(self._fds.popleft())


def _unpack(body: bytes) -> Frame:
    try:
        frame = msgpack.unpackb(body, max_array_len=4096, max_map_len=256, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise PeerdError(f"a frame is no bounded msgpack map: {error}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
        raise PeerdError("a frame is a map with an 'op'; this one is not")
    return frame


def receive_into(reader: FrameReader, sock: socket.socket) -> bool:
    """Move what the socket has into the reader; False at its end."""
    data, fds, flags, _ = socket.recv_fds(sock, _CHUNK, 16, socket.MSG_CMSG_CLOEXEC)
    reader.feed(data, list(fds))
    if flags & socket.MSG_CTRUNC:
        raise PeerdError("more descriptors came with a frame than may")
    return bool(data)
