"""Which links a node keeps open: those that its rounds use, and for a while those that they have used.

    out-links   opened when something first goes over them; closed when nothing has for IDLE_LINK_S. What is
                out to a dead member stays in the ledger for WRITE_OFF_S
    in-links    their senders open them. Who has not by REVERSE_DIAL_S, unable to dial perhaps, is dialed, and
                not hung up on as long as it lives: who does not train with this node yet, or any more, may
                have a model that it wants

All methods that change a link return its effects, for the node to pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from peer.events import Effect, PeerId
from peer.mesh.links import Links

WRITE_OFF_S = 24 * 3600.0  # a dead member's unacknowledged parcel is given up then: memberlist's dead record
IDLE_LINK_S = 60.0  # a link that no round has used for this long is closed; guess
REVERSE_DIAL_S = 3.0  # an expected sender that has not dialed by now is dialed; guess


class Upkeep:
    """Of one node's links, which others put something on."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._needed: dict[PeerId, float] = {}  # out-links, and when they were last used
        self._due: dict[PeerId, float] = {}  # expected senders without a stream, since when
        self._dialed: set[PeerId] = set()  # senders whose in-stream this node opened

    def need(self, dst: PeerId, now: float) -> list[Effect]:
        """Something is to go to `dst`."""
        effects = self._links.want(dst) if dst not in self._needed else []
        self._needed[dst] = now
        return effects

    def keeps(self, dst: PeerId) -> bool:
        """Is the link to `dst` open, or being opened?"""
        return dst in self._needed

    def expect(self, src: PeerId, now: float) -> None:
        """Something is to come from `src`."""
        self._due.setdefault(src, now)

    def tick(self, living: Collection[PeerId], in_use: Callable[[float], bool], now: float) -> list[Effect]:
        """in_use: may the open round, or those after it, use a link that was last used then, however long it
        takes?"""
        return [*self._reverse_dial(living, now), *self._drop_idle(in_use, now)]

    def leave(self) -> list[Effect]:
        """Nothing more is sent, but what one of these links may carry at once."""
        busy = [dst for dst in self._needed if not self._links.clear(dst)]
        for dst in busy:
            del self._needed[dst]
        return [effect for dst in busy for effect in self._links.unwant(dst)]

    def _reverse_dial(self, living: Collection[PeerId], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for src, since in list(self._due.items()):
            if src not in living or self._links.has_stream(src, "in"):
                del self._due[src]
            elif now - since >= REVERSE_DIAL_S:
                del self._due[src]
                self._dialed.add(src)
                effects += self._links.dial_in(src)
        for src in sorted(self._dialed - set(living)):
            self._dialed.discard(src)
            effects += self._links.drop_in(src)
        return effects

    def _drop_idle(self, in_use: Callable[[float], bool], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for dst, at in list(self._needed.items()):
            if in_use(at):
                continue
            if now - at > WRITE_OFF_S:
                del self._needed[dst]
                effects += self._links.write_off(dst)
            elif now - at > IDLE_LINK_S and not self._links.unacked(dst):
                del self._needed[dst]
                effects += self._links.unwant(dst)
        return effects
