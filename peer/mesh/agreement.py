"""What a node does to be on the same generation as the others: tells of it, corrects who is behind, proposes.

    Generation heard      newer: taken over and passed on to its neighbors on the graph, unless it comes too
                          soon from one that comes and goes; older: corrected
    a message             of the open round's generation: to the learner. Of a newer one: kept until that is
                          taken up, or answered soon. Of any other: refused, which for a whole model means
                          acknowledged and dropped, and its sender is told of the newest
    members changed       a proposal, when generations.py finds one due

So an edge is live only while both its ends are on one generation. Link costs are measured here, told in
records, and read from the others'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from peer.errors import RemoteError
from peer.events import Deliver, Effect, Generation, Key, Note, PeerId, Record, Tell
from peer.mesh import graphs
from peer.mesh.generations import Generations, Kind, number

CORRECT_S = 1.0  # a peer in another generation is told of the newest at most this often; guess
RTT_GAIN = 0.125  # RFC 6298, section 2
READ_S = 1.0  # so often at most all records are looked through for costs: 5 ms for 256 of them
WEIGHED_S = 10.0  # so often at most a record says something new of its links; guess

Verdict = Literal["deliver", "keep", "refuse"]


class Agreement:
    """One node's part. `generations` holds what it knows; messages that came early are held here."""

    def __init__(self, me: PeerId, topology: str, kind: Kind) -> None:
        self.me, self.topology = me, topology
        self.generations = Generations(me, topology, kind)
        self._early: list[Deliver] = []
        self._ahead: dict[PeerId, int] = {}  # whose last message was of a later generation, and of which
        self._told: dict[PeerId, float] = {}  # when a peer was last told of the latest generation
        self._rtts: dict[PeerId, float] = {}  # measured from here, smoothed, s
        self._classes: dict[PeerId, int] = {}  # what this node's record says of them
        self._weighed_at = -math.inf
        self._costs: dict[PeerId, dict[PeerId, int]] = {}  # what the members' records say
        self._read_at = -math.inf

    # --- generations ---------------------------------------------------------------------------------

    def take_up(self) -> list[Effect]:
        """At a round boundary: the newest generation, if there is a newer one with a place for this node."""
        if not self.generations.install():
            return []
        current = self.generations.current
        assert current is not None
        return [Note("takes up a generation", {"epoch": current.epoch, "members": len(current.view)})]

    def propose(
        self, records: Iterable[Record], view: tuple[PeerId, ...], now: float, *, doubt: bool = False
    ) -> list[Effect]:
        """The next generation, told to all its members, if one is due. records: of the living. doubt: is one
        of the view suspected?"""
        costs, effects = self._read_costs(records, view, now)
        proposed = self.generations.propose(costs, now, doubt=doubt)
        if proposed is not None:
            fields: dict[str, object] = {"epoch": proposed.epoch, "members": len(proposed.view)}
            effects += [Note("proposes a generation", fields), *self._tell(proposed, proposed.view, now)]
        return effects

    def hear(self, peer: PeerId, generation: Generation, now: float) -> list[Effect]:
        """A peer tells of a generation. Raises RemoteError if it makes no graph."""
        known = self.generations
        if known.take(generation, peer, now):
            return self._tell(generation, known.beside(generation), now)
        return self.correct(peer, now) if number(generation) < number(known.latest) else []

    def correct(self, peer: PeerId, now: float) -> list[Effect]:
        """Tell a peer that is, or may be, in another generation of the newest."""
        latest = self.generations.latest
        if latest is None or now - self._told.get(peer, -math.inf) < CORRECT_S:
            return []
        return self._tell(latest, (peer,), now)

    def _tell(self, generation: Generation, peers: Iterable[PeerId], now: float) -> list[Effect]:
        peers = [peer for peer in peers if peer != self.me]
        self._told.update(dict.fromkeys(peers, now))
        return [Tell(peer, generation) for peer in peers]

    # --- messages ------------------------------------------------------------------------------------

    def judge(self, parcel: Deliver, key: Key, trains: bool) -> Verdict:
        """What becomes of a whole model. key: of the open round. What is to be kept is kept."""
        generation = parcel.key.generation
        self._ahead.pop(parcel.src, None)
        if generation == key.generation:
            return "deliver"
        if generation <= self.generations.number or not trains:
            return "refuse"
        self._early = [early for early in self._early if early.src != parcel.src]
        self._early.append(parcel)
        self._ahead[parcel.src] = generation
        return "keep"

    def is_news(self, parcel: Deliver) -> bool:
        """Is it of another generation than the newest known here?"""
        return parcel.key.generation != number(self.generations.latest)

    def gone_on(self, key: Key) -> frozenset[PeerId]:
        """Those who have sent something of a later generation than this round's, and nothing of it since: a
        link keeps order. This node may not take that generation over."""
        return frozenset(src for src, generation in self._ahead.items() if generation > key.generation)

    def early(self) -> list[Deliver]:
        """What was kept, to be judged again: the open round's generation is a new one."""
        early, self._early = self._early, []
        return early

    def overdue(self, trains: bool) -> list[Deliver]:
        """What is kept for a generation that is not about to be taken up: nothing else gets past it on its
        link, so it is to be refused."""
        coming = number(self.generations.latest) if self.generations.pending and trains else 0
        overdue = [parcel for parcel in self._early if parcel.key.generation != coming]
        self._early = [parcel for parcel in self._early if parcel.key.generation == coming]
        return overdue

    # --- costs of links ------------------------------------------------------------------------------

    def measured(self, peer: PeerId, rtt_s: float, reached: Iterable[PeerId], now: float) -> bytes | None:
        """What this node's record is to say of its links, if that has changed. reached: the members that it
        can speak with; of a link to another one nothing is said, and no tree is made of it if there is a
        better."""
        if self.topology != "spanning-tree":
            return None
        before = self._rtts.get(peer, rtt_s)
        self._rtts[peer] = before + RTT_GAIN * (rtt_s - before)
        if now - self._weighed_at < WEIGHED_S:
            return None
        self._weighed_at = now
        within_reach = set(reached)
        self._rtts = {other: rtt for other, rtt in self._rtts.items() if other in within_reach}
        classes = {other: graphs.cost_class(rtt) for other, rtt in self._rtts.items()}
        if classes == self._classes:
            return None
        self._classes = classes
        return graphs.pack_costs(classes)

    def _read_costs(
        self, records: Iterable[Record], view: tuple[PeerId, ...], now: float
    ) -> tuple[dict[PeerId, dict[PeerId, int]], list[Effect]]:
        """What the members say of their links; whoever says nonsense is taken to have said nothing."""
        effects: list[Effect] = []
        if self.topology != "spanning-tree" or now - self._read_at < READ_S:
            return self._costs, effects
        self._costs, self._read_at = {}, now
        for record in records:
            try:
                self._costs[record.peer] = graphs.unpack_costs(record.costs, view)
            except RemoteError as error:
                fields: dict[str, object] = {"peer": record.peer, "reason": str(error)}
                effects.append(Note("link costs refused", fields, "debug"))
        return self._costs, effects
