"""What this device says of its own condition: heat, power, and who waits for its processors. An edge: it
reads /proc and /sys below a root, and asks the Raspberry Pi's firmware.

    host = await look()        # records of condition.py; below Path("/") unless a test has its own tree
    await look(learners=pids)  # what these processes wait for is not taken for the others'
    host.zones, host.cooling   thermal zones with their trip points; what the kernel holds back to cool
    host.firmware              a Pi's own word on voltage and heat
    host.supplies              mains, batteries
    host.pressure              PSI: the share of time in which something waited for a processor
    host.frequencies           what each group of processors runs at, and may
    host.unknown               {what: why}: what is there and cannot be read, or is not there and should be

A device without a battery has no supplies, and that is no fault. What is listed in `unknown` is neither well
nor ill. Read at most every few seconds: some sensors answer slowly, so files are read beside the event loop.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from peer.daemon.condition import Cooling, Firmware, Frequency, Host, Pressure, Supply, Zone
from peer.daemon.groups import TICKS_PER_S, Group, beside, group_of

PROGRAM_S = 3.0  # for vcgencmd, which answers in milliseconds or hangs in the firmware's mailbox (guess)
LEAST_C, MOST_C = -40.0, 150.0  # outside of this a sensor is off, or broken
FIRMWARE = (
    "sys/devices/platform/soc*/*firmware/get_throttled",
    "sys/devices/platform/*firmware/get_throttled",
)


async def look(root: Path = Path("/"), program: str = "vcgencmd", learners: Collection[int] = ()) -> Host:
    """Read everything once. program: asked where no file has the firmware's word, if it is installed.
    learners: processes of ours, wherever they run."""
    host = await asyncio.to_thread(read, root, learners)
    path = shutil.which(program)
    if host.firmware is not None or path is None:
        return host
    unknown = {name: why for name, why in host.unknown.items() if name != "firmware"}
    try:
        found = firmware_of(await _said(path, "get_throttled"))
    except (OSError, ValueError, TimeoutError) as error:
        return _replaced(host, None, unknown | {"firmware": f"{program} get_throttled: {_why(error)}"})
    return _replaced(host, found, unknown)


def _replaced(host: Host, firmware: Firmware | None, unknown: dict[str, str]) -> Host:
    return Host(host.zones, host.cooling, firmware, host.supplies, host.pressure, host.frequencies, unknown)


async def _said(path: str, word: str) -> str:
    """What this program prints. Raises OSError, ValueError (it fails), TimeoutError (it hangs, and is
    killed)."""
    process = await asyncio.create_subprocess_exec(
        path, word, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PROGRAM_S):
            printed, _ = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    text = printed.decode("utf-8", "replace").strip()
    if process.returncode:
        raise ValueError(text or f"exit code {process.returncode}")
    return text


def firmware_of(text: str) -> Firmware:
    """`throttled=0x50005`, or a file's bare `50005`. Raises ValueError."""
    return Firmware(int(text.strip().removeprefix("throttled="), 16))


def read(root: Path, learners: Collection[int] = ()) -> Host:
    """What files say. Takes some ms for each slow sensor."""
    return _Reader(root, learners).host()


class _Reader:
    """One look at the files below `root`; `unknown` fills up on the way."""

    def __init__(self, root: Path, learners: Collection[int]) -> None:
        self.root, self.learners = root, learners
        self.unknown: dict[str, str] = {}

    def host(self) -> Host:
        return Host(
            tuple(self._zones()), tuple(self._cooling()), self._firmware(), tuple(self._supplies()),
            self._pressure(), tuple(self._frequencies()), self.unknown,
        )  # fmt: skip

    # --- heat --------------------------------------------------------------------------------------------

    def _zones(self) -> Iterator[Zone]:
        for folder in self._folders("sys/class/thermal", "thermal_zone*"):
            name = self._text(folder / "type", "") or folder.name
            celsius = self._celsius(folder / "temp", name)
            if celsius is not None:
                yield Zone(name, celsius, self._trips(folder, name))

    def _trips(self, folder: Path, zone: str) -> dict[str, float]:
        trips: dict[str, float] = {}
        for path in sorted(folder.glob("trip_point_*_type")):
            at = path.with_name(path.name.removesuffix("type") + "temp")
            kind, found = self._text(path, zone), self._number(at, zone)
            if kind is not None and found is not None and 0 < found / 1000 <= MOST_C:  # else a place holder
                trips[kind] = min(found / 1000, trips.get(kind, MOST_C))
        return trips

    def _celsius(self, path: Path, zone: str) -> float | None:
        found = self._number(path, zone)
        if found is None or LEAST_C <= found / 1000 <= MOST_C:
            return None if found is None else found / 1000
        self.unknown[zone] = f"{path} shows {found / 1000:g} °C, which its sensor cannot mean"
        return None

    def _cooling(self) -> Iterator[Cooling]:
        for folder in self._folders("sys/class/thermal", "cooling_device*"):
            kind = self._text(folder / "type", "") or folder.name
            level, most = self._number(folder / "cur_state", kind), self._number(folder / "max_state", kind)
            if level is not None:
                yield Cooling(kind, level, most if most is not None else level)

    def _firmware(self) -> Firmware | None:
        for path in [path for pattern in FIRMWARE for path in sorted(self.root.glob(pattern))]:
            text = self._text(path, "firmware")
            if text is not None:
                try:
                    return firmware_of(text)
                except ValueError as error:
                    self.unknown["firmware"] = f"{path}: {error}"
        return None

    def _frequencies(self) -> Iterator[Frequency]:
        for folder in self._folders("sys/devices/system/cpu/cpufreq", "policy*"):
            names = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
            now, allowed, most = (self._number(folder / name, folder.name) for name in names)
            if now is not None and allowed is not None and most is not None:
                yield Frequency(folder.name, now, allowed, most)

    # --- power -------------------------------------------------------------------------------------------

    def _supplies(self) -> Iterator[Supply]:
        for folder in self._folders("sys/class/power_supply", "*"):
            kind = self._text(folder / "type", folder.name)
            scope = self._text(folder / "scope", folder.name) if (folder / "scope").exists() else None
            if kind is None or scope == "Device":
                continue  # the battery of a mouse feeds the mouse
            fields = {
                name: self._text(folder / name, folder.name) if (folder / name).exists() else None
                for name in ("online", "status", "capacity")
            }
            online, percent = fields["online"], fields["capacity"]
            if percent is not None and not percent.isdecimal():
                self.unknown[folder.name] = f"{folder / 'capacity'} shows {percent!r}, which is no percentage"
                percent = None
            yield Supply(
                folder.name, kind, None if online is None else online != "0", fields["status"],
                None if percent is None else int(percent),
            )  # fmt: skip

    # --- pressure ----------------------------------------------------------------------------------------

    def _pressure(self) -> Pressure | None:
        path = self.root / "proc/pressure/cpu"
        if not path.exists():
            self.unknown["pressure"] = (
                f"{path} is not there: this kernel measures no pressure; psi=1 on its command line turns it "
                "on"
            )
            return None
        everybody = self._avg10(path)
        if everybody is None:
            return None
        top, parts = self._group()
        groups = beside(top, parts, self.learners) if top is not None else ()
        found = [(self._avg10(file), name) for name, file in groups]
        others, who = max(((avg10, name) for avg10, name in found if avg10 is not None), default=(None, ""))
        ours = top.joinpath(*parts) if top is not None and parts else None
        group = self._avg10(ours / "cpu.pressure") if ours is not None else everybody
        return Pressure(everybody, others, who, everybody if group is None else group, self._used_s(ours))

    def _avg10(self, path: Path) -> float | None:
        text = self._text(path, "pressure")
        found = re.match(r"some avg10=([0-9.]+) ", text or "")
        if text is not None and found is None:
            self.unknown["pressure"] = f"{path} shows {text[:60]!r}, which is no pressure"
        return float(found[1]) if found is not None else None

    def _group(self) -> tuple[Path | None, Group]:
        """Where control groups are listed, and the path to ours. None: this kernel has none of version 2."""
        ours = group_of(self.root)
        mounts = [self.root / "sys/fs/cgroup", self.root / "sys/fs/cgroup/unified"]
        top = next((path for path in mounts if (path / "cgroup.procs").exists()), None)
        return (top, ours.parts) if ours is not None else (None, ())

    def _used_s(self, group: Path | None) -> float | None:
        """CPU seconds of all in this control group so far, or of the whole device."""
        if group is not None:
            found = re.search(r"usage_usec (\d+)", self._text(group / "cpu.stat", "pressure") or "")
            return int(found[1]) / 1e6 if found is not None else None
        found = re.match(r"cpu +(\d+) (\d+) (\d+)", self._text(self.root / "proc/stat", "pressure") or "")
        return sum(int(ticks) for ticks in found.groups()) / TICKS_PER_S if found is not None else None

    # --- files -------------------------------------------------------------------------------------------

    def _folders(self, where: str, pattern: str) -> list[Path]:
        return sorted(path for path in (self.root / where).glob(pattern) if path.is_dir())

    def _text(self, path: Path, what: str) -> str | None:
        """The file's text; None if it cannot be read, and then that is known as unknown."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError as error:
            if path.parent.exists():  # else the device went meanwhile, as a control group does
                self.unknown[what or str(path)] = f"{path}: {_why(error)}"
        except OSError as error:
            self.unknown[what or str(path)] = f"{path}: {_why(error)}"
        return None

    def _number(self, path: Path, what: str) -> int | None:
        text = self._text(path, what)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            self.unknown[what] = f"{path} shows {text[:40]!r}, which is no number"
            return None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PROGRAM_S:.0f} s"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
