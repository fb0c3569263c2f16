"""What of this device keeps it from taking part: its clock, its disk, its memory, heat and voltage."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from peer.daemon import clocks
from peer.daemon.condition import Host
from peer.daemon.health import LOW_BYTES
from peer.doctor.finding import Finding
from peer.version import WRITTEN

LITTLE_BYTES = 64 << 20  # free on the disk: two checkpoints and their temporary file want more (guess)
LEARNER_BYTES = 220 << 20  # torch alone, imported: 219 MiB (platform measurement)
TIGHT_BYTES = 2 * LEARNER_BYTES  # a model, its gradients and its neighbors' (guess)
PRESSED = 50.0  # % of the last 10 s in which somebody waited for a processor (guess)


def clock(wall_s: float) -> Finding:
    """wall_s: what the wall clock shows, s since 1970."""
    shown = datetime.datetime.fromtimestamp(wall_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    data = {"wall_s": round(wall_s), "written_s": WRITTEN}
    if not clocks.is_unset(wall_s):
        return Finding("clock", "ok", f"the clock shows {shown}", "", data)
    return Finding(
        "clock",
        "warning",
        f"the clock is unset: it shows {shown}, before this peerd was written",
        "training does not mind, but log lines are dated wrongly: let the device reach a time server "
        "('timedatectl set-ntp true'), or set it with 'sudo date -s …'",
        data,
    )


def disk(facts: Mapping[str, Any]) -> Finding:
    """facts: of the state folder, as `peer.daemon.disk.disk` finds them for whoever writes there."""
    folder, free = facts["folder"], facts.get("free_bytes")
    data = dict(facts)

    def problem(seen: str, advice: str) -> Finding:
        return Finding("disk", "problem", seen, advice, data)

    if facts.get("problem"):
        return problem(
            f"the state folder {folder} cannot be looked at: {facts['problem']}",
            "is its disk still there, and the folder yours? name another with --state",
        )
    if facts["read_only"]:
        advice = "a worn-out SD card does that: replace it; or mount it for writing again"
        return problem(f"the disk of {folder} is read-only: nothing is saved", advice)
    if not facts["writable"]:
        advice = f"make it writable for user {facts['uid']}, or name another with --state"
        return problem(f"{folder} cannot be written: nothing is saved", advice)
    if free is not None and free < LOW_BYTES:
        return problem(
            f"no space is left on the disk of {folder}: checkpoints are not saved", "free some space"
        )
    if free is not None and free < LITTLE_BYTES:
        seen = f"{_mb(free)} are left on the disk of {folder}"
        return Finding(
            "disk", "warning", seen, "free some space: a larger model's checkpoint may not fit", data
        )
    room = f", {_mb(free)} free" if free is not None else ""
    return Finding("disk", "ok", f"the state folder {folder} can be written{room}", "", data)


def memory(available: int | None, learns: bool) -> Finding:
    """available: bytes that a new process may take. learns: a learner is there already."""
    data = {"available_bytes": available, "learner_bytes": LEARNER_BYTES}
    if available is None:
        return Finding("memory", "ok", "how much memory is left is not told by this system", "", data)
    seen = f"{_mb(available)} of memory are left"
    remedy = "end other programs, raise the memory limit, or add swap ('sudo dphys-swapfile' on a Pi)"
    if learns:
        return Finding("memory", "ok", f"{seen} beside the learner", "", data)
    if available < LEARNER_BYTES:
        needs = f"{seen}, and a learner takes {_mb(LEARNER_BYTES)} before its model"
        return Finding("memory", "problem", needs, remedy, data)
    if available < TIGHT_BYTES:
        needs = f"{seen}; a learner takes {_mb(LEARNER_BYTES)} before its model"
        return Finding("memory", "warning", needs, remedy, data)
    return Finding("memory", "ok", seen, "", data)


def throttling(host: Host, slowed: Sequence[str] = ()) -> Finding:
    """Is the processor held back, now or since the start? Nothing stops for it, but rounds wait for this
    device. slowed: what the daemon says of the sessions that train less for it."""
    hot = {zone.name: zone.celsius for zone in host.zones if _throttles(zone.trips, zone.celsius)}
    held = sorted({cooling.kind for cooling in host.cooling if cooling.throttles})
    firmware = host.firmware
    past = firmware.since_boot if firmware is not None else None
    data: dict[str, Any] = {
        "celsius": {zone.name: zone.celsius for zone in host.zones},
        "held_back": held,
        "firmware": firmware.bits if firmware is not None else None,
        "mhz": {f.name: {"now": f.now // 1000, "allowed": f.allowed // 1000, "most": f.most // 1000}
                for f in host.frequencies},
        "cpu_pressure": host.pressure.everybody if host.pressure is not None else None,
        "unknown": dict(host.unknown),
        "slowed": list(slowed),
    }  # fmt: skip
    sentences, advice = [], []
    if firmware is not None and firmware.under_voltage:
        sentences.append("its voltage is too low now, and the firmware slows it down")
    elif past is not None and past.under_voltage:
        sentences.append("its voltage was too low since it started")
    if sentences:
        advice.append("use the official power supply and a short cable")
    heat = [f"{name} has {celsius:.0f} °C" for name, celsius in sorted(hot.items())]
    if held:
        heat.append(f"{', '.join(held)} is held back")
    if firmware is not None and (firmware.throttled or firmware.capped or firmware.soft_limit):
        heat.append("the firmware holds the processor back now")
    elif past is not None and (past.throttled or past.soft_limit):
        heat.append("the firmware has held the processor back since it started")
    if heat:
        sentences += heat
        advice.append("give it a heat sink or a fan, or fewer local steps")
    pressed = host.pressure
    if pressed is not None and (pressed.others or 0.0) > PRESSED:
        sentences.append(
            f"another program ({pressed.who}) waits for a processor {pressed.others:.0f} % of the time"
        )
        advice.append("this device has other work to do; rounds will wait for it")
    if slowed:
        sentences += slowed
        advice.append("this is manners, which 'peerd join NAME --manners off' turns off")
    if not sentences:
        known = host.zones or host.firmware is not None or host.frequencies
        seen = _calm(host) if known else "this device tells nothing of its temperature"
        return Finding("throttling", "ok", seen, "", data)
    return Finding("throttling", "warning", "; ".join(sentences), "; ".join(advice), data)


def _throttles(trips: Mapping[str, float], celsius: float) -> bool:
    """Is it at the point from which the kernel holds the processor back?"""
    points = [trips[kind] for kind in ("passive", "hot") if kind in trips]
    return bool(points) and celsius >= min(points)


def _calm(host: Host) -> str:
    """Less than the most may be what a user has set, so that it is no warning."""
    hottest = max((zone.celsius for zone in host.zones), default=None)
    slower = [f for f in host.frequencies if f.allowed < f.most]
    allowed = sorted({f"{f.allowed // 1000} of {f.most // 1000} MHz" for f in slower})
    return (
        "the processor is not held back"
        + (f", {hottest:.0f} °C" if hottest is not None else "")
        + (f"; it may run at {', '.join(allowed)}" if allowed else "")
    )


def _mb(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
