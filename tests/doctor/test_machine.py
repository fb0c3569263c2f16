"""Clock, disk, memory and heat: each is broken here as a device breaks it, as far as files and mounts can."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peer.available import available_bytes
from peer.daemon import clocks
from peer.daemon.disk import disk
from peer.daemon.host import look
from peer.doctor import machine
from peer.version import WRITTEN

SAY = """
import json, pathlib, sys
from peer.daemon.disk import disk
print(json.dumps(disk(pathlib.Path(sys.argv[1]))))
"""


def test_a_clock_before_the_build_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks.time, "time", lambda: 3600.0)  # a Pi without a network has just started
    unset = machine.clock(clocks.shown_s())
    assert unset.verdict == "warning"
    assert "1970-01-01" in unset.seen
    assert "set-ntp" in unset.advice
    assert machine.clock(WRITTEN + 1.0).verdict == "ok"


def facts(folder: Path, *mount: str, prepare: str = "true", last: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """What a process says of a disk that is mounted for it alone."""
    script = f'mount -t tmpfs {" ".join(mount)} none {folder} && ({prepare}) && exec "$@"'
    command = ["unshare", "-m", "sh", "-ec", script, "sh", *last, sys.executable, "-c", SAY, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: Mapping[str, Any] = json.loads(said.stdout)
    return found


def test_a_disk_that_turned_read_only_is_a_problem(tmp_path: Path) -> None:
    found = machine.disk(facts(tmp_path, "-o", "ro"))
    assert found.verdict == "problem"
    assert f"the disk of {tmp_path} is read-only" in found.seen
    assert "SD card" in found.advice


def test_a_full_disk_is_a_problem_and_a_nearly_full_one_a_warning(tmp_path: Path) -> None:
    fill = f"head -c 990k /dev/zero > {tmp_path}/ballast"
    full = machine.disk(facts(tmp_path, "-o", "size=1m", prepare=fill))
    assert (full.verdict, "no space is left" in full.seen) == ("problem", True)
    nearly = machine.disk(facts(tmp_path, "-o", "size=8m"))
    assert (nearly.verdict, "8.39 MB are left" in nearly.seen) == ("warning", True)


def test_a_folder_that_may_not_be_written_is_a_problem(tmp_path: Path) -> None:
    no_override = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    found = machine.disk(facts(tmp_path, "-o", "size=128m,mode=0500", last=no_override))
    assert (found.verdict, "cannot be written" in found.seen) == ("problem", True)


def test_a_folder_that_cannot_be_looked_at_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = machine.disk(disk(tmp_path / "file" / "state"))
    assert found.verdict == "problem"
    assert "Not a directory" in found.seen


def test_a_folder_that_is_still_to_be_made_is_fine(tmp_path: Path) -> None:
    found = machine.disk(disk(tmp_path / "a" / "b"))
    assert (found.verdict, found.data["exists"]) == ("ok", False)


@pytest.mark.parametrize(
    ("kib", "learns", "verdict"),
    [(100_000, False, "problem"), (300_000, False, "warning"), (900_000, False, "ok"), (100_000, True, "ok")],
)
def test_memory_that_holds_no_learner_is_a_problem(
    tmp_path: Path, kib: int, learns: bool, verdict: str
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 4000000 kB\nMemAvailable: {kib} kB\n")
    found = machine.memory(available_bytes(tmp_path), learns)
    assert found.verdict == verdict
    assert bool(found.advice) == (verdict != "ok")
    assert found.data["available_bytes"] == 1024 * kib


def test_memory_that_nobody_tells_of_is_no_fault(tmp_path: Path) -> None:
    assert machine.memory(available_bytes(tmp_path), False).verdict == "ok"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


ZONE, FAN, CPU = (
    f"sys/class/thermal/{name}" for name in ("thermal_zone0", "cooling_device0", "cooling_device1")
)
COOL = {
    f"{ZONE}/type": "cpu-thermal",
    f"{ZONE}/temp": "55000",
    f"{ZONE}/trip_point_0_type": "passive",
    f"{ZONE}/trip_point_0_temp": "80000",
    f"{FAN}/type": "pwm-fan",
    f"{FAN}/cur_state": "3",
    f"{FAN}/max_state": "4",
    f"{CPU}/type": "cpufreq-cpu0",
    f"{CPU}/cur_state": "0",
    f"{CPU}/max_state": "4",
}
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("changes", "seen", "advice"),
    [
        ({f"{ZONE}/temp": "82000"}, "cpu-thermal has 82 °C", "heat sink"),
        ({f"{CPU}/cur_state": "2"}, "cpufreq-cpu0 is held back", "heat sink"),
        ({FIRMWARE: "50005"}, "its voltage is too low now", "power supply"),
        ({FIRMWARE: "10000"}, "its voltage was too low since it started", "power supply"),
        ({FIRMWARE: "4"}, "the firmware holds the processor back now", "heat sink"),
        ({FIRMWARE: "40000"}, "has held the processor back since it started", "heat sink"),
    ],
)
async def test_a_processor_that_is_held_back_is_said(
    tmp_path: Path, changes: dict[str, str], seen: str, advice: str
) -> None:
    found = machine.throttling(await look(tree(tmp_path, {**COOL, **changes}), "no-such-program"))
    assert found.verdict == "warning"
    assert seen in found.seen
    assert advice in found.advice


async def test_one_that_is_cool_is_fine_and_a_fan_is_no_brake(tmp_path: Path) -> None:
    found = machine.throttling(await look(tree(tmp_path, {**COOL, FIRMWARE: "0"}), "no-such-program"))
    assert (found.verdict, found.advice) == ("ok", "")
    assert "55 °C" in found.seen
    assert found.data["celsius"] == {"cpu-thermal": 55.0}


async def test_a_limit_that_a_user_may_have_set_is_told_and_no_warning(tmp_path: Path) -> None:
    policy = "sys/devices/system/cpu/cpufreq/policy0"
    slow = {"scaling_cur_freq": "600000", "scaling_max_freq": "1200000", "cpuinfo_max_freq": "1500000"}
    files = {**COOL, **{f"{policy}/{name}": khz for name, khz in slow.items()}}
    found = machine.throttling(await look(tree(tmp_path, files), "no-such-program"))
    assert (found.verdict, "it may run at 1200 of 1500 MHz" in found.seen) == ("ok", True)


async def test_vcgencmd_is_asked_where_no_file_has_the_firmwares_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\ntest "$1" = get_throttled && echo throttled=0x50000\n')
    program.chmod(0o755)
    found = machine.throttling(await look(tree(tmp_path, COOL), str(program)))
    assert found.data["firmware"] == 0x50000
    assert "its voltage was too low since it started" in found.seen


async def test_a_device_that_tells_nothing_is_no_fault(tmp_path: Path) -> None:
    found = machine.throttling(await look(tmp_path, "no-such-program"))
    assert (found.verdict, "tells nothing" in found.seen) == ("ok", True)
