"""To whom a node gives its model: newcomers that begin with it, and members of another half that look at it.

    promised --link clear, room in the budget--> given

A newcomer may ask before the link to its last life has ended here, where a model would be refused: it is
given one over a link that the life it has asked in has answered.
A newcomer that the budget has no room for is short of it: others are asked first. If it finds none in DEFER_S
it comes before this device's own rounds, which then send nothing until there is room. seats.py is the other
side of this, reunion.py of looking.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
        self.promised: dict[PeerId, int] = {}  # by newcomer: the life it has asked in; 0: it has not asked
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

    def promise(self, peer: PeerId, life: int) -> None:
        """It has asked in that life, or in a later one before: words overtake each other."""
        self.promised[peer] = max(life, self.promised.get(peer, 0))

    def promise_final(self, ending: Ending) -> list[PeerId]:
        """After the last round: who is to have the final model, unless it has come to it itself."""
        lives = self.promised | dict.fromkeys(ending.is_to_give(), 0)
        self.promised = {peer: life for peer, life in lives.items() if not ending.is_in_last(peer)}
        return sorted(self.promised)

    def train(self, lives: Mapping[PeerId, int]) -> None:
        """These do: in the life it has asked in a newcomer needs one model."""
        served = [peer for peer, life in self.promised.items() if 0 < life <= lives.get(peer, 0)]
        for peer in served:
            del self.promised[peer]

    def forget(self) -> None:
        """The model that was promised is gone."""
        self.promised.clear()

    def is_due(self, peer: PeerId) -> bool:
        """Is a model promised to it, and the link to it clear for that?"""
        return peer in self.promised and self._links.clear(peer, self.promised[peer])

    def grant(self, peer: PeerId, now: float) -> list[Effect]:
        """It is due: the model goes, if there is room for it."""
        self._short.setdefault(peer, now)
        if not self._has_room():
            return []
        del self.promised[peer]
        self._short.pop(peer, None)
        return [ForLearner(Sponsor(peer)), Note("sponsors a newcomer", {"peer": peer})]

    def due(self, without: Collection[PeerId]) -> PeerId | None:
        """To whom a model may be granted now that the budget had no room for: to one at a time, for what is
        granted takes room when it begins. without: the living that do not train. Who is not of them any more
        has got a model from another, or is gone."""
        for peer in self._short.keys() - set(without):
            self.promised.pop(peer, None)
        self._short = {peer: at for peer, at in self._short.items() if peer in self.promised}
        if self._links.waiting():
            return None
        return min(filter(self.is_due, self._short), default=None)

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
