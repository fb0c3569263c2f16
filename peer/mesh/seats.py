"""How a learner without a model gets one.

A member that trains is asked, another one if it does not answer in time. Where nobody trains for ELECTION_S
the device with the best checkpoint begins. What a sponsor sent before a long silence, or began to send on a
stream that has been replaced since, is outdated: by now it has a newer model to give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peer.events import PeerId, Record
from peer.mesh.links import Links
from peer.mesh.membership import Membership

ELECTION_S = 10.0  # architecture, section 5: silence after which nobody is taken to have mass
ASK_AGAIN_S = 5.0  # a sponsor that has not answered by now is passed over; guess
FRESH_S = 2.0  # a model on its way for so long is sent again as it is; guess

Epoch = tuple[int, int]  # life and epoch of a link, which rise


class Seats:
    """Of one node: whom it has asked for a model. Reads `members` and `links`, which others keep."""

    def __init__(self, members: Membership, links: Links, *, finished_give: bool) -> None:
        """finished_give: do members whose session is over sponsor, too?"""
        self.me = members.me.peer
        self._members, self._links = members, links
        self._phases = ("training", "finished") if finished_give else ("training",)  # of sponsors
        self._since = math.inf  # of the search
        self._trainer_at = -math.inf  # somebody was last seen to train
        self._asked: dict[PeerId, float] = {}
        self._awaited: dict[PeerId, float] = {}  # of those asked, when each gave its last sign of life
        self._outdated: dict[PeerId, Epoch] = {}  # links of theirs that were open before a silence
        self._opened: dict[PeerId, tuple[Epoch, float]] = {}  # their links, and since when
        self._given_up: dict[PeerId, int] = {}  # lives that start over, as this one's last did: no sponsors

    def seek(self, now: float) -> None:
        """A life begins without a model."""
        self._since = now
        self._asked, self._awaited, self._outdated, self._opened = {}, {}, {}, {}

    def give_up(self, lives: Mapping[PeerId, int]) -> None:
        self._given_up = dict(lives)

    def ask(self, now: float) -> PeerId | None:
        """Who is to be asked now."""
        others = (r for r in self._members.alive() if r.phase in self._phases and r.peer != self.me)
        given_up, blocked = self._given_up, self._members.blocked
        trainers = [r for r in others if given_up.get(r.peer) != r.life and r.peer not in blocked]
        if trainers:
            self._trainer_at = now
        if not trainers or any(now - at < ASK_AGAIN_S for at in self._asked.values()):
            return None
        finished = [r for r in trainers if r.phase == "finished"]  # theirs is the model that all end with
        able = finished or trainers
        sponsor = min(able, key=lambda r: (self._asked.get(r.peer, -math.inf), -r.weight, r.peer)).peer
        self._asked[sponsor] = self._awaited[sponsor] = now
        return sponsor

    def is_election(self, now: float) -> bool:
        """Has nobody trained for so long that nobody has a model?"""
        return now - max(self._since, self._trainer_at) >= ELECTION_S

    def elected(self, now: float) -> Record | None:
        """Who begins, of those without a model: the one with the best checkpoint, if anybody has one."""
        seekers = (r for r in self._members.alive() if r.phase == "seeking")
        best = max((r for r in seekers if r.round >= 0), key=lambda r: (r.round, r.peer), default=None)
        if best is not None and best.peer == self.me:
            self._trainer_at = now
        return best

    def heard(self, peer: PeerId, now: float) -> None:
        """A sign of life, of one that was asked perhaps."""
        if peer in self._awaited:
            if now - self._awaited[peer] > ASK_AGAIN_S:
                self._outdated[peer] = self._epoch(peer)
            self._awaited[peer] = now

    def opened(self, peer: PeerId, now: float) -> None:
        """The link from this peer has a stream, perhaps another one: then it begins again with what the first
        one was to bring, which is as old as that one."""
        epoch = self._epoch(peer)
        before, since = self._opened.get(peer, ((-1, -1), now))
        if epoch > before:
            self._opened[peer] = epoch, now
        elif peer in self._awaited and now - since > FRESH_S:
            self._outdated[peer] = epoch

    def stood(self) -> None:
        """This device did not run: what it was sent meanwhile is old."""
        self._outdated |= {peer: self._epoch(peer) for peer in self._awaited}

    def is_outdated(self, sponsor: PeerId) -> bool:
        """Is what this member sends a model of long ago? One that leaves has no other."""
        record = self._members.record(sponsor)
        trains = record is not None and record.phase == "training"
        return trains and self._epoch(sponsor) <= self._outdated.get(sponsor, (-1, -1))

    def _epoch(self, src: PeerId) -> Epoch:
        """The newest life and epoch of the link from `src`."""
        return self._links.applied(src)[:2]
