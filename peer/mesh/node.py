"""One device in one session, as a pure state machine: membership, topology and links composed.

`handle(event, now) -> effects`. The daemon performs the effects with asyncio, gRPC and zeroconf; a rehearsal
performs them with a heap of timed events. Nothing here reads a clock: `now` is seconds on any steady scale.

The node owns time: it opens a round, tells the learner whom to expect, and says when waiting is no longer
worth it. A learner without mass is seated by its node: with a sponsor, or (nobody has mass) by election.

    phase   idle --Ready--> seeking --mass--> training --Leave--> leaving
                                                 |--rounds done--> finished
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from peer.errors import RemoteError
from peer.events import (
    FINAL,
    TRAIN,
    Ack,
    Acked,
    Closed,
    Control,
    Deadline,
    Deliver,
    Direction,
    Effect,
    Expect,
    Farewell,
    Finish,
    ForLearner,
    Found,
    Frame,
    FrameHeard,
    FromLearner,
    Generation,
    Gone,
    Goodbye,
    Held,
    Holds,
    Key,
    LearnerGone,
    Leave,
    LinkDown,
    LinkUp,
    Looked,
    Measured,
    Met,
    Moved,
    Note,
    Open,
    OpenRound,
    Parcel,
    PeerId,
    Probe,
    ProbeFor,
    Progress,
    Push,
    Pushed,
    Ready,
    Record,
    Rejected,
    Renew,
    Resumed,
    Returned,
    Reunion,
    Send,
    ShowMe,
    Spent,
    SponsorMe,
    StartOver,
    StreamDown,
    StreamUp,
    TakeAll,
    Taken,
    Tell,
    Tick,
    Told,
    Vouch,
)
from peer.mesh import topology
from peer.mesh.agreement import Agreement
from peer.mesh.budget import Spending
from peer.mesh.ending import Ending
from peer.mesh.frame_bytes import frame_bytes
from peer.mesh.generations import Generations
from peer.mesh.giving import Giving
from peer.mesh.gossip import Gossip
from peer.mesh.leaving import Finished, Leaving
from peer.mesh.links import Links
from peer.mesh.pace import Pace
from peer.mesh.reunion import Reunions
from peer.mesh.seats import Epoch, Seats
from peer.mesh.throughput import Throughput
from peer.mesh.unanswered import Unanswered
from peer.mesh.upkeep import Upkeep

STALL_S = 5.0  # reliability note, section c: a gap like this between ticks is a suspend, nobody's silence
SPARE_ROUNDS = 2  # for messages of models that are lost, where a new tree begins; guess
OUTDATED = "asked for long ago"
LATE_ROUNDS = 8  # on an agreed graph a neighbor that is behind goes to this node's round: worth a wait; guess
MAX_JUMP = 1 << 16  # rounds at a time, whatever a neighbor says: three hours of rounds of 0.2 s (guess)

NodeEvent = (
    Met
    | StreamUp
    | StreamDown
    | FrameHeard
    | Progress
    | Told
    | Tick
    | Resumed
    | LearnerGone
    | Leave
    | Measured
    | Moved
    | Spent
    | FromLearner
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a node needs of the session's descriptor. rounds: 0 is forever. founder: it made the session.
    graph: what the algorithm exchanges on; one without direction all members agree on (generations.py).
    """

    topology: str
    seed: int
    lockstep: bool = True
    rounds: int = 0
    founder: bool = False
    graph: Literal["directed", "undirected", "tree"] = "directed"


class Node:
    """The state machine. Read-only from outside: `members`, `links`, `phase`, `key`, `life`."""

    tick_s = 0.25

    def __init__(
        self,
        me: Record,
        terms: Terms,
        farewells: Mapping[PeerId, Farewell] | None = None,
        spending: Spending | None = None,
    ) -> None:
        """farewells: those of the node that said goodbye here last. spending: of the nodes here before it,
        too; None sets no budget."""
        self.me, self.terms = me.peer, terms
        self.spending = spending or Spending()
        self.gossip, self.links = Gossip(me), Links(me.peer, farewells, self.spending)
        self.upkeep, self.giving = Upkeep(self.links), Giving(self.links, self.spending)
        self.pace, self.seats = Pace(late_is_lost=terms.graph != "directed"), Seats(me.peer)
        self.members = self.gossip.members
        self.agreement, self.ending = None, None
        if terms.graph != "directed":
            self.agreement = Agreement(me.peer, terms.topology, terms.graph)
            self.ending = Ending(me.peer, self.members, self.agreement.generations)
        self.reunions = Reunions(me.peer)
        self.life = 0  # of the learner, or of the last one
        self.key = Key()  # the round being worked on, or to be opened next
        self.rounds_alone = 0  # closed with nobody heard though somebody was to send, in a row
        self.rounds_alone_total = 0
        self.company = False  # has another member with mass ever been in view?
        self.weight = 0.0
        self.faults: dict[PeerId, int] = {}  # parcels refused, by who sent them
        self.missed: frozenset[PeerId] = frozenset()  # expected and not heard in the round closed last
        self._founder = terms.founder
        self._open = False
        self._unanswered = Unanswered()
        self.throughput = Throughput()
        self._allowance: int | None = None  # bytes that the open round's messages may take
        self._sending: set[PeerId] = set()  # whom the open round has sent something
        self._expected: frozenset[PeerId] = frozenset()
        self._has_senders = False  # on the open round's graph; where it is drawn at random there may be none
        self._view: tuple[PeerId, ...] = ()
        self._seen = -1  # the members' version that _view is of
        self._final_view: tuple[PeerId, ...] = ()  # the view when the first final round opened
        self._starting_over = False
        self._leaving: Leaving | None = None
        self._finished: Finished | None = None
        self._reason: Literal["left", "paused", "finished"] = "finished"  # of the goodbye
        self._gone = False
        self._ticked_at = math.inf
        self._effects: list[Effect] = []

    @property
    def generations(self) -> Generations | None:
        """What is known of the graph that all agree on; None where the algorithm needs none."""
        return self.agreement.generations if self.agreement is not None else None

    def farewells(self) -> dict[PeerId, Farewell]:
        """After Gone: what the next node here is to be made with."""
        return self.links.farewells(self.life)

    def at_learner_s(self, now: float) -> float:
        """For how long the open round has waited for this device's own learner, s; 0: it does not."""
        held = self.pace.held is not None and any(map(self.links.unacked, self.pace.held.dsts))
        its_turn = self.pace.overdue or (self.pace.pushed_at is None and not held)
        return self.pace.began(now) if self._open and its_turn else 0.0

    @property
    def phase(self) -> str:
        return self.members.me.phase

    def handle(self, event: NodeEvent, now: float) -> list[Effect]:
        """Take one event in; the effects are to be performed in order."""
        if self._gone:
            return []
        self._effects = []
        self.spending.advance(now)
        if isinstance(event, Spent):
            self.spending.control(event.size)
            return []
        self._notice_gap(now)
        self._dispatch(event, now)
        self._watch_view(now)
        self._check_round(now)
        if self._leaving is not None:
            self._hand_over(self._leaving, now)
        self._book(now)
        effects, self._effects = self._effects, []
        return effects

    def _book(self, now: float) -> None:
        """What goes out now, and which parcels are not on their way any more, for the budget."""
        for effect in self._effects:
            if isinstance(effect, Send) and isinstance(effect.frame, Parcel):
                self.throughput.began(effect.peer, frame_bytes(effect.frame), now)
        if self.spending.bytes_per_min is None:
            return
        for effect in self._effects:
            if isinstance(effect, Send) and not isinstance(effect.frame, Parcel):
                self.spending.control(frame_bytes(effect.frame))
        for dst in self.spending.under_way:
            if not self.links.moving(dst):
                self.spending.end(dst)

    def _dispatch(self, event: NodeEvent, now: float) -> None:
        match event:
            case Tick():
                self._tick(now)
            case FrameHeard(peer, direction, frame):
                self._hear(peer, direction, frame, now)
            case Progress(peer, direction):
                self._alive(peer, now)
                if direction == "in":
                    self.pace.patience.moving(peer, now)
            case StreamUp() | StreamDown():
                self._stream(event, now)
            case Met(record):
                self._effects += self.gossip.met(record, now)
                self._correct(record.peer, now)
            case Told(peer, message):
                self._alive(peer, now)
                self._control(peer, message, now)
            case Resumed(seconds):
                self._stood(seconds, clock_ran=False)
            case LearnerGone(reason):
                self._learner_gone(reason, now)
            case Leave():
                self._leave(event, now)
            case Moved(addresses):
                self._publish(addresses=addresses)
            case Measured():
                self._measured(event, now)
            case _:
                assert not isinstance(event, Spent), "booked before"
                self._from_learner(event, now)

    # --- the learner -----------------------------------------------------------------------------

    def _from_learner(self, event: FromLearner, now: float) -> None:
        match event:
            case Ready():
                self._ready(event, now)
            case Push():
                self._push(event, now)
            case Held():
                self._hold(event, now)
            case Pushed():
                self._pushed(event, now)
            case Closed():
                self._closed(event, now)
            case Taken(src, epoch, number):
                if (taken := self._unanswered.answered(src, epoch, number)) is not None:
                    self._took(src, taken, now)
                self._absorb(self.links.taken(src, epoch, number), now)
            case Rejected(src, epoch, number, reason, fault):
                self._unanswered.answered(src, epoch, number)
                if fault:
                    self.faults[src] = self.faults.get(src, 0) + 1
                    self._note("sent something that was refused", "warning", peer=src, reason=reason)
                self._absorb(self.links.rejected(src, epoch, number, reason, fault), now)
            case Renew(dst):
                self._absorb(self.links.renew(dst), now)
            case Looked(peer, round_, near):
                self._looked(peer, round_, near, now)
            case Holds():
                self._holds(event, now)

    def _holds(self, event: Holds, now: float) -> None:
        self.giving.holds(event.whole)
        self.links.holds(event.bases, event.replicas)
        self._weigh(event.weight)
        if self._leaving is not None:
            self._leaving.holds(event.weight)
        self._check_handed()
        if self.phase == "seeking" and event.weight > 0:
            self._seated(now)

    def _push(self, event: Push, now: float) -> None:
        dst, key = event.dst, event.key
        if self._leaving is not None:
            self._leaving.pushed(dst)
        if key == self.key:
            self._sending.add(dst)
        self._absorb(self.links.push(dst, event.epoch, key, event.payload, event.delivery, now), now)

    def _ready(self, event: Ready, now: float) -> None:
        self.links.holds(event.bases, event.replicas)
        self._absorb(self.links.learner_started(event.life), now)
        self.key, self.life, self._starting_over = Key(), event.life, False
        self.seats.seek(now)
        self.pace.forget_rounds()
        self.reunions.settle()  # without a model there is nothing to be kept apart
        if self.generations is not None:
            self.generations.trains(None)
        self._publish(phase="seeking", life=event.life, round=event.round)
        if self._founder and event.round < 0 and not self.company:
            self._found(resume=False)
        else:
            self._seek(now)

    def _found(self, *, resume: bool) -> None:
        self.key = Key(round=self.members.me.round + 1 if resume else 0)
        self._learner(Found(resume))

    def _seated(self, now: float) -> None:
        self.giving.forget()
        self.key = max(self.key, self._unanswered.newest())  # the sponsor's round, if there was a sponsor
        self._publish(phase="training")
        if self.generations is not None:
            self.generations.trains(now)
        if self.agreement is not None and self.terms.rounds and self.key.phase == FINAL:
            self._came_late(now)
            return
        self._note("has mass and trains", round=self.key.round)
        self._open_next(now)

    def _learner_gone(self, reason: str, now: float) -> None:
        self._absorb(self.links.learner_gone(), now)
        self._open, self.weight = False, 0.0
        self.pace.close()
        self._unanswered.clear()
        if self.agreement is not None:
            self.agreement.early()  # they went with their links
        if self._leaving is None:
            self._publish(phase="idle", life=0, weight=0.0)
        else:
            self._leaving.learner_gone()

    # --- seats: sponsor or election --------------------------------------------------------------

    def _seek(self, now: float) -> None:
        phases = ("training",) if self.agreement is None else ("training", "finished")
        trainers = [r for r in self.members.alive() if r.phase in phases and r.peer != self.me]
        sponsor = self.seats.ask(trainers, now)
        if sponsor is not None:
            self.upkeep.expect(sponsor, now)
            self._effects.append(Tell(sponsor, SponsorMe(self.members.me.life)))
        if not self.seats.is_election(now):
            return
        best = self.seats.elected((r for r in self.members.alive() if r.phase == "seeking"), now)
        if best is not None and best.peer == self.me:
            self._note("nobody has mass: this device has the best checkpoint and begins", round=best.round)
            self._found(resume=True)
        elif best is None and self._founder and not self.company:
            self._found(resume=False)

    def _sponsor(self, peer: PeerId, life: int, now: float) -> None:
        record = next((r for r in self.members.alive() if r.peer == peer), None)
        gives = self.phase == "training" or (self.phase == "finished" and self.agreement is not None)
        if not gives or record is None or self.reunions.estranged:
            return  # or it is not settled yet whose model is to be given
        if record.phase == "training" and record.life == life:
            return  # somebody else was faster
        self.giving.promise(peer)
        self._correct(peer, now)
        self._give(peer, now)

    def _give(self, peer: PeerId, now: float) -> None:
        self._need(peer, now)
        if self.links.clear(peer):
            self._grant(peer, now)

    def _grant(self, peer: PeerId, now: float) -> None:
        if self.agreement is not None and self.key.phase == FINAL and self.phase == "training":
            return  # who comes as late as this is given the final model, and is done
        self._effects += self.giving.grant(peer, now)

    def _show(self, peer: PeerId, now: float) -> None:
        """Send the model to look at: as soon as the link allows it."""
        if self.phase == "training":
            self.giving.show(peer)
            self._need(peer, now)
            self._effects += self.giving.show_all()

    def _keep_to_budget(self, now: float) -> None:
        """Begin what has waited for room."""
        if self.spending.bytes_per_min is None:
            return
        self._absorb(self.links.go_on(), now)
        due = self.giving.due({r.peer for r in self.members.alive() if r.phase != "training"})
        if due is not None:
            self._grant(due, now)
        pressing = self.giving.is_pressing(now, alone=len(self._view) < 2)
        self.spending.saving = pressing or self.links.waiting()

    def _in_epoch(self, src: PeerId) -> Epoch:
        """The newest life and epoch of the link from `src`."""
        return self.links.applied(src)[:2]

    def _is_outdated(self, sponsor: PeerId) -> bool:
        """Is what this member sends to a newcomer a model of long ago? One that leaves has no other."""
        record = self.members.record(sponsor)
        trains = record is not None and record.phase == "training"
        return trains and self.seats.is_outdated(sponsor, self._in_epoch(sponsor))

    def _stream(self, event: StreamUp | StreamDown, now: float) -> None:
        peer, direction = event.peer, event.direction
        if isinstance(event, StreamUp):
            self._alive(peer, now)
            self._absorb(self.links.stream_up(peer, direction), now)
            return
        if direction == "out":
            self.throughput.broke_off(peer)
        self._absorb(self.links.stream_down(peer, direction), now)

    def _hear(self, peer: PeerId, direction: Direction, frame: Frame, now: float) -> None:
        self._alive(peer, now)
        self._watch_view(now)  # first: what comes from one that trained apart is not taken at once
        self._absorb(self.links.heard(peer, direction, frame, now), now)
        if direction == "out" and isinstance(frame, Ack):
            self.throughput.answered(peer, now)
        if isinstance(frame, Open) and self.phase == "seeking":
            self._refuse_outdated(peer, now)

    def _refuse_outdated(self, src: PeerId, now: float) -> None:
        """On a new stream, before an old model is sent over it once more."""
        self.seats.opened(src, self._in_epoch(src), now)
        if self._is_outdated(src):
            self._absorb(self.links.refuse(src, OUTDATED), now)

    # --- rounds ----------------------------------------------------------------------------------

    def _open_next(self, now: float) -> None:
        """Open `self.key`, unless there is nobody yet to train with."""
        if self.phase != "training" or self._open or self._starting_over:
            return
        if len(self._view) < 2 and not self.company:
            return
        final = 0 < self.terms.rounds <= self.key.round
        if self.agreement is not None:
            before = self.agreement.generations.current
            taken_up = self.agreement.take_up()
            self._effects += taken_up
            if self.agreement.generations.current is None:
                return
            if final and taken_up and self.ending is not None:
                # final rounds begin at the same one for all its members
                self.key = replace(self.key, round=self.terms.rounds)
                self.ending.broke_off(before)
        if final:
            self._final_view = self._final_view or self._view  # who finishes first must not change the graph
            if self.key.round >= self.terms.rounds + self._final_rounds():
                self._finish(now)
                return
        generation = self.generations.number if self.generations is not None else 0
        self.key = Key(generation, self.key.round, FINAL if final else TRAIN)
        self._open = True
        self._allowance, self._sending = self.spending.open_round(final=final), set()
        self.pace.open(self.key, now)
        self._announce_round(now)
        self._deliver_early(now)

    def _final_rounds(self) -> int:
        if self.generations is None:
            return topology.final_rounds(self.terms.topology, len(self._final_view))
        place = self.generations.place(final=True)
        return place.diameter if place is not None else 0

    def _announce_round(self, now: float) -> None:
        if self.generations is not None:
            self._announce_place(self.generations, now)
            return
        spec, view, seed, key = self.terms.topology, self._view, self.terms.seed, self.key
        if key.phase == FINAL:
            spec, view = topology.final_spec(spec), self._final_view
        out = topology.out_neighbors(spec, view, self.me, key.round, seed)
        self._expected = frozenset(topology.in_neighbors(spec, view, self.me, key.round, seed))
        self._has_senders = bool(self._expected)
        for round_ in range(key.round, key.round + topology.cycle(spec, len(view))):
            for dst in topology.out_neighbors(spec, view, self.me, round_, seed):
                self._need(dst, now)
            for src in topology.in_neighbors(spec, view, self.me, round_, seed):
                if not self.links.has_stream(src, "in"):
                    self.upkeep.expect(src, now)
        self._learner(
            OpenRound(
                key,
                out,
                tuple(sorted(self._expected)),
                len(view),
                self.members.mean_weight(self.reunions.estranged),
                allowance=self._allowance,
                hides=self.throughput.hides(out),
            )
        )

    def _announce_place(self, generations: Generations, now: float) -> None:
        """As above, on the generation's graph: the same neighbors both ways."""
        place = generations.place(final=self.key.phase == FINAL)
        assert place is not None, "a round is opened in a generation with a place for this node"
        self._expected, self._has_senders = frozenset(place.out) & self._senders(), True
        for peer in place.out:
            self._need(peer, now)
            if not self.links.has_stream(peer, "in"):
                self.upkeep.expect(peer, now)
        expected, delay = tuple(sorted(self._expected)), place.mean_delay
        out, trees = dict(place.out), place.trees
        aligning = 0 if generations.is_first or not trees else place.diameter + SPARE_ROUNDS
        self._learner(
            OpenRound(
                self.key,
                out,
                expected,
                place.n,
                1.0,
                trees,
                delay,
                self._allowance,
                aligning,
                self.throughput.hides(out),
            )
        )

    def _senders(self) -> frozenset[PeerId]:
        """Whose message of this round is on its way or will be: who is leaving, or in a later generation,
        sends none any more; who has finished has sent its last. Without all of a generation its final rounds
        average nothing: nobody is left out of them here."""
        final = self.key.phase == FINAL
        if final and self.generations is not None and self.generations.current is not None:
            return frozenset(self.generations.current.view)
        senders = (
            frozenset(record.peer for record in self.members.alive()) if final else frozenset(self._view)
        )
        return senders - self.agreement.gone_on(self.key) if self.agreement is not None else senders

    def _expect_senders(self) -> None:
        still = self._expected & self._senders()
        if still != self._expected:
            self._expected = still
            self._learner(Expect(self.key, tuple(sorted(still))))

    def _closed(self, event: Closed, now: float) -> None:
        self._weigh(event.weight)
        if event.key != self.key or not self._open:
            return
        self._open = False
        self.pace.close()
        alone = not event.heard and (self._has_senders or len(self._view) < 2)
        self.rounds_alone = self.rounds_alone + 1 if alone else 0
        self.rounds_alone_total += alone
        self.missed = self._expected - set(event.heard)
        self.key = self._next_key()
        self._open_next(now)

    def _next_key(self) -> Key:
        """The round after this one; when far behind the others, the one they are at."""
        if self.generations is not None:
            # a message of another round is of no use: go where the neighbor is that is furthest on
            ahead = min(self.pace.furthest(self.key.generation), self.key.round + MAX_JUMP)
            return Key(self.key.generation, max(self.key.round + 1, ahead))
        cycle = self._cycle()
        waiting = {src: round_ for src, round_ in self._unanswered.rounds().items() if src in self._view}
        ahead = self.pace.median(self._view, cycle, waiting)  # no single member sets the pace
        round_ = self.key.round + 1
        # A cycle of links leads to everybody, so that a neighbor in step is no further ahead. What comes from
        # further ahead would wait here, and round a ring the waits add up until models hardly mix.
        far = cycle - 1
        return Key(self.key.generation, ahead if ahead > round_ + far else round_)

    def _cycle(self) -> int:
        return 1 if self.generations is not None else topology.cycle(self.terms.topology, len(self._view))

    def _pushed(self, event: Pushed, now: float) -> None:
        if event.worked_s > 0:
            self.throughput.worked(event.worked_s)
        if event.key != self.key or not self._open:
            return
        held_back = len(event.held_back)
        self.spending.close_round(held_back, len(self._sending.difference(event.held_back)))
        still, worked_s = event.still, event.worked_s
        self.pace.push(event.key, self.links.unacked, now, still=still, worked_s=worked_s)
        # it may have pushed by an older view
        self._learner(Expect(event.key, tuple(sorted(self._expected))))

    def _hold(self, event: Held, now: float) -> None:
        if event.key == self.key and self._open:
            self.pace.hold(event, now)

    def _check_round(self, now: float) -> None:
        """A round that waits for acknowledgements is pushed without those that take too long, and closed
        without the neighbors that do."""
        if not self._open:
            return
        if self.pace.held is not None:
            late = [dst for dst in self.pace.held.dsts if self.links.unacked(dst)]
            alive = {record.peer for record in self.members.alive()}
            if self.pace.gives_up_acks(late, alive, partial(self._is_absent, now), now):
                self._learner(Deadline(self.key))
        end = self._end
        if end is not None and (end.is_broken(self._lacking()) or end.is_in_doubt()):
            self.pace.put_off(now)
        if self.terms.lockstep and not self._starting_over:
            going = self.generations is not None and self.generations.pending
            without = self.pace.gives_up(self._expected, partial(self._is_absent, now), now, going=going)
            if without and end is not None and end.finished():
                self._be_given_final()
            elif without is not None:
                self._note("closes without", "debug", peers=",".join(without), round=self.key.round)
                self._learner(Deadline(self.key))

    def _is_absent(self, now: float, peer: PeerId, ask: bool, quiet_s: float) -> bool:
        """Does this neighbor give no sign of life? ask: for one, if it has been quiet for so long."""
        if ask:
            self._effects += self.gossip.missing(peer, now, quiet_s=quiet_s)
        return self.gossip.absent(peer, now)

    # --- reunions --------------------------------------------------------------------------------

    def _meet_again(self, now: float) -> None:
        """Members that trained apart are back: is it this node's turn to look at a model of theirs?"""
        self._effects += self.giving.show_all()
        peer = self.reunions.due(self._view, now)
        if peer is not None:
            self._note("looks at the model of one it was parted from", peer=peer)
            self.upkeep.expect(peer, now)
            self._effects.append(Tell(peer, ShowMe()))
        if self.reunions.overdue(now):
            self._reunite(Reunion(()), now)

    def _looked(self, peer: PeerId, round_: int, near: bool, now: float) -> None:
        if peer not in self.reunions.estranged:
            return
        verdict = self.reunions.judge(near, self._view, self.key.round, round_)
        for record in self.members.alive():
            if record.peer != self.me:
                self._effects.append(Tell(record.peer, verdict))
        self._reunite(verdict, now)

    def _reunite(self, verdict: Reunion, now: float) -> None:
        """Train with all again; or start over, when the two halves' models do not mix."""
        if self.phase == "training" and self.reunions.obeys(verdict, now):
            self._note("starts over with the model of the other half", "warning", members=len(verdict.yields))
            self.seats.give_up({r.peer: r.life for r in self.members.alive() if r.peer in verdict.yields})
            self._effects.append(StartOver())
        elif not verdict.yields:
            self._note("trains with those again that it was parted from")
            self.reunions.settle()
            self._seen = -1

    # --- generations -----------------------------------------------------------------------------

    def _agree(self, agreement: Agreement, now: float) -> None:
        """Answer what came too early, and propose a generation when the members have changed."""
        for parcel in agreement.overdue(self.phase == "training"):
            self._refuse(parcel, now)
        end = self._end
        if end is not None and end.is_overtaken(self._lacking(), self.pace.began(now)):
            self._be_given_final()
        if self._starting_over:
            return
        if self.phase == "training" and self._may_propose(agreement.generations):
            doubt = any(self.members.suspicion(peer) is not None for peer in self._view)
            self._effects += agreement.propose(self.members.alive(), self._view, now, doubt=doubt)
            self._go_on(agreement.generations, now)

    def _go_on(self, generations: Generations, now: float) -> None:
        """To a newer generation, if there is one: at the next round, which in final rounds is now."""
        if not self._open:
            self._open_next(now)
        elif self._end is not None and generations.pending and not self.pace.overdue:
            self.pace.overdue = True
            self._learner(Deadline(self.key))

    def _may_propose(self, generations: Generations) -> bool:
        """Who proposes in a bounded session has local steps to do on its generation: without its messages
        that one's final rounds come to no end, so nobody finishes on it while others take up the next. Nor
        do they where one has gone."""
        assert self.ending is not None
        if generations.current is not None:
            return self._end is None or self._end.is_broken(self._lacking())
        return not self.terms.rounds or not self.ending.is_seated_elsewhere(self._view)

    @property
    def _end(self) -> Ending | None:
        """In final rounds on an agreed graph: what is known of their end."""
        return self.ending if self.phase == "training" and self.key.phase == FINAL else None

    def _lacking(self) -> list[PeerId]:
        return self.pace.lacks(self._expected)

    def _be_given_final(self) -> None:
        """Another mean than theirs is not to be computed."""
        if not self._starting_over:
            self._starting_over = True
            self._note("starts over: others have finished without it", "warning")
            self._effects.append(StartOver())

    def _measured(self, event: Measured, now: float) -> None:
        if self.agreement is not None:
            peers = (record.peer for record in self.members.records())
            within_reach = (peer for peer in peers if not self.gossip.cut_off(peer, now))
            if (costs := self.agreement.measured(event.peer, event.rtt_s, within_reach, now)) is not None:
                self._publish(costs=costs)

    def _hear_generation(self, peer: PeerId, generation: Generation, now: float) -> None:
        if self.agreement is None:
            return
        try:
            self._effects += self.agreement.hear(peer, generation, now)
        except RemoteError as error:
            self.faults[peer] = self.faults.get(peer, 0) + 1
            self._note("generation refused", "warning", peer=peer, reason=str(error))
        self._go_on(self.agreement.generations, now)

    def _correct(self, peer: PeerId, now: float) -> None:
        if self.agreement is not None:
            self._effects += self.agreement.correct(peer, now)

    def _sorted_out(self, parcel: Deliver, now: float) -> bool:
        """Is this parcel not for the learner, or not yet? Mass goes back to one that trained apart while
        nobody has said that it may be mixed; whole models are of their generation."""
        if parcel.delivery == "mass":
            reason = "we trained apart" if self.reunions.refuses(parcel.src) else ""
            if self.phase == "seeking" and self._is_outdated(parcel.src):
                reason = OUTDATED
            name = parcel.src, parcel.epoch, parcel.number
            if reason:
                self._absorb(self.links.rejected(*name, reason, fault=False), now)
            return bool(reason)
        if self.agreement is None:
            return False
        verdict = self.agreement.judge(parcel, self.key, self.phase == "training")
        if verdict == "refuse":
            self._refuse(parcel, now)
        elif verdict == "keep" and self._open:
            self._expect_senders()
        if verdict != "deliver" and self.agreement.is_news(parcel):
            self._correct(parcel.src, now)
        return verdict != "deliver"

    def _refuse(self, parcel: Deliver, now: float) -> None:
        """A whole model is acknowledged and not delivered; the next one may come."""
        self._absorb(self.links.taken(parcel.src, parcel.epoch, parcel.number), now)

    def _deliver_early(self, now: float) -> None:
        """The open round's generation may be a new one: what came of it before goes to the learner now."""
        for parcel in self.agreement.early() if self.agreement is not None else ():
            if not self._sorted_out(parcel, now):
                self._unanswered.given(parcel)
                self._learner(parcel)

    def _finish(self, now: float) -> None:
        self._finished = Finished(self.links, self.ending, now)
        self._publish(phase="finished")
        self._learner(Finish())
        if self.ending is not None and self.company and self.ending.is_alone:
            self._note("finishes alone: the others have gone", "warning")
        self._note("session finished", round=self.key.round)
        if self.ending is not None:
            self._give_final(self.ending, now)

    def _give_final(self, ending: Ending, now: float) -> None:
        """The final model to whoever came too late for the last generation."""
        for peer in self.giving.promise_final(ending):
            self._give(peer, now)

    def _came_late(self, now: float) -> None:
        self._note("came too late to train: is given the final model")
        self._finish(now)

    # --- membership ------------------------------------------------------------------------------

    def _alive(self, peer: PeerId, now: float) -> None:
        self.seats.heard(peer, self._in_epoch, now)
        self._effects += self.gossip.heard(peer, now)

    def _control(self, peer: PeerId, message: Control, now: float) -> None:
        match message:
            case Probe() | ProbeFor() | Vouch():
                self._effects += self.gossip.told(peer, message, now)
            case SponsorMe(life):
                self._sponsor(peer, life, now)
            case Generation():
                self._hear_generation(peer, message, now)
            case ShowMe():
                self._show(peer, now)
            case Reunion():
                self._reunite(message, now)
            case Goodbye(record, last):
                if record.peer == peer:
                    self._absorb(self.links.goodbye(peer, last), now)
                    self._effects += self.gossip.merge([record], now)
                    self._note("said goodbye", peer=peer, state=record.state)

    def _publish(self, **fields: object) -> None:
        """Change this device's own record, and tell everybody who is alive if that is news."""
        self._effects += self.gossip.publish(**fields)

    def _weigh(self, weight: float) -> None:
        """Own weight; published when it has changed enough."""
        self.weight = weight
        self.members.update_me(weight=weight)

    def _watch_view(self, now: float) -> None:
        """Membership has changed: who can still be expected, and whom to train with?"""
        if self.members.version == self._seen:
            return
        self._seen = self.members.version
        if self.ending is not None:
            self.ending.watch()
        lives = {r.peer: r.life for r in self.members.alive() if r.phase == "training"}
        self.reunions.watch(lives, now)
        if self.phase in ("idle", "seeking"):
            self.reunions.settle()
        view, before = tuple(sorted(lives.keys() - self.reunions.estranged)), self._view
        self._view = view
        if self.generations is not None and view != before:
            self.generations.watch(view, now)
        self.company = self.company or len(view) > 1
        if view != before:
            self.pace.view_changed(set(before) - set(view), now)
        if not self._open:
            self._open_next(now)
        elif self.pace.pushed_at is not None or self.key.phase == FINAL:
            self._expect_senders()
        elif view != before:
            self._announce_round(now)

    # --- links -----------------------------------------------------------------------------------

    def _need(self, dst: PeerId, now: float) -> None:
        self._absorb(self.upkeep.need(dst, now), now)

    def _absorb(self, effects: Iterable[Effect], now: float) -> None:
        """Pass the links' effects on, and notice what concerns rounds, sponsoring and leaving."""
        for effect in effects:
            command = effect.command if isinstance(effect, ForLearner) else None
            if isinstance(command, Deliver) and self._sorted_out(command, now):
                continue
            self._effects.append(effect)
            match command:
                case LinkUp(peer, "out") if peer in self.giving.promised:
                    self._grant(peer, now)
                case LinkUp(peer, "in"):
                    self.pace.forget_rounds(peer)  # in a new life they may go backwards
                    self._unanswered.begins_anew(peer)
                case Deliver():
                    self._unanswered.given(command)
                case Acked(dst) if self._leaving is not None and dst == self._leaving.heir:
                    self._check_handed()
                case Returned(dst) | LinkDown(dst, "out") if self._leaving is not None:
                    self._leaving.came_back(dst)

    def _took(self, src: PeerId, key: Key, now: float) -> None:
        """The learner has accepted a message of this round from `src`."""
        unplaced = self.generations is not None and self.generations.current is None
        if self.terms.rounds and unplaced and key.phase == FINAL and self.phase == "training":
            self._came_late(now)
            return
        behind = self._cycle() if self.generations is None else LATE_ROUNDS
        self.pace.took(src, key, self.key, now, behind=behind)

    # --- time ------------------------------------------------------------------------------------

    def _notice_gap(self, now: float) -> None:
        """Ticks have not come: this device was suspended or stopped. Whatever comes first afterwards is heard
        with that in mind."""
        gap = now - self._ticked_at
        if gap > STALL_S and math.isfinite(gap):
            self._ticked_at = now
            self.pace.stood_s += gap
            self._stood(gap, clock_ran=True)

    def _stood(self, seconds: float, *, clock_ran: bool) -> None:
        self._effects += self.gossip.stood(seconds, clock_ran=clock_ran)
        self.seats.stood(self._in_epoch)
        self._note("this device stood still", "warning", seconds=round(seconds, 1))

    def _tick(self, now: float) -> None:
        self._ticked_at = now
        self._effects += self.gossip.tick(now)
        if self.phase == "seeking":
            self._seek(now)
        if self.agreement is not None:
            self._agree(self.agreement, now)
        self._meet_again(now)
        self._keep_to_budget(now)
        self._absorb(self.upkeep.tick(self._view, self.pace.uses, now), now)
        if self._finished is not None and self._finished.is_over(self.giving.promised, now):
            self._say_goodbye()

    # --- leaving ---------------------------------------------------------------------------------

    def _leave(self, event: Leave, now: float) -> None:
        if self._leaving is not None:
            return
        self._leaving = Leaving(self.members, self.links, self.upkeep, now)
        self._reason = "paused" if event.pause else "left"
        self._absorb(self.links.refuse_all(), now)
        self._open = False
        self.pace.close()
        self._learner(TakeAll())
        self._absorb(self.upkeep.leave(), now)  # what was never sent is handed over as well
        self._publish(phase="leaving")

    def _hand_over(self, leaving: Leaving, now: float) -> None:
        leaving.over = leaving.over or self._gone
        self._absorb(leaving.go_on(now), now)
        if leaving.over:
            self._say_goodbye()

    def _check_handed(self) -> None:
        if self._leaving is not None and self._leaving.is_taken_over(self.weight):
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self._gone:
            return
        self._gone = True
        state = "left" if self._reason == "left" else "paused"
        self.members.update_me(state=state, phase="idle", life=0, weight=0.0)
        for record in self.members.alive():
            if record.peer != self.me:
                last = self.links.farewell(record.peer, self.life)
                self._effects.append(Tell(record.peer, Goodbye(self.members.me, last)))
        self._effects.append(Gone(self._reason))

    # --- small words -----------------------------------------------------------------------------

    def _learner(self, command: object) -> None:
        self._effects.append(ForLearner(command))  # type: ignore[arg-type]

    def _note(self, text: str, level: Literal["debug", "info", "warning"] = "info", **fields: object) -> None:
        self._effects.append(Note(text, fields, level))
