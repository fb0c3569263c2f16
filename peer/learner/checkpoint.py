"""Checkpoints: what a power cut leaves is always one generation that loads.

    "peerd-ck" | format u32 | serial u64 | length u64 | SHA-256 of all before and after it | payload
    (torch.save)

Magic, format, serial, length and digest lie where they lie in every format: only the payload may change.
Written through atomic_write; the last two generations are kept, as ckpt-<round>.peerd. `serial` orders
them: rounds may go backwards when a device joins a younger session, and a Pi has no clock. Nothing is
unpickled: torch.load with weights_only, and only of what this device wrote itself, its digest checked
first.

Writing takes no memory to speak of, whatever a model and its optimizer have: torch writes them to the file
from where they are, and what is there is read again for the digest. Reading takes it once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import re
import shutil
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from peer.errors import DataError, StateError
from peer.files import atomic_write, write_all
from peer.learner.flat import Signature

MAGIC, FORMAT = b"peerd-ck", 1
_HEADER = struct.Struct(">8sIQQ")
_DIGEST = 32
KEPT = 2  # generations
EVERY_S = 60.0  # at most this much work is lost to a power cut; a full disk is tried again as often (guess)
PIECE = 1 << 20  # bytes of a file read at once
MARGIN = 16 << 20  # bytes left free beyond twice a checkpoint's size (guess)
_NAME = re.compile(r"ckpt-(\d+)\.peerd")


class DamagedError(DataError):
    """The bytes are not those that were written: nothing can ever be read from them."""


@dataclass(frozen=True)
class Checkpoint:
    """One learner's state at the end of a round. model: flat, as `signature` cuts it. optimizer: its
    state_dict, and when read back that as bytes of its own (`load_plain`), since a user's optimizer may hold
    what does not load. own: what the algorithm has besides the model (Algorithm.own), vectors like it; files
    before that are without."""

    session: str
    algorithm: str
    round: int
    weight: float
    signature: Signature
    model: Tensor
    optimizer: bytes | memoryview | dict[str, Any] = b""
    rng: Tensor = field(default_factory=torch.get_rng_state)
    own: dict[str, Tensor] = field(default_factory=dict)


def pack(checkpoint: Checkpoint, serial: int) -> bytes:
    """A checkpoint as the bytes of its file."""
    fd = os.memfd_create("checkpoint")
    try:
        _write(fd, checkpoint, serial, None)
        return b"".join(_pieces(fd, 0))
    finally:
        os.close(fd)


def _write(fd: int, checkpoint: Checkpoint, serial: int, folder: Path | None) -> None:
    """To an empty file. folder: on the same disk. Raises OSError."""
    plain = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    if not checkpoint.own:
        del plain["own"]  # as those wrote it who did not know of it, and read it
    begins = _HEADER.size + _DIGEST
    write_all(fd, bytes(begins))
    with _as_tensor(checkpoint.optimizer, folder) as optimizer:  # torch writes bytes as text, or not at all
        length = _save(plain | {"optimizer": optimizer}, fd)
    header = _HEADER.pack(MAGIC, FORMAT, serial, length)
    os.lseek(fd, 0, os.SEEK_SET)
    write_all(fd, header + _digest_of(header, _pieces(fd, begins)))


def _pieces(fd: int, at: int) -> Iterator[bytes]:
    """Of a file, from there on."""
    while piece := os.pread(fd, PIECE, at):
        at += len(piece)
        yield piece


def _digest_of(header: bytes, payload: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(header)
    for piece in payload:
        digest.update(piece)
    return digest.digest()


class _Sink:
    """A file that torch writes to. What goes wrong is kept and no more written: torch would write on, and end
    the process where that fails too."""

    def __init__(self, fd: int) -> None:
        self._fd, self.size = fd, 0
        self.fault: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.fault is None:
            try:
                write_all(self._fd, data)
            except BaseException as fault:  # noqa: BLE001 - raised by `_save`
                self.fault = fault
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Everything has been written."""


def _save(plain: object, fd: int) -> int:
    """Write it there; how many bytes. Raises OSError."""
    sink = _Sink(fd)
    try:
        torch.save(plain, sink)  # type: ignore[arg-type]  # it asks for more than it uses
    except RuntimeError as error:
        # a signal's handler may raise before the sink's first line; then torch fails at the end of its file
        if error.__context__ is None:
            raise
        raise error.__context__ from error
    if sink.fault is not None:
        raise sink.fault
    return sink.size


@contextmanager
def _as_tensor(optimizer: bytes | memoryview | dict[str, Any], folder: Path | None) -> Iterator[Tensor]:
    """The bytes of its state, in a file that has no name and is gone in a moment rather than in memory.

    Should a disk lose what it has just been given, the process ends, as where its program cannot be read."""
    if not isinstance(optimizer, dict):
        empty = torch.empty(0, dtype=torch.uint8)
        yield torch.frombuffer(bytearray(optimizer), dtype=torch.uint8) if optimizer else empty
        return
    with TemporaryFile(dir=folder) as file:
        size = _save(optimizer, file.fileno())
        kept: mmap.mmap | bytearray
        try:
            kept = mmap.mmap(file.fileno(), size)
        except OSError:  # some network file systems do without
            kept = bytearray().join(_pieces(file.fileno(), 0))
        yield torch.frombuffer(kept, dtype=torch.uint8)


def _size_of(plain: object) -> int:
    """About as many bytes as it takes in a file: what tensors are views of once each, where that is known."""
    storages, others, seen, ahead = dict[int, int](), 0, set[int](), [plain]
    while ahead:
        item = ahead.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        match item:
            case Tensor():
                with suppress(RuntimeError, NotImplementedError):  # sparse ones have none
                    storage = item.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
            case bytes() | memoryview():
                others += len(item)
            case dict():
                ahead += item.values()
            case list() | tuple():
                ahead += item
    return sum(storages.values()) + others


class _Part(io.RawIOBase):
    """From there to the end, as a file of its own: of an open one, or of bytes."""

    def __init__(self, whole: int | memoryview, start: int) -> None:
        super().__init__()
        self._whole, self._start, self._at = whole, start, 0
        self.size = (os.fstat(whole).st_size if isinstance(whole, int) else len(whole)) - start

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")[: max(0, self.size - self._at)]
        at, count = self._start + self._at, len(into)
        if isinstance(self._whole, int):
            count = os.preadv(self._whole, [into], at) if count else 0
        else:
            into[:] = self._whole[at : at + count]
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise ValueError(f"seek to {at}, before the beginning")
        self._at = at
        return at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def read_file(path: Path) -> tuple[Checkpoint, int]:
    """`unpack` of that file. Raises OSError, too."""
    with path.open("rb") as file:
        return _unpacked(file.fileno(), str(path))


def unpack(data: bytes, where: str) -> tuple[Checkpoint, int]:
    """The checkpoint in the bytes of a file, and its serial number. Raises DataError that says what is
    wrong; DamagedError, if no other peerd could read it either."""
    return _unpacked(memoryview(data), where)


def _unpacked(whole: int | memoryview, where: str) -> tuple[Checkpoint, int]:
    size, begins = _Part(whole, 0).size, _HEADER.size + _DIGEST
    if size < begins:
        raise DamagedError(f"{where}: {size} bytes are too few for a checkpoint")
    head = io.BufferedReader(_Part(whole, 0)).read(begins)
    header, digest, payload = head[: _HEADER.size], head[_HEADER.size :], _Part(whole, begins)
    magic, version, serial, length = _HEADER.unpack(header)
    if magic != MAGIC:
        raise DamagedError(f"{where} is no checkpoint of peerd")
    if length != payload.size or _digest_of(header, iter(lambda: payload.read(PIECE) or b"", b"")) != digest:
        raise DamagedError(f"{where} is damaged: its contents do not have the digest written with them")
    if version != FORMAT:
        raise DataError(
            f"{where} has checkpoint format {version}; this peerd reads format {FORMAT}; the one that wrote "
            "it still reads it"
        )
    plain = _loaded(_Part(whole, begins), where)
    try:
        if not isinstance(plain, dict):
            raise TypeError(f"a {type(plain).__name__}")
        plain["optimizer"] = memoryview(plain["optimizer"].numpy()).cast("B")
        plain["signature"] = [(name, list(shape), dtype) for name, shape, dtype in plain["signature"]]
        return Checkpoint(**plain), serial
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(f"{where} does not hold what a checkpoint holds ({error})") from error


def save_plain(plain: object) -> bytes:
    """Tensors, numbers, strings, lists and dicts as bytes."""
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()


def load_plain(data: bytes | memoryview, where: str) -> Any:
    """What `save_plain` saved. Raises DataError; executes nothing."""
    return _loaded(_Part(memoryview(data).cast("B"), 0), where)


def _loaded(part: _Part, where: str) -> Any:
    try:
        return torch.load(io.BufferedReader(part), map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no class for what a damaged or foreign file raises
        raise DataError(
            f"{where} cannot be read back ({type(error).__name__}: {str(error)[:200]})"
        ) from error


class CheckpointKeeper:
    """When a learner's checkpoints are due, and what became of them.

    found: the newest whole one of this session and model, or None. problems: sentences about what was not
    whole or does not fit. round: of the newest one there is, -1 without one.
    """

    def __init__(self, folder: Path, session: str, signature: Signature) -> None:
        self._folder = CheckpointFolder(folder)
        self._tried = time.monotonic()
        found, self.problems = self._folder.load()
        if found is not None and (found.session != session or found.signature != signature):
            self.problems.append(f"the checkpoint of round {found.round} is of another model; not used")
            found = None
        if found is not None and not _are_like(found.own, found.model):
            self.problems.append(
                f"what the checkpoint of round {found.round} has besides its model does not fit it; not used"
            )
            found = replace(found, own={})
        self.found = found
        self.problem = ""
        self.round = found.round if found is not None else -1

    def due(self) -> bool:
        """Has the last one, or the last try, been long enough ago?"""
        return time.monotonic() >= self._tried + EVERY_S

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; sets `problem`."""
        self._tried, self.problem = time.monotonic(), ""
        try:
            self._folder.save(checkpoint)
        except StateError as error:
            self.problem = str(error)
        else:
            self.round = checkpoint.round

    def restore(self, optimizer: torch.optim.Optimizer) -> str:
        """Put optimizer and random state back as they were in `found`, but for what the optimizer is made
        with, its learning rate above all. A sentence when the former cannot be."""
        assert self.found is not None
        torch.set_rng_state(self.found.rng)
        made_with = [{**group} for group in optimizer.param_groups]
        try:
            assert not isinstance(self.found.optimizer, dict), "as it is read"
            optimizer.load_state_dict(load_plain(self.found.optimizer, "the optimizer's state"))
        except (DataError, ValueError, KeyError) as error:
            return f"the optimizer starts anew: {error}"
        for group, mine in zip(optimizer.param_groups, made_with, strict=True):
            group.update(mine)
        return ""


def _are_like(own: object, model: Tensor) -> bool:
    """Is it what an algorithm may have written: finite vectors like the model, by name?"""
    return isinstance(own, dict) and all(
        isinstance(name, str)
        and isinstance(vector, Tensor)
        and vector.shape == model.shape
        and vector.dtype == model.dtype
        and bool(vector.isfinite().all())
        for name, vector in own.items()
    )


class CheckpointFolder:
    """The checkpoints of one session on this device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read, and a sentence for every newer one.

        One that is damaged is removed, as are leftovers of an interrupted write; one that another peerd
        wrote, and could read, stays."""
        for leftover in self._folder.glob(".ckpt-*.tmp"):
            with suppress(OSError):  # a read-only folder can still be read from
                leftover.unlink()
        problems: list[str] = []
        for path in self._paths():
            try:
                return read_file(path)[0], problems
            except OSError as error:
                problems.append(
                    f"the checkpoint {path} cannot be read: {error.strerror}; using the one before it"
                )
            except DataError as error:
                problems.append(f"{error}; using the one before it")
                if isinstance(error, DamagedError):
                    with suppress(OSError):
                        path.unlink()
        return None, problems

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a new generation and drop all but the last two. Raises StateError with a sentence when the
        disk is full or read-only; what was there before is then still there."""
        paths = self._paths()
        serial = _header(paths[0])[1] + 1 if paths else 1
        size = _size_of([checkpoint.model, checkpoint.optimizer, checkpoint.own])
        target = self._folder / f"ckpt-{checkpoint.round}.peerd"
        try:
            free = shutil.disk_usage(self._folder).free
            if free < 2 * size + MARGIN:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            atomic_write(target, lambda fd: _write(fd, checkpoint, serial, self._folder))
        except OSError as error:
            raise _cannot_write(target, size, error) from error
        for old in [path for path in paths if path != target and _header(path)[0] == FORMAT][KEPT - 1 :]:
            with suppress(OSError):  # it is removed with the next one
                old.unlink()

    def _paths(self) -> list[Path]:
        """Checkpoint files, newest first; those without a readable serial number last."""
        found = [path for path in self._folder.glob("ckpt-*.peerd") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_header(path)[1], path.name), reverse=True)


def _header(path: Path) -> tuple[int, int]:
    """Format and serial number; (FORMAT, 0) where none can be read, so that it goes first."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except OSError:
        return FORMAT, 0
    if len(header) < _HEADER.size:
        return FORMAT, 0
    magic, version, serial, _ = _HEADER.unpack(header)
    return (int(version), int(serial)) if magic == MAGIC else (FORMAT, 0)


def _cannot_write(target: Path, size: int, error: OSError) -> StateError:
    advice = {
        errno.ENOSPC: f"the disk is full; free at least {(2 * size + MARGIN) >> 20} MiB",
        errno.EDQUOT: "the disk quota is used up; free some of it",
        errno.EROFS: "the file system is read-only; an SD card that fails does this, replace it",
        errno.EACCES: "this user may not write there; check the folder's owner",
    }.get(error.errno or 0, f"{error.strerror or error}")
    return StateError(
        f"the checkpoint {target} cannot be written: {advice}. Training goes on; tried again in a minute"
    )
