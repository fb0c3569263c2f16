"""Where a daemon's socket and state are, and whether a socket's owner may be trusted. Standard library only.

Order (cli.md "Which daemon"): the flag, the environment, the system service's, the user's own.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from peer.errors import ConfigError

SYSTEM_SOCKET = Path("/run/peerd/peerd.sock")
SYSTEM_STATE = Path("/var/lib/peerd")
SERVICE_USER = "peerd"  # and the group whose members may use its socket, and so run code as this user
MAX_PATH = 100  # bytes of a socket's path; sun_path holds 108 (unix(7))


def state_folder(flag: str | None, env: Mapping[str, str]) -> Path:
    """--state, PEERD_STATE, the service's folder for the service's user, else the user's own. Raises
    ConfigError."""
    chosen = flag or env.get("PEERD_STATE")
    if chosen:
        return _expanded(chosen, "--state" if flag else "PEERD_STATE")
    if os.getuid() == _service_uid():
        return SYSTEM_STATE
    if env.get("XDG_STATE_HOME"):
        return Path(env["XDG_STATE_HOME"]).absolute() / "peerd"
    return _expanded(env.get("HOME") or "~", "the user's own folder") / ".local" / "state" / "peerd"


def default_socket(flag: str | None, env: Mapping[str, str], state: str | None = None) -> Path:
    """The socket a client talks to: --socket, PEERD_SOCKET, the service's if present and permitted, the
    user's own. `state` is the --state flag. Raises ConfigError when the path is too long."""
    chosen = flag or env.get("PEERD_SOCKET")
    if not chosen and os.access(SYSTEM_SOCKET, os.R_OK | os.W_OK):  # also false where it may not be looked at
        return SYSTEM_SOCKET
    return own_socket(flag, env, state)


def is_barred(flag: str | None, env: Mapping[str, str], state: str | None = None) -> bool:
    """Is the daemon to ask a service's that cannot be asked: its socket is not this user's to use, or gone
    between two lives of it? Not where the user has said which daemon is meant. flag, state: the flags."""
    if flag or state or env.get("PEERD_SOCKET") or env.get("PEERD_STATE"):
        return False
    try:
        owner = SYSTEM_SOCKET.parent.stat().st_uid
    except OSError:  # the unit makes it, where all may look
        return False
    if _is_between_lives():
        return owner != os.getuid()
    return not os.access(SYSTEM_SOCKET, os.R_OK | os.W_OK)


def why_barred() -> str:
    """Why the service's daemon cannot be asked, and what a user can do about it."""
    if _is_between_lives():
        return restarting()
    return (
        f"the daemon of this device is a service, and its socket {SYSTEM_SOCKET} may not be used by you; "
        f"{_how_to_be_let_in()}"
    )


def restarting() -> str:
    """What is the case where the service's place is there and nobody answers."""
    return (
        f"the service's daemon does not answer on {SYSTEM_SOCKET}; it may be restarting; 'peerd service "
        "status' says how it is, 'sudo systemctl restart peerd' starts it"
    )


def _is_between_lives() -> bool:
    """The unit keeps the folder while it starts its daemon again (RuntimeDirectoryPreserve=)."""
    return os.access(SYSTEM_SOCKET.parent, os.X_OK) and not os.path.lexists(SYSTEM_SOCKET)


def _how_to_be_let_in() -> str:
    name = _user_name(os.getuid()).strip("'")
    try:
        group = grp.getgrnam(SERVICE_USER)
    except KeyError:
        inside = waits = False
    else:
        inside, waits = group.gr_gid in os.getgroups(), name in group.gr_mem
    if inside:
        return f"its socket's permissions are not as it makes them: 'sudo systemctl restart {SERVICE_USER}'"
    if waits:
        return f"you have been put into group '{SERVICE_USER}' since you logged in: log in again"
    return (
        f"you are not in group '{SERVICE_USER}': 'sudo usermod -aG {SERVICE_USER} {name}', then log in again "
        f"(its members may run code as user '{SERVICE_USER}')"
    )


def own_socket(flag: str | None, env: Mapping[str, str], state: str | None = None) -> Path:
    """The socket a daemon of this user listens on: as `default_socket`, but never another daemon's."""
    chosen = flag or env.get("PEERD_SOCKET")
    if chosen:
        return check_path(_expanded(chosen, "--socket" if flag else "PEERD_SOCKET"))
    if os.getuid() == _service_uid():
        return SYSTEM_SOCKET
    if env.get("XDG_RUNTIME_DIR"):
        return check_path(Path(env["XDG_RUNTIME_DIR"]).absolute() / "peerd" / "peerd.sock")
    return check_path(state_folder(state, env) / "run" / "peerd.sock")


def check_path(path: Path) -> Path:
    """The path, if a Unix socket can have it. Raises ConfigError."""
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise ConfigError(
            f"the socket's path has {length} bytes and may have {MAX_PATH}: {path}; "
            "name a shorter one with --socket or PEERD_SOCKET"
        )
    return path


def check_owner(path: Path) -> None:
    """Raises ConfigError if the socket belongs to a stranger. A missing socket is nobody's."""
    try:
        owner = path.stat().st_uid
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # connecting will say which of them it is
    _check_uid(owner, f"the socket {path} belongs to")


def check_listener(sock: socket.socket, path: Path) -> None:
    """Raises ConfigError if the process behind a connected socket is a stranger's."""
    _check_uid(credentials(sock)[1], f"the daemon on {path} runs as")


def credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a Unix socket (SO_PEERCRED, unix(7))."""
    ucred = struct.Struct("3i")
    pid, uid, _ = ucred.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, ucred.size))
    return pid, uid


def _expanded(text: str, where: str) -> Path:
    """The path with its ~ or ~user in full. Raises ConfigError when there is no such home."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # pathlib's word for a user that is not known
        raise ConfigError(
            f"{where} is '{text}', and no home folder is known for '{text.partition('/')[0]}'; write the "
            "whole path"
        ) from error


def _check_uid(uid: int, what: str) -> None:
    if uid not in (0, os.getuid(), _service_uid()):
        raise ConfigError(
            f"{what} {_user_name(uid)}, and only root, '{SERVICE_USER}' and yourself are trusted with a "
            "session's key; name your own daemon's socket with --socket"
        )


def _service_uid() -> int | None:
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid
    except KeyError:
        return None


def _user_name(uid: int) -> str:
    try:
        return f"'{pwd.getpwuid(uid).pw_name}'"
    except KeyError:
        return f"user {uid}"
