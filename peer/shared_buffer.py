"""A block of memory that two processes of this device share: outbox, staging and hand-over of one payload.

It is a memfd of fixed size, sealed against shrinking and growing, so that a reader of a shared buffer can
never be killed by its writer (a shrunk file answers a read with SIGBUS). The descriptor travels with a frame
of the local protocol (peer/local.py). Standard library only.

Memory is taken as it is written. `read` and `write` go through the descriptor: pages are neither zeroed first
nor mapped, which for a long payload that passes by once costs more than copying it.

Taking memory from the kernel costs two to three times what copying into it does. A Reserve therefore makes
the next buffer of the memory of an earlier one of the same size, when nobody has that any more. The kernel
says so: the file handed out is locked (flock(2)), and the lock goes with its last descriptor and mapping, in
this process or another, however that ended.

To map memory and unmap it costs as much as copying it, too. Memory that is used again is therefore mapped
once at each end (`Reserve.make`, `Reserve.taken`) through a file of its own, which has no lock. Who looks at
a buffer there holds its locked descriptor by the view; who reads or writes a part does it while the buffer is
open. So the lock says what it said before.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from peer.errors import PeerdError

MAX_SIZE = 1 << 34  # bytes; a payload above it is a mistake on any device this runs on (guess)
WORTH_KEEPING = 1 << 20  # bytes; of a smaller payload the memory is had in less than half a millisecond
AGAIN_S = 0.1  # between two that are given back
KEEP_S = 10.0  # unused memory goes back after so long (guess); 100 MB taken anew cost 0.1 s of a core
STRETCH = 1 << 22  # bytes; copied in about a millisecond, which no other thread of this process runs in
REMEMBERED = 64  # payloads; so many different ones are hardly on their way at a time (guess)
NAME = "peerd-payload"  # as /proc shows this memory
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def overlaps() -> bool:
    """Is a long payload worth handing on before all of it is there? Not with one core: who fills it and who
    reads it take turns there, and to take turns costs more than it hides."""
    return len(os.sched_getaffinity(0)) > 1


class Growth:
    """How far a buffer is filled that is handed on before all of it is there. failed: no more comes."""

    __slots__ = ("failed", "filled", "on_change")

    def __init__(self) -> None:
        self.filled, self.failed = 0, False
        self.on_change: Callable[[], object] = lambda: None

    def reach(self, filled: int, *, last: bool = False) -> None:
        """last: and no more is said."""
        self.filled = filled
        self._tell(last=last)

    def fail(self) -> None:
        self.failed = True
        self._tell(last=True)

    def _tell(self, *, last: bool) -> None:
        try:
            self.on_change()
        finally:
            if last:
                self.on_change = lambda: None  # what it was for may have the buffer


class SharedBuffer:
    """Fixed-size shared memory. Owns its descriptor; `close` gives both back, and calls `on_close`. growth:
    of one that is still being filled by the process it comes from; None where all of it is there."""

    def __init__(self, fd: int, size: int, mapped: mmap.mmap | None = None) -> None:
        """Take over `fd`, a sealed memfd of exactly `size` bytes; callers use `create`, `of` or `from_fd`.
        mapped: a Reserve's mapping of all of it, whose every page is there."""
        self._fd = fd
        self._size = size
        self._mapped = mapped
        self._use: _Use | None = None  # of a Reserve's mapping
        self.growth: Growth | None = None
        self.on_close: Callable[[], object] | None = None
        self._map: mmap.mmap | memoryview | None = None  # when it is first looked at

    @classmethod
    def create(cls, size: int) -> SharedBuffer:
        """New memory of `size` bytes, zero until it is written. Raises OSError when it cannot be had."""
        if not 0 <= size <= MAX_SIZE:
            raise PeerdError(f"a shared buffer of {size} bytes was asked for; 0 to {MAX_SIZE} are possible")
        fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
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
        return cls.create(sum(len(piece) for piece in pieces)).filled(*pieces)

    def filled(self, *pieces: bytes | bytearray | memoryview) -> SharedBuffer:
        """Itself, with these bytes from its beginning on; closed if they do not fit into memory: OSError."""
        try:
            at = 0
            for piece in pieces:
                self.write(at, piece)
                at += len(piece)
        except BaseException:
            self.close()
            raise
        return self

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

    @property
    def memory(self) -> int:
        """Names this memory, in every process that has it."""
        return os.fstat(self.fileno()).st_ino

    def view(self) -> memoryview:
        """The memory itself, writable. Views still held keep it alive after `close`."""
        fd = self.fileno()
        if self._map is None and self._size:
            self._map = mmap.mmap(fd, self._size) if self._mapped is None else self._held(self._mapped, fd)
        return memoryview(self._map) if self._map is not None else memoryview(bytearray())

    def _held(self, mapped: mmap.mmap, fd: int) -> memoryview:
        """All of it; the lock of `fd` stays until the last view is gone."""
        import ctypes  # which the CLI has no use for

        whole = (ctypes.c_ubyte * len(mapped)).from_buffer(mapped)
        weakref.finalize(whole, os.close, os.dup(fd)).atexit = False
        whole.use = self._use  # type: ignore[attr-defined]  # goes with it
        return memoryview(whole).cast("B")

    def read(self, at: int, size: int) -> bytes:
        """A copy of at most `size` bytes from `at` on, fewer at the end."""
        fd = self.fileno()
        return os.pread(fd, size, at) if self._mapped is None else self._mapped[at : at + size]

    def part(self, at: int, size: int) -> memoryview:
        """What `read` copies, without a copy where it can be: to be released before this buffer is closed."""
        if self._mapped is None:
            return memoryview(self.read(at, size))
        self.fileno()
        return memoryview(self._mapped)[at : at + size]

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `at`; it must fit. Raises OSError when there is no memory for it."""
        assert 0 <= at <= self._size - len(data), f"{len(data)} bytes at {at} of {self._size}"
        fd, left = self.fileno(), memoryview(data)
        if self._mapped is not None:
            for start in range(0, len(left), STRETCH):  # between which other threads have their turn
                stretch = left[start : start + STRETCH]
                self._mapped[at + start : at + start + len(stretch)] = stretch
            return
        while left:
            written = os.pwrite(fd, left, at)
            at, left = at + written, left[written:]

    def close(self) -> None:
        """Give the memory back. Closing twice is fine."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if isinstance(self._map, mmap.mmap):
            with suppress(BufferError):  # someone still holds a view: the mapping goes with the last of them
                self._map.close()
        self._map = self._mapped = self._use = None
        if self.growth is not None:
            self.growth.fail()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def __del__(self) -> None:
        self.close()  # one that was lost on its way would keep its memory

    def __enter__(self) -> SharedBuffer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SharedBuffer({self._size} bytes{', closed' if self.closed else ''})"


@dataclass(slots=True)
class _Kept:
    """Memory that was handed out, through a descriptor that holds no lock."""

    fd: int
    size: int
    seen_free: float | None = None  # s, when nobody else was first seen to have it any more
    mapped: mmap.mmap | None = None  # when it is used again

    def is_free(self) -> bool:
        """Has everybody let go of it? It cannot be in use again without its Reserve."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        except OSError:  # somebody has it; or the kernel has no room for a lock, and it is not known
            self.seen_free = None
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)
        self.mapped = None  # goes with the last view


class _Use:
    """Lives as long as a buffer that has a mapping of a Reserve is open, or looked at."""


@dataclass(slots=True)
class _Come:
    """Memory of another process's Reserve that has come here again."""

    mapped: mmap.mmap
    at: float = -math.inf  # s, when it came last, or was last seen in use
    use: weakref.ref[_Use] | None = None

    def used(self, now: float) -> _Use:
        use = (self.use and self.use()) or _Use()
        self.at, self.use = now, weakref.ref(use)
        return use

    def is_free(self) -> bool:
        return self.use is None or self.use() is None


class Reserve:
    """Makes buffers, long ones of memory that has been used before; takes over those that come, and knows
    memory that comes again. All threads may use one.

    What is kept is at most what was in use at one time: before memory is taken anew, what is free and of
    another size is given back; and when new memory is taken or comes, what is mapped of others and not in
    use is not any more. So where sizes change, an old payload goes when the new one has come.
    `tidy` must be called now and then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: what the time is, s."""
        self._clock = clock
        self._kept: list[_Kept] = []
        self._seen: dict[tuple[int, int], None] = {}  # memory that has come, by device and inode, last ones
        self._come: dict[tuple[int, int], _Come] = {}  # of it what came again
        self._closed = False
        self._met = threading.Lock()

    def make(self, size: int) -> SharedBuffer:
        """A buffer of `size` bytes, whatever lies there. Raises as SharedBuffer.create does."""
        if size < WORTH_KEEPING:
            return SharedBuffer.create(size)
        with self._met:
            free = [one for one in self._kept if one.is_free()]
            for one in free:
                if one.size == size:
                    one.seen_free = None
                    one.mapped = one.mapped or _mapped(one.fd, size)
                    return _handed_out(one)
            for one in free:
                self._give_back(one)
            self._unmap_idle()
            buffer = SharedBuffer.create(size)
            if self._closed:
                return buffer
            try:
                fcntl.flock(buffer.fileno(), fcntl.LOCK_SH)
                self._kept.append(_Kept(_opened_again(buffer.fileno()), size))
            except OSError:  # no /proc here, or no more descriptors: this one is used once
                pass
            return buffer

    def of(self, *pieces: bytes | bytearray | memoryview) -> SharedBuffer:
        """A buffer that holds a copy of these bytes, one piece after the other."""
        return self.make(sum(len(piece) for piece in pieces)).filled(*pieces)

    def taken(self, fd: int, size: int) -> SharedBuffer:
        """SharedBuffer.from_fd, mapped already where this memory has been here before."""
        buffer = SharedBuffer.from_fd(fd, size)
        if size < WORTH_KEEPING:
            return buffer
        found = os.fstat(fd)
        with self._met:
            known = self._known((found.st_dev, found.st_ino), fd, size)
            if known is not None:
                buffer._mapped, buffer._use = known.mapped, known.used(self._clock())
        return buffer

    def _known(self, which: tuple[int, int], fd: int, size: int) -> _Come | None:
        """Memory that has been here before. Where it has not, mappings that nobody uses go."""
        known = self._come.get(which)
        if known is None and which in self._seen and (mapped := _mapped(fd, size)) is not None:
            known = self._come[which] = _Come(mapped)
        elif known is None and which not in self._seen and not self._closed:
            self._unmap_idle()
            self._seen[which] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return known if known is not None and len(known.mapped) == size else None

    def _unmap_idle(self) -> None:
        self._come = {which: come for which, come in self._come.items() if not come.is_free()}

    def tidy(self) -> float:
        """Give back what nobody has used for KEEP_S, one at a time: the kernel takes a while for a long one.
        After how many seconds is it to be called again, if no buffer is made before?"""
        with self._met:
            now = self._clock()
            for come in self._come.values():
                if not come.is_free():
                    come.at = now
            old = next((which for which, come in self._come.items() if now - come.at >= KEEP_S), None)
            if old is not None:
                del self._come[old]
                return AGAIN_S
            for one in [one for one in self._kept if one.is_free()]:
                if one.seen_free is None:
                    one.seen_free = now
                elif now - one.seen_free >= KEEP_S:
                    self._give_back(one)
                    return AGAIN_S
            return KEEP_S / 4 if self._kept or self._come else math.inf

    @property
    def size(self) -> int:
        """Bytes of all that is kept, in use or not."""
        with self._met:
            return sum(one.size for one in self._kept)

    def close(self) -> None:
        """Keep nothing from now on; what is in use stays so."""
        with self._met:
            self._closed = True
            self._come.clear()
            self._seen.clear()
            for one in list(self._kept):
                self._give_back(one)

    def _give_back(self, one: _Kept) -> None:
        self._kept.remove(one)
        one.close()


def _opened_again(fd: int) -> int:
    """Another open file of the same memory: locks of one are not the other's."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def _handed_out(kept: _Kept) -> SharedBuffer:
    fd = _opened_again(kept.fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return SharedBuffer(fd, kept.size, kept.mapped)


def _mapped(fd: int, size: int) -> mmap.mmap | None:
    """This memory, mapped without a lock. None where that cannot be had, or not every page of it is there: a
    page that is missing when a mapping is written to, and cannot be had, kills the process."""
    if os.fstat(fd).st_blocks * 512 < size:
        return None
    try:
        again = _opened_again(fd)
    except OSError:
        return None
    try:
        # at once: page by page, as it is written to, takes three times as long
        return mmap.mmap(again, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except OSError:
        return None
    finally:
        os.close(again)
