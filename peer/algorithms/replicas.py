"""Replicas h_ij, kept identically at both ends of a directed link i->j: the model that j knows of i.

A replica lives for one epoch of its link. It starts from a base (a model both ends name by digest) or from
a dense parcel; difference_push says what is added to it. There is room for so many bytes of them; links
beyond that do without, and a link that has long been idle makes room for one that is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from peer.algorithms.bases import USABLE_ROUNDS, Bases
from peer.events import LinkDown, LinkUp, PeerId

REPLICA_MB = 256.0  # guess: a quarter of the smallest Pi's memory
IDLE_ROUNDS = USABLE_ROUNDS  # out-links unused for longer make room for others (guess)


@dataclass(slots=True)
class OutLink:
    """This end of an out-link's epoch. bases: models the receiver holds. used: round of its last parcel."""

    bases: set[bytes] = field(default_factory=set)
    allowed: bool = True  # by both ends
    h: Tensor | None = None
    used: int = 0


class Replicas:
    """All replicas of one node. allowed: False keeps none. mb: megabytes for both directions together.

    evicted: out-neighbors whose replica made room for another; a new epoch of the link frees theirs as well.
    """

    def __init__(self, held: Bases, *, allowed: bool = True, mb: float = REPLICA_MB) -> None:
        self.held, self.allowed, self.mb = held, allowed, mb
        self.out: dict[PeerId, OutLink] = {}
        self.into: dict[PeerId, Tensor] = {}  # h of in-links, by sender
        self.evicted: list[PeerId] = []

    def on_links(self, change: LinkUp | LinkDown) -> None:
        """State of the link's last epoch is gone, at both ends together."""
        if change.direction == "in":
            self.into.pop(change.peer, None)
        elif isinstance(change, LinkUp):
            self.out[change.peer] = OutLink(set(change.bases), change.replicas)
            self.evicted = [peer for peer in self.evicted if peer != change.peer]
        else:
            self.out.pop(change.peer, None)

    def served(self, peer: PeerId, base: bytes) -> None:
        """`peer` has this model from a parcel of the link to it."""
        self.link_to(peer).bases.add(base)

    def link_to(self, peer: PeerId) -> OutLink:
        return self.out.setdefault(peer, OutLink())

    def keeps(self, peer: PeerId, like: Tensor) -> bool:
        """Does the link to `peer` have a replica, or may it have one the size of `like`?"""
        link = self.link_to(peer)
        if link.h is not None:
            return True
        return self.allowed and link.allowed and self._room_for(like.nbytes)

    def opening(self, peer: PeerId) -> tuple[Tensor, bytes] | None:
        """The base that the link's replica starts from, and its digest; None: there is none in common."""
        name = self.held.newest_of(self.link_to(peer).bases)
        return None if name is None else (self.held.get(name), name)

    def keep(self, peer: PeerId, h: Tensor, round_: int) -> None:
        """h is what `peer` knows once it has taken the parcel of this round."""
        link = self.link_to(peer)
        link.h, link.used = h, round_

    def forget(self, peer: PeerId) -> None:
        """The link's last parcel came back: its replica is not what `peer` knows."""
        self.link_to(peer).h = None

    def _room_for(self, size_bytes: int) -> bool:
        most = int(self.mb * 1e6 / size_bytes)
        kept = [peer for peer, link in self.out.items() if link.h is not None]
        idle = [peer for peer in kept if self.held.round - self.out[peer].used > IDLE_ROUNDS]
        idle.sort(key=lambda peer: self.out[peer].used)
        count = len(self.into) + len(kept)
        if count - len(idle) >= most:
            return False
        for peer in idle[: max(0, count + 1 - most)]:
            self.out[peer].h = None
            self.evicted.append(peer)
        return True
