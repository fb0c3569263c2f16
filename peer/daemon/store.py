"""What the daemon keeps on disk: who this device is, which sessions it knows, how often it has started.

    STATE/                      0700
      lock                      held by the daemon that uses this folder; its pid and socket
      starting                  held by a script that starts a daemon for it (peer/learner/own_daemon.py)
      boot                      how often a daemon has started here
      blocked.json              devices this one wants nothing to do with (blocking.py)
      device.pem                the device's own key (peer/mesh/identity.py)
      log/peerd.log             peer/daemon/logs.py
      sessions/FINGERPRINT/     one per session key
        key                     0600, 16 bytes
        session.json            the name, and what became of the membership
        descriptor.json         once a member has told it
        options.json            this device's own
        task.py                 the user's task file
        members.json            who was in it when this device's part in it ended
        farewells.json          how far the links to here were applied
        leaf.pem, checkpoint…   of identity and learner
      scripts/ID/               checkpoints of a user's scripts, in that user's state folder, where the
                                daemon's is shut to them (peer/learner/dial.py)

Every file is written whole or not at all (peer/files.py). What cannot be written is a StateError that names
the file and the remedy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from peer.config import Descriptor, JoinOptions
from peer.errors import ConfigError, DataError, PeerdError, StateError
from peer.events import Farewell, PeerId
from peer.files import atomic_write, cannot_write
from peer.keys import KEY_BYTES

MAX_DEVICE_NAME = 64  # characters, as peer/mesh/membership.py allows


class Store:
    """The state folder of one daemon. Raises StateError if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = socket.gethostname()[:MAX_DEVICE_NAME]
        make_folder(folder)
        make_folder(folder / "sessions")
        make_folder(folder / "log")
        self._lock: int | None = None

    def lock(self, socket: Path) -> None:
        """Keep every other daemon off this folder for as long as this process lives, or until `unlock`.

        Two daemons with one key would be one device with two minds. Raises ConfigError if there is one.
        """
        path = self.folder / "lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 4096, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(lock)
            raise ConfigError(
                f"{self.folder} is in use by the daemon {holder}; stop that one, reach it with --socket, or "
                "name another folder with --state"
            ) from error
        os.ftruncate(lock, 0)
        with suppress(OSError):  # on a full disk the lock holds without saying whose it is
            os.pwrite(lock, f"with pid {os.getpid()} on {socket}".encode(), 0)
        self._lock = lock

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def next_boot(self) -> int:
        """How often a daemon has started here, this one included."""
        path = self.folder / "boot"
        try:
            boot = int(path.read_text()) + 1 if path.exists() else 1
        except (OSError, ValueError) as error:
            raise StateError(
                f"{path} cannot be read ({error}); write a number into it that is above every earlier one"
            ) from error
        write(path, str(boot).encode())
        return boot

    def sessions(self) -> list[SessionFolder]:
        """Every session known to this device, those left included, sorted by name."""
        found = [SessionFolder(path) for path in (self.folder / "sessions").iterdir() if path.is_dir()]
        return sorted((f for f in found if f.is_whole()), key=lambda f: f.note.name)

    def known(self, key: bytes) -> SessionFolder | None:
        """The folder of the session with this key, if there is one."""
        folder = self.folder_of(key)
        return folder if folder.is_whole() else None

    def folder_of(self, key: bytes) -> SessionFolder:
        """Where the session with this key is kept, or would be."""
        return SessionFolder(self._place(key))

    def session(self, key: bytes, name: str) -> SessionFolder:
        """The folder of the session with this key, made if need be."""
        folder = SessionFolder(self._place(key))
        if not folder.is_whole():
            make_folder(folder.path)
            write(folder.path / "key", key)
            folder.save_note(Note(name))
        return folder

    def _place(self, key: bytes) -> Path:
        fingerprint = hashlib.sha256(b"peerd session folder" + key).hexdigest()[:32]
        return self.folder / "sessions" / fingerprint


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a membership. founder: created here and never yet trained with others.
    over: left, or finished: not taken up at the daemon's next start. finished: all its rounds are done."""

    name: str
    founder: bool = False
    over: bool = False
    finished: bool = False


class SessionFolder:
    """One session's part of the state folder. Attributes: `note`, `descriptor`, `options` as on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = Note("")
        self.descriptor: Descriptor | None = None
        self.options = JoinOptions()
        self.problem = ""
        if self.is_whole():
            self._load()

    def is_whole(self) -> bool:
        """A folder without these was being made when the power failed, or being forgotten."""
        return all((self.path / name).exists() for name in ("key", "session.json"))

    @property
    def is_empty(self) -> bool:
        """Does it hold nothing but a key? One that is damaged may hold more than can be read now."""
        kept = any(self.path.glob("ckpt-*")) or (self.path / "descriptor.json").exists()
        return not kept and not self.problem

    @property
    def key(self) -> bytes:
        """Raises StateError when it cannot be read or is none."""
        key = read(self.path / "key")
        if len(key) != KEY_BYTES:
            raise StateError(f"{self.path / 'key'} has {len(key)} bytes and should have {KEY_BYTES}")
        return key

    @property
    def task_file(self) -> Path | None:
        path = self.path / "task.py"
        return path if path.exists() else None

    @property
    def task_digest(self) -> bytes:
        """SHA-256 of the task file this device trains with; b"" for a built-in task."""
        return hashlib.sha256(read(self.task_file)).digest() if self.task_file is not None else b""

    def save_note(self, note: Note) -> None:
        write(self.path / "session.json", _json(asdict(note)))
        self.note = note

    def mark(self, **changes: Any) -> None:
        """Change fields of the note, and save it if that is news."""
        note = replace(self.note, **changes)
        if note != self.note:
            self.save_note(note)

    def save_descriptor(self, descriptor: Descriptor) -> None:
        write(self.path / "descriptor.json", descriptor.canonical())
        self.descriptor = descriptor

    def save_options(self, options: JoinOptions) -> None:
        """Keep the options; the task file's text goes into a file of its own."""
        if options.task_file_text is not None:
            write(self.path / "task.py", options.task_file_text.encode())
        self.options = replace(options, task_file_text=None)
        write(self.path / "options.json", _json(self.options.to_dict()))

    def save_farewells(self, farewells: Mapping[PeerId, Farewell]) -> None:
        """Keep, for the next node, how far the links to here were applied."""
        write(self.path / "farewells.json", _json({peer: astuple(last) for peer, last in farewells.items()}))

    def farewells(self) -> dict[PeerId, Farewell]:
        """What `save_farewells` kept last; StateError when it cannot be read."""
        path = self.path / "farewells.json"
        if not path.exists():
            return {}
        try:
            kept = {str(peer): Farewell(*map(int, last)) for peer, last in json.loads(read(path)).items()}
            if not all(0 <= number < 1 << 63 for last in kept.values() for number in astuple(last)):
                raise ValueError("a number is out of range")
            return kept
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StateError(f"{path} is damaged ({error}); delete it") from error

    def save_members(self, members: Sequence[PeerId]) -> None:
        """Keep who was in the session when this device's part in it ended."""
        write(self.path / "members.json", json.dumps(members).encode())

    def members(self) -> tuple[PeerId, ...]:
        """What `save_members` kept last; nobody, when it cannot be read."""
        try:
            return tuple(str(peer) for peer in json.loads((self.path / "members.json").read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            return ()

    def forget(self) -> None:
        """Delete everything, the key first."""
        try:
            (self.path / "key").unlink(missing_ok=True)
            shutil.rmtree(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _load(self) -> None:
        try:
            note = json.loads(read(self.path / "session.json"))
            flags = {flag: bool(note.get(flag)) for flag in ("founder", "over", "finished")}
            self.note = Note(str(note["name"]), **flags)
            if (self.path / "descriptor.json").exists():
                self.descriptor = Descriptor.from_dict(json.loads(read(self.path / "descriptor.json")))
            if (self.path / "options.json").exists():
                self.options = JoinOptions.from_dict(json.loads(read(self.path / "options.json")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PeerdError) as error:
            self.spoil(error)

    def spoil(self, error: Exception) -> None:
        """This folder cannot be used as it is: note why, and what to do."""
        name = self.note.name or self.path.name
        self.note = replace(self.note, name=name, over=True)
        self.problem = (
            f"session '{name}' cannot be taken up from {self.path}: {error}; forget it with "
            f"'peerd leave {name} --forget', and join again"
        )


def check_task(descriptor: Descriptor, folder: SessionFolder) -> None:
    """Raises DataError if the session's task is a file and this device was given none."""
    if descriptor.task == "file" and folder.task_file is None:
        raise DataError(
            f"the task of '{descriptor.name}' is a Python file that does not travel between devices; "
            f"join with --task FILE, the file whose SHA-256 begins with {descriptor.task_digest[:12]}"
        )


def make_folder(path: Path, mode: int = 0o700) -> None:
    """A folder of ours; one that is there already and open wider is closed to `mode`.

    Raises StateError: it cannot be made, is another user's, or is shared by all users, as /tmp is.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.getuid() and os.getuid() != 0:
            raise StateError(
                f"{path} belongs to user {found.st_uid} and you are {os.getuid()}: keys kept there would not "
                "be yours alone; name another folder with --state"
            )
        if found.st_mode & stat.S_ISVTX:
            raise StateError(f"{path} is a folder for all users; name one inside it with --state")
        if stat.S_IMODE(found.st_mode) & ~mode:
            path.chmod(stat.S_IMODE(found.st_mode) & mode)
    except OSError as error:
        raise cannot_write(path, error) from error


def write(path: Path, data: bytes) -> None:
    """Write a private file whole or not at all. Raises StateError."""
    try:
        atomic_write(path, data)
    except OSError as error:
        raise cannot_write(path, error) from error


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}; does it belong to this user?") from error


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
