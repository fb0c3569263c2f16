"""Does multicast work here? Ask the group of mDNS who announces peerd, on each interface, and listen.

Every datagram that is sent to the group comes back to those of the same device who listen
(IP_MULTICAST_LOOP). So if the own question is not heard, it is this device's doing, mostly its firewall's;
if it is, and nothing of any other device, then nobody else is there or the network keeps it. The sockets are
bound to the group's address and not to every address: else they would take datagrams that are meant for
other programs on port 5353.

The announcements themselves are read by the same code as the daemon's (peer/mesh/discovery.py).
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import struct
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from peer.doctor.finding import Finding, listed
from peer.events import PeerId
from peer.mesh.discovery import SERVICE_TYPE, Discovery, Sighting
from peer.mesh.interfaces import MDNS_GROUP, Interface

MDNS_PORT = 5353  # RFC 6762 section 3
MDNS_GROUP_6 = "ff02::fb"
LISTEN_S = 3.0  # a browser hears the others within 0.1 to 1.2 s (platform measurement)
ASK_AT_S = (0.0, 1.0, 2.0)  # three questions: one of them may be lost
MAX_HEARD = 64  # other devices remembered
MAX_SIGHTINGS = 256
MAX_DATAGRAM = 9000  # RFC 6762 section 17
IP_MULTICAST_ALL, IPV6_MULTICAST_ALL = 49, 29  # linux/in.h, in6.h; socket has no names for them
TYPE_PTR, CLASS_IN = 12, 1  # RFC 1035 section 3.2


@dataclass(slots=True)
class Ear:
    """One interface. own: its own question came back. others: who else said anything, by address. problem:
    why it can be neither asked nor listened on."""

    interface: str
    address: str
    own: bool = False
    others: set[str] = field(default_factory=set)
    problem: str = ""


@dataclass(slots=True)
class Heard:
    """ears: one per interface; sightings: of peerd, this device's own included."""

    ears: list[Ear]
    sightings: list[Sighting]

    @property
    def deaf(self) -> bool:
        """Is no interface fit to hear anybody, by this device's own doing?"""
        return all(ear.problem or not ear.own for ear in self.ears)

    @property
    def others(self) -> set[str]:
        return {address for ear in self.ears for address in ear.others}


async def listen(interfaces: Iterable[Interface], own: frozenset[str], asked: tuple[str, ...]) -> Heard:
    """For LISTEN_S. own: every address of this device. asked: what --interface names."""
    heard = Heard([Ear(one.name, one.addresses[0]) for one in interfaces], [])
    seen: dict[tuple[PeerId, str], Sighting] = {}

    def note(sighting: Sighting) -> None:
        if len(seen) < MAX_SIGHTINGS:
            seen[sighting.peer, sighting.nonce] = sighting

    question = _question(secrets.randbits(16))
    async with AsyncExitStack() as stack:
        listening = [_listen(sock, ear, question, own) for ear in heard.ears if (sock := _opened(ear, stack))]
        if listening:  # else zeroconf would fail, and leak a socket
            browser = Discovery(secrets.token_bytes(32), PeerId(""), 0, asked, note)
            await browser.start()
            stack.push_async_callback(browser.stop)
            await asyncio.gather(*listening)
    heard.sightings += seen.values()
    return heard


def _opened(ear: Ear, stack: AsyncExitStack) -> socket.socket | None:
    """Its socket, which the stack closes; what is in the way goes into `problem`."""
    try:
        sock = _open(ear)
    except OSError as error:
        ear.problem = _why(error)
        return None
    stack.callback(sock.close)
    return sock


async def _listen(sock: socket.socket, ear: Ear, question: bytes, own: frozenset[str]) -> None:
    """Ask and listen on one interface."""
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, _hear, sock, ear, question, own)
    try:
        before = 0.0
        for at in ASK_AT_S:
            await asyncio.sleep(at - before)
            before = at
            try:
                sock.sendto(question, sock.getsockname())  # it is bound to the group
                ear.problem = ""
            except OSError as error:
                ear.problem = _why(error)
        await asyncio.sleep(LISTEN_S - before)
    finally:
        loop.remove_reader(sock)


def _open(ear: Ear) -> socket.socket:
    """A socket that is bound to the group, on one interface. Raises OSError."""
    index = socket.if_nametoindex(ear.interface)
    six = ":" in ear.address
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if six:
            _set_6(sock, index)
            sock.bind((MDNS_GROUP_6, MDNS_PORT, 0, index))
        else:
            _set_4(sock, index, ear.address)
            sock.bind((MDNS_GROUP, MDNS_PORT))
    except OSError:
        sock.close()
        raise
    return sock


def _set_4(sock: socket.socket, index: int, address: str) -> None:
    at = socket.inet_aton(address) + struct.pack("@i", index)  # the end of an ip_mreqn (ip(7))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(MDNS_GROUP) + at)
    sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(MDNS_GROUP) + at)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)


def _set_6(sock: socket.socket, index: int) -> None:
    group = socket.inet_pton(socket.AF_INET6, MDNS_GROUP_6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)


def _hear(sock: socket.socket, ear: Ear, question: bytes, own: frozenset[str]) -> None:
    """Take what has come. Nothing of it is trusted: addresses are counted, contents only compared."""
    while True:
        try:
            data, sender = sock.recvfrom(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            ear.problem = _why(error)
            return
        address = str(sender[0]).partition("%")[0]
        if address in own:
            ear.own = ear.own or data == question
        elif len(ear.others) < MAX_HEARD:
            ear.others.add(address)


def _question(identifier: int) -> bytes:
    """Who announces peerd? As RFC 1035 section 4.1 writes it; the identifier, which nobody else minds (RFC
    6762 section 18.1), tells this question from others'."""
    labels = SERVICE_TYPE.rstrip(".").split(".")
    name = b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0"
    return struct.pack("!6H", identifier, 0, 1, 0, 0, 0) + name + struct.pack("!2H", TYPE_PTR, CLASS_IN)


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program keeps UDP port 5353 to itself"
    if error.errno == errno.EPERM:
        return "a firewall on this device refuses to send it"
    return error.strerror or str(error)


def judge(heard: Heard, waits: bool, allow: str) -> Finding:
    """waits: a session here has not met anybody. allow: how this device's firewall is told to let mDNS in."""
    deaf = [ear for ear in heard.ears if ear.problem or not ear.own]
    data = {
        "interfaces": {
            ear.interface: {
                "own_heard": ear.own,
                "others": sorted(ear.others),
                "problem": ear.problem or None,
            }
            for ear in heard.ears
        }
    }
    if not heard.ears:
        return Finding("multicast", "problem", "there is no interface to listen on", "see 'interfaces'", data)
    if deaf:
        broken = [ear.interface for ear in deaf]
        why = listed(sorted({ear.problem or "this device's own question does not come back" for ear in deaf}))
        seen = f"no multicast on {listed(broken)}: {why}"
        advice = f"let UDP port 5353 in and out of this device: {allow}"
        if any("keeps UDP" in ear.problem for ear in deaf):
            advice = "'sudo ss -ulpn sport = 5353' names the program; end it, or have it share the port"
        partly = len(deaf) < len(heard.ears) and heard.others
        return Finding("multicast", "warning" if partly else "problem", seen, advice, data)
    where = listed(ear.interface for ear in heard.ears)
    if heard.others:
        many = f"{len(heard.others)} other device(s) heard"
        return Finding("multicast", "ok", f"works on {where}: own question and {many}", "", data)
    if all(_loopback(ear.address) for ear in heard.ears):
        return Finding("multicast", "ok", f"works on {where}, where there is no other device", "", data)
    return Finding(
        "multicast",
        "problem" if waits else "warning",
        f"works on this device, and nothing of any other was heard on {where} within {LISTEN_S:.0f} s",
        "if others are on this network, it keeps multicast back (AP or guest isolation, VLANs, IGMP "
        "snooping, a repeater): change that, or name a member with 'peerd join NAME --peer HOST:PORT'",
        data,
    )


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


async def dial(sightings: Iterable[Sighting], timeout_s: float) -> Mapping[str, str]:
    """By nonce, why no connection could be opened to whoever announces itself; "" where one could."""

    async def one(sighting: Sighting) -> tuple[str, str]:
        problem = ""
        for address in sighting.addresses[:2]:
            host, _, port = address.rpartition(":")
            try:
                async with asyncio.timeout(timeout_s / 2):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except TimeoutError:
                problem = problem or f"{address} does not answer"
            except OSError as error:
                problem = problem or f"{address}: {error.strerror or error}"
            else:
                writer.close()
                return sighting.nonce, ""
        return sighting.nonce, problem

    return dict(await asyncio.gather(*(one(sighting) for sighting in sightings)))
