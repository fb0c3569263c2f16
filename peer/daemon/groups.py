"""Which control group a process is in, what goes on beside ours, and the processor time that we have used.

Control groups are those of version 2: a path below the mount, () for the root group.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from peer.available import control_groups

Group = tuple[str, ...]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def group_of(root: Path, pid: int | None = None) -> Path | None:
    """The control group of this process, or of another; None where that cannot be told."""
    return next((path for controllers, path in control_groups(root, pid) if not controllers), None)


def _groups_of(top: Path, ours: Group, pids: Iterable[int]) -> Iterator[Group]:
    """The control groups of these processes, looked for in our own first. The groups are asked: /proc does
    not show a service the processes of other users."""
    sought = set(pids)
    folders = (Path(folder) for folder, _, _ in os.walk(top))
    for group in itertools.chain([top.joinpath(*ours)], folders):
        if not sought:
            return
        with suppress(OSError):  # groups come and go, and one of threads does not tell
            text = (group / "cgroup.procs").read_text(encoding="ascii")
            inside = sought.intersection(map(int, text.split()))
            sought -= inside
            if inside:
                yield group.relative_to(top).parts


def beside(top: Path, group: Group, learners: Iterable[int]) -> Iterator[tuple[str, Path]]:
    """The pressure of all control groups that we and these learners are in no part of, from the root down to
    our own: their tasks are all of the others' that are not in a group with us. Those in the root group have
    all there are beside them. A group that has a quota waits for that, however idle the device is, and tells
    nothing."""
    ours = {group, *_groups_of(top, group, learners)}
    above = {one[:depth] for one in ours for depth in range(max(1, len(one)))}
    for here in sorted(above):
        for each in _inside(top.joinpath(*here), "cpu.pressure"):
            if each.relative_to(top).parts not in above | ours and not _has_quota(each):
                yield from _free(top, each)


def _free(top: Path, group: Path) -> Iterator[tuple[str, Path]]:
    """This group, or where some in it have a quota, those in it that have none."""
    inside = _inside(group, "cpu.max")
    free = [child for child in inside if not _has_quota(child)]
    for each in [group] if free == inside else free:
        yield str(each.relative_to(top)), each / "cpu.pressure"


def _inside(group: Path, file: str) -> list[Path]:
    """The groups in this one that have such a file."""
    with suppress(FileNotFoundError):  # it has gone meanwhile
        return sorted(path.parent for path in group.glob(f"*/{file}"))
    return []


def _has_quota(group: Path) -> bool:
    try:
        return not (group / "cpu.max").read_text(encoding="utf-8").startswith("max")
    except OSError:  # groups come and go, and without the controller there is no quota
        return False


def used_s(root: Path, pids: Iterable[int]) -> float:
    """CPU seconds that these processes, and all that descend from them, have used so far, as far as they are
    in our control group. One that is not there any more counts nothing, but in its parent."""
    used: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for pid, parent, ticks in _processes(root):
        used[pid] = ticks
        children.setdefault(parent, []).append(pid)
    ours, left = set[int](), list(pids)
    while left:
        if (pid := left.pop()) not in ours:
            ours.add(pid)
            left += children.get(pid, [])
    here = group_of(root)
    return sum(used[pid] for pid in ours & used.keys() if _is_within(here, group_of(root, pid))) / TICKS_PER_S


def _processes(root: Path) -> Iterator[tuple[int, int, int]]:
    """All that can be seen: id, parent, and the ticks of it and of its children that have ended."""
    for path in (root / "proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            text = (path / "stat").read_text(encoding="utf-8", errors="replace")
            fields = text.rpartition(")")[2].split()
            yield int(path.name), int(fields[1]), sum(map(int, fields[11:15]))


def _is_within(group: Path | None, other: Path | None) -> bool:
    return group is None or other is None or other.is_relative_to(group)
