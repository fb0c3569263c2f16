"""What `peerd service status` says: systemd's view of the service, and the daemon's own answer."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any

from cli import units
from cli.talk import converse
from cli.text import clean, count, span
from peer.errors import PeerdError
from peer.local import connect
from peer.places import SYSTEM_SOCKET

_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "UnitFileState", "FragmentPath", "MainPID", "NRestarts", "Result",
    "ActiveEnterTimestampMonotonic", "WatchdogUSec", "WatchdogTimestampMonotonic",
)  # fmt: skip
_NONE = "no service is installed here; 'sudo peerd service install' does it"
_MASKED = f"the service is masked; 'sudo systemctl unmask {units.UNIT}' first"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
ANSWER_S = 5.0  # the daemon's loop never waits; guess


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The fields of `peerd service status --json`. None: not known, or there is none. `since_s`: for how long
    it has been active. `fed_s`: since the last sign of life. `problem`: why there is no answer."""

    installed: bool
    unit: str | None = None
    active: str = "inactive"
    sub: str = "dead"
    enabled: str = "disabled"
    since_s: float | None = None
    pid: int | None = None
    restarts: int = 0
    result: str | None = None
    watchdog_s: float | None = None
    fed_s: float | None = None
    answers: bool = False
    version: str | None = None
    sessions: int | None = None
    health: tuple[str, ...] = ()
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        if not self.installed:
            return [str(self.problem)]
        since = f" for {span(self.since_s)}" if self.since_s is not None else ""
        why = f", {self.result}" if self.result not in (None, "success") else ""
        said = [f"{units.UNIT}: {self.active} ({self.sub}){why}{since}, {self.enabled}"]
        said[0] += f", {count(self.restarts, 'restart')}"
        if self.watchdog_s:
            fed = f", fed {span(self.fed_s)} ago" if self.fed_s is not None else ""
            said.append(f"watchdog: {span(self.watchdog_s)}{fed}")
        if self.answers:
            said.append(
                f"daemon: peerd {clean(self.version)} answers on {SYSTEM_SOCKET}, pid {self.pid}, "
                f"{count(self.sessions, 'session')}"
            )
            said += [f"! {clean(sentence)}" for sentence in self.health]
        else:
            said.append(f"daemon: {self.problem}")
        return said


def look() -> ServiceState:
    """Ask systemd, and then the daemon."""
    shown = _shown()
    if shown.get("LoadState") != "loaded":
        masked = shown.get("LoadState") == "masked"
        return ServiceState(installed=False, problem=_MASKED if masked else _NONE)
    active = shown["ActiveState"]
    found: dict[str, Any] = {
        "installed": True,
        "unit": shown["FragmentPath"] or None,
        "active": active,
        "sub": shown["SubState"],
        "enabled": shown["UnitFileState"],
        "since_s": _ago(shown["ActiveEnterTimestampMonotonic"]) if active == "active" else None,
        "pid": int(shown["MainPID"]) or None,
        "restarts": int(shown.get("NRestarts", 0)),
        "result": shown["Result"] or None,
        "watchdog_s": seconds(shown["WatchdogUSec"]),
        "fed_s": _ago(shown["WatchdogTimestampMonotonic"]) if active == "active" else None,
    }
    return ServiceState(**found, **_answer())


def _answer() -> dict[str, Any]:
    try:
        with connect(SYSTEM_SOCKET, timeout_s=ANSWER_S) as client:
            status = converse(client, {"op": "status", "name": None}, timeout_s=ANSWER_S)[0]["status"]
    except PeerdError as error:
        return {"problem": str(error)}
    return {
        "answers": True,
        "version": status["version"],
        "sessions": len(status["sessions"]),
        "health": tuple(status["health"]),
    }


def _shown() -> dict[str, str]:
    command = ["systemctl", "show", units.UNIT, f"--property={','.join(_PROPERTIES)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerdError(f"systemd does not answer: {' '.join(done.stderr.split())}")
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def _ago(usec: str) -> float | None:
    """Seconds since a time of the monotonic clock; None for never."""
    return time.monotonic() - int(usec) / 1e6 if usec.isdecimal() and int(usec) else None


def seconds(text: str) -> float | None:
    """A time span as systemd writes it ("1min 30s"); None for none."""
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", text)
    if not parts or any(unit not in _SECONDS for _, unit in parts):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
