"""Is there a daemon, and may this user ask it? Every way in which there is none has its own remedy.

`default_socket` passes over a service's socket that may not be used, so that a user's own daemon is found. To
somebody who has no daemon of his own that looks like none at all: here it is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import places
from peer.doctor.finding import Finding
from peer.errors import NoDaemonError, PeerdError
from peer.local import ForbiddenSocketError, HungDaemonError, connect
from peer.version import VERSION

CONNECT_S, ANSWER_S = 2.0, 3.0  # its loop never waits for a step (guess)
UNITS = tuple(
    Path(folder) / "peerd.service"
    for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
)


@dataclass(frozen=True, slots=True)
class Reached:
    """What was found, and what a daemon that answers says: its status and its network, as in the answers to
    these requests. None without one, or from one that is too old."""

    findings: tuple[Finding, ...]
    status: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Asked:
    path: Path
    hello_s: float
    status: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    refused: str = ""

    def ask(self) -> None:
        """Raises PeerdError. A request that fails for itself goes into `refused`."""
        self.status = self._one({"op": "status", "name": None})
        self.network = self._one({"op": "network"})

    def _one(self, request: dict[str, Any]) -> dict[str, Any] | None:
        with connect(self.path, timeout_s=self.hello_s) as client:  # an error may end a connection
            try:
                answer: dict[str, Any] = client.ask(request, ANSWER_S)[0][request["op"]]
            except TimeoutError as error:
                raise HungDaemonError(self.path) from error
            except NoDaemonError:
                raise
            except PeerdError as error:
                self.refused = str(error)
                return None
            return answer


def reach(socket: str | None, state: str | None, env: Mapping[str, str]) -> Reached:
    """Ask the daemon that every other command would ask. socket, state: the flags."""
    try:
        path = places.default_socket(socket, env, state)
    except PeerdError as error:
        return Reached((_refused("which socket the daemon has is not known", error),))
    barred = places.is_barred(socket, env, state)
    asked = _Asked(path, CONNECT_S)
    tried = {"socket": str(path), "system_socket_closed": barred}
    try:
        asked.ask()
    except HungDaemonError:
        advice = "end it, then start it again ('systemctl restart peerd' if it is the system's)"
        seen = f"the daemon on {path} does not answer: it is stopped or hangs"
        return Reached((Finding("daemon", "problem", seen, advice, tried),))
    except ForbiddenSocketError as error:
        return Reached((_not_permitted(error, tried),))
    except NoDaemonError:
        if barred:
            return Reached((_not_permitted(ForbiddenSocketError(places.SYSTEM_SOCKET), tried),))
        return Reached((_nobody(path, tried, as_root="SUDO_UID" in env and os.geteuid() == 0),))
    except PeerdError as error:
        return Reached((_refused(f"the daemon on {path} cannot be asked", error, tried),))
    second = _second(asked, state, env) if asked.status is not None else ()
    return Reached((_answers(asked, tried), *second), asked.status, asked.network)


def _answers(asked: _Asked, tried: dict[str, Any]) -> Finding:
    told = asked.status or {}
    version, pid = told.get("version"), told.get("pid")
    data = {**tried, "pid": pid, "version": version, "peer": told.get("peer")}
    if asked.status is None or (asked.refused and version == VERSION):
        seen = f"the daemon on {asked.path} cannot tell all it knows: {asked.refused}"
        return Finding("daemon", "problem", seen, "restart it; 'peerd logs' says more", data)
    if version != VERSION:
        seen = f"the daemon (pid {pid}) is peerd {version} and this is peerd {VERSION}"
        return Finding("daemon", "warning", seen, "after an upgrade restart the daemon", data)
    return Finding("daemon", "ok", f"peerd {version} (pid {pid}) answers on {asked.path}", "", data)


def _nobody(path: Path, tried: dict[str, Any], *, as_root: bool) -> Finding:
    """as_root: for a user who may have a daemon that root does not find (peer/doctor/invoker.py)."""
    unit = next((unit for unit in UNITS if unit.exists()), None)
    start = "start it with 'systemctl start peerd'" if unit is not None else "start one with 'peerd daemon'"
    why = "nothing is there" if not os.path.lexists(path) else "what is there is left of one that has ended"
    return Finding(
        "daemon",
        "problem",
        f"no daemon runs: none answers on {path} ({why})",
        f"{start}, or let 'peerd join' run one; one that listens elsewhere is named with --socket"
        + ("; a user's own is found by 'peerd doctor' without sudo" if as_root else ""),
        tried,
    )


def _not_permitted(error: ForbiddenSocketError, tried: dict[str, Any]) -> Finding:
    seen, _, advice = str(error).partition("; ")
    return Finding("daemon", "problem", seen, advice, tried)


def _second(first: _Asked, state: str | None, env: Mapping[str, str]) -> tuple[Finding, ...]:
    """Do the service and a daemon of this user's own both run? Their sessions are told apart by id alone."""
    plain = {name: value for name, value in env.items() if name != "PEERD_SOCKET"}
    try:
        usual = [places.SYSTEM_SOCKET, places.own_socket(None, plain, state)]
    except PeerdError:
        usual = [places.SYSTEM_SOCKET]
    findings = []
    for path in dict.fromkeys(usual):
        other = _Asked(path, ANSWER_S)
        if path == first.path or not os.path.lexists(path):
            continue
        try:
            other.ask()
        except PeerdError:
            continue  # it is not the one that this user's commands ask
        if other.status is not None:
            findings.append(_two(first, other))
    return tuple(findings)


def _two(first: _Asked, other: _Asked) -> Finding:
    assert first.status is not None and other.status is not None
    mine = {one["name"]: one["id"] for one in first.status["sessions"]}
    theirs = {one["name"]: one["id"] for one in other.status["sessions"]}
    twice = sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name])
    data = {"sockets": [str(first.path), str(other.path)], "same_name": twice}
    seen = f"two daemons run on this device: commands ask the one on {first.path}, another is on {other.path}"
    if twice:
        return Finding(
            "names",
            "problem",
            f"{seen}; both have a session '{twice[0]}', and these are two sessions: {mine[twice[0]]} and "
            f"{theirs[twice[0]]}",
            f"leave one of them: 'peerd --socket {other.path} leave {twice[0]} --forget'",
            data,
        )
    return Finding("daemon", "warning", seen, "end one of them, or name the one you mean with --socket", data)


def _refused(what: str, error: PeerdError, data: Mapping[str, Any] | None = None) -> Finding:
    seen, _, advice = str(error).partition("; ")
    return Finding("daemon", "problem", f"{what}: {seen}", advice, data or {})
