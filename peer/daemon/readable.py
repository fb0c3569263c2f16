"""Whether this process may read the data it is to train on, and whom to ask where it may not.

`peerd join --data` names a folder that its user can read. The daemon, and the learner it starts, may be
another user: the service's. Better said when it is asked for than by a learner that ends.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from peer.errors import DataError

MAX_LOOKED_AT = 10_000  # files of a folder whose permission is asked for (guess)
OWN_TMP = ("/tmp", "/var/tmp")  # of which a service has its own (PrivateTmp=)


def check_readable(data: str) -> None:
    """Raises DataError that names the user, the part of the path that is shut, and the remedy."""
    path = Path(data)
    for folder in reversed(path.parents):
        if not _exists(folder):
            raise DataError(_not_there(path))
        if not os.access(folder, os.X_OK):
            remedy = (
                f"sudo setfacl -m u:{user_name()}:x {folder}', or everybody with 'sudo chmod o+x {folder}"
            )
            raise DataError(_shut("enter", folder, path, remedy))
    if not _exists(path):
        raise DataError(_not_there(path))
    for part in (path, *islice(_files(path), MAX_LOOKED_AT)):
        wanted = _wanted(part)
        if wanted and not os.access(part, wanted):
            remedy = (
                f"sudo setfacl -R -m u:{user_name()}:rX {path}', or everybody with 'sudo chmod -R o+rX {path}"
            )
            raise DataError(_shut("read", part, path, remedy))


def user_name() -> str:
    """This process's user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _files(path: Path) -> Iterator[Path]:
    """What is in a folder that may be read, but for what is hidden; nothing for anything else."""
    if path.is_dir() and os.access(path, os.R_OK | os.X_OK):
        yield from (entry for entry in path.iterdir() if not entry.name.startswith("."))


def _wanted(part: Path) -> int:
    """What a learner needs to be allowed of it; nothing of a link that leads nowhere."""
    try:
        mode = part.stat().st_mode
    except FileNotFoundError:
        return 0
    except OSError:  # it leads where this user may not look
        return os.R_OK
    return os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"{path} cannot be looked at: {error.strerror}; look at --data") from error
    return True


def _shut(verb: str, part: Path, path: Path, remedy: str) -> str:
    within = "" if part == path else f", a part of {path}" if verb == "enter" else f", which is in {path}"
    return (
        f"the daemon runs as user '{user_name()}' and may not {verb} {part}{within}; allow it with '{remedy}'"
    )


def _not_there(path: Path) -> str:
    said = f"the daemon, which runs as user '{user_name()}', sees no folder and no file {path}"
    if any(path.is_relative_to(folder) for folder in OWN_TMP):
        return f"{said}: a service has a /tmp of its own; move the data elsewhere, to /srv for instance"
    return f"{said}; look at --data"
