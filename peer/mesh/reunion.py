"""Two halves that trained apart and meet again: do their models mix, or does one half take over the other's?

Members that were taken for dead and come back in the same life have trained on meanwhile. After a short
absence their mass just mixes again. After a long one they are estranged: alive, and not yet trained with. The
leader of either half (its lowest id) looks at a model of the other; the half with the lowest id of all looks
first. Are the two near to each other, and is the point between them not much worse, then both halves hear
that they may mix. Else the members of the half that has done less work are told to start over, with the
other's model; what they hold is dropped and not injected again (reliability note, section c). So are they
where their models are near, but fewer members have come rounds ahead of more. One that stood still for long
is such a half, though it has missed nobody. Nobody waits longer than REUNION_S for a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from peer.events import PeerId, Reunion

APART_S = 10.0  # from the verdict "dead" on; shorter absences leave models close to each other (guess)
SETTLE_S = 5.0  # after the first is back: the others of its half are, too (4.6 s at most, measured with 4+4)
ALONE_S = 1.0  # after one is back that was parted alone: it has no half to wait for
# those that were parted together are taken for dead within this time of each other, among 256 and by nodes in
# doubt of themselves (suspicion.py: 19 s for the first, 77 s for the last); guess
TOGETHER_S = 90.0
# a model that has not come by now is asked for again, for its link may have been in use; without a link it is
# another member's; guess
AGAIN_S = 5.0
SECOND_S = 5.0  # so much later the other half looks, if no verdict has come (guess)
REUNION_S = 30.0  # without a verdict by now they just mix (guess)
FAR_ROUNDS = 16  # that a new life takes less time than to wait for (guess)
OBEY_S = 30.0  # this node starts over at most this often (guess)
ABOUT_EQUAL = (
    0.1  # works that differ by less count as equal: the two leaders see them at different times (guess)
)


class Reunions:
    """What one node knows of members it was parted from. `estranged`: alive, not to be trained with yet."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.estranged: frozenset[PeerId] = frozenset()
        self._yielding: frozenset[PeerId] = frozenset()  # of those, who was told to start over
        self._lives: Mapping[PeerId, int] = {}  # of those that train, as this node sees it
        self._lost: dict[PeerId, tuple[int, float]] = {}  # life, and since when it is gone, s
        self._gone_at = 0.0  # when those that are back last were taken for gone, s
        self._since = 0.0
        self._asked: PeerId | None = None
        self._asked_at = 0.0
        self._back_at = -math.inf  # the last one that was gone, for however long
        self._obeyed_at = -math.inf
        self._settled_at = -math.inf  # by a verdict, or as this node had no model

    def watch(self, lives: Mapping[PeerId, int], now: float) -> None:
        """Those that live and train, with their learners' lives, have changed."""
        for peer in self._lives.keys() - lives.keys():
            self._lost[peer] = self._lives[peer], now
        back = set[PeerId]()
        for peer in lives.keys() - self._lives.keys():
            life, at = self._lost.pop(peer, (0, now))
            if life == lives[peer]:
                self._back_at = now
                if now - at >= APART_S and not self._was_settled(at, now):
                    back.add(peer)
                    self._gone_at = at
        if back and not self.estranged:
            self._since, self._asked = now, None
        still = {peer for peer in self.estranged if lives.get(peer) == self._lives.get(peer)}
        self.estranged, self._lives = frozenset(still | back), dict(lives)
        self._yielding &= self.estranged
        if self._asked is not None and self._asked not in self.estranged:
            self._asked, self._since = None, now  # it starts over, or is gone: there may be another half

    def ended(self, told: Mapping[PeerId, int]) -> None:
        """Records tell of these lives: who was lost in another one will not be back in that."""
        self._lost = {
            peer: (life, at) for peer, (life, at) in self._lost.items() if told.get(peer, life) == life
        }

    def stood(self, seconds: float, now: float) -> None:
        """This device did not run for so long. It has missed nobody; the others have missed it."""
        if seconds >= APART_S:
            self._back_at = now

    def due(self, own: Sequence[PeerId], linked: Callable[[PeerId], bool], now: float) -> PeerId | None:
        """Whose model this node is to look at now, if it is its turn. own: the half it is in, itself too.
        linked: is there a stream from this peer? Of two that cannot be dialed neither gets one."""
        if not self.estranged or self.me != min(own, default=None):
            return None
        if self._asked is not None:
            return self._ask_again(self._asked, linked, now) if now - self._asked_at >= AGAIN_S else None
        turn = 0.0 if self.me < min(self.estranged) else SECOND_S
        if now - self._since < (ALONE_S if self._is_back_alone() else SETTLE_S) + turn:
            return None
        return self._ask(min(self.estranged), now)

    def refuses(self, peer: PeerId) -> bool:
        """Is mass of this member not to be taken? Of the one that was asked, its model comes first."""
        return peer in self.estranged and peer != self._asked

    def yields(self, verdict: Reunion) -> None:
        """These start over, each as soon as it hears so."""
        self._yielding = self.estranged & frozenset(verdict.yields)

    @property
    def unsettled(self) -> frozenset[PeerId]:
        """Those of which nobody has said yet whose model it will be."""
        return self.estranged - self._yielding

    def overdue(self, now: float) -> bool:
        return bool(self.estranged) and now - self._since >= REUNION_S

    def judge(
        self, near: bool, own: Sequence[PeerId], round_: int, their_round: int, *, waits: bool = False
    ) -> Reunion:
        """The verdict. Work: members times rounds; of about equal ones the half of the lowest id has more.
        waits: to mix, fewer that are further on would wait until more are there, for as long as they were
        apart, and gather their mass meanwhile; being near they lose little."""
        if near:
            few = own if len(own) < len(self.estranged) else self.estranged
            lead = (round_ - their_round) * (1 if few is own else -1)
            yields = waits and lead > FAR_ROUNDS and len(own) != len(self.estranged)
            return Reunion(tuple(sorted(few)) if yields else ())
        mine, theirs = len(own) * (round_ + 1), len(self.estranged) * (their_round + 1)
        if abs(mine - theirs) <= ABOUT_EQUAL * max(mine, theirs):
            less = min(own) > min(self.estranged)
        else:
            less = mine < theirs
        return Reunion(tuple(sorted(own if less else self.estranged)))

    def settle(self, now: float) -> None:
        """They may be trained with, and so may the others of their half, who come back a little later: should
        those be of yet another one, they keep apart until that is settled too."""
        self.estranged, self._settled_at = frozenset(), now

    def obeys(self, verdict: Reunion, now: float) -> bool:
        """Is this node to start over? Only if it was parted, and not again and again, whoever says so. The
        others may have missed it for longer than it has missed them; or for a shorter time, so that they do
        not name it with its half."""
        parted = bool(self.estranged) or now - self._back_at <= REUNION_S
        named = self.me in verdict.yields or self._is_of_the_half(verdict.yields)
        if not parted or not named or now - self._obeyed_at < OBEY_S:
            return False
        self._obeyed_at = now
        return True

    def _was_settled(self, lost_at: float, now: float) -> bool:
        """Is one that was lost then, and is back, of those that the last verdict was about?"""
        return lost_at <= self._settled_at and now - self._settled_at <= REUNION_S

    def _is_of_the_half(self, peers: tuple[PeerId, ...]) -> bool:
        """Do these train with this node, and is it parted from others?"""
        return bool(self.estranged and peers) and self.estranged.isdisjoint(peers)

    def _is_back_alone(self) -> bool:
        """Has who is back no half, others that were lost when it was?"""
        others = any(abs(at - self._gone_at) <= TOGETHER_S for _, at in self._lost.values())
        return len(self.estranged) == 1 and not others

    def _ask_again(self, peer: PeerId, linked: Callable[[PeerId], bool], now: float) -> PeerId:
        after = sorted(self.estranged, key=lambda other: (other <= peer, other))
        return self._ask(peer if linked(peer) else after[0], now)

    def _ask(self, peer: PeerId, now: float) -> PeerId:
        self._asked, self._asked_at = peer, now
        return peer
