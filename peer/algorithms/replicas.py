"""Replicas h_ij, kept identically at both ends of a directed link i->j: the model that j knows of i.

A replica lives for one epoch of its link, and with it what both ends remember of the link's parcels
(history.py). It starts from a base (a model both ends name by digest) or from a dense parcel; difference_push
says what is added to it. There is room for so many bytes of them, in-links and out-links together; links
beyond that do without, and the link that has been idle longest makes room for one that is used. Its epoch
ends at both ends: an out-link's at once (`evicted`), an in-link's when its sender uses it again and hears
that its replica is gone.

Memory of a link and end, for each parameter: 4 bytes of h (in fp32) and 2 of history. So with the exponential
graph's log2 n links in and out, 6 x 2 log2 n bytes a parameter: 36 among 8, 72 among 64.
What coding a message takes meanwhile: compression/chunks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from peer.algorithms.bases import USABLE_ROUNDS, Bases
from peer.compression.history import History
from peer.errors import UnknownBaseError
from peer.events import Direction, LinkDown, LinkUp, PeerId

REPLICA_MB = 256.0  # guess: a quarter of the smallest Pi's memory. The learner measures (learner/memory.py)
IDLE_ROUNDS = USABLE_ROUNDS  # links unused for longer make room for others (guess)


@dataclass(slots=True)
class OutLink:
    """This end of an out-link's epoch. bases: models the receiver holds. used: round of its last parcel."""

    bases: set[bytes] = field(default_factory=set)
    allowed: bool = True  # by both ends
    h: Tensor | None = None
    used: int = 0
    history: History | None = None


@dataclass(slots=True)
class InLink:
    """The receiver's h. used: round at which its last parcel came."""

    h: Tensor
    used: int
    history: History


class Replicas:
    """All replicas of one node. allowed: False keeps none. mb: megabytes for both directions together.

    evicted: out-neighbors whose replica made room for another; a new epoch of the link frees theirs as well.
    lacking: links in use that would have a replica, were there memory for it at both ends.
    """

    def __init__(self, held: Bases, *, allowed: bool = True, mb: float = REPLICA_MB) -> None:
        self.held, self.allowed, self.mb = held, allowed, mb
        self.out: dict[PeerId, OutLink] = {}
        self.into: dict[PeerId, InLink] = {}  # in-links that have a replica, by sender
        self.evicted: list[PeerId] = []
        self.lacking: set[tuple[Direction, PeerId]] = set()

    def on_links(self, change: LinkUp | LinkDown) -> None:
        """State of the link's last epoch is gone, at both ends together."""
        self.lacking.discard((change.direction, change.peer))
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
        keeps = link.h is not None or (self.allowed and link.allowed and self._make_room(size_of(like)))
        self._note("out", peer, lacks=not keeps)
        return keeps

    def opening(self, peer: PeerId) -> tuple[Tensor, bytes] | None:
        """The base that the link's replica starts from, and its digest; None: there is none in common."""
        name = self.held.newest_of(self.link_to(peer).bases)
        return None if name is None else (self.held.get(name), name)

    def keep(self, peer: PeerId, h: Tensor, round_: int, history: History) -> None:
        """h is what `peer` knows once it has taken the parcel of this round, history what it remembers."""
        link = self.link_to(peer)
        link.h, link.used, link.history = h, round_, history

    def forget(self, peer: PeerId) -> None:
        """The link's last parcel came back: its replica is not what `peer` knows."""
        self._drop(self.link_to(peer))

    # --- in-links --------------------------------------------------------------------------------

    def known_of(self, src: PeerId) -> Tensor:
        """What this node knows of `src`. Raises UnknownBaseError."""
        return self._from(src).h

    def history_of(self, src: PeerId) -> History:
        """What is remembered of the link from `src`. Raises UnknownBaseError."""
        return self._from(src).history

    def learn(self, src: PeerId, h: Tensor, history: History) -> None:
        """h is what this node knows of `src` now, and history what it remembers. Raises UnknownBaseError when
        there is no room for it."""
        if src not in self.into and not (self.allowed and self._make_room(size_of(h))):
            raise UnknownBaseError(f"no room for a replica of the link from {src} here; it does without")
        self.into[src] = InLink(h, self.held.round, history)
        self._note("in", src, lacks=False)

    def does_without(self, src: PeerId) -> None:
        """The link from `src` has carried a parcel that needs no replica."""
        self._note("in", src, lacks=True)

    def _note(self, direction: Direction, peer: PeerId, *, lacks: bool) -> None:
        if lacks and self.allowed:
            self.lacking.add((direction, peer))
        else:
            self.lacking.discard((direction, peer))

    def _from(self, src: PeerId) -> InLink:
        if src not in self.into:
            raise UnknownBaseError(f"no replica of the link from {src} is held here; open the link anew")
        return self.into[src]

    # --- the cap ---------------------------------------------------------------------------------

    def room(self, size_bytes: int) -> bool:
        """May one more link have a replica of that size?"""
        kept, idle = self._kept()
        return self.allowed and kept - len(idle) < self._most(size_bytes)

    def _make_room(self, size_bytes: int) -> bool:
        kept, idle = self._kept()
        most = self._most(size_bytes)
        if kept - len(idle) >= most:
            return False
        for _, direction, peer in idle[: max(0, kept + 1 - most)]:
            if direction == "in":
                del self.into[peer]
            else:
                self._drop(self.out[peer])
                self.evicted.append(peer)
        return True

    def _drop(self, link: OutLink) -> None:
        link.h = link.history = None

    def _most(self, size_bytes: int) -> int:
        return int(self.mb * 1e6 / size_bytes)

    def _kept(self) -> tuple[int, list[tuple[int, Direction, PeerId]]]:
        """How many replicas there are, and those of idle links, least recently used first."""
        used: list[tuple[int, Direction, PeerId]] = [
            (link.used, "out", peer) for peer, link in self.out.items() if link.h is not None
        ]
        used += [(link.used, "in", peer) for peer, link in self.into.items()]
        return len(used), sorted(link for link in used if self.held.round - link[0] > IDLE_ROUNDS)


def size_of(h: Tensor) -> int:
    """Bytes of a replica and its history."""
    return h.nbytes + History.BYTES * h.numel()
