"""How much memory this process may still take, as the system and its control groups say, and how much it has
taken. Standard library only.

    least of    MemAvailable of /proc/meminfo: what programs can have without swapping (proc(5))
                limit - used + inactive_file, of every control group this process is in: v2 memory.max and
                memory.current, v1 memory.limit_in_bytes and memory.usage_in_bytes (cgroup-v2.rst,
                cgroup-v1/memory.rst); files read and not used lately are given back before anything fails

A value that cannot be read, or is none, does not count.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(root: Path = Path("/")) -> int | None:
    """None where nothing says. root: what the files are looked for under."""
    system = _field(root / "proc/meminfo", "MemAvailable:")
    found = [*_groups(root), *([] if system is None else [1024 * system])]
    return max(0, min(found)) if found else None


def rss_mb() -> float:
    """Resident memory of this process now, without payloads, which it shares with another; else its peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        said = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        return (int(said["RssAnon"][0]) + int(said["RssFile"][0])) / 1024
    except (OSError, ValueError, LookupError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _groups(root: Path) -> Iterator[int]:
    """What is left in each control group, from this process's own up to the root's."""
    for controllers, inside in control_groups(root):
        if controllers and "memory" not in controllers.split(","):
            continue
        mounts = ("sys/fs/cgroup/memory",) if controllers else ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        names = _V1 if controllers else _V2
        for mount in mounts:
            for folder in (inside, *inside.parents) if ".." not in inside.parts else (Path(),):
                left = _left(root / mount / folder, *names)
                if left is not None:
                    yield left


def control_groups(root: Path, pid: int | None = None) -> Iterator[tuple[str, Path]]:
    """The control groups of this process, or of another: their controllers, "" for version 2, and their path
    below the mount. Nothing where that cannot be read."""
    for line in _text(root / f"proc/{'self' if pid is None else pid}/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        yield controllers, Path(path.lstrip("/"))


def _left(group: Path, limit: str, used: str, unused_files: str) -> int | None:
    most, taken = _text(group / limit).strip(), _text(group / used).strip()
    if not most.isdecimal() or not taken.isdecimal():  # "max" is no limit
        return None
    return int(most) - int(taken) + (_field(group / "memory.stat", unused_files) or 0)


def _field(path: Path, name: str) -> int | None:
    """The number after `name` in a file of a name and a number a line."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not this kind of system, or not to be read by everybody
        return ""
