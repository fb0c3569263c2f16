"""What the transport knows of each peer: where it may be, which leaf is its, what it said, what it cost.

Addresses are candidates, never identity: mDNS, other members' records and --peer all put them in, and the
pinned leaf decides who answered. Everything is bounded, because strangers can make hints up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from peer.events import PeerId
from peer.mesh.frames import MAX_ADDRESSES, is_address
from peer.mesh.greeting import Introduction

MAX_CONTACTS = 512
RTT_GAIN = 0.125  # of the newest sample, RFC 6298 section 2.3


@dataclass(slots=True)
class Contact:
    """leaf_pem: pinned by the last Hello, None before it and after a failed handshake. Bytes: of messages,
    and of those that are frames of links. listed: by its own record, as last heard. calls: it has opened a
    connection to this device. unreached: why none could be opened to it, last time; other_session: the id of
    the one it has of this key, where that is not ours."""

    peer: PeerId
    addresses: list[str] = field(default_factory=list)
    listed: frozenset[str] = frozenset()
    leaf_pem: bytes | None = None
    introduction: Introduction | None = None
    bytes_sent: int = 0
    frame_bytes_sent: int = 0
    bytes_received: int = 0
    rtt_s: float | None = None
    rejected: int = 0
    last_rejection: str = ""
    blocked: bool = False
    met_at: float | None = None
    calls: bool = False
    unreached: str = ""
    other_session: str = ""

    def learn(self, addresses: Iterable[str], proven: bool = False) -> None:
        """Candidates by number. A proven one (it has answered with the right key) moves to the front for
        good.
        """
        new = [address for address in addresses if is_address(address) and _by_number(address)]
        known = self.addresses
        order = [*new, *known] if proven else [*known[:1], *new, *known[1:]]
        self.addresses = list(dict.fromkeys(order))[:MAX_ADDRESSES]

    def lists(self, addresses: Iterable[str]) -> None:
        """Candidates are those its own record lists now. What it listed before and does no more is none, even
        if it has answered: the peer has moved."""
        now = tuple(addresses)
        withdrawn = self.listed.difference(now)
        self.listed = frozenset(now)
        self.addresses = [address for address in self.addresses if address not in withdrawn]
        self.learn(now)

    def candidates(self, attempt: int) -> list[str]:
        """Those of one family for one channel: IPv4, and in every third attempt IPv6 if there is any."""
        four = [address for address in self.addresses if not address.startswith("[")]
        six = [address for address in self.addresses if address.startswith("[")]
        return six if six and (not four or attempt % 3 == 2) else four

    def time(self, seconds: float) -> None:
        """Fold in the round-trip time of one call."""
        self.rtt_s = seconds if self.rtt_s is None else self.rtt_s + RTT_GAIN * (seconds - self.rtt_s)

    def reject(self, reason: str) -> None:
        """Count something of this peer's that broke a rule."""
        self.rejected += 1
        self.last_rejection = reason


def _by_number(address: str) -> bool:
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True


class Contacts:
    """By peer id; at most MAX_CONTACTS, of which those never met make room first."""

    def __init__(self) -> None:
        self._contacts: dict[PeerId, Contact] = {}
        self._made_room = Contact(PeerId())  # what all those cost together

    def __iter__(self) -> Iterator[Contact]:
        return iter(self._contacts.values())

    def ever(self) -> Iterator[Contact]:
        """For sums of bytes, which never shrink: one more stands for all that made room."""
        yield from self
        yield self._made_room

    def control_bytes_sent(self) -> int:
        """Of messages that were no frames."""
        return sum(contact.bytes_sent - contact.frame_bytes_sent for contact in self.ever())

    def get(self, peer: PeerId) -> Contact | None:
        return self._contacts.get(peer)

    def of(self, peer: PeerId) -> Contact:
        """The peer's contact, made if need be."""
        if peer not in self._contacts:
            if len(self._contacts) >= MAX_CONTACTS:
                gone = self._contacts.pop(self._least_known())
                self._made_room.bytes_sent += gone.bytes_sent
                self._made_room.frame_bytes_sent += gone.frame_bytes_sent
                self._made_room.bytes_received += gone.bytes_received
            self._contacts[peer] = Contact(peer)
        return self._contacts[peer]

    def _least_known(self) -> PeerId:
        return next(
            (c.peer for c in self if c.introduction is None and not c.blocked), next(iter(self._contacts))
        )
