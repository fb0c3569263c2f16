"""What the daemon says of itself: its health sentences, but for those that a check here tells better, and why
sessions train less than they could.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from peer.doctor.finding import Finding
from peer.doctor.reach import Reached

# Sentences of peer/daemon/health.py and pacing.py, by the check that has the same in its own words.
OF_DEVICE = {
    "clock": re.compile("the clock is unset"),
    "disk": re.compile(
        "the state folder .* cannot be looked at|/.* has become read-only|/.* cannot be written|"
        "no space left on the disk of"
    ),
    "throttling": re.compile("the power supply gives too little voltage"),
}


def judge(reached: Reached, told: Collection[str]) -> list[Finding]:
    """The daemon's own sentences, which `status` shows too. told: the checks that have found something."""
    if reached.status is None:
        return []
    every = [str(sentence) for sentence in reached.status.get("health", ())]
    if not every:
        return [Finding("health", "ok", "the daemon has nothing to complain of")]
    more = [sentence for sentence in every if _covered_by(sentence, reached.network) not in told]
    if not more:
        return [Finding("health", "ok", "the daemon complains of nothing that is not told here")]
    split = (sentence.partition("; ") for sentence in more)
    return [Finding("health", "warning", seen, advice) for seen, _, advice in split]


def _covered_by(sentence: str, network: Mapping[str, Any] | None) -> str | None:
    """The check that tells this, if it finds it, too."""
    for check, said in OF_DEVICE.items():
        if said.match(sentence):
            return check
    for session in network.get("sessions", ()) if network is not None else ():
        of_it = sentence.removeprefix(f"{session['name']}: ")
        if of_it in session.get("copies", ()):
            return "identity"
        if any(of_it.startswith(f"{peer} speaks ") for peer in session.get("other_versions", {})):
            return "versions"
    return None


def pace(status: Mapping[str, Any] | None) -> dict[str, str]:
    """Why a session trains less than it could, by its name, and until when."""
    return {session["name"]: _reason(session) for session in _held(status)}


def slowed(status: Mapping[str, Any] | None) -> list[str]:
    """The same as sentences, but for quiet hours, which were asked for and say nothing of the device."""
    return [
        f"'{session['name']}' trains {session['pace_share']:.0%} of the time: {_reason(session)}"
        if session["pace_share"]
        else f"'{session['name']}' is paused: {_reason(session)}"
        for session in _held(status)
        if not session.get("pace_until")
    ]


def _held(status: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    for session in status["sessions"] if status is not None else ():
        if session.get("pace_reason") and (session.get("pace_share") or 0.0) < 1:
            yield session


def _reason(session: Mapping[str, Any]) -> str:
    until = session.get("pace_until")
    return f"{session['pace_reason']}, until {until}" if until else str(session["pace_reason"])
