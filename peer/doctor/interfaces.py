"""Which interfaces are looked at for peers, and why each of the others is not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ifaddr

from peer.doctor.finding import Finding, listed
from peer.mesh.interfaces import LEFT_OUT, SYSFS, Interface, choose, is_up, needs_scope, survey


@dataclass(frozen=True, slots=True)
class Wires:
    """used: as a session or a join would now. left_out: by name, why. own: every address of this device."""

    used: tuple[Interface, ...]
    left_out: Mapping[str, str]
    own: frozenset[str]


def look(asked: Iterable[str]) -> Wires:
    """asked: what --interface names, of all sessions that run; none is the usual choice. Raises OSError."""
    asked = tuple(asked)
    used = choose(survey(), asked)
    names = {one.name for one in used}
    addresses: dict[str, list[str]] = {}
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        found = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips]
        addresses.setdefault(adapter.name, []).extend(found)
    left_out = {
        name: _why_not(name, found, asked, bool(used))
        for name, found in sorted(addresses.items())
        if name not in names
    }
    return Wires(used, left_out, frozenset(a for found in addresses.values() for a in found))


def _why_not(name: str, addresses: list[str], asked: tuple[str, ...], others: bool) -> str:
    if not is_up(name):
        return "it is down, or has no cable"
    numbers = [ipaddress.ip_address(address) for address in addresses]
    if not numbers:
        return "it has no address"
    if all(needs_scope(number) for number in numbers):
        return "it has only a link-local IPv6 address, which means nothing elsewhere"
    if asked:
        return "--interface names others"
    if all(number.is_loopback for number in numbers):
        return "loopback leads nowhere" if others else "loopback is only used where --interface names it"
    if name.startswith(LEFT_OUT):
        return "by its name it leads to containers or a tunnel"
    return "it is not used"


def judge(wires: Wires, in_container: bool) -> Finding:
    data: dict[str, Any] = {
        "used": {one.name: list(one.addresses) for one in wires.used},
        "left_out": dict(wires.left_out),
        "container": in_container,
    }
    others = "; ".join(f"{name} not: {why}" for name, why in wires.left_out.items() if name != "lo")
    if not wires.used:
        seen = "no network interface is usable" + (f": {others}" if others else "")
        advice = "plug the cable in or join the Wi-Fi; an interface that is left out is used with --interface"
        return Finding("interfaces", "problem", seen, advice, data)
    used = listed(f"{one.name} ({', '.join(one.addresses[:2])})" for one in wires.used)
    seen = f"used: {used}" + (f"; {others}" if others else "")
    if all(one.loopback for one in wires.used):
        advice = (
            "only devices on this machine can be found; leave with 'peerd leave', join without --interface"
        )
        return Finding("interfaces", "warning", f"only loopback is used: {used}", advice, data)
    if in_container:
        advice = "multicast does not leave a container's own network: run it with '--network host'"
        return Finding("interfaces", "warning", f"this runs in a container; {seen}", advice, data)
    return Finding("interfaces", "ok", seen, "", data)


def in_container(root: Path = Path("/")) -> bool:
    """In a container with a network of its own, as far as files tell: docker's and podman's marks, and no
    other interface than eth0."""
    marked = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    wired = root / SYSFS.relative_to("/")
    names = {entry.name for entry in wired.iterdir()} if wired.is_dir() else set()
    return marked and names <= {"lo", "eth0"}
