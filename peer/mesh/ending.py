"""The last rounds of a bounded session on an agreed graph: who comes to their end, and with which model.

Final rounds average exactly or not at all: without all of a generation they come to no end. So one that has
lost a member is *broken*: the others hold its rounds and begin them again on the next generation, or, where
somebody has finished, are given that model. Who joins too late to train is given it as well. Nobody computes
another mean than the one that somebody has ended with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from peer.events import Generation, PeerId
from peer.mesh.generations import Generations, number
from peer.mesh.membership import Membership

GIVERS = 2  # members that give the final model to one that came too late: one may be dead (guess)
HELD_S = 3.0  # final rounds of a broken generation are held so long where others have finished; guess


class Ending:
    """What one node knows of the end: reads `members` and `generations`, which others keep."""

    def __init__(self, me: PeerId, members: Membership, generations: Generations) -> None:
        self.me = me
        self._members, self._generations = members, generations
        self._done: set[PeerId] = set()  # members that have been seen to be finished
        self._past: set[PeerId] = set()  # members of generations that final rounds were broken off on

    @property
    def _view(self) -> tuple[PeerId, ...]:
        current = self._generations.current
        return current.view if current is not None else ()

    def _in_phase(self, *phases: str) -> set[PeerId]:
        return {record.peer for record in self._members.alive() if record.phase in phases}

    # --- what happens ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """Records have changed."""
        self._done |= {record.peer for record in self._members.records() if record.phase == "finished"}

    def broke_off(self, generation: Generation | None) -> None:
        """Final rounds on this one are given up for those on the next."""
        self._past |= set(generation.view) if generation is not None else set()

    # --- in final rounds -------------------------------------------------------------------------------

    def finished(self) -> set[PeerId]:
        """The living who have the final model."""
        return self._in_phase("finished")

    def is_broken(self, lacking: Collection[PeerId]) -> bool:
        """Do this generation's final rounds come to no end any more? One has gone before it sent its last
        message, or is on a generation of its own, or the others are on one without this node. lacking:
        neighbors not heard in the open round."""
        known = self._generations
        if known.current is None:
            return False
        if known.is_refused or (number(known.latest) > known.number and not known.pending):
            return True
        gone = set(self._view) - self._in_phase("training", "finished")
        return bool(gone - self._done or gone & set(lacking))

    def is_in_doubt(self) -> bool:
        """Is a member of the generation suspected? The verdict comes soon."""
        return any(self._members.suspicion(peer) is not None for peer in self._view)

    def is_overtaken(self, lacking: Collection[PeerId], open_s: float) -> bool:
        """Have others finished, in final rounds that this node cannot come to the end of? open_s: for how
        long its final round has been open."""
        finished = self.finished()
        if not finished or not self._view:
            return False
        return bool(finished & (self._past - set(self._view))) or (
            self.is_broken(lacking) and open_s >= HELD_S
        )

    def is_seated_elsewhere(self, view: Collection[PeerId]) -> bool:
        """Of a node without a generation: are there members in view that have one? Then it is theirs to
        propose the next: who has no local steps to do on one would keep its final rounds from their end."""
        latest = self._generations.latest
        return latest is not None and bool((set(latest.view) - {self.me}) & set(view))

    # --- of a finished node ----------------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        return self._view == (self.me,)

    def is_to_give(self) -> set[PeerId]:
        """Whom this node is to give the final model, unasked: those who trained without a generation."""
        alive = {record.peer for record in self._members.alive()}
        first = [peer for peer in self._view if peer in alive][:GIVERS]
        return self._in_phase("training") - set(self._view) if self.me in first else set()

    def is_in_last(self, peer: PeerId) -> bool:
        """Was it in the generation that this node finished on?"""
        return peer in self._view

    def owes(self, promised: Collection[PeerId], clear: Callable[[PeerId], bool]) -> bool:
        """Does this node wait for a link, to give somebody its last message or the final model?"""
        place = self._generations.place(final=True)
        last = {peer for peer in place.out if not clear(peer)} if place is not None else set()
        return bool(self._in_phase("seeking", "training") & (set(promised) | last))

    def is_needed(self) -> bool:
        """Is there one of its generation that may yet have to be given the final model?"""
        return bool(self._in_phase("seeking", "training") & set(self._view))
