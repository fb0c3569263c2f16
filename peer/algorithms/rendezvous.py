"""How two devices average with each other at a moment of their own, with nobody to bring them together.

    the one who asks              the other
    OFFER(number, alpha~)   -->   takes its slot, and a snapshot; or
                            <--   BUSY(number)
                            <--   ACCEPT(number, alpha~), its snapshot
    COMMIT(number, digest), -->   applies the difference of the two; or, if it has given up since,
    its own snapshot        <--   ABORTED(number)
                            <--   DONE(number, digest)
    applies the difference

Each device has one slot, which it takes or does without, so nobody waits for anybody who waits:

    free --OFFER sent--> offered --ACCEPT: COMMIT sent--> free, in doubt until DONE or ABORTED
    free --OFFER heard: ACCEPT sent--> paired --COMMIT--> free

The other one alone decides: it applies an exchange if it still holds it when COMMIT comes, and who asked does
so on DONE and on nothing else. So each may give up what takes too long, but for a doubt, and tell nobody:
a late ACCEPT is answered with WITHDRAWN, a late COMMIT with ABORTED. They must: what an old snapshot and a
new one differ by sets models apart. Of two offers that cross the one from
the lower place on the graph lives; the other one's maker drops it, and accepts.

The snapshots follow each other, the other one's with ACCEPT and then the asker's with COMMIT, where they
could travel at once: so the one slot is held for twice as long, and who has not seen a snapshot whole has
promised nothing. There is no word that asks after a doubt, for the link tells:

The link delivers a message once and in order, or gives it back, and says so at both ends when it begins anew.
A COMMIT that comes back was never applied: it is dropped. A DONE that comes back has not been seen, and will
not be: its exchange is undone. Whoever hears that the other end's link has begun anew is in no doubt any
more, for DONE has come by then or has gone back. So only a life that ends, or one that the link has given up
for dead, leaves an exchange applied at one end alone.

What either applies is a difference of the same two snapshots, as decoded: local steps and other exchanges
that come between are kept.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from peer.algorithms.pair_words import (
    ABORTED,
    ACCEPT,
    BUSY,
    COMMIT,
    DONE,
    OFFER,
    WITHDRAWN,
    Word,
    digest,
)
from peer.algorithms.tempo import Patience
from peer.compression.bodies import Body
from peer.errors import RemoteError
from peer.events import PeerId

ANSWERED = 2  # an offer from one that has not acknowledged more than that is not heard: it could not be told
MOST_UNSETTLED = 8  # messages to one neighbor: those of two exchanges, and one to spare


class Ends(Protocol):
    """What an exchange needs of the device it is held on."""

    def snapshot(self, dst: PeerId, now: float) -> Body:
        """The model as of now, as it travels to that neighbor."""

    def meet(self, m: Tensor, alpha: float, now: float) -> None:
        """x -= m / 2, x~ -= alpha m, as of now."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a device would exchange on now. willing: may it accept?"""

    alpha: float
    rate: float
    willing: bool = True


@dataclass(frozen=True, slots=True)
class Offered:
    """This device has asked."""

    peer: PeerId
    number: int
    since: float
    alpha: float


@dataclass(frozen=True, slots=True)
class Paired:
    """It has accepted. own: its snapshot."""

    peer: PeerId
    number: int
    since: float
    alpha: float
    own: Body


@dataclass(frozen=True, slots=True)
class Difference:
    """m: of the two snapshots, the own one first."""

    number: int
    m: Tensor
    alpha: float
    digest: bytes


@dataclass(slots=True)
class Tally:
    """Of one life. late: COMMITs for what was given up. unresolved: dropped in doubt, COMMIT acknowledged,
    as the other end's link began anew: applied at neither end, or by a life that is over."""

    offered: int = 0
    accepted: int = 0
    refused: int = 0
    late: int = 0
    met: int = 0
    aborted: int = 0
    undone: int = 0
    unresolved: int = 0


class Rendezvous:
    """One device's. Read-only from outside but for `place` and `due`."""

    def __init__(self) -> None:
        self.place = 0  # on the graph
        self.due = 0  # exchanges that this device is to ask for
        self.slot: Offered | Paired | None = None
        self.doubt: dict[PeerId, Difference] = {}  # COMMIT is sent, and not answered
        self.tally = Tally()
        self.asking, self.holding = Patience(), Patience()
        self._applied: dict[tuple[PeerId, int], Difference] = {}  # until DONE is acknowledged
        self._acknowledged: set[PeerId] = set()  # of those in doubt: whose COMMIT is
        self._unsettled: Counter[PeerId] = Counter()
        self._given_up: tuple[type[Offered | Paired], PeerId, int, float] | None = None
        self._number = 0

    def may_ask(self, peer: PeerId) -> bool:
        """Is there nothing under way with this one?"""
        return self.slot is None and peer not in self.doubt and not self._unsettled[peer]

    def ask(self, peer: PeerId, terms: Terms, now: float) -> Word:
        assert self.may_ask(peer)
        self._number += 1
        self.due, self.tally.offered = self.due - 1, self.tally.offered + 1
        self.slot = Offered(peer, self._number, now, terms.alpha)
        return self._said(peer, Word(OFFER, self._number, terms.alpha, terms.rate, self.place))

    def hear(self, src: PeerId, word: Word, terms: Terms, ends: Ends, now: float) -> Word | None:
        """The answer, if there is one. Raises RemoteError, with nothing changed."""
        if self._unsettled[src] >= MOST_UNSETTLED:
            raise RemoteError(f"message from {src}, which acknowledges nothing")
        answer: Word | None = None
        if word.meaning == OFFER:
            answer = self._on_offer(src, word, terms, ends, now)
        elif word.meaning == ACCEPT:
            answer = self._on_accept(src, word, ends, now)
        elif word.meaning == COMMIT:
            answer = self._on_commit(src, word, ends, now)
        elif self._is_about(src, word):
            self._on_refusal(word, now)
        elif src in self.doubt and self.doubt[src].number == word.number:
            self._on_end(src, word, ends, now)
        return answer if answer is None else self._said(src, answer)

    def _on_offer(self, src: PeerId, word: Word, terms: Terms, ends: Ends, now: float) -> Word | None:
        if self._unsettled[src] > ANSWERED:
            return None
        crossing = isinstance(self.slot, Offered) and self.slot.peer == src and word.place < self.place
        if not terms.willing or src in self.doubt or not (self.slot is None or crossing):
            return Word(BUSY, word.number)
        if crossing:
            self._refused()
        alpha = min(terms.alpha, word.alpha)
        own = ends.snapshot(src, now)
        self.slot = Paired(src, word.number, now, alpha, own)
        return Word(ACCEPT, word.number, alpha, terms.rate, self.place, body=own)

    def _on_accept(self, src: PeerId, word: Word, ends: Ends, now: float) -> Word:
        slot = self.slot
        if not isinstance(slot, Offered) or self._is_late(slot, src, word, now):
            self._learn_from(Offered, src, word, now)
            return Word(WITHDRAWN, word.number)
        if word.alpha > slot.alpha:
            raise RemoteError(
                f"message from {src}: alpha~ of {word.alpha:g}, where {slot.alpha:g} is offered"
            )
        assert word.body is not None
        self.asking.came(now - slot.since)
        self.tally.accepted += 1
        own = ends.snapshot(src, now)
        ours, theirs = own.dense(), word.body.dense()
        check = digest(theirs, ours)
        self.slot, self.doubt[src] = None, Difference(word.number, ours - theirs, word.alpha, check)
        return Word(COMMIT, word.number, digest=check, body=own)

    def _on_commit(self, src: PeerId, word: Word, ends: Ends, now: float) -> Word:
        slot = self.slot
        if not isinstance(slot, Paired) or self._is_late(slot, src, word, now):
            self.tally.late += 1
            self._learn_from(Paired, src, word, now)
            return Word(ABORTED, word.number)
        assert word.body is not None
        ours, theirs = slot.own.dense(), word.body.dense()
        if digest(ours, theirs) != word.digest:
            raise RemoteError(f"message from {src}: it has read another snapshot than was sent")
        self.holding.came(now - slot.since)
        met = Difference(word.number, ours - theirs, slot.alpha, word.digest)
        self.slot, self._applied[src, word.number] = None, met
        self._meet(met, ends, now)
        return Word(DONE, word.number, digest=word.digest)

    def _on_refusal(self, word: Word, now: float) -> None:
        slot = self.slot
        if isinstance(slot, Offered) and word.meaning == BUSY:
            self.asking.came(now - slot.since)
            self.drop()
        elif isinstance(slot, Paired) and word.meaning == WITHDRAWN:
            self.drop()

    def _on_end(self, src: PeerId, word: Word, ends: Ends, now: float) -> None:
        doubt = self.doubt[src]
        if word.meaning == DONE:
            if word.digest != doubt.digest:
                raise RemoteError(f"message from {src}: it has met another snapshot than was sent")
            self._forget_doubt(src)
            self._meet(doubt, ends, now)
        elif word.meaning == ABORTED:
            self._forget_doubt(src)
            self._aborted()

    # --- what else ends an exchange -------------------------------------------------------------------

    def give_up(self, now: float) -> PeerId | None:
        """What has taken too long; who has not answered, if it is an offer."""
        slot = self.slot
        if slot is None or now - slot.since <= self._patience(slot).wait_s:
            return None
        self._patience(slot).missed()
        self._given_up = type(slot), slot.peer, slot.number, slot.since
        self.drop()
        return slot.peer if isinstance(slot, Offered) else None

    def _patience(self, slot: Offered | Paired) -> Patience:
        return self.asking if isinstance(slot, Offered) else self.holding

    def _is_late(self, slot: Offered | Paired, src: PeerId, word: Word, now: float) -> bool:
        """Is this word not about what is in the slot, or has it taken too long?"""
        if not self._is_about(src, word):
            return True
        late = now - slot.since > self._patience(slot).wait_s
        if late:
            self._patience(slot).came(now - slot.since)
            self.drop()
        return late

    def _learn_from(self, kind: type[Offered | Paired], src: PeerId, word: Word, now: float) -> None:
        """A word about what was given up last says how long it would have taken."""
        if self._given_up is not None and self._given_up[:3] == (kind, src, word.number):
            (self.asking if kind is Offered else self.holding).came(now - self._given_up[3])
            self._given_up = None

    def drop(self) -> None:
        """Whatever is in the slot: it comes to nothing at both ends."""
        if isinstance(self.slot, Offered):
            self._refused()
        self.slot = None

    def forget(self) -> None:
        """All of it: no exchange changes this end's model any more."""
        self.drop()
        self.tally.unresolved += len(self._acknowledged)
        self.doubt.clear()
        self._acknowledged.clear()
        self._applied.clear()

    def returned(self, dst: PeerId, meaning: int, number: int) -> Difference | None:
        """This word was never heard. What is to be undone, if anything is."""
        self._settle(dst)
        slot, doubt = self.slot, self.doubt.get(dst)
        if meaning in (OFFER, ACCEPT) and slot is not None and (slot.peer, slot.number) == (dst, number):
            if isinstance(slot, Offered) == (meaning == OFFER):
                self.drop()
        elif meaning == COMMIT and doubt is not None and doubt.number == number:
            self._forget_doubt(dst)
            self._aborted()
        elif meaning == DONE and (met := self._applied.pop((dst, number), None)) is not None:
            self.tally.met, self.tally.undone = self.tally.met - 1, self.tally.undone + 1
            return met
        return None

    def settled(self, dst: PeerId, meaning: int, number: int) -> None:
        """This word is acknowledged."""
        self._settle(dst)
        if meaning == DONE:
            self._applied.pop((dst, number), None)
        elif meaning == COMMIT and dst in self.doubt and self.doubt[dst].number == number:
            self._acknowledged.add(dst)

    def begins_anew(self, peer: PeerId, *, incoming: bool) -> None:
        """The link to this neighbor has ended; incoming: or that from it, or it begins anew."""
        slot = self.slot
        if slot is not None and slot.peer == peer and (incoming or isinstance(slot, Paired)):
            self.drop()
        if incoming and peer in self.doubt:
            self.tally.unresolved += peer in self._acknowledged
            self._forget_doubt(peer)

    # --- inside ---------------------------------------------------------------------------------------

    def _is_about(self, src: PeerId, word: Word) -> bool:
        return self.slot is not None and (self.slot.peer, self.slot.number) == (src, word.number)

    def _said(self, dst: PeerId, word: Word) -> Word:
        self._unsettled[dst] += 1
        return word

    def _settle(self, dst: PeerId) -> None:
        self._unsettled[dst] -= 1
        if self._unsettled[dst] <= 0:
            del self._unsettled[dst]

    def _refused(self) -> None:
        self.due, self.tally.refused = self.due + 1, self.tally.refused + 1

    def _aborted(self) -> None:
        self.due, self.tally.aborted = self.due + 1, self.tally.aborted + 1

    def _forget_doubt(self, peer: PeerId) -> None:
        del self.doubt[peer]
        self._acknowledged.discard(peer)

    def _meet(self, met: Difference, ends: Ends, now: float) -> None:
        self.tally.met += 1
        ends.meet(met.m, met.alpha, now)
