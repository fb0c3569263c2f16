"""What members tell each other about members: probes and suspicions, own news, views that differ.

    Node --events--> Gossip --effects (Tell, Reach, Note)--> driver
                     Membership: who is there      Probing: whom to ask

SWIM over control calls that are answered, with Lifeguard's care for oneself. Own news goes from its owner to
everybody, a few at a time; suspicions, refutations and new members are passed on by whoever hears of them, a
few times each; what got lost on the way shows in the digest that every Probe carries. All of a member's
records go out as fast as RECORDS_PER_S on average and no faster: where weights change all the time views
always differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from peer.errors import RemoteError
from peer.events import Effect, Note, PeerId, Probe, ProbeFor, Reach, Record, Sketch, Suspicion, Tell, Vouch
from peer.mesh.membership import Membership
from peer.mesh.probing import Probing, shuffled
from peer.mesh.sketches import Sketches

# reliability note, section e; memberlist's are 3 each 0.2 s, and 30 s
SPREAD_S, SPREAD_TO = 0.5, 3
PUSH_PULL_S = 30.0
COMPARE_S = 5.0  # views are compared with one member so often, whoever is heard; guess
DIFFERS_S = 3.0  # news in flight makes views differ for a moment; after this all is told again; guess
RECORDS_PER_S = 20.0  # of all that are told because views differ: some 8 KB/s; guess
RETRANSMIT = 4  # times log10(n + 1): how often one member passes a rumor on; memberlist's
MAX_RUMORS = 64  # in one Probe
REFETCH_FROM = 3  # members asked for all they know, by one that stood still; guess

Mark = tuple[int, int, int]
Item = TypeVar("Item")


class Gossip:
    """Owns `members`. Every method returns what is to be done, in order."""

    def __init__(self, me: Record) -> None:
        self.members = Membership(me)
        self.sketches = Sketches(me.peer)
        self._me = me.peer
        self._probing = Probing(self.members)
        self._told: dict[PeerId, dict[PeerId, Mark]] = {}  # what each member was told, or told itself
        self._differs: dict[PeerId, float] = {}  # members whose view is another, since when
        self._suspicions: dict[Suspicion, int] = {}  # to be passed on so often yet
        self._relayed: dict[PeerId, int] = {}  # records to be passed on so often yet
        self._seconded: set[tuple[PeerId, Suspicion]] = set()  # to whom, of late, which suspicion of theirs
        self._spread_at = self._compared_at = self._pulled_at = self._all_at = -math.inf
        self._turn = 0
        self._effects: list[Effect] = []

    # --- events --------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        for peer in self.members.silent(now):
            self._note("is silent: taken for dead", "warning", peer=peer)
            self._say(peer)
        tells, unheard = self._probing.check(now)
        self._effects += tells
        for peer in unheard:
            self._suspect(peer, now)
        for peer in self._probing.due(now):
            self._say(peer, own=True)
        self._spread(now)
        self._compare(now)
        self._show_sketch(self.sketches.due(self.members.others(), now), now)
        return self._take()

    def heard(self, peer: PeerId, now: float) -> list[Effect]:
        """A sign of life from the member itself, or its owner's newer word."""
        blamed = self.members.suspicion(peer) is not None or self.members.is_dead(peer)
        self._effects += self._probing.heard(peer, now)
        if blamed:
            self._say(peer, accuse=True)  # while it is: others may have heard so, and it can refute it
        self.members.heard(peer, now)
        return self._take()

    def met(self, record: Record, now: float) -> list[Effect]:
        """Hello has succeeded with this member."""
        self.members.met(record.peer)
        self._merge([record], now)
        effects = self._take() + self.heard(record.peer, now)
        self._told.pop(record.peer, None)
        self._say(record.peer, everything=True)
        return effects + self._take()

    def told(self, peer: PeerId, message: Probe | ProbeFor | Vouch, now: float) -> list[Effect]:
        match message:
            case Probe():
                self._hear(peer, message, now)
            case ProbeFor(target):
                tells, ask = self._probing.asked_for(peer, target, now)
                self._effects += tells
                if ask:
                    self._say(target, own=True)
            case Vouch(target) if self._probing.is_asked(peer, target):
                self._probing.vouched(target)
                self.members.heard(target, now)
        return self._take()

    def missing(self, peer: PeerId, now: float, *, quiet_s: float) -> list[Effect]:
        """A round waits for this member; if it has been quiet for so long, ask whether it is there."""
        if now - max(self.members.heard_at(peer), self._probing.probed_at(peer)) >= quiet_s:
            self._probing.probed(peer, now)
            self._say(peer, own=True)
        return self._take()

    def absent(self, peer: PeerId, now: float) -> bool:
        """Is nothing to be expected of this member for now? It does not answer, or others say so too."""
        if peer in self.members.blocked:
            return True
        return self._probing.unanswered(peer, now) or self.members.suspicion(peer) is not None

    def cut_off(self, peer: PeerId, now: float) -> bool:
        """Is there no way from here to this member, even if it lives?"""
        return peer in self.members.blocked or self._probing.cut_off(peer, now)

    def merge(self, records: Iterable[Record], now: float) -> list[Effect]:
        self._merge(records, now)
        return self._take()

    def publish(self, **fields: object) -> list[Effect]:
        """Change this device's own record, and tell everybody who is alive if that is news."""
        if self.members.update_me(**fields):
            for peer in self.members.others():
                self._say(peer)
        return self._take()

    def stood(self, seconds: float, *, clock_ran: bool) -> list[Effect]:
        """This device was suspended or stopped, which is nobody's silence; what it knows may be old.

        clock_ran: did the clock count that time?
        """
        if clock_ran:
            self.members.stalled(seconds)
        self._probing.stood()
        self.members.awareness.worse()
        self.members.renew()
        self._turn += 1
        for peer in shuffled(self.members.others(), self._me, self._turn)[:REFETCH_FROM]:
            self._say(peer, everything=True, pull=True)
        return self._take()

    # --- a Probe -------------------------------------------------------------------------------------

    def _hear(self, peer: PeerId, probe: Probe, now: float) -> None:
        """Take in what it says. The first Probe that is told to `peer` from here is the answer to it."""
        before = self.members.me
        told = self._told.setdefault(peer, {})
        told.update({r.peer: _mark(r) for r in probe.records})
        self._merge(probe.records, now)
        accused = [self._take_rumor(rumor, now) for rumor in probe.suspicions]
        seconds = self._seconds(peer, probe.suspicions)
        own, said = self.members.record(peer), {r.peer: r for r in probe.records}.get(peer)
        if probe.pull and probe.view != self.members.digest():
            self._say(peer, everything=True, rumors=seconds)
        elif any(accused) or self.members.me.incarnation > before.incarnation:
            told.pop(self._me, None)
            self._say(peer, rumors=seconds)
        elif own is not None and said is not None and _mark(own) != _mark(said):
            self._say(peer, also=(own,), rumors=seconds)  # so that it can outrank what is known of it
        elif seconds:
            self._say(peer, rumors=seconds)
        elif probe.view:
            self._compare_views(peer, probe.view, now)
        if probe.sketch is not None:
            self._hear_sketch(peer, probe.sketch, now)

    def _hear_sketch(self, peer: PeerId, sketch: Sketch, now: float) -> None:
        """Keep it, and answer with this device's own, if that is news."""
        record = self.members.record(peer)
        if record is None or not self.sketches.hear(peer, record.life, sketch, now):
            self._note("a sketch says nothing here", "debug", peer=peer, round=sketch.round)
        self._show_sketch(peer, now)

    def _show_sketch(self, peer: PeerId | None, now: float) -> None:
        """In a Probe without a view: to compare views as often as that would be a storm of records."""
        if peer is not None and (sketch := self.sketches.news_for(peer, now)) is not None:
            self._effects.append(Tell(peer, Probe(b"", sketch=sketch)))

    def _take_rumor(self, rumor: Suspicion, now: float) -> bool:
        """True if it is about this node."""
        if rumor.peer == self._me:
            self.members.refute(rumor.incarnation, now)
            return True
        mine = rumor.by == self._me  # come round again, or made up
        if not mine and self.members.suspect(rumor.peer, rumor.incarnation, rumor.by, now):
            self._suspicions[rumor] = self._often()
        return False

    def _seconds(self, peer: PeerId, said: tuple[Suspicion, ...]) -> tuple[Suspicion, ...]:
        """Whoever suspects a member that is dead here already is told that it is not alone; once in a while,
        so that two who both know do not go on telling each other."""
        news = {
            (peer, rumor)
            for rumor in said
            if rumor.by == peer and self.members.is_dead(rumor.peer) and self._is_of_now(rumor)
        }
        news -= self._seconded
        self._seconded |= news
        seconded = sorted(news, key=lambda new: new[1].peer)[: MAX_RUMORS // 2]
        return tuple(replace(rumor, by=self._me) for _, rumor in seconded)

    def _is_of_now(self, rumor: Suspicion) -> bool:
        record = self.members.record(rumor.peer)
        return record is not None and record.incarnation == rumor.incarnation

    def _compare_views(self, peer: PeerId, view: bytes, now: float) -> None:
        """Anti-entropy: a peer whose records differ for a while is told everything."""
        if view == self.members.digest():
            self._differs.pop(peer, None)
        elif now - self._differs.setdefault(peer, now) >= DIFFERS_S:
            records = len(self.members.records())
            if now - self._all_at >= records / RECORDS_PER_S:
                self._differs[peer] = self._all_at = now
                self._say(peer, everything=True)

    def _merge(self, records: Iterable[Record], now: float) -> None:
        records = list(records)
        known = {r.peer for r in records if self.members.record(r.peer) is not None}
        blamed = {p for p in known if self.members.suspicion(p) is not None or self.members.is_dead(p)}
        copies = dict(self.members.copies)
        try:
            changed = self.members.merge(records, now)
        except RemoteError as error:
            self._note("records refused", "warning", reason=str(error))
            return
        for record in changed:
            if record.addresses and record.state == "alive":
                self._effects.append(Reach(record.peer, record.addresses))
            if record.peer in blamed or record.peer not in known:
                self._relayed[record.peer] = self._often()
        for peer in self.members.copies.keys() - copies.keys():
            self._note("two devices run with one key", "warning", peer=peer)

    # --- rumors and news -----------------------------------------------------------------------------

    def _suspect(self, peer: PeerId, now: float) -> None:
        """Neither this node nor those it asked could hear this member."""
        record = self.members.record(peer)
        if record is None:
            return
        rumor = Suspicion(peer, record.incarnation, self._me)
        if self.members.suspect(peer, record.incarnation, self._me, now):
            self._suspicions[rumor] = self._often()
            self._note("does not answer: suspected", "debug", peer=peer)

    def _spread(self, now: float) -> None:
        """Tell own news to a few that have not been told, until all have; pass rumors on to a few others."""
        if now - self._spread_at < SPREAD_S:
            return
        self._spread_at = now
        # of what there was no room for nothing is passed on
        self._relayed = {p: left for p, left in self._relayed.items() if self.members.record(p) is not None}
        mine, others = _mark(self.members.me), self.members.others()
        targets = [p for p in others if self._told.get(p, {}).get(self._me) != mine]
        targets = sorted(targets, key=lambda p: (self.members.heard_at(p), p))[:SPREAD_TO]
        if self._suspicions or self._relayed:
            self._turn += 1
            likely = [p for p in others if p not in targets and self.members.suspicion(p) is None]
            more = shuffled(likely, self._me, self._turn)
            targets += more[: SPREAD_TO - len(targets)]
        for peer in targets:
            self._say(peer)

    def _compare(self, now: float) -> None:
        """With one member: views each few seconds, all records each half minute."""
        if now - self._compared_at < COMPARE_S:
            return
        pull = now - self._pulled_at >= PUSH_PULL_S
        first, self._compared_at = math.isinf(self._compared_at), now
        if pull:
            self._pulled_at = now
            self._seconded.clear()
            known = {r.peer for r in self.members.records()}
            self._told = {p: told for p, told in self._told.items() if p in known}
        self._turn += 1
        for peer in shuffled(self.members.others(), self._me, self._turn)[:1]:
            self._say(peer, own=True, everything=pull and not first, pull=pull)

    def _say(
        self,
        peer: PeerId,
        *,
        own: bool = False,
        everything: bool = False,
        also: tuple[Record, ...] = (),
        accuse: bool = False,
        pull: bool = False,
        rumors: tuple[Suspicion, ...] = (),
    ) -> None:
        """A sign of life with what the peer has not been told: this node's own record and what is passed on.

        own: that record in any case. everything: every record in any case. accuse: what it can refute.
        rumors: these before others.
        """
        told = self._told.setdefault(peer, {})
        if everything:
            records = self.members.records()
        else:
            passed = [r for p in list(self._relayed) if (r := self.members.record(p)) is not None]
            records = [r for r in passed if told.get(r.peer) != _mark(r)]
            for record in passed if self._seems_to_hear(peer) else ():
                _count(self._relayed, record.peer)
            if own or told.get(self._me) != _mark(self.members.me):
                records = [self.members.me, *records]
            records += [r for r in also if r not in records]
        told.update({r.peer: _mark(r) for r in records})
        rumors = (*rumors, *self._rumors(peer, accuse, MAX_RUMORS - len(rumors)))
        self._effects.append(Tell(peer, Probe(self.members.digest(), tuple(records), rumors, pull)))

    def _rumors(self, peer: PeerId, accuse: bool, most: int) -> tuple[Suspicion, ...]:
        """Those to pass on, so many at the most; above all what is said about the receiver, which nobody else
        can refute."""
        record, rumors = self.members.record(peer), []
        if record is not None and (
            accuse or self.members.suspicion(peer) is not None or self.members.is_dead(peer)
        ):
            rumors.append(Suspicion(peer, record.incarnation, self._me))
        for rumor in list(self._suspicions)[: max(0, most - len(rumors))]:
            suspicion = self.members.suspicion(rumor.peer)
            if suspicion is None or suspicion.incarnation != rumor.incarnation:
                del self._suspicions[rumor]
            elif rumor.peer != peer:
                if self._seems_to_hear(peer):
                    _count(self._suspicions, rumor)
                rumors.append(rumor)
        return tuple(rumors)

    # --- small words ---------------------------------------------------------------------------------

    def _seems_to_hear(self, peer: PeerId) -> bool:
        """Where half of the network is out of reach, what is told to that half is told to nobody."""
        lost = self.members.suspicion(peer) is not None or self.members.is_dead(peer)
        return not lost and not self._probing.waits(peer)

    def _often(self) -> int:
        return RETRANSMIT * math.ceil(math.log10(len(self.members.alive()) + 1))

    def _note(self, text: str, level: Literal["debug", "info", "warning"] = "info", **fields: object) -> None:
        self._effects.append(Note(text, fields, level))

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def _mark(record: Record) -> Mark:
    return record.boot, record.incarnation, record.instance


def _count(left: dict[Item, int], item: Item) -> None:
    left[item] -= 1
    if left[item] <= 0:
        del left[item]
