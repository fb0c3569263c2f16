"""What a folder's disk says of itself, as facts: what they mean is told by health.py and peer/doctor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

Frame = dict[str, Any]


def disk(folder: Path) -> Frame:
    """The folder, or the nearest one above it that is there, as whoever asks may use it."""
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    facts: Frame = {"folder": str(folder), "exists": there == folder, "problem": None}
    try:
        with suppress(FileNotFoundError):  # it is still to be made
            folder.stat()
        found = os.statvfs(there)
    except OSError as error:
        return {**facts, "problem": error.strerror}
    return {
        **facts,
        "free_bytes": found.f_bavail * found.f_frsize,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
        "writable": os.access(there, os.W_OK | os.X_OK),
        "uid": os.getuid(),
    }


def disk_in_use(folder: Path) -> Frame:
    """As `disk`, of a folder that this daemon has made: that it is not there is a problem."""
    facts = disk(folder)
    if not facts["exists"] and facts["problem"] is None:
        return {**facts, "problem": "it is gone"}
    return facts


def free_mb(folder: Path) -> float | None:
    """Free for this user on the disk in use; None where that cannot be told, of which `health` says more."""
    facts = disk_in_use(folder)
    return facts["free_bytes"] / 1e6 if facts["problem"] is None else None
