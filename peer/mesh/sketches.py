"""Sketches of the members' models: which are known here, who is told this device's, how far apart they are.

A sketch is its owner's word about itself, said on its own channel in a Probe, and never passed on: nothing
has to be signed, no record changes, and no view differs by it. It is soft: of each member the newest few are
kept, a lost one is not sent again, and one of another life or layout counts for nothing. One is told each
PACE_S, whatever else is said, so that 256 members take two minutes to hear of each other's.

Models move as they train: only those of the same round say how far apart they are. So the newest round that
both have is compared, and learners take sketches at rounds that they have in common (learner/sketching.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from peer.events import PeerId, Sketch
from peer.mesh.frame_bytes import SKETCH_BYTES
from peer.mesh.probing import shuffled
from peer.sketch import Numbers, distance, norm, spread, unpack

PACE_S = 0.5  # between two that are told: 20 kB a minute at the most, a twentieth of what records may take
BUDGET_PART = 0.02  # of a device's budget, if it has one: what a figure is worth; guess
KEPT, KEPT_OWN = 4, 32  # of each member, and of this one: as many rounds as the slowest news is late; guess
STALE_S = 900.0  # older ones are not shown: 256 members each hear of a new one in two minutes; guess


@dataclass(frozen=True, slots=True)
class Apart:
    """How far a member's model is from this one's. relative: to this one's norm. age_s: of its sketch.
    round: of both where they have one in common, else of its."""

    distance: float
    relative: float | None
    age_s: float
    round: int


@dataclass(frozen=True, slots=True)
class _Known:
    sketch: Sketch
    numbers: Numbers
    at: float


class Sketches:
    """Of one node. Who is told is for gossip.py to send."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.pace_s = PACE_S
        self._own: deque[_Known] = deque(maxlen=KEPT_OWN)
        self._theirs: dict[PeerId, deque[_Known]] = {}
        self._told: set[PeerId] = set()  # members that know the newest of this device's
        self._may_tell, self._told_at = False, 0.0

    # --- this device's -------------------------------------------------------------------------------

    def took(self, sketch: Sketch, now: float) -> None:
        """Its learner has made one."""
        made = _Known(sketch, unpack(sketch.body), now)
        before = self._own[-1].sketch if self._own else sketch
        if (before.life, before.layout) != (sketch.life, sketch.layout):
            self._own.clear()
        self._own.append(made)
        self._told.clear()

    def forget_own(self) -> None:
        """The learner, and its model, are gone."""
        self._own.clear()

    def limit(self, bytes_per_min: int | None) -> None:
        """Keep to a part of this budget, if there is one."""
        share = BUDGET_PART * bytes_per_min if bytes_per_min else 0.0
        self.pace_s = max(PACE_S, 60 * SKETCH_BYTES / share) if share else PACE_S

    def due(self, others: Collection[PeerId], now: float) -> PeerId | None:
        """Time has passed: who of the living is to be told now, in an order of this node's own?"""
        if now - self._told_at >= self.pace_s:
            self._may_tell = True
        if not self._may_tell or not self._own:
            return None
        waiting = [peer for peer in others if peer not in self._told]
        return shuffled(waiting, self.me, self._own[-1].sketch.round)[0] if waiting else None

    def news_for(self, peer: PeerId, now: float) -> Sketch | None:
        """The newest of this device's, if this member has not been told it and one may be told; it is now."""
        if not self._may_tell or not self._own or peer in self._told:
            return None
        self._told.add(peer)
        self._may_tell, self._told_at = False, now
        return self._own[-1].sketch

    # --- the others' ---------------------------------------------------------------------------------

    def hear(self, peer: PeerId, life: int, sketch: Sketch, now: float) -> bool:
        """A member tells its own; life: of its learner, as its record has it. Is it worth keeping? One that
        is not newer than those known, of another life, or of another layout than this device's is not."""
        foreign = bool(self._own) and self._own[-1].sketch.layout != sketch.layout
        if sketch.life != life or foreign:
            return False
        known = self._theirs.setdefault(peer, deque(maxlen=KEPT))
        if known and known[-1].sketch.life != life:
            known.clear()
        if known and known[-1].sketch.round >= sketch.round:
            return False
        known.append(_Known(sketch, unpack(sketch.body), now))
        return True

    def watch(self, lives: Mapping[PeerId, int]) -> None:
        """Who trains, in which life: nothing of anybody else is kept."""
        for peer in self._theirs.keys() - lives.keys():
            del self._theirs[peer]
        self._told &= lives.keys()

    # --- figures -------------------------------------------------------------------------------------

    def apart(self, lives: Mapping[PeerId, int], now: float) -> dict[PeerId, Apart]:
        """How far the models of these members are from this device's, as far as is known."""
        found = {}
        for peer, known in self._fresh(lives, now).items():
            mine = {one.sketch.round: one for one in self._own}
            theirs = next((one for one in reversed(known) if one.sketch.round in mine), known[-1])
            here = mine.get(theirs.sketch.round) or _nearest(self._own, theirs.sketch.round)
            long = norm(here.numbers)
            far = distance(here.numbers, theirs.numbers)
            found[peer] = Apart(far, far / long if long else None, now - theirs.at, theirs.sketch.round)
        return found

    def consensus(self, lives: Mapping[PeerId, int], now: float) -> tuple[float, float | None] | None:
        """The consensus distance of these members and this one, and the same relative to this one's norm;
        None while no other's sketch is known. In the round that most of them have, the newest of such."""
        groups = list(self._fresh(lives, now).values())
        if not groups:
            return None
        groups.append(list(self._own))
        rounds = Counter(round_ for group in groups for round_ in {one.sketch.round for one in group})
        at = max(rounds, key=lambda round_: (rounds[round_], round_))
        chosen = [_nearest(group, at).numbers for group in groups]
        far, long = spread(chosen), norm(chosen[-1])
        return far, far / long if long else None

    def _fresh(self, lives: Mapping[PeerId, int], now: float) -> dict[PeerId, list[_Known]]:
        """Of each of these members what can be compared with this device's."""
        if not self._own:
            return {}
        layout = self._own[-1].sketch.layout
        fresh = {}
        for peer, life in lives.items():
            known = [
                one
                for one in self._theirs.get(peer, ())
                if one.sketch.life == life and one.sketch.layout == layout and now - one.at < STALE_S
            ]
            if known:
                fresh[peer] = known
        return fresh


def _nearest(known: Iterable[_Known], round_: int) -> _Known:
    return min(known, key=lambda one: (abs(one.sketch.round - round_), -one.sketch.round))
