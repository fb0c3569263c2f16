"""Whether this device may train now: at full pace, for a share of the time, or not at all. Pure, in any time.

    condition of the device ──▶ Strain.take ──▶ strain ─┐
    options of a session, minute of the day ────────────┴─▶ verdict ──▶ Verdict(share, reason, until)

The share is halved while the device throttles or others wait for its processors, again each STEP_S as long
as that lasts and down to a sixteenth, and doubled for each CALM_S of calm; between the two nothing moves. So
it finds what the others bear, and neighbors see a slow device, not one that comes and goes. Pauses are for
what slowness does not mend: heat near a limit, a battery that runs down, quiet hours. They end later than
they begin, but for quiet hours, which go by the clock on the wall alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.daemon.condition import Host
from peer.quiet_hours import QuietHours

MOST_HALVINGS = 4
LEAST_SHARE = 0.5**MOST_HALVINGS  # goes on being a member: a pause costs a new life and a snapshot
STEP_S = 30.0  # pressure is a mean over 10 s, a heat sink takes longer (guess)
CALM_S = 60.0  # guess: two steps
PRESSED, CALM = 25.0, 10.0  # % of the time that others wait; more than 2 apart, so that halving ends it
COOLER_C = 3.0  # below a trip point until it counts as left; usual hysteresis of kernel zones is 1 to 5
CRITICAL_C = 5.0  # so near to the device's switching itself off, training stops (guess)
COOL_C, COOL_S = 10.0, 60.0  # below that, and for so long, until it goes on (guess)
LOW, ENOUGH = 30.0, 40.0  # % of a battery: below the first it pauses, from the second it goes on (guess)
BATTERY_SHARE = 0.5  # guess
MAINS_S = 30.0  # a plug that is loose comes and goes (guess)


@dataclass(frozen=True, slots=True)
class Verdict:
    """share: of the time in which it may train; 0.0 is a pause. until: a time of the day, if it is known."""

    share: float = 1.0
    reason: str = ""
    until: str | None = None

    @property
    def pauses(self) -> bool:
        return self.share == 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What others suffer: for so many percent of the time some of their tasks wait for a processor."""

    percent: float
    who: str = ""


class Strain:
    """What the device's conditions of late ask for. `hot`, `pressed`: why, "" is not. `unread`: a zone that
    was too hot and cannot be read now, so that nobody knows whether it is cool. `low`: on battery, and to
    wait for more."""

    def __init__(self) -> None:
        self.hot = self.pressed = self.unread = ""
        self.on_battery = self.low = False
        self.percent: float | None = None
        self.halvings = 0
        self._moved_at = 0.0
        self._calm_at: float | None = None
        self._heated: set[str] = set()  # zones that were too hot since training stopped
        self._cool_at: float | None = None
        self._mains_at: float | None = None

    def take(self, host: Host, waiting: Waiting | None, now: float) -> None:
        """waiting: None where nobody can tell."""
        self._heat(host, now)
        self._pace(host, waiting, now)
        self._power(host, now)

    def _heat(self, host: Host, now: float) -> None:
        limits = [(zone, zone_limit) for zone in host.zones if (zone_limit := _limit(zone.trips)) is not None]
        over = [zone for zone, limit in limits if zone.celsius >= limit]
        self.unread = min(self._heated - {zone.name for zone, _ in limits}, default="")
        if over:
            self._heated |= {zone.name for zone in over}
            self._cool_at = None
            self.hot = f"too hot: {over[0].name} is at {over[0].celsius:.0f} °C"
        elif self.hot and (self.unread or any(zone.celsius > limit - COOL_C for zone, limit in limits)):
            self._cool_at = None
        elif self.hot:
            self._cool_at = now if self._cool_at is None else self._cool_at
            if now - self._cool_at >= COOL_S:
                self.hot, self._heated, self._cool_at = "", set(), None
                self.pressed, self.halvings = "it was too hot", MOST_HALVINGS
                self._moved_at, self._calm_at = now, None

    def _pace(self, host: Host, waiting: Waiting | None, now: float) -> None:
        pressed, calm = _pressed(host, waiting), _is_calm(host, waiting)
        if pressed:
            self.pressed, self._calm_at = pressed, None
            if self.halvings == 0 or now - self._moved_at >= STEP_S:
                self.halvings, self._moved_at = min(self.halvings + 1, MOST_HALVINGS), now
        elif not calm:
            self._calm_at = None
        elif self.halvings:
            self._calm_at = now if self._calm_at is None else self._calm_at
            if now - max(self._calm_at, self._moved_at) >= CALM_S:
                self.halvings, self._moved_at = self.halvings - 1, now
                self.pressed = self.pressed if self.halvings else ""

    def _power(self, host: Host, now: float) -> None:
        self.percent = host.battery_percent
        if host.on_battery:
            self.on_battery, self._mains_at = True, None
            if self.percent is not None:
                self.low = self.percent < (ENOUGH if self.low else LOW)
        elif self.on_battery:
            self._mains_at = now if self._mains_at is None else self._mains_at
            if now - self._mains_at >= MAINS_S:
                self.on_battery = self.low = False


def verdict(strain: Strain, manners: str, quiet: QuietHours | None, minute: int | None) -> Verdict:
    """What a session with these options may do now. manners: "on", "off" (quiet hours are kept all the same),
    or "mains": never on battery. minute: of the day, local time; None: the clock is not set."""
    if quiet is not None and minute is not None and quiet.covers(minute):
        return Verdict(0.0, f"quiet hours {quiet}", quiet.until)
    if manners == "off":
        return Verdict()
    if strain.hot:
        return Verdict(0.0, strain.hot + (f"; {strain.unread} cannot be read now" if strain.unread else ""))
    if strain.on_battery and manners == "mains":
        return Verdict(0.0, "on battery; with --manners mains it waits for the mains")
    if strain.low and strain.percent is not None:
        return Verdict(
            0.0, f"on battery with {strain.percent:.0f} % left; goes on at {ENOUGH:.0f} %, or on mains"
        )
    share = 0.5**strain.halvings
    if strain.on_battery and share >= BATTERY_SHARE:
        return Verdict(BATTERY_SHARE, "on battery")
    return Verdict(share, strain.pressed)


def _limit(trips: dict[str, float]) -> float | None:
    """From where on a zone is too hot to train at all."""
    limits = [trips["hot"]] if "hot" in trips else []
    limits += [trips["critical"] - CRITICAL_C] if "critical" in trips else []
    return min(limits, default=None)


def _pressed(host: Host, waiting: Waiting | None) -> str:
    """Why to take less; "" is no reason."""
    if (firmware := host.firmware) is not None:
        if firmware.under_voltage:
            return "the power supply gives too little voltage"
        if firmware.throttled or firmware.soft_limit or firmware.capped:
            return "the firmware holds the processor back to cool"
    for zone in host.zones:
        if zone.celsius >= zone.trips.get("passive", zone.celsius + 1):
            return f"hot: {zone.name} is at {zone.celsius:.0f} °C"
    held = [device.kind for device in host.cooling if device.throttles]
    if held:
        return f"the processor is held back to cool ({held[0]})"
    if waiting is not None and waiting.percent >= PRESSED:
        who = f" ({waiting.who})" if waiting.who else ""
        return f"others wait for the processor{who}, {waiting.percent:.0f} % of the time"
    return ""


def _is_calm(host: Host, waiting: Waiting | None) -> bool:
    """Not pressed, and not nearly."""
    near = any(
        zone.celsius > zone.trips["passive"] - COOLER_C for zone in host.zones if "passive" in zone.trips
    )
    return not near and (waiting is None or waiting.percent <= CALM) and not _pressed(host, waiting)
