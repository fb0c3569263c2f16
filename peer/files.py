"""Writing a file so that a power cut leaves the old one or the new one, never a part. A leaf."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from peer.errors import StateError

Bytes = bytes | memoryview


def write_all(fd: int, data: Bytes) -> None:
    """Where the file is. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def atomic_write(
    path: Path, data: Bytes | Sequence[Bytes] | Callable[[int], None], mode: int = 0o600
) -> None:
    """Put `data` at `path`: a temporary file in the same folder, fsync, rename, fsync of the folder.

    data: whole, in parts, or what writes it to a descriptor, and may read there. Raises OSError; the old
    file is then still there, and the temporary one is not.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)  # the umask, or a temporary file left by a power cut
            if callable(data):
                data(fd)
            else:
                for part in (data,) if isinstance(data, bytes | memoryview) else data:
                    write_all(fd, part)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):  # the folder may be read-only by now; the error that matters is on its way
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cannot_write(path: Path, error: OSError) -> StateError:
    """What to tell the user about a file that could not be written."""
    remedy = {
        errno.ENOSPC: "free some space there, or name another folder with --state",
        errno.EDQUOT: "the disk quota is used up; free some of it, or name another folder with --state",
        errno.EROFS: "the disk is read-only: check it (a worn-out SD card turns itself read-only)",
        errno.EACCES: f"make it writable for user {os.getuid()}, or name another folder with --state",
    }
    known = remedy.get(error.errno or 0, "or name another folder with --state")
    return StateError(f"cannot write {path}: {error.strerror or error}; {known}")
