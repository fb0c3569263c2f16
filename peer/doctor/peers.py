"""Who is there, and why not more: judged by what the daemon knows of its sessions and by what was heard just
now.

network: the daemon's answer (peer/daemon/network.py), None without a daemon. It comes from another process,
maybe of another version: what it does not say is taken for nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peer.doctor.finding import Finding, listed
from peer.mesh.discovery import Sighting
from peer.mesh.greeting import PROTOCOL_MAX, PROTOCOL_MIN

# members probe each other every 2 s, in turn (guess: with a few of them that is time enough)
CALLED_BY_S = 20.0
Session = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Around:
    """sightings: who announces peerd now. dialed: by their nonce, why no connection could be opened to them,
    "" where one could. own: every address of this device. me: its id, "" if unknown. deaf: multicast does not
    work here, by this device's own doing. pace: why a session trains less than it could, by its name."""

    sightings: Sequence[Sighting] = ()
    dialed: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    me: str = ""
    deaf: bool = False
    pace: Mapping[str, str] = field(default_factory=dict)

    @property
    def others(self) -> list[Sighting]:
        return [s for s in self.sightings if s.peer != self.me]


def sessions_of(network: Mapping[str, Any] | None) -> list[Session]:
    return list(network.get("sessions", ())) if network is not None else []


def waits(network: Mapping[str, Any] | None) -> bool:
    """Is there a session on this device that looks for others and has met nobody?"""
    return any(_lonely(session) for session in sessions_of(network))


def unreachable(network: Mapping[str, Any] | None) -> bool:
    """Has no member opened a connection to this device, though some had the time to?"""
    return any(_uncalled(session) for session in sessions_of(network))


def ports(network: Mapping[str, Any] | None) -> dict[str, int]:
    """Where this device is served, by the session's name."""
    return {s["name"]: s["port"] for s in sessions_of(network) if s.get("port") and not s.get("insecure")}


def judge(network: Mapping[str, Any] | None, around: Around) -> Iterator[Finding]:
    """One finding or more of each check."""
    yield from _peers(network, around)
    yield from _keys(network)
    yield from _names(network)
    yield from _versions(network, around)
    yield from _identity(network, around)
    yield from _dialing(network, around)


# --- who is there ----------------------------------------------------------------------------------------


def _peers(network: Mapping[str, Any] | None, around: Around) -> Iterator[Finding]:
    seen = sorted({s.peer for s in around.others})
    data: dict[str, Any] = {
        "seen": {s.peer: {"addresses": list(s.addresses), "protocol": s.protocol} for s in around.others}
    }
    heard = f"{len(seen)} other peerd device(s) announce themselves" if seen else "no other peerd is heard"
    if network is None:
        yield Finding("peers", "ok" if seen else "warning", heard, "" if seen else _ON, data)
        return
    if not sessions_of(network):
        advice = "'peerd create NAME' makes one, 'peerd join NAME --key KEY' joins one"
        yield Finding("peers", "warning", f"this device is in no session; {heard}", advice, data)
    for session in sessions_of(network):
        name, members = session["name"], session.get("members", ())
        mine = {
            **data,
            "session": name,
            "state": session.get("state"),
            "members": [m["peer"] for m in members],
        }
        is_so = f"'{name}' is {session.get('state')}{_why_paused(session, around)}"
        if members:
            yield _alive(name, members, is_so if session.get("state") == "paused" else "", mine)
        elif not _lonely(session):
            yield Finding("peers", "ok", f"{is_so}; {heard}", "", mine)
        elif _unmet(session, around):
            continue  # told by _dialing
        else:
            tried = "".join(
                f"; --peer {address}: {why}" for address, why in session.get("unanswered", {}).items()
            )
            advice = "see 'key'" if _is_refused(session) else "see 'multicast'" if around.deaf else _ON
            yield Finding("peers", "problem", f"'{name}' has met nobody; {heard}{tried}", advice, mine)


def _alive(name: str, members: Sequence[Mapping[str, Any]], paused: str, data: dict[str, Any]) -> Finding:
    """Who is blocked here is alive and takes no part."""
    takes_part = [m for m in members if not m.get("blocked")]
    blocked = [str(m.get("device") or m["peer"]) for m in members if m.get("blocked")]
    data = {**data, "blocked": [m["peer"] for m in members if m.get("blocked")]}
    after = f"; {paused}" if paused else ""
    if not takes_part:
        seen = f"'{name}': every other member that is alive is blocked here: {listed(blocked)}{after}"
        return Finding("peers", "warning", seen, f"'peerd unblock {blocked[0]}' lets it in again", data)
    who = listed(m.get("device") or m["peer"] for m in takes_part)
    and_blocked = f"; blocked here: {listed(blocked)}" if blocked else ""
    seen = f"'{name}': {len(takes_part)} other member(s) are alive: {who}{and_blocked}{after}"
    return Finding("peers", "ok", seen, "", data)


def _why_paused(session: Session, around: Around) -> str:
    why = around.pace.get(session["name"]) if session.get("state") == "paused" else None
    return f" ({why})" if why else ""


_ON = (
    "is another device on, on this network, and in the session? 'peerd status' there says so; if it is, "
    "name it with 'peerd join NAME --peer HOST:PORT'"
)


def _lonely(session: Session) -> bool:
    running = session.get("state") in ("waiting", "alone", "training")
    return running and not session.get("met") and not session.get("members")


# --- is it the same session ------------------------------------------------------------------------------


def _is_refused(session: Session) -> bool:
    """Are there peerd devices, and none that knows this session's key? A session that is known had the right
    one once."""
    if session.get("met"):
        return False
    return bool(session.get("wrong_key") or (session.get("id") is None and session.get("strangers")))


def _keys(network: Mapping[str, Any] | None) -> Iterator[Finding]:
    wrong = False
    for session in sessions_of(network):
        if not _is_refused(session):
            continue
        refused, strangers = session.get("wrong_key", ()), session.get("strangers", ())
        wrong, name = True, session["name"]
        who = (
            f"the peerd on {listed(refused)} answers"
            if refused
            else f"{len(strangers)} peerd device(s) are seen"
        )
        yield Finding(
            "key",
            "problem",
            f"'{name}': {who}, and none recognises this key",
            f"compare it with 'peerd key {name}' on a member; then 'peerd leave {name} --forget' here, and "
            f"'peerd join {name} --key KEY' with the right one",
            {"session": name, "strangers": list(strangers), "refused_by": list(refused)},
        )
    if not wrong and sessions_of(network):
        yield Finding("key", "ok", "nobody has refused a key of this device")


def _names(network: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Names travel only between members. Where two of the same name are known to differ that is said; where
    they may, only that."""
    for session in sessions_of(network):
        name, others = session["name"], session.get("other_sessions", {})
        if others:
            ids = listed(sorted(set(others.values())))
            yield Finding(
                "names",
                "problem",
                f"'{name}' is {session.get('id')} here, and {len(others)} device(s) with this key have "
                f"another session in its place: {ids}",
                f"one of them was made anew with an old key: 'peerd leave {name} --forget' on the devices "
                f"that are to change, then 'peerd join {name}' with the key of the others",
                {"session": name, "id": session.get("id"), "others": dict(others)},
            )
        elif session.get("founder") and not session.get("met") and session.get("strangers"):
            count = len(session["strangers"])
            yield Finding(
                "names",
                "warning",
                f"'{name}' was made here and nobody has joined it, while {count} peerd device(s) are in "
                "other sessions",
                f"if 'peerd create {name}' was run on another device too, these are two sessions of one "
                f"name: 'peerd leave {name} --forget' on one of them, and 'peerd join {name}' with the key "
                "of the other",
                {"session": name, "id": session.get("id"), "strangers": list(session["strangers"])},
            )


def _versions(network: Mapping[str, Any] | None, around: Around) -> Iterator[Finding]:
    of_members: dict[str, int] = {}
    for session in sessions_of(network):
        of_members |= session.get("other_versions", {})
    seen = {s.peer: s.protocol for s in around.others if not PROTOCOL_MIN <= s.protocol <= PROTOCOL_MAX}
    both = {**of_members, **seen}
    data = {"mine": PROTOCOL_MAX, "others": both, "members": sorted(of_members)}
    if not both:
        yield Finding("versions", "ok", f"nobody speaks another protocol than {PROTOCOL_MAX}", "", data)
        return
    said = sorted({f"protocol {version}" if version else "another protocol" for version in both.values()})
    whose = "a member of a session here" if of_members else "a device of a session that is not known here"
    yield Finding(
        "versions",
        "problem" if of_members else "warning",
        f"{listed(sorted(both))} speaks {listed(said)}, this device {PROTOCOL_MAX}; it is {whose}",
        "upgrade peerd on the one with the lower number",
        data,
    )


def _identity(network: Mapping[str, Any] | None, around: Around) -> Iterator[Finding]:
    """Two devices with one key: members have noticed, or somebody else announces this device's id."""
    sentences = [sentence for session in sessions_of(network) for sentence in session.get("copies", ())]
    twins = [
        address
        for sighting in around.sightings
        if around.me and sighting.peer == around.me
        for address in sighting.addresses
        if not _is_own(address, around.own)
    ]
    data = {"peer": around.me or None, "copies": sentences, "elsewhere": twins}
    if sentences:
        seen, _, advice = sentences[0].partition("? ")
        yield Finding("identity", "problem", f"{seen}?", advice, data)
    elif twins:
        yield Finding(
            "identity",
            "problem",
            f"another device, at {listed(twins)}, announces the identity of this one: its disk is a copy",
            "on one of them stop peerd, delete device.pem in its state folder (~/.local/state/peerd, or what "
            "--state says), and start it again",
            data,
        )
    elif around.me:
        yield Finding("identity", "ok", "nobody else has this device's identity", "", data)


def _is_own(address: str, own: frozenset[str]) -> bool:
    try:
        host = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return host.is_loopback or str(host) in own


# --- who can open a connection to whom -------------------------------------------------------------------


def _dialing(network: Mapping[str, Any] | None, around: Around) -> Iterator[Finding]:
    fine = True
    for session in sessions_of(network):
        for finding in _dialing_of(session, around):
            fine = False
            yield finding
    known = {m["peer"] for s in sessions_of(network) for m in s.get("members", ())}
    known |= {peer for s in sessions_of(network) for peer in s.get("unmet", {})}
    failed = {
        s.peer: why for s in around.others if (why := around.dialed.get(s.nonce)) and s.peer not in known
    }
    if failed:
        fine = False
        yield Finding(
            "dialing",
            "warning",
            f"{len(failed)} peerd device(s) are seen, and no connection can be opened to them: "
            f"{listed(failed.values())}",
            _OPEN_THERE,
            {"session": None, "undialable": failed},
        )
    if fine and (known or around.dialed):
        both = any(m.get("calls") for s in sessions_of(network) for m in s.get("members", ()))
        ways = "connections can be opened both ways" if both else "connections to those seen can be opened"
        yield Finding("dialing", "ok", ways)


_OPEN_THERE = (
    "let TCP in on that device, or keep its port and open that one: 'peerd join NAME --listen "
    "0.0.0.0:PORT'; Wi-Fi with client isolation does the same"
)


def _unmet(session: Session, around: Around) -> dict[str, str]:
    """Members that announce themselves now and have not been met, and why."""
    here = {s.peer for s in around.sightings} - {member["peer"] for member in session.get("members", ())}
    return {peer: why for peer, why in session.get("unmet", {}).items() if peer in here}


def _dialing_of(session: Session, around: Around) -> Iterator[Finding]:
    name, members = session["name"], session.get("members", ())
    unmet = _unmet(session, around)
    if unmet:
        yield Finding(
            "dialing",
            "problem" if not members else "warning",
            f"'{name}': {len(unmet)} member(s) are seen and cannot be met: {listed(unmet.values(), 3)}",
            _OPEN_THERE,
            {"session": name, "undialable": dict(unmet)},
        )
    hidden = {m["peer"]: m for m in members if m.get("unreached") and not m.get("blocked")}
    if hidden:
        who = listed(m.get("device") or peer for peer, m in hidden.items())
        yield Finding(
            "dialing",
            "warning",
            f"'{name}': {who} cannot be dialed from here, and trains over the connections that it opens "
            "itself; two such devices have no link with each other",
            _OPEN_THERE,
            {"session": name, "undialable": {peer: m["unreached"] for peer, m in hidden.items()}},
        )
    if _uncalled(session):
        port = session.get("port")
        yield Finding(
            "dialing",
            "warning",
            f"'{name}': none of {len(members)} member(s) has opened a connection to this device",
            f"let TCP port {port} in here (see 'firewall'); a port that stays the same is had with 'peerd "
            f"join {name} --listen 0.0.0.0:PORT'",
            {"session": name, "port": port, "called_by": []},
        )


def _uncalled(session: Session) -> bool:
    members = [m for m in session.get("members", ()) if not m.get("blocked")]
    waited = [m for m in members if (m.get("met_s") or 0.0) >= CALLED_BY_S]
    return bool(waited) and not any(m.get("calls") for m in members)
