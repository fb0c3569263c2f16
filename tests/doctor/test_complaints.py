"""What is made of the daemon's own sentences; those of it are as the daemon writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from peer.daemon import disk, health
from peer.daemon.condition import Firmware, Host
from peer.daemon.manners import Verdict
from peer.daemon.pacing import Pacing
from peer.doctor import complaints, machine
from peer.doctor.reach import Reached
from peer.mesh.greeting import PROTOCOL_MAX

COPY = "two running devices have the identity p-a; is its disk a copy?"


def of_device(state: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that the daemon can say of its clock, disk and power."""
    pacing = Pacing(list)
    pacing.host = Host(firmware=Firmware(0x50005))
    monkeypatch.setattr(health.clocks, "is_unset", lambda: True)
    said = [*pacing.sentences(), *health.of_device(state / "gone")]
    for flag, writable, free in ((os.ST_RDONLY, True, 1), (0, False, 1), (0, True, 0)):
        facts = os.statvfs_result((4096, 4096, 1, free, free, 1, 1, 1, flag, 255))
        monkeypatch.setattr(disk.os, "statvfs", lambda _, facts=facts: facts)
        monkeypatch.setattr(disk.os, "access", lambda *_, writable=writable: writable)
        said += health.of_device(state)
    return list(dict.fromkeys(said))


def reached(*sentences: str, sessions: tuple[dict[str, Any], ...] = ()) -> Reached:
    return Reached((), {"health": sentences, "sessions": []}, {"sessions": sessions})


def test_one_cause_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = of_device(tmp_path, monkeypatch)
    assert len(said) == 6
    home = {"name": "home", "copies": [COPY], "other_versions": {"p-b": PROTOCOL_MAX + 1}}
    said += [
        f"home: {COPY}",
        f"home: p-b speaks protocol {PROTOCOL_MAX + 1}, this device {PROTOCOL_MAX}; upgrade",
    ]
    told = {"clock", "disk", "throttling", "identity", "versions"}
    [nothing] = complaints.judge(reached(*said, sessions=(home,)), told)
    assert (nothing.verdict, "nothing that is not told" in nothing.seen) == ("ok", True)
    [other] = complaints.judge(reached(*said, "home: the learner died; see", sessions=(home,)), told)
    assert (other.verdict, other.seen, other.advice) == ("warning", "home: the learner died", "see")


def test_what_no_check_has_found_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = of_device(tmp_path, monkeypatch)
    assert len(complaints.judge(reached(*said), set())) == len(said)


def status(now: Verdict) -> dict[str, Any]:
    pace = {"pace_share": now.share, "pace_reason": now.reason or None, "pace_until": now.until}
    return {"health": [], "sessions": [{"name": "home", **pace}]}


def test_a_session_that_gives_way_is_told_where_the_processor_is() -> None:
    slow = machine.throttling(
        Host(), complaints.slowed(status(Verdict(1 / 16, "others wait for the processor")))
    )
    assert slow.verdict == "warning"
    assert "'home' trains 6% of the time: others wait for the processor" in slow.seen
    assert "--manners off" in slow.advice
    for well in (Verdict(), Verdict(0.0, "quiet hours 22:00-07:00", "07:00")):
        assert machine.throttling(Host(), complaints.slowed(status(well))).verdict == "ok"
    assert complaints.pace(status(well)) == {"home": "quiet hours 22:00-07:00, until 07:00"}
    assert complaints.pace(status(Verdict())) == complaints.pace(None) == {}
