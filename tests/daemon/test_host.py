"""What a device says of itself, from trees of files as a Pi, a Jetson and a laptop have them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peer.daemon import host as hosts
from peer.daemon.condition import Firmware, Frequency, Host, Pressure, Supply, Zone
from peer.daemon.groups import used_s
from peer.daemon.host import firmware_of, look, read

TICKS = os.sysconf("SC_CLK_TCK")
CALM = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
SCRIPT = "user-1000.slice"
IDLE = {"proc/pressure/cpu": CALM, "proc/stat": f"cpu  {TICKS} 0 0 9 0", "proc/self/cgroup": "1:cpu:/"}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def pressed(avg10: float) -> str:
    return CALM.replace("avg10=0.00", f"avg10={avg10:.2f}", 1)


def zone(number: int, kind: str, millis: str, **trips: int) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    points = {
        f"{folder}/trip_point_{i}_{field}": str(value)
        for i, (name, at) in enumerate(trips.items())
        for field, value in (("type", name), ("temp", at))
    }
    return {f"{folder}/type": kind, f"{folder}/temp": millis, **points}


def cooling(number: int, kind: str, level: int) -> dict[str, str]:
    folder = f"sys/class/thermal/cooling_device{number}"
    return {f"{folder}/type": kind, f"{folder}/cur_state": str(level), f"{folder}/max_state": "4"}


def supply(name: str, **fields: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{key}": value for key, value in fields.items()}


def test_a_zone_has_its_temperature_and_the_lowest_trip_of_each_type(tmp_path: Path) -> None:
    files = zone(0, "cpu-thermal", "61500", passive=80000, active=50000, hot=95000, critical=110000)
    files |= zone(1, "x86_pkg_temp", "47000", passive=0)
    found = read(tree(tmp_path, files)).zones
    trips = {"passive": 80.0, "active": 50.0, "hot": 95.0, "critical": 110.0}
    assert found == (Zone("cpu-thermal", 61.5, trips), Zone("x86_pkg_temp", 47.0, {}))


def test_a_fan_that_turns_is_no_throttling_and_a_processor_held_back_is(tmp_path: Path) -> None:
    files = cooling(0, "pwm-fan", 3) | cooling(1, "cpufreq-cpu0", 2) | cooling(2, "thermal-devfreq-0", 0)
    files |= cooling(3, "intel_powerclamp", -1)
    found = read(tree(tmp_path, files)).cooling
    assert [(device.kind, device.throttles) for device in found] == [
        ("pwm-fan", False), ("cpufreq-cpu0", True), ("thermal-devfreq-0", False), ("intel_powerclamp", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "now", "before"),
    [
        ("throttled=0x0", "", ""),
        ("throttled=0x50005", "under_voltage throttled", "under_voltage throttled"),
        ("80008", "soft_limit", "soft_limit"),
        ("throttled=0x20002", "capped", "capped"),
        ("throttled=0x10000", "", "under_voltage"),
    ],
)
def test_the_firmwares_bits_tell_now_from_since_boot(text: str, now: str, before: str) -> None:
    def said(firmware: Firmware) -> str:
        names = ("under_voltage", "capped", "throttled", "soft_limit")
        return " ".join(name for name in names if getattr(firmware, name))

    assert (said(firmware_of(text)), said(firmware_of(text).since_boot)) == (now, before)


@pytest.mark.parametrize("where", ["soc/soc:firmware", "soc@107c000000:firmware"])
async def test_the_firmwares_file_is_read_and_then_no_program_is_asked(tmp_path: Path, where: str) -> None:
    root = tree(tmp_path, {f"sys/devices/platform/{where}/get_throttled": "50005"})
    assert (await look(root, program="false")).firmware == Firmware(0x50005)


def program(folder: Path, text: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_without_a_file_the_program_is_asked(tmp_path: Path) -> None:
    asked = program(tmp_path, '[ "$1" = get_throttled ] && echo throttled=0x50000')
    assert (await look(tmp_path, asked)).firmware == Firmware(0x50000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo VCHI initialization failed; exit 255", "VCHI initialization failed"),
        ("echo error=1", "error=1"),
        ("exec sleep 1000", "no answer within"),
    ],
)
async def test_a_program_that_fails_or_hangs_leaves_it_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    if "sleep" in text:
        monkeypatch.setattr(hosts, "PROGRAM_S", 0.05)
    found = await look(tmp_path, program(tmp_path, text))
    assert found.firmware is None
    assert why in found.unknown["firmware"]


async def test_a_device_without_the_program_is_no_pi_and_lacks_nothing(tmp_path: Path) -> None:
    found = await look(tree(tmp_path, IDLE), "no-such-program")
    assert found == Host(pressure=Pressure(0.0, group_cpu_s=1.0))


AC, BAT = {"type": "Mains", "online": "1"}, {"type": "Battery", "status": "Discharging", "capacity": "63"}


@pytest.mark.parametrize(
    ("files", "on_battery", "percent"),
    [
        ({}, False, None),
        (supply("AC", **AC), False, None),
        (supply("AC", **AC) | supply("BAT0", **BAT), False, 63.0),
        (supply("AC", **AC | {"online": "0"}) | supply("BAT0", **BAT), True, 63.0),
        (supply("AC", **AC | {"online": "0"}) | supply("BAT0", type="Battery", status="Unknown"), True, None),
        (supply("BAT0", **BAT) | supply("BAT1", **BAT | {"capacity": "21", "status": "Full"}), True, 42.0),
        (supply("BAT0", **BAT | {"status": "Charging"}), False, 63.0),
        (supply("usb", type="USB", online="0") | supply("BAT0", **BAT | {"status": "Charging"}), False, 63.0),
        (supply("hidpp_battery_0", **BAT, scope="Device"), False, None),
        (supply("ups", type="UPS", status="Discharging"), True, None),
        (supply("ups", type="UPS", status="Discharging", capacity="20"), True, 20.0),
    ],
)  # fmt: skip
def test_it_is_on_battery_when_a_battery_alone_feeds_it(
    tmp_path: Path, files: dict[str, str], on_battery: bool, percent: float | None
) -> None:
    found = read(tree(tmp_path, files))
    assert (found.on_battery, found.battery_percent) == (on_battery, percent)


def test_supplies_say_what_they_have(tmp_path: Path) -> None:
    found = read(tree(tmp_path, supply("AC", **AC) | supply("BAT0", **BAT)))
    assert found.supplies == (
        Supply("AC", "Mains", online=True),
        Supply("BAT0", "Battery", status="Discharging", percent=63),
    )


def in_group(ours: str, mount: str = "sys/fs/cgroup") -> dict[str, str]:
    groups = {"user.slice": 7.5, "system.slice": 90.0, "init.scope": 0.0}
    groups |= {"system.slice/peerd.service": 95.0, "system.slice/camera.service": 31.0}
    files = {f"{mount}/{name}/cpu.pressure": pressed(value) for name, value in groups.items()}
    files |= {f"{mount}/{name}/cpu.stat": "usage_usec 2500000" for name in groups}
    return files | {
        f"{mount}/cgroup.procs": "1",
        "proc/self/cgroup": f"1:cpu:/\n0::{ours}",
        "proc/pressure/cpu": pressed(96.0),
        "proc/stat": f"cpu  {3 * TICKS} {2 * TICKS} {2 * TICKS} 900000 1 0 0 0 0 0",
    }


@pytest.mark.parametrize("mount", ["sys/fs/cgroup", "sys/fs/cgroup/unified"])
def test_the_others_pressure_is_of_groups_that_we_are_no_part_of(tmp_path: Path, mount: str) -> None:
    found = read(tree(tmp_path, in_group("/system.slice/peerd.service", mount)))
    assert found.pressure == Pressure(96.0, 31.0, "system.slice/camera.service", 95.0, 2.5)


def test_who_is_in_the_root_group_shares_it_with_everybody(tmp_path: Path) -> None:
    """What is in groups of its own is seen beside it all the same."""
    assert read(tree(tmp_path, in_group("/"))).pressure == Pressure(96.0, 90.0, "system.slice", 96.0, 7.0)


def test_a_group_with_a_quota_waits_for_that_and_not_for_us(tmp_path: Path) -> None:
    files = in_group("/user.slice/session-1.scope")
    slice_ = "sys/fs/cgroup/system.slice"
    for name in ("camera.service", "peerd.service", "docker-1.scope"):
        files[f"{slice_}/{name}/cpu.max"] = "max 100000"
    files[f"{slice_}/docker-1.scope/cpu.pressure"] = pressed(88.0)
    files[f"{slice_}/peerd.service/cpu.pressure"] = pressed(30.0)
    found = read(tree(tmp_path, files)).pressure
    assert found is not None
    assert (found.others, found.who) == (90.0, "system.slice"), "nobody has one: the slice as a whole"
    tree(tmp_path, {f"{slice_}/docker-1.scope/cpu.max": "50000 100000"})
    found = read(tmp_path).pressure
    assert found is not None
    assert (found.others, found.who) == (31.0, "system.slice/camera.service")
    tree(tmp_path, {f"{slice_}/cpu.max": "50000 100000"})
    found = read(tmp_path).pressure
    assert found is not None
    assert (found.others, found.who) == (0.0, "init.scope")


def test_a_script_of_ours_in_a_group_of_its_own_is_none_of_the_others(tmp_path: Path) -> None:
    """A service does not see its process in /proc, but the group tells."""
    files = in_group("/system.slice/peerd.service")
    user = "sys/fs/cgroup/user.slice"
    files |= {f"{user}/cpu.pressure": pressed(97.0), f"{user}/{SCRIPT}/cpu.pressure": pressed(97.0)}
    files |= {f"{user}/{SCRIPT}/cgroup.procs": "6\n7", f"{user}/other.scope/cpu.pressure": pressed(40.0)}
    root = tree(tmp_path, files)
    seen = [read(root, learners).pressure for learners in ((), (7,), (7, 99))]
    script = Pressure(96.0, 40.0, "user.slice/other.scope", 95.0, 2.5)
    assert seen == [Pressure(96.0, 97.0, "user.slice", 95.0, 2.5), script, script]


def test_a_learner_in_our_own_group_changes_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, in_group("/system.slice/peerd.service"))
    tree(root, {"sys/fs/cgroup/system.slice/peerd.service/cgroup.procs": "6\n7"})
    assert read(root, (7,)) == read(root)


def test_living_children_count_and_those_in_another_group_do_not(tmp_path: Path) -> None:
    def process(pid: int, parent: int, group: str) -> dict[str, str]:
        fields = f"S {parent} {' '.join(['0'] * 9)} {TICKS} 0 0 0 20"
        return {f"proc/{pid}/stat": f"{pid} (x) {fields}", f"proc/{pid}/cgroup": f"0::{group}"}

    files = process(7, 1, "/a") | process(8, 7, "/a") | process(9, 8, "/a/b") | process(10, 1, "/a")
    files |= process(11, 7, "/ab") | process(12, 1, "/b") | {"proc/self/cgroup": "0::/a"}
    root = tree(tmp_path, files)
    assert used_s(root, [7, 8]) == 3.0, "7, 8 and 9, each once"
    assert used_s(root, [7, 12]) == 3.0
    assert used_s(tree(root, {"proc/self/cgroup": "0::/"}), [7, 12]) == 5.0


def test_processes_have_used_what_they_and_their_dead_children_have(tmp_path: Path) -> None:
    fields = f"S {' '.join(['0'] * 10)} {TICKS} {TICKS} {TICKS} {2 * TICKS} 20"
    root = tree(tmp_path, {"proc/7/stat": f"7 (a) b ) {fields}", "proc/8/stat": f"8 (x) {fields}"})
    assert used_s(root, [7, 8, 9]) == 10.0


def test_a_kernel_without_pressure_is_unknown_and_not_well(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.pressure is None
    assert "psi=1" in found.unknown["pressure"]


def test_a_file_that_makes_no_sense_is_unknown(tmp_path: Path) -> None:
    files = {"proc/pressure/cpu": "nothing", **zone(0, "wifi", "-274000"), **zone(1, "gpu", "warm")}
    files |= {"sys/devices/platform/soc/soc:firmware/get_throttled": "wet"}
    files |= supply("BAT0", **BAT | {"capacity": "half"})
    found = read(tree(tmp_path, files))
    assert (found.zones, found.firmware, found.pressure, found.battery_percent) == ((), None, None, None)
    assert set(found.unknown) == {"pressure", "wifi", "gpu", "firmware", "BAT0"}


def test_a_file_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """A folder in its place fails like a sensor that is switched off, for root too."""
    root = tree(tmp_path, {"sys/class/thermal/thermal_zone0/type": "cpu-thermal"} | IDLE)
    (root / "sys/class/thermal/thermal_zone0/temp").mkdir()
    found = read(root)
    assert found.zones == ()
    assert "Is a directory" in found.unknown["cpu-thermal"]


def test_frequencies_are_read(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpufreq/policy0"
    files = {"scaling_cur_freq": "600000", "scaling_max_freq": "1000000", "cpuinfo_max_freq": "1800000"}
    found = read(tree(tmp_path, {f"{folder}/{name}": text for name, text in files.items()}))
    assert found.frequencies == (Frequency("policy0", 600000, 1000000, 1800000),)


async def test_this_very_machine_can_be_read() -> None:
    found = await look()
    assert found.pressure is not None or "pressure" in found.unknown
