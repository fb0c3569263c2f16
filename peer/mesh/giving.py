"""To whom a node gives its model: newcomers that begin with it, and members of another half that look at it.

    promised --link clear, room in the budget--> given

A newcomer that the budget has no room for is short of it: others are asked first. If it finds none in DEFER_S
it comes before this device's own rounds, which then send nothing until there is room. seats.py is the other
side of this, reunion.py of looking.
"""

from __future__ import annotations

from collections.abc import Collection

from peer.events import Effect, ForLearner, Note, PeerId, Sponsor
from peer.mesh.budget import Spending
from peer.mesh.ending import Ending
from peer.mesh.frame_bytes import FRAMES_BYTES
from peer.mesh.links import Links

DEFER_S = 20.0  # others are asked first to give a model that the budget has no room for; guess


class Giving:
    """Of one node. Read-only from outside: `promised`, `whole`."""

    def __init__(self, links: Links, spending: Spending) -> None:
        self._links, self._spending = links, spending
        self.promised: set[PeerId] = set()
        self.whole = 0  # bytes of a whole model; 0: not known
        self._short: dict[PeerId, float] = {}  # of the promised: no room for them, since when
        self._showing: set[PeerId] = set()  # who wants to look at this device's model

    @property
    def short_for(self) -> tuple[PeerId, ...]:
        """Newcomers that have asked for a model, for which the budget has had no room yet."""
        return tuple(sorted(self._short))

    def holds(self, whole: int) -> None:
        """What the learner says of its model's size."""
        self.whole = whole or self.whole

    # --- to begin with -------------------------------------------------------------------------------

    def promise(self, peer: PeerId) -> None:
        self.promised.add(peer)

    def promise_final(self, ending: Ending) -> list[PeerId]:
        """After the last round: who is to have the final model, unless it has come to it itself."""
        self.promised = {peer for peer in self.promised | ending.is_to_give() if not ending.is_in_last(peer)}
        return sorted(self.promised)

    def forget(self) -> None:
        """The model that was promised is gone."""
        self.promised.clear()

    def grant(self, peer: PeerId, now: float) -> list[Effect]:
        """Over a link that is clear: the model goes, if there is room for it."""
        self._short.setdefault(peer, now)
        if not self._has_room():
            return []
        self.promised.discard(peer)
        self._short.pop(peer, None)
        return [ForLearner(Sponsor(peer)), Note("sponsors a newcomer", {"peer": peer})]

    def due(self, without: Collection[PeerId]) -> PeerId | None:
        """To whom a model may be granted now that the budget had no room for: to one at a time, for what is
        granted takes room when it begins. without: the living that do not train. Who is not of them any more
        has got a model from another, or is gone."""
        self.promised -= self._short.keys() - set(without)
        self._short = {peer: at for peer, at in self._short.items() if peer in self.promised}
        if self._links.waiting():
            return None
        return min((peer for peer in self._short if self._links.clear(peer)), default=None)

    def is_pressing(self, now: float, *, alone: bool) -> bool:
        """Does a newcomer find no other sponsor? alone: there is none."""
        return any(alone or now - at > DEFER_S for at in self._short.values())

    # --- to look at ----------------------------------------------------------------------------------

    def show(self, peer: PeerId) -> None:
        self._showing.add(peer)

    def show_all(self) -> list[Effect]:
        """As soon as the links allow it, and there is room."""
        shown = sorted(peer for peer in self._showing if self._links.clear(peer) and self._has_room())
        self._showing -= set(shown)
        return [ForLearner(Sponsor(peer, show=True)) for peer in shown]

    def _has_room(self) -> bool:
        return self._spending.lets(self.whole + FRAMES_BYTES)
