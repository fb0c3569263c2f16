"""How much memory there is for replicas: read from files of the kernel, and shared out."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.compression.chunks import coding_bytes
from peer.learner import memory
from peer.learner.memory import SHARE, available_bytes, replica_mb, with_memory

MEMINFO = "MemTotal:        4000 kB\nMemFree:          100 kB\nMemAvailable:    2000 kB\n"


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def v2(root: Path, group: str, limit: str, used: int, inactive: int, mount: str = "sys/fs/cgroup") -> None:
    put(root, f"{mount}/{group}/memory.max", f"{limit}\n")
    put(root, f"{mount}/{group}/memory.current", f"{used}\n")
    put(root, f"{mount}/{group}/memory.stat", f"anon {used - inactive}\ninactive_file {inactive}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/meminfo", MEMINFO)
    return tmp_path


def test_without_control_groups_it_is_what_the_system_has_left(root: Path) -> None:
    assert available_bytes(root) == 2000 * 1024


def test_the_limit_of_any_group_above_counts(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/machine.slice/peerd.service\n")
    v2(root, "machine.slice/peerd.service", "max", 500_000, 0)
    assert available_bytes(root) == 2000 * 1024, "no limit"
    v2(root, "machine.slice", "1000000", 600_000, 50_000)
    assert available_bytes(root) == 450_000
    v2(root, "machine.slice/peerd.service", "700000", 500_000, 100_000)
    assert available_bytes(root) == 300_000
    v2(root, "", "900000", 899_000, 0)
    assert available_bytes(root) == 1000


def test_groups_of_the_first_version_count_too(root: Path) -> None:
    put(root, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/box/one\n0::/\n")
    put(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "800000\n")
    put(root, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", "500000\n")
    put(root, "sys/fs/cgroup/memory/box/memory.stat", "inactive_file 7\ntotal_inactive_file 20000\n")
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "700000\n")
    assert available_bytes(root) == 320_000
    v2(root, "", "600000", 500_000, 0, mount="sys/fs/cgroup/unified")
    assert available_bytes(root) == 100_000


def test_a_group_over_its_limit_leaves_nothing(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/full\n")
    v2(root, "full", "1000", 2000, 0)
    assert available_bytes(root) == 0


@pytest.mark.parametrize("text", ["", "nonsense", "0", "0::", ":::", "0::/../../outside\n", "\xff\n"])
def test_what_cannot_be_read_does_not_count(tmp_path: Path, text: str) -> None:
    put(tmp_path, "proc/self/cgroup", text)
    assert available_bytes(tmp_path) is None
    put(tmp_path, "proc/meminfo", "MemAvailable: much\n")
    assert available_bytes(tmp_path) is None


def test_this_machine_says_something() -> None:
    found = available_bytes()
    assert found is not None and found > 1 << 20


def test_a_share_of_it_is_for_replicas_unless_the_session_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 400_000_000)
    left = f"{SHARE * (400 - coding_bytes(1000) / 1e6):.6f}"
    assert with_memory("difference-push", {}, 1000)["replica-mb"] == left
    assert with_memory("difference-push", {"replica-mb": "auto"}, 1000)["replica-mb"] == left
    assert with_memory("difference-push", {"replica-mb": "7"}, 1000) == {"replica-mb": "7"}
    assert with_memory("sgp", {"min-weight": "0.1"}, 1000) == {"min-weight": "0.1"}
    assert replica_mb(None, 1000) == 256


def test_coding_a_message_comes_first() -> None:
    assert replica_mb(1_000_000_000, 25_000_000) < 0.85 * replica_mb(1_000_000_000, 1000)
    assert replica_mb(150_000_000, 25_000_000) == 0
