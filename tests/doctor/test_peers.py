"""What is made of what a daemon has seen and of what is heard now. The facts are made up; tests/daemon and
tests/lan have them from real daemons."""

from __future__ import annotations

from typing import Any

import pytest

from peer.doctor import peers
from peer.doctor.finding import Finding
from peer.doctor.peers import CALLED_BY_S, Around
from peer.mesh.discovery import Sighting
from peer.mesh.greeting import PROTOCOL_MAX

ME, PEER, OTHER = ("p-" + letter * 26 for letter in "abc")
OWN = frozenset({"10.0.0.1", "fd00::1"})


def session(**changes: Any) -> dict[str, Any]:
    """One that was joined and looks for its first member."""
    fields = {"name": "home", "id": "i-1", "state": "waiting", "met": False, "members": [], "port": 7001}
    return {**fields, **changes}


def network(*sessions: dict[str, Any]) -> dict[str, Any]:
    return {"peer": ME, "sessions": list(sessions)}


def member(**changes: Any) -> dict[str, Any]:
    fields = {"peer": PEER, "device": "pi-2", "addresses": ["10.0.0.2:7"], "met_s": 60.0, "calls": True}
    return {**fields, "unreached": None, "blocked": False, **changes}


def sighting(peer: str = PEER, address: str = "10.0.0.2:7", protocol: int = PROTOCOL_MAX) -> Sighting:
    return Sighting(peer, (address,), False, protocol, peer[-1] * 32)


def found(
    told: dict[str, Any] | None, *seen: Sighting, dialed: dict[str, str] | None = None
) -> dict[str, Finding]:
    """By check, the worst finding of each."""
    tried = dialed if dialed is not None else {s.nonce: "" for s in seen}
    around = Around(seen, tried, OWN, ME if told else "")
    worst: dict[str, Finding] = {}
    order = ("ok", "warning", "problem")
    for finding in peers.judge(told, around):
        before = worst.get(finding.check)
        if before is None or order.index(finding.verdict) > order.index(before.verdict):
            worst[finding.check] = finding
    return worst


def test_with_members_all_is_well() -> None:
    met = session(state="training", met=True, members=[member()])
    checks = found(network(met), sighting())
    assert {finding.verdict for finding in checks.values()} == {"ok"}
    assert set(checks) == {"peers", "key", "versions", "identity", "dialing"}
    assert "pi-2" in checks["peers"].seen
    assert "both ways" in checks["dialing"].seen


def test_members_that_are_blocked_here_take_no_part() -> None:
    alone = session(state="alone", met=True, members=[member(blocked=True)])
    only = found(network(alone), sighting())["peers"]
    assert (only.verdict, "is blocked here: pi-2" in only.seen) == ("warning", True)
    assert "'peerd unblock pi-2'" in only.advice
    trains = session(
        state="training", met=True, members=[member(blocked=True), member(peer=OTHER, device="c")]
    )
    beside = found(network(trains), sighting())["peers"]
    assert beside.verdict == "ok"
    assert "1 other member(s) are alive: c; blocked here: pi-2" in beside.seen


def test_why_a_session_is_paused_is_said() -> None:
    paused = Around(pace={"home": "quiet hours 22:00-07:00, until 07:00"})
    for members in ([], [member()]):
        [finding, *_] = peers.judge(network(session(state="paused", met=True, members=members)), paused)
        assert (finding.check, finding.verdict) == ("peers", "ok")
        assert "'home' is paused (quiet hours 22:00-07:00, until 07:00)" in finding.seen


def test_nobody_met_and_nobody_heard_is_a_problem_that_names_peer() -> None:
    alone = found(network(session(unanswered={"10.0.0.9:7": "nobody answers there"})))["peers"]
    assert alone.verdict == "problem"
    assert "no other peerd is heard; --peer 10.0.0.9:7: nobody answers there" in alone.seen
    assert "--peer HOST:PORT" in alone.advice


def test_a_device_that_hears_nothing_is_sent_to_what_makes_it_deaf() -> None:
    [lonely, *_] = peers.judge(network(session()), Around(own=OWN, me=ME, deaf=True))
    assert (lonely.check, lonely.advice) == ("peers", "see 'multicast'")


def test_without_daemon_or_session_it_is_only_told_who_is_there() -> None:
    assert found(None)["peers"].verdict == "warning"
    assert found(None, sighting())["peers"].verdict == "ok"
    none = found(network(), sighting())["peers"]
    assert (none.verdict, "1 other peerd" in none.seen) == ("warning", True)
    assert "peerd join" in none.advice


@pytest.mark.parametrize(
    ("facts", "who"),
    [
        ({"id": None, "strangers": [PEER, OTHER]}, "2 peerd device(s) are seen"),
        ({"wrong_key": ["10.0.0.2:7"]}, "the peerd on 10.0.0.2:7 answers"),
    ],
)
def test_a_key_that_nobody_recognises_is_wrong(facts: dict[str, Any], who: str) -> None:
    checks = found(network(session(**facts)), sighting())
    assert checks["key"].verdict == "problem"
    assert f"{who}, and none recognises this key" in checks["key"].seen
    assert "peerd key home" in checks["key"].advice
    assert checks["peers"].advice == "see 'key'"


def test_strangers_beside_a_known_session_are_no_wrong_key() -> None:
    assert found(network(session(strangers=[PEER])), sighting())["key"].verdict == "ok"


def test_two_sessions_of_one_name_are_told_apart_by_id() -> None:
    twin = found(network(session(met=True, other_sessions={PEER: "i-2"})), sighting())["names"]
    assert twin.verdict == "problem"
    assert "'home' is i-1 here" in twin.seen
    assert "i-2" in twin.seen
    made = found(network(session(founder=True, strangers=[PEER])), sighting())["names"]
    assert made.verdict == "warning"
    assert "peerd create home" in made.advice
    assert "names" not in found(network(session(founder=True, met=True, strangers=[PEER])), sighting())


def test_another_protocol_of_a_member_is_a_problem_and_of_a_stranger_a_warning() -> None:
    member_ = found(network(session(other_versions={PEER: PROTOCOL_MAX + 1})))["versions"]
    assert member_.verdict == "problem"
    assert f"{PEER} speaks protocol {PROTOCOL_MAX + 1}, this device {PROTOCOL_MAX}" in member_.seen
    assert "upgrade" in member_.advice
    assert "another protocol" in found(network(session(other_versions={PEER: 0})))["versions"].seen
    for version in (PROTOCOL_MAX - 1, PROTOCOL_MAX + 1):
        assert found(network(), sighting(protocol=version))["versions"].verdict == "warning"
    assert found(network(), sighting())["versions"].verdict == "ok"


def test_a_copied_identity_is_told_by_members_or_by_an_address_that_is_not_ours() -> None:
    sentence = "two running devices have the identity X; is its disk a copy? On one"
    told = found(network(session(copies=[sentence])))
    assert told["identity"].verdict == "problem"
    assert told["identity"].advice == "On one"
    for ours in ("10.0.0.1:7", "127.0.0.1:7", "[fd00::1]:7"):
        assert found(network(), sighting(ME, ours))["identity"].verdict == "ok"
    twin = found(network(), sighting(ME, "10.0.0.7:7"))["identity"]
    assert twin.verdict == "problem"
    assert "10.0.0.7:7" in twin.seen
    assert "device.pem" in twin.advice


def test_a_member_that_is_seen_and_not_met_is_a_problem_as_long_as_it_is_there() -> None:
    unmet = session(unmet={PEER: "10.0.0.2:7: timed out"})
    checks = found(network(unmet), sighting(), dialed={"b" * 32: "10.0.0.2:7 does not answer"})
    assert checks["dialing"].verdict == "problem"
    assert "timed out" in checks["dialing"].seen
    assert "peers" not in checks
    assert "--listen" in checks["dialing"].advice
    assert found(network(unmet))["peers"].verdict == "problem", "who is gone says nothing of a firewall"


def test_a_member_that_cannot_be_dialed_is_a_warning() -> None:
    hidden = session(met=True, state="training", members=[member(unreached="timed out")])
    checks = found(network(hidden), sighting())
    assert checks["dialing"].verdict == "warning"
    assert "pi-2 cannot be dialed from here" in checks["dialing"].seen
    blocked = session(met=True, state="training", members=[member(unreached="blocked", blocked=True)])
    assert found(network(blocked), sighting())["dialing"].verdict == "ok"


def test_a_device_that_no_member_has_called_is_a_warning_after_a_while() -> None:
    def seen(**changes: Any) -> Finding:
        met = session(met=True, state="training", members=[member(**changes)])
        assert peers.unreachable(network(met)) == (changes["met_s"] > CALLED_BY_S and not changes["calls"])
        return found(network(met), sighting())["dialing"]

    uncalled = seen(calls=False, met_s=CALLED_BY_S + 1)
    assert uncalled.verdict == "warning"
    assert "TCP port 7001" in uncalled.advice
    assert seen(calls=False, met_s=CALLED_BY_S - 1).verdict == "ok"
    assert seen(calls=True, met_s=CALLED_BY_S + 1).verdict == "ok"


def test_a_stranger_that_cannot_be_dialed_is_a_warning() -> None:
    shut = found(None, sighting(), dialed={"b" * 32: "10.0.0.2:7 does not answer"})["dialing"]
    assert (shut.verdict, "10.0.0.2:7 does not answer" in shut.seen) == ("warning", True)


def test_what_a_daemon_of_another_version_does_not_say_is_taken_for_nothing() -> None:
    checks = found({"peer": ME, "sessions": [{"name": "home", "state": "training"}]})
    assert "problem" not in {finding.verdict for name, finding in checks.items() if name != "peers"}
    assert peers.ports({"sessions": [{"name": "home"}]}) == {}
