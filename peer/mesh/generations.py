"""One graph that all its members agree on, without a quorum: what undirected algorithms exchange on.

A generation is an ordered view, and with it a graph (graphs.py). Every node takes over the one with the
highest number it hears of: the epoch, then a hash of the content. Whoever sees that the generation it knows
is not of the present view, and that the view stands still, proposes the next epoch; who sees the same
proposes the same, so that most proposals coincide. Two halves of a partition run two generations, and that is
wanted: a message counts only where both ends are on the same one, so that within a generation all counts are
over one tree.

A generation is taken up at a round boundary. Devices that come back are known and need no second look; those
that come and go are put where the graph has its leaves. One that restarts has no part in the present one, and
proposes the next at once. How often it has done so the others know, and it does not: if it comes and goes
they do not take that one over, and propose one themselves when it is time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from peer.errors import RemoteError
from peer.events import Generation, PeerId
from peer.graphs import Parents
from peer.mesh import graphs

Kind = Literal["undirected", "tree"]
STABLE_S, STABLE_MOST_S = (
    3.0,
    10.0,
)  # reliability note, section e: no change for so long, or differing for so long
AGAIN_S = 15.0  # at most one new generation in this time: reliability note, section e
RETURN_S = 1.0  # known devices that return are waited for this long, others may be on their way back; guess
TURN_S, TURNS = 0.25, 8  # who is further down the view leaves the others this much time to propose; guess
FLAPS, FLAPPING_S = (
    3,
    300.0,
)  # so many changes in this time put a device at the leaves: reliability note, section e
BETTER_S, BETTER_PART = (
    30.0,
    0.2,
)  # so often a tree of costs is weighed against a new one; worth a change; guess
KEPT_TREES = 8  # so many views' trees of costs are remembered, for devices that return; guess
MAX_AHEAD = 1 << 20  # epochs; a generation each 15 s for half a year (guess)


@lru_cache(maxsize=1024)  # asked for with every event
def number(generation: Generation | None) -> int:
    """What orders generations and stamps messages: 31 bits of epoch, 32 of a hash of view and parents."""
    if generation is None:
        return 0
    content = "\n".join((*generation.view, *map(str, generation.parents)))
    return (generation.epoch << 32) | int.from_bytes(
        hashlib.blake2b(content.encode(), digest_size=4).digest()
    )


class Generations:
    """What one node knows of them. `current` is the one its rounds are on, `latest` the newest known."""

    def __init__(self, me: PeerId, spec: str, kind: Kind) -> None:
        """spec: the topology. kind: whether the algorithm needs trees, or takes any graph."""
        self.me, self.spec, self.kind = me, spec, kind
        self.current: Generation | None = None
        self.latest: Generation | None = None
        self._trains_since = float("inf")  # this life of the learner; s
        self._view: tuple[PeerId, ...] = ()
        self._changed_at = 0.0  # of the view
        self._differs_at: float | None = None  # since when the view is not the latest generation's
        self._adopted_at = self._measured_at = float("-inf")
        self._refused = 0  # the highest number of one that a device proposed that comes and goes
        self._trees: dict[tuple[PeerId, ...], Parents] = {}  # the last ones of costs, by view
        self._known: set[PeerId] = set()
        self._changes: dict[PeerId, list[float]] = {}
        self._entered: dict[PeerId, float] = {}  # when each was last seen to come into the view

    @property
    def number(self) -> int:
        return number(self.current)

    @property
    def is_first(self) -> bool:
        """Does the session begin with the current one, every member with the model of one sponsor?"""
        return self.current is not None and self.current.epoch == 1

    @property
    def pending(self) -> bool:
        """Is there a newer generation than the current one, with a place for this node?"""
        return number(self.latest) > self.number and self._has_place(self.latest)

    def place(self, *, final: bool = False) -> graphs.Place | None:
        """This node's place in the current generation's graph, or in that of the final rounds."""
        if self.current is None:
            return None
        if final and self.kind != "tree":
            # gossip would take long to agree; everybody with everybody is exact
            return graphs.graph_of("complete", self.current.view, self.me)
        return graphs.graph_of(self.spec, self.current.view, self.me, self.current.parents)

    def beside(self, generation: Generation) -> tuple[PeerId, ...]:
        """This node's neighbors on its graph; none without a place on it."""
        if not self._has_place(generation):
            return ()
        return tuple(graphs.graph_of(self.spec, generation.view, self.me, generation.parents).out)

    def trains(self, since: float | None) -> None:
        """This life of the learner has a model since then; None: it has none, and knows of no generation."""
        self._trains_since = float("inf") if since is None else since
        if since is None:
            self.current = None

    @property
    def is_refused(self) -> bool:
        """Is a device that comes and goes on a later generation, which it was too soon to take up here?"""
        return self._refused > number(self.latest)

    def take(self, generation: Generation, by: PeerId, now: float) -> bool:
        """`by` tells of a generation. True if it is the newest so far, and not too soon. Raises RemoteError
        if it is no graph."""
        known = number(self.latest)
        if number(generation) <= known:
            return False
        if generation.epoch > (known >> 32) + MAX_AHEAD:
            raise RemoteError(f"a generation of epoch {generation.epoch}, after {known >> 32}")
        graphs.check_graph(self.spec, generation.view, generation.parents)
        if by == generation.proposer and self._is_too_soon(generation, now):
            self._refused = max(self._refused, number(generation))
            return False
        self._adopt(generation, now)
        return True

    def install(self) -> bool:
        """Take the latest generation up, at a round boundary. True if the current one has changed."""
        if not self.pending:
            return False
        self.current = self.latest
        return True

    def watch(self, view: Sequence[PeerId], now: float) -> None:
        """The sorted ids of the living that train have changed."""
        view = tuple(view)
        for peer in set(view) ^ set(self._view):
            recent = [at for at in self._changes.get(peer, []) if now - at < FLAPPING_S]
            if recent or peer in self._known:  # the first time it comes is no change
                self._changes[peer] = [*recent, now]
        self._entered |= dict.fromkeys(set(view) - set(self._view), now)
        self._view, self._changed_at = view, now

    def flapping(self, now: float) -> set[PeerId]:
        """Those that came and went too often of late."""
        return {
            peer
            for peer, changes in self._changes.items()
            if sum(now - at < FLAPPING_S for at in changes) >= FLAPS
        }

    def propose(self, costs: graphs.Costs, now: float, *, doubt: bool = False) -> Generation | None:
        """The next generation, if one is due; it is taken over here, and to be told to its members.

        costs: classes of the links that each member has measured, for a spanning tree. doubt: is one of the
        view suspected? Then it may change again in a moment.
        """
        if (
            self._trains_since > now
            or self.me not in self._view
            or (len(self._view) < 2 and self.latest is None)
        ):
            self._differs_at = None
            return None
        if self.latest is not None and set(self.latest.view) == set(self._view):
            self._differs_at = None
            return self._within(self.latest, costs, now)
        self._differs_at = now if self._differs_at is None else self._differs_at
        if not self._due(now) or (doubt and now - self._differs_at < STABLE_MOST_S):
            return None
        return self._next(*self._graph(costs, now), now)

    # --- inside --------------------------------------------------------------------------------------

    @property
    def _turn(self) -> float:
        return TURN_S * min(TURNS, self._view.index(self.me))

    def _within(self, latest: Generation, costs: graphs.Costs, now: float) -> Generation | None:
        """The next one of the same view: for a new life, which has no part in the latest, or for a better
        tree."""
        anew, flapping = self._adopted_at < self._trains_since, self.flapping(now)
        if anew and self.me not in flapping:
            return self._next(latest.view, latest.parents, now)  # back in the old seat, at once
        if not anew and not self.is_refused:
            return self._better(costs, now)
        return self._next(*self._graph(costs, now), now) if self._may_again(now) else None

    def _may_again(self, now: float) -> bool:
        return now - self._adopted_at >= AGAIN_S + self._turn

    def _is_too_soon(self, generation: Generation, now: float) -> bool:
        """Does it only give a place to a new life of a device that comes and goes, sooner after the latest
        or further from the leaves than such a one is to have it? What its proposer alone tells of nobody else
        has taken over. A node that sees half of all come and go may be the one that does."""
        flapping = self.flapping(now).intersection(self._view)
        same = self.latest is not None and set(generation.view) == set(self.latest.view)
        if not same or generation.proposer not in flapping or 2 * len(flapping) >= len(self._view):
            return False
        return now - self._adopted_at < AGAIN_S or generation.view != self._order(generation.view, now)

    def _due(self, now: float) -> bool:
        assert self._differs_at is not None
        stood, turn = now - self._changed_at, self._turn
        if self._returning(now):
            return stood >= RETURN_S + turn
        stable = stood >= STABLE_S + turn or now - self._differs_at >= STABLE_MOST_S + turn
        return stable and self._may_again(now)

    def _better(self, costs: graphs.Costs, now: float) -> Generation | None:
        """The same view on a tree that costs less, or of fewer links that nobody has measured: those may be
        broken. Now and then."""
        assert self.latest is not None
        turn = self._turn
        if self.spec != "spanning-tree" or now - self._measured_at < BETTER_S + turn:
            return None
        if self._is_put_last(self.latest.view):
            return None
        self._measured_at = now - turn
        view = self._order(self._view, now)
        parents = self._cheapest(view, costs, now)
        old = graphs.tree_cost(self.latest.view, self.latest.parents, costs)
        new = graphs.tree_cost(view, parents, costs)
        better = new.classes < (1 - BETTER_PART) * old.classes or new.unmeasured < old.unmeasured
        return self._next(view, parents, now) if better else None

    def _is_put_last(self, view: tuple[PeerId, ...]) -> bool:
        """Do the others hold this node for one that comes and goes? It does not know, and would put itself
        into the middle; they refuse that, and put it back when they have forgotten."""
        return any(peer > self.me for peer in view[: view.index(self.me)])

    def _returning(self, now: float) -> bool:
        """Is the only difference that known devices are back, and none of them one that comes and goes?

        Back is who came since the latest generation. One that this node never missed, and the others did, is
        more likely one that it has yet to miss."""
        was, is_ = set(self.latest.view if self.latest else ()), set(self._view)
        back = is_ - was
        came = all(self._entered[peer] >= self._adopted_at for peer in back)
        return was < is_ and came and back <= self._known and not back & self.flapping(now)

    def _order(self, view: Sequence[PeerId], now: float) -> tuple[PeerId, ...]:
        """The places of these. Who comes and goes stands where the graph has its leaves: last, and on two
        trees one first, for that place alone is a leaf of both."""
        flapping = [peer for peer in sorted(view) if peer in self.flapping(now)]
        stable = [peer for peer in sorted(view) if peer not in flapping]
        first = flapping[:1] if self.spec == "double-tree" else []
        return (*first, *stable, *flapping[len(first) :])

    def _graph(self, costs: graphs.Costs, now: float) -> tuple[tuple[PeerId, ...], Parents]:
        """The view in order, and parents where the tree is made of costs."""
        view = self._order(self._view, now)
        if self.spec != "spanning-tree":
            return view, ()
        before = self._trees.get(view)
        holds = before is not None and self._holds(view, before, costs, now)
        return view, before if before is not None and holds else self._cheapest(view, costs, now)

    def _holds(self, view: tuple[PeerId, ...], parents: Parents, costs: graphs.Costs, now: float) -> bool:
        """May this view have its last tree again? Of the links of one that is back nobody knows anything yet;
        others that nobody measures may be broken. Who comes and goes may not have been a leaf."""
        back = set(view).difference(self.latest.view if self.latest else ())
        known = all(ends & back for ends in graphs.unmeasured(view, parents, costs))
        return known and not self.flapping(now).intersection(view)

    def _cheapest(self, view: tuple[PeerId, ...], costs: graphs.Costs, now: float) -> Parents:
        stable = set(view) - self.flapping(now)
        known = {
            peer: {other: cost for other, cost in classes.items() if other in stable}
            for peer, classes in costs.items()
            if peer in stable
        }
        return graphs.spanning_tree(view, known)

    def _next(self, view: tuple[PeerId, ...], parents: tuple[int, ...], now: float) -> Generation:
        newest = max(number(self.latest), self._refused)
        generation = Generation((newest >> 32) + 1, self.me, view, parents)
        self._adopt(generation, now)
        return generation

    def _adopt(self, generation: Generation, now: float) -> None:
        self.latest, self._adopted_at, self._measured_at = generation, now, now
        self._known |= set(generation.view)
        if generation.parents:
            self._trees.pop(generation.view, None)
            self._trees = dict([*self._trees.items(), (generation.view, generation.parents)][-KEPT_TREES:])

    def _has_place(self, generation: Generation | None) -> bool:
        return generation is not None and self.me in generation.view
