"""A block of memory that two processes of this device share: outbox, staging and hand-over of one payload.

It is a memfd of fixed size, sealed against shrinking and growing, so that a reader of a shared buffer can
never be killed by its writer (a shrunk file answers a read with SIGBUS). The descriptor travels with a frame
of the local protocol (peer/local.py). Standard library only.

Memory is taken as it is written. `read` and `write` go through the descriptor: pages are neither zeroed first
nor mapped, which for a long payload that passes by once costs more than copying it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress

from peer.errors import PeerdError

MAX_SIZE = 1 << 34  # bytes; a payload above it is a mistake on any device this runs on (guess)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedBuffer:
    """Fixed-size shared memory. Owns its descriptor; `close` gives both back."""

    def __init__(self, fd: int, size: int) -> None:
        """Take over `fd`, a sealed memfd of exactly `size` bytes; callers use `create`, `of` or `from_fd`."""
        self._fd = fd
        self._size = size
        self._map: mmap.mmap | None = None  # when it is first looked at

    @classmethod
    def create(cls, size: int) -> SharedBuffer:
        """New memory of `size` bytes, zero until it is written. Raises OSError when it cannot be had."""
        if not 0 <= size <= MAX_SIZE:
            raise PeerdError(f"a shared buffer of {size} bytes was asked for; 0 to {MAX_SIZE} are possible")
        fd = os.memfd_create("peerd-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def of(cls, *pieces: bytes | bytearray | memoryview) -> SharedBuffer:
        """A buffer that holds a copy of these bytes, one piece after the other."""
        buffer = cls.create(sum(len(piece) for piece in pieces))
        try:
            at = 0
            for piece in pieces:
                buffer.write(at, piece)
                at += len(piece)
        except BaseException:
            buffer.close()
            raise
        return buffer

    @classmethod
    def from_fd(cls, fd: int, size: int) -> SharedBuffer:
        """Take over a descriptor that came with a frame. Raises PeerdError (and closes it) unless it is a
        memfd of exactly `size` bytes that can no longer shrink."""
        try:
            found = os.fstat(fd).st_size
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError as error:
                raise PeerdError("the descriptor that came with a payload is no memfd") from error
            if found != size or size > MAX_SIZE:
                raise PeerdError(f"a payload of {size} bytes was announced and its buffer has {found}")
            if not seals & fcntl.F_SEAL_SHRINK:
                raise PeerdError("a payload's buffer is not sealed against shrinking")
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    def __len__(self) -> int:
        return self._size

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor, to be passed with a frame; it stays this buffer's."""
        if self._fd < 0:
            raise PeerdError("this shared buffer is closed")
        return self._fd

    def view(self) -> memoryview:
        """The memory itself, writable. Views still held keep it alive after `close`."""
        fd = self.fileno()
        if self._map is None and self._size:
            self._map = mmap.mmap(fd, self._size)
        return memoryview(self._map) if self._map is not None else memoryview(bytearray())

    def read(self, at: int, size: int) -> bytes:
        """A copy of at most `size` bytes from `at` on, fewer at the end."""
        return os.pread(self.fileno(), size, at)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `at`; it must fit. Raises OSError when there is no memory for it."""
        assert 0 <= at <= self._size - len(data), f"{len(data)} bytes at {at} of {self._size}"
        fd, left = self.fileno(), memoryview(data)
        while left:
            written = os.pwrite(fd, left, at)
            at, left = at + written, left[written:]

    def close(self) -> None:
        """Give the memory back. Closing twice is fine."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._map is not None:
            with suppress(BufferError):  # someone still holds a view: the mapping goes with the last of them
                self._map.close()
            self._map = None

    def __enter__(self) -> SharedBuffer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SharedBuffer({self._size} bytes{', closed' if self.closed else ''})"
