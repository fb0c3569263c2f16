"""How a node comes to say goodbye: it is told to leave, or its session is finished.

    leaving     what it has sent arrives or comes back, for a while; then all its mass goes to one heir.
                Goodbye when that is acknowledged, nobody is there to take it, or HAND_OVER_S have passed
    finished    it stays while it still has something to send, or may have to give the final model

In neither case for ever: a goodbye that is late is better than none.
"""

from __future__ import annotations

from collections.abc import Collection

from peer.events import Effect, ForLearner, HandOver, Note, PeerId
from peer.mesh.ending import Ending
from peer.mesh.links import Links
from peer.mesh.membership import Membership
from peer.mesh.upkeep import Upkeep

HAND_OVER_S = 10.0  # leave without the hand-over being confirmed after this; guess
ANSWER_S = 1.0  # for the learner's answer when a link it has a last message for is up; guess
STAY_S = 60.0  # a finished member stays so long for living ones of its generation that are not; guess
LINGER_S = 10.0  # a finished session waits this long for its last acknowledgements; guess


class Leaving:
    """Of a node that has been told to leave. `heir`: who is being given its mass. `over`: there is nothing
    left to wait for."""

    def __init__(self, members: Membership, links: Links, upkeep: Upkeep, now: float) -> None:
        self._members, self._links, self._upkeep = members, links, upkeep
        self.over = False
        self.heir: PeerId | None = None
        self._since = now
        self._has_mass = members.me.phase == "training"
        self._handed = False  # has the learner given everything to it?

    # --- what happens --------------------------------------------------------------------------------

    def pushed(self, dst: PeerId) -> None:
        self._handed = self._handed or dst == self.heir

    def holds(self, weight: float) -> None:
        """What the learner says of its weight."""
        self._has_mass = self._has_mass or weight > 0

    def learner_gone(self) -> None:
        self._has_mass, self.heir, self._handed = False, None, False

    def came_back(self, dst: PeerId) -> None:
        """What was sent there is returned, or the link is down."""
        if dst == self.heir:
            self.heir, self._handed = None, False

    # --- what to do ----------------------------------------------------------------------------------

    def is_taken_over(self, weight: float) -> bool:
        """The learner holds nothing any more, and the parcel that took it away is acknowledged?"""
        given = self.heir is not None and self._handed and weight == 0
        return given and not self._links.unacked(self.heir or "")

    def go_on(self, now: float) -> list[Effect]:
        """All mass to one neighbor, once nothing more can come in."""
        effects: list[Effect] = []
        if now - self._since > HAND_OVER_S and self._has_mass:
            effects.append(Note("leaves without confirmation that its mass was taken over", {}, "warning"))
            self.over = True
        if self.over or self.heir is not None or self._links.in_hand():
            return effects
        out = [parcel for parcel in self._links.ledger() if parcel.dst not in self._members.blocked]
        if self._has_mass and out and now - self._since < HAND_OVER_S / 2:
            return effects  # what is out to others arrives, or comes back and is handed over too
        heirs = self._heirs()
        clear = [peer for peer in heirs if self._links.clear(peer)]
        if self._has_mass and clear:
            self.heir = max(clear, key=lambda peer: (self._members.heard_at(peer), peer))
            effects.append(ForLearner(HandOver(self.heir)))
        elif not heirs or not self._has_mass:
            if self._has_mass:
                effects.append(Note("leaves with its mass: nobody is there to take it over", {}))
            effects.append(ForLearner(HandOver(None)))
            self.over = True
        elif not any(map(self._upkeep.keeps, heirs)):
            effects += self._upkeep.need(min(heirs), now)
        return effects

    def _heirs(self) -> list[PeerId]:
        none = {self._members.me.peer, *self._members.blocked}
        others = [r for r in self._members.alive() if r.peer not in none]
        heirs = [r.peer for r in others if r.phase == "training"]
        return heirs or [r.peer for r in others if r.phase == "seeking"]  # it begins with what it is given


class Finished:
    """Of a node that has the final model."""

    def __init__(self, links: Links, ending: Ending | None, now: float) -> None:
        """ending: what is known of the others', where they agree on a graph."""
        self._links, self._ending = links, ending
        self._since = self._owed_at = now

    def is_over(self, promised: Collection[PeerId], now: float) -> bool:
        """Does nobody need this node any more, or not for so long? promised: to whom it is to give its
        model."""
        end, spent_s = self._ending, now - self._since
        owes = self._links.pending() or (end is not None and end.owes(promised, self._links.clear))
        self._owed_at = now if owes else self._owed_at
        if end is not None and end.is_needed():
            return spent_s > STAY_S
        answered = end is None or now - self._owed_at >= ANSWER_S
        return (answered and not owes) or spent_s > LINGER_S
