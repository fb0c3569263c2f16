"""What this device's packet filter does with what peerd needs: mDNS, and a session's TCP port.

    nft -j list ruleset   the whole of nftables, which iptables of today writes to as well; root alone may
    read it

The rules of every base chain of the hook "input" are followed for a packet that opens a connection, or asks
by multicast. A match that is not understood here may be either way, so there are three answers: True and
False are sure, None is not. A packet must get through all base chains.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peer.doctor.finding import Finding
from peer.mesh.interfaces import MDNS_GROUP

READ_S = 3.0
NFT = ("/usr/sbin/nft", "/sbin/nft", "nft")  # root's before what a path finds, since root may run this
MAX_DEPTH = 16  # chains within chains: nftables' own limit
GOES_ON = ("limit", "quota", "ct count", "set", "meter", "mangle")  # maybe not the rule, but the packet does
XT_GOES_ON = ("LOG", "NFLOG", "MARK", "CONNMARK")  # targets of iptables after which it does
Rules = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Packet:
    """The first of a connection, from another device."""

    protocol: str  # "udp" or "tcp"
    port: int


MDNS = Packet("udp", 5353)


class UnreadableError(Exception):
    """The rules cannot be read; the text says why."""


def read() -> Rules:
    """The rules of nftables. Raises UnreadableError."""
    program = next((found for name in NFT if (found := shutil.which(name))), None)
    if program is None:
        raise UnreadableError("nft is not installed here")
    try:
        done = subprocess.run(
            [program, "-j", "list", "ruleset"], capture_output=True, text=True, timeout=READ_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreadableError(f"nft cannot be run: {error}") from error
    if done.returncode != 0:
        raise UnreadableError("only root may read them; run 'sudo peerd doctor' to have them looked at")
    try:
        rules: Rules = json.loads(done.stdout)["nftables"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"nft says what is not understood here: {error!r}") from error
    return rules


def rules_or_why() -> Rules | str:
    """The rules, or why they are not read, as `judge` takes them."""
    try:
        return read()
    except UnreadableError as error:
        return str(error)


def lets_in(rules: Rules, packet: Packet) -> bool | None:
    """Does it get through every base chain of incoming packets? None: that is not sure."""
    verdicts = [_Walk(rules, chain, packet).verdict() for chain in _base_chains(rules)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _base_chains(rules: Rules) -> list[dict[str, Any]]:
    chains = [entry["chain"] for entry in rules if "chain" in entry]
    return [c for c in chains if c.get("hook") == "input" and c.get("family") in ("ip", "inet")]


class _Walk:
    """One packet on its way through one base chain."""

    def __init__(self, rules: Rules, chain: dict[str, Any], packet: Packet) -> None:
        self._chain, self._packet = chain, packet
        here = {"family": chain["family"], "table": chain["table"]}
        self._rules: dict[str, list[Any]] = {}
        self._sets: dict[str, list[Any]] = {}
        for entry in rules:
            for kind, body in entry.items():
                if not isinstance(body, dict) or any(body.get(key) != here[key] for key in here):
                    continue
                if kind == "rule":
                    self._rules.setdefault(body["chain"], []).append(body.get("expr", []))
                elif kind == "set":
                    self._sets[body["name"]] = body.get("elem", [])
        self._possible: set[bool] = set()  # ends that it may have come to before

    def verdict(self) -> bool | None:
        end = self._through(self._chain["name"], 0)
        if end is None:
            end = self._chain.get("policy", "accept") == "accept"
        assert isinstance(end, bool)
        return end if self._possible <= {end} else None

    def _through(self, chain: str, depth: int) -> bool | str | None:
        """True accepted, False dropped; None: it comes out at the end."""
        if depth > MAX_DEPTH:
            self._possible = {True, False}
            return None
        for expression in self._rules.get(chain, []):
            end = self._rule(expression, depth)
            if end == "return":
                return None
            if isinstance(end, bool):
                return end
        return None

    def _rule(self, expression: list[dict[str, Any]], depth: int) -> bool | str | None:
        sure = True
        for statement in expression:
            [(kind, body)] = statement.items()
            if kind == "xt":
                kind = _of_iptables(body, statement is expression[-1])
            if kind == "match":
                fits = self._fits(body)
                if fits is False:
                    return None
                sure = sure and fits is True
            elif kind in ("accept", "drop", "reject", "return"):
                return self._ends(kind, sure)
            elif kind in ("jump", "goto"):
                end = self._through(body["target"], depth + 1)
                if sure and end is None and kind == "goto":
                    end = "return"
                if sure and end is not None:
                    return end
                if isinstance(end, bool):
                    self._possible.add(end)
            elif kind in GOES_ON:
                sure = False
            elif kind not in ("counter", "log", "comment"):
                self._possible |= {True, False}  # a verdict map, a queue: it may end here, either way
        return None

    def _ends(self, kind: str, sure: bool) -> bool | str | None:
        if not sure:
            self._possible |= {True, False} if kind == "return" else {kind == "accept"}
            return None
        return "return" if kind == "return" else kind == "accept"

    def _fits(self, match: Mapping[str, Any]) -> bool | None:
        left, right = match.get("left"), match.get("right")
        found: bool | None = None
        if isinstance(left, dict) and "payload" in left:
            protocol, field = left["payload"].get("protocol"), left["payload"].get("field")
            if protocol in ("tcp", "udp", "th") and field == "dport":
                if protocol not in (self._packet.protocol, "th"):
                    return False
                found = self._among(self._packet.port, right)
            elif (protocol, field) == ("ip", "protocol"):
                found = self._among(self._packet.protocol, right)
            elif (protocol, field) == ("ip", "daddr"):
                found = self._goes_to(right)
            elif protocol in ("icmp", "icmpv6", "ip6", "sctp", "dccp"):
                return False
        elif isinstance(left, dict) and "meta" in left:
            found = self._meta(left["meta"].get("key"), right)
        elif isinstance(left, dict) and left.get("ct", {}).get("key") == "state":
            found = self._among("new", right)
        if found is None:
            return None
        return not found if match.get("op") == "!=" else found

    def _meta(self, key: str, right: Any) -> bool | None:
        if key == "l4proto":
            return self._among(self._packet.protocol, right)
        if key in ("iif", "iifname"):
            return False if right == "lo" else None
        if key == "nfproto":
            return self._among("ipv4", right)
        return None

    def _goes_to(self, right: Any) -> bool | None:
        """mDNS goes to its group, a connection to some address of this device."""
        try:
            if isinstance(right, dict):
                prefix = right["prefix"]
                there = ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}")
            else:
                there = ipaddress.ip_network(right)
        except (ValueError, KeyError, TypeError):
            return None  # a set, or a name
        if self._packet == MDNS:
            return ipaddress.ip_address(MDNS_GROUP) in there
        return False if there.is_multicast else None

    def _among(self, value: int | str, right: Any) -> bool | None:
        """Is the value the other side, or one of it?"""
        if isinstance(right, list):
            return _any(self._among(value, one) for one in right)
        if isinstance(right, dict):
            if "set" in right:
                return self._among(value, right["set"])
            if "range" in right and isinstance(value, int):
                low, high = right["range"]
                return bool(low <= value <= high)
            return None
        if isinstance(right, str) and right.startswith("@"):
            return self._among(value, self._sets[right[1:]]) if right[1:] in self._sets else None
        return bool(value == right)


def _of_iptables(body: Mapping[str, Any] | None, last: bool) -> str:
    """The statement of nftables that this extension of iptables is like; "xt": nobody knows. body: None of an
    nft before 1.0.7, which does not say what it is. last: of its rule, as targets are and matches are not."""
    kind, name = (body.get("type"), body.get("name")) if body is not None else (None, None)
    if kind == "match" or (body is None and not last):
        return "limit"
    if kind == "target" and name == "REJECT":
        return "reject"
    return "log" if kind == "target" and name in XT_GOES_ON else "xt"


def _any(found: Iterable[bool | None]) -> bool | None:
    every = list(found)
    return True if True in every else None if None in every else False


def how_to_allow(*packets: Packet) -> str:
    """The commands that let these in, of the firewall that is installed here."""
    ports = [f"{packet.port}/{packet.protocol}" for packet in packets]
    if shutil.which("ufw") or shutil.which("/usr/sbin/ufw"):
        return ", ".join(f"'sudo ufw allow {port}'" for port in ports)
    if shutil.which("firewall-cmd"):
        added = " ".join(f"--add-port={port}" for port in ports)
        return f"'sudo firewall-cmd --permanent {added}', then 'sudo firewall-cmd --reload'"
    rules = [f"inet filter input {packet.protocol} dport {packet.port} accept" for packet in packets]
    return ", ".join(f"'sudo nft insert rule {rule}'" for rule in rules) + " (or as your firewall has it)"


def judge(rules: Rules | str, ports: Mapping[str, int], unreachable: bool) -> Finding:
    """rules: as read, or why they were not. ports: of the sessions that run, by name. unreachable: members
    say by their silence that nobody can open a connection to this device."""
    if isinstance(rules, str):
        seen = f"the firewall's rules are not read: {rules}"
        return Finding("firewall", "ok", seen, "", {"read": False, "lets_in": {}})
    wanted = {"mDNS": MDNS, **{name: Packet("tcp", port) for name, port in ports.items()}}
    found = {name: lets_in(rules, packet) for name, packet in wanted.items()}
    data = {
        "read": True,
        "lets_in": {
            name: {"protocol": p.protocol, "port": p.port, "lets_in": found[name]}
            for name, p in wanted.items()
        },
    }
    shut = [name for name, let in found.items() if let is False]
    if shut:
        packets = [wanted[name] for name in shut]
        seen = "the firewall of this device keeps out " + ", ".join(
            f"{p.protocol.upper()} port {p.port} ({n})" for n, p in zip(shut, packets, strict=True)
        )
        advice = f"allow it: {how_to_allow(*packets)}"
        if any(p.protocol == "tcp" for p in packets):
            advice += "; a port that stays the same is had with 'peerd join NAME --listen 0.0.0.0:PORT'"
        worst = "mDNS" in shut or unreachable
        return Finding("firewall", "problem" if worst else "warning", seen, advice, data)
    unsure = [name for name, let in found.items() if let is None]
    if unsure:
        seen = (
            f"whether the firewall lets in {', '.join(unsure)} depends on rules that are not understood here"
        )
        return Finding("firewall", "ok", seen, "", data)
    what = "mDNS and the sessions' ports" if ports else "mDNS"
    return Finding("firewall", "ok", f"the firewall lets {what} in", "", data)
