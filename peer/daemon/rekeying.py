"""A session's new key on this device: everything that is kept of it goes over to a folder of that key.

A key is a session's whole door: who has it is in. So a device that is to be kept out for good, being stolen,
is not asked to go; the others go where it cannot follow. Descriptor, and so the session's id, stay the same:
checkpoints fit, and the model is carried over.

    old folder marked over --> new folder: key, descriptor, options, task, checkpoints --> its note
                           --> old folder deleted      (without its note a folder does not count: store.py)
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from peer.daemon.store import Note, SessionFolder, Store, read, write
from peer.errors import StateError, UsageError
from peer.files import cannot_write

KEPT = ("descriptor.json", "options.json", "task.py")


def check(store: Store, folder: SessionFolder, key: bytes) -> None:
    """May this session have that key? Raises UsageError."""
    name = folder.note.name
    if (other := store.known(key)) is not None:
        raise UsageError(
            f"'{other.note.name}' has that key on this device already; a new one is to be another"
        )
    if folder.problem:
        raise UsageError(folder.problem)
    if folder.note.finished:
        raise UsageError(
            f"session '{name}' is finished: nobody joins it any more, and a new key opens nothing"
        )
    if folder.descriptor is None:
        raise UsageError(
            f"this device has never met a member of '{name}', so there is nothing to take along; leave it "
            f"with 'peerd leave {name} --forget', and join with the new key"
        )


def carry_over(store: Store, old: SessionFolder, key: bytes, *, first: bool) -> tuple[SessionFolder, bool]:
    """The folder of this key, with what `old` held, which is gone; and whether a checkpoint came along.
    first: the key is made here, so that without a checkpoint this device begins anew. Nothing may run on
    `old`. Raises StateError."""
    old.mark(over=True)
    new = store.folder_of(key)
    checkpoints = sorted(old.path.glob("ckpt-*"))
    try:
        if new.path.exists():  # of an attempt that was cut off
            shutil.rmtree(new.path)
        new.path.mkdir(mode=0o700)
        write(new.path / "key", key)
        for name in KEPT:
            if (old.path / name).exists():
                write(new.path / name, read(old.path / name))
        for path in checkpoints:
            _link(path, new.path / path.name)
        new.save_note(Note(old.note.name, founder=first and not checkpoints))
    except (OSError, StateError) as error:
        shutil.rmtree(new.path, ignore_errors=True)  # it does not count; the next attempt deletes it, too
        if isinstance(error, OSError):
            raise cannot_write(new.path, error) from error
        raise
    old.forget()
    return SessionFolder(new.path), bool(checkpoints)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk has none."""
    with suppress(OSError):  # each file system has another word for that it cannot; the copy tells the rest
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    target.chmod(0o600)
