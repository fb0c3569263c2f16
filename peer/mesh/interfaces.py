"""Which of this device's network interfaces peerd looks for peers on, and the addresses it can be reached
at.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ifaddr

# Bridges and tunnels that lead to containers or far away: by name, never by kind; --interface overrules it
LEFT_OUT = ("docker", "veth", "br-", "tailscale", "wg")
SYSFS = Path("/sys/class/net")
MDNS_GROUP = "224.0.0.251"  # RFC 6762 section 3
IFF_UP = 0x1  # netdevice(7)
DOWN_STATES = ("down", "lowerlayerdown", "notpresent")  # operstate; loopback and tunnels say "unknown"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Interface:
    """One that is up. addresses: by number, in the order of `by_reach`, without those that need a scope."""

    name: str
    addresses: tuple[str, ...]

    @property
    def loopback(self) -> bool:
        return all(ipaddress.ip_address(address).is_loopback for address in self.addresses)


def survey() -> tuple[Interface, ...]:
    """Every interface that is up and has an address, in the system's order."""
    found = []
    for adapter in ifaddr.get_adapters():
        addresses = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips]
        usable = [a for a in addresses if not needs_scope(ipaddress.ip_address(a))]
        usable.sort(key=lambda a: by_reach(ipaddress.ip_address(a)))
        if usable and is_up(adapter.name):
            found.append(Interface(adapter.name, tuple(usable)))
    return tuple(found)


def needs_scope(address: Address) -> bool:
    """Is it link-local IPv6, which means nothing on another device? (IPv4's 169.254/16 does: two devices on
    one cable have nothing else, RFC 3927.)
    """
    return address.version == 6 and address.is_link_local


def by_reach(address: Address) -> tuple[int, bool]:
    """A sorting key: IPv4 first, and of IPv4 last what reaches this link alone."""
    return address.version, address.is_link_local


def is_up(name: str) -> bool:
    """Is it up? Flags and carrier, from sysfs; a system without it has every interface with an address up."""
    try:
        flags = int((SYSFS / name / "flags").read_text(), 16)
        state = (SYSFS / name / "operstate").read_text().strip()
    except OSError:
        return True
    return bool(flags & IFF_UP) and state not in DOWN_STATES


def choose(up: Iterable[Interface], asked: Iterable[str]) -> tuple[Interface, ...]:
    """Those named (by interface or by address), or all but containers' and tunnels'.

    Loopback is chosen only when it is asked for or nothing else is up.
    """
    up = tuple(up)
    wanted = set(asked)
    if wanted:
        chosen = []
        for one in up:
            addresses = (
                one.addresses if one.name in wanted else tuple(a for a in one.addresses if a in wanted)
            )
            if addresses:
                chosen.append(Interface(one.name, addresses))
        return tuple(chosen)
    usual = tuple(one for one in up if not one.loopback and not one.name.startswith(LEFT_OUT))
    return usual or tuple(one for one in up if one.loopback and len(up) == 1)


def hears_multicast(address: str) -> bool:
    """Can this address join the group of mDNS? (For IPv6 that is not asked: groups are joined by
    interface.)
    """
    if ipaddress.ip_address(address).version == 6:
        return True
    membership = socket.inet_aton(MDNS_GROUP) + socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError:
            return False
    return True
