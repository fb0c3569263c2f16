"""With whom a node exchanges in a round: on a graph that every node works out by itself from whom it sees, or
on one that all have agreed on."""

from __future__ import annotations

from dataclasses import dataclass

from peer.events import FINAL, Key, PeerId
from peer.graphs import Graph
from peer.mesh import topology
from peer.mesh.agreement import Agreement
from peer.mesh.generations import Generations
from peer.mesh.membership import Membership
from peer.mesh.terms import Terms

SPARE_ROUNDS = 2  # for messages of models that are lost, where a new tree begins; guess


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Of one round. out: mixing weights. n: members of the graph. dsts, srcs: far ends of the links that it
    and the rounds soon after it use, in that order. graph: the agreed one. Else as in OpenRound.
    """

    out: dict[PeerId, float]
    n: int
    mean_weight: float
    dsts: tuple[PeerId, ...]
    srcs: tuple[PeerId, ...]
    trees: tuple[tuple[PeerId, ...], ...] = ()
    mean_delay: float = 0.0
    aligning: int = 0
    graph: Graph | None = None


class Neighborhood:
    """Of one node. Read-only from outside: `view`; of the round drawn last `expected` and `has_senders`."""

    def __init__(self, terms: Terms, members: Membership, agreement: Agreement | None) -> None:
        self.terms, self.me = terms, members.me.peer
        self._members, self._agreement = members, agreement
        self.view: tuple[PeerId, ...] = ()  # whom this node trains with, itself too
        self._apart: frozenset[PeerId] = frozenset()  # who trains, and is not in view yet
        self._final_view: tuple[PeerId, ...] = ()  # the view when the first final round opened
        self.expected: frozenset[PeerId] = frozenset()  # whose message may still come
        self.has_senders = False  # where the graph is drawn at random there may be none

    @property
    def generations(self) -> Generations | None:
        """What is known of the graph that all agree on; None where the algorithm needs none."""
        return self._agreement.generations if self._agreement is not None else None

    @property
    def is_by_itself(self) -> bool:
        """Is there nobody whom this node trains with, but those that it blocks?"""
        return not set(self.view) - {self.me} - self._members.blocked

    def watch(self, view: tuple[PeerId, ...], apart: frozenset[PeerId]) -> None:
        self.view, self._apart = view, apart

    def cycle(self) -> int:
        """Rounds whose links lead to everybody."""
        return 1 if self.generations is not None else topology.cycle(self.terms.topology, len(self.view))

    def final_rounds(self) -> int:
        """How many there are. The first to ask begins them: who finishes first must not change the graph."""
        self._final_view = self._final_view or self.view
        if self.generations is None:
            return topology.final_rounds(self.terms.topology, len(self._final_view))
        place = self.generations.place(final=True)
        return place.diameter if place is not None else 0

    def draw(self, key: Key) -> Neighbors:
        """Those of this round, who are expected from now on."""
        if self.generations is None:
            return self._own_drawing(key)
        place = self.generations.place(final=key.phase == FINAL)
        assert place is not None, "a round is opened in a generation with a place for this node"
        self.expected, self.has_senders = frozenset(place.out) & self._senders(key), True
        peers, trees = tuple(place.out), place.trees
        aligning = 0 if self.generations.is_first or not trees else place.diameter + SPARE_ROUNDS
        return Neighbors(
            dict(place.out), place.n, 1.0, peers, peers, trees, place.mean_delay, aligning, place.graph
        )

    def are_fewer(self, key: Key) -> bool:
        """Can some of this round not be expected any more?"""
        before, self.expected = self.expected, self.expected & self._senders(key)
        return self.expected != before

    def _own_drawing(self, key: Key) -> Neighbors:
        spec, view, seed = self.terms.topology, self.view, self.terms.seed
        if key.phase == FINAL:
            spec, view = topology.final_spec(spec), self._final_view
        blocked = self._members.blocked
        self.expected = frozenset(topology.in_neighbors(spec, view, self.me, key.round, seed)) - blocked
        self.has_senders = bool(self.expected)
        soon = range(key.round, key.round + topology.cycle(spec, len(view)))
        dsts = (dst for at in soon for dst in topology.out_neighbors(spec, view, self.me, at, seed))
        srcs = (src for at in soon for src in topology.in_neighbors(spec, view, self.me, at, seed))
        return Neighbors(
            self._around(topology.out_neighbors(spec, view, self.me, key.round, seed), view),
            len(view),
            self._members.mean_weight(self._apart),
            tuple(around for dst in dsts for around in self._around({dst: 1.0}, view)),
            tuple(src for src in srcs if src not in blocked),
        )

    def _around(self, out: dict[PeerId, float], view: tuple[PeerId, ...]) -> dict[PeerId, float]:
        """In place of one that is blocked whoever comes next in the view, as if it were passed on: to leave
        it out of the view would give this node another graph than the others have."""
        blocked, found = self._members.blocked, {}
        for dst, weight in out.items():
            at = view.index(dst)
            after = (*view[at:], *view[:at])
            free = (peer for peer in after if peer not in blocked and peer != self.me and peer not in found)
            instead = dst if dst not in blocked else next((p for p in free if p not in out), None)
            if instead is not None:
                found[instead] = weight
        return found

    def _senders(self, key: Key) -> frozenset[PeerId]:
        """Whose message of this round is on its way or will be: who is leaving, or in a later generation,
        sends none any more; who has finished has sent its last. Without all of a generation its final rounds
        average nothing: nobody is left out of them here."""
        final = key.phase == FINAL
        if final and self.generations is not None and self.generations.current is not None:
            return frozenset(self.generations.current.view)
        senders = frozenset(r.peer for r in self._members.alive()) if final else frozenset(self.view)
        return senders - self._agreement.gone_on(key) if self._agreement is not None else senders
