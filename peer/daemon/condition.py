"""What a device says of its own condition, as frozen records: heat, power, and who waits for its processors.

host.py reads them; manners.py and `peerd doctor` decide by them. Standard library only, and pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HOLDS_BACK = re.compile("cpu|processor|powerclamp|devfreq", re.IGNORECASE)  # cooling devices that are no fans

UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SINCE_BOOT = 16  # these four, shifted by so many bits: raspberrypi.com/documentation, os, get_throttled


@dataclass(frozen=True, slots=True)
class Zone:
    """One thermal zone. trips: {type: °C}, the lowest of each type ("passive", "hot", "critical", …)."""

    name: str
    celsius: float
    trips: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cooling:
    """Something the kernel cools with: a fan, or a processor that it holds back. level: 0 is not at all."""

    kind: str
    level: int
    most: int

    @property
    def throttles(self) -> bool:
        """Does it hold a processor back now?"""
        return self.level > 0 and bool(HOLDS_BACK.search(self.kind))


@dataclass(frozen=True, slots=True)
class Firmware:
    """`get_throttled` of a Raspberry Pi, as its bits. Each is of now, and of `since_boot` for the past."""

    bits: int

    @property
    def under_voltage(self) -> bool:
        return bool(self.bits & UNDER_VOLTAGE)

    @property
    def capped(self) -> bool:
        """The frequency is held down, for heat or voltage."""
        return bool(self.bits & CAPPED)

    @property
    def throttled(self) -> bool:
        return bool(self.bits & THROTTLED)

    @property
    def soft_limit(self) -> bool:
        """The soft temperature limit is active (Pi 3 B+)."""
        return bool(self.bits & SOFT_LIMIT)

    @property
    def since_boot(self) -> Firmware:
        return Firmware(self.bits >> SINCE_BOOT)


@dataclass(frozen=True, slots=True)
class Supply:
    """One power supply. kind: "Mains", "Battery", "USB", "UPS", … status: of a battery, "Discharging" for
    one. percent: of its charge."""

    name: str
    kind: str
    online: bool | None = None
    status: str | None = None
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Pressure:
    """Percent of the last 10 s in which some task was ready and had no processor ("some avg10").

    everybody: of the whole device, our own learners included. others: of the most pressed control group that
    we are not in, and which; None without one. group: of the control group we are in, and the CPU seconds
    that all in it have used so far; of the whole device where that is our group, or the kernel knows none."""

    everybody: float
    others: float | None = None
    who: str = ""
    group: float = 0.0
    group_cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Frequency:
    """kHz of one group of processors. most: of the hardware; allowed: by heat or by the user."""

    name: str
    now: int
    allowed: int
    most: int


@dataclass(frozen=True, slots=True)
class Host:
    zones: tuple[Zone, ...] = ()
    cooling: tuple[Cooling, ...] = ()
    firmware: Firmware | None = None
    supplies: tuple[Supply, ...] = ()
    pressure: Pressure | None = None
    frequencies: tuple[Frequency, ...] = ()
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def on_battery(self) -> bool:
        """Does a battery feed it, and nothing else?"""
        outside = [
            s.online for s in self.supplies if s.kind not in ("Battery", "UPS") and s.online is not None
        ]
        inside = [s for s in self.supplies if s.kind in ("Battery", "UPS")]
        charging = any(supply.status == "Charging" for supply in inside)  # by whatever does not say so
        if any(outside) or charging or not inside:
            return False
        return bool(outside) or any(supply.status == "Discharging" for supply in inside)

    @property
    def battery_percent(self) -> float | None:
        """The mean over its batteries, a UPS's too; None without one that says."""
        inside = [s for s in self.supplies if s.kind in ("Battery", "UPS")]
        charges = [s.percent for s in inside if s.percent is not None]
        return sum(charges) / len(charges) if charges else None
