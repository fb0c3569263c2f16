"""One device in one session, as a pure state machine: membership, topology and links composed.

`handle(event, now) -> effects`. The daemon performs the effects with asyncio, gRPC and zeroconf; a rehearsal
performs them with a heap of timed events. Nothing here reads a clock: `now` is seconds on any steady scale.

What concerns one thing alone has words of its own in the files beside this one; the node asks, and passes on
what they answer. It owns time: its rounds open, and close when waiting is no longer worth it (rounds.py). A
learner without mass is seated by its node: with a sponsor, or (nobody has mass) by election.

    phase   idle --Ready--> seeking --mass--> training --Leave--> leaving
                                                 |--rounds done--> finished
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Literal

from peer.errors import RemoteError
from peer.events import (
    FINAL,
    Ack,
    Acked,
    Block,
    Closed,
    Control,
    Deliver,
    Direction,
    Effect,
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
    Sketch,
    Sketched,
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
from peer.mesh.agreement import Agreement
from peer.mesh.budget import Spending
from peer.mesh.frame_bytes import frame_bytes
from peer.mesh.generations import Generations
from peer.mesh.giving import Giving
from peer.mesh.gossip import Gossip
from peer.mesh.leaving import Finished, Leaving
from peer.mesh.links import Links
from peer.mesh.reunion import Reunions
from peer.mesh.rounds import Rounds
from peer.mesh.seats import Seats
from peer.mesh.terms import Terms
from peer.mesh.unanswered import Unanswered
from peer.mesh.upkeep import Upkeep

STALL_S = 5.0  # reliability note, section c: a gap like this between ticks is a suspend, nobody's silence
OUTDATED = "asked for long ago"

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
    | Sketched
    | Block
    | Spent
    | FromLearner
)


class Node:
    """The state machine. Read-only from outside: all without an underscore."""

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
        self.members = self.gossip.members
        self.agreement: Agreement | None = None
        if terms.graph != "directed":
            self.agreement = Agreement(me.peer, terms.topology, terms.graph)
        self.rounds = Rounds(terms, self.gossip, self.links, self.upkeep, self.agreement)
        self.seats = Seats(self.members, self.links, finished_give=self.agreement is not None)
        self.reunions = Reunions(me.peer)
        self.life = 0  # of the learner, or of the last one
        self.company = False  # has another member with mass ever been in view?
        self.weight = 0.0
        self.faults: dict[PeerId, int] = {}  # parcels refused, by who sent them
        self._founder = terms.founder
        self._unanswered = Unanswered()
        self._seen = -1  # the members' version that the rounds' view is of
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

    @property
    def key(self) -> Key:
        """Of the round being worked on, or to be opened next."""
        return self.rounds.key

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
        self._effects += self.rounds.check(now)
        if self._leaving is not None and not self._gone:
            self._hand_over(self._leaving, now)
        self._book(now)
        effects, self._effects = self._effects, []
        return effects

    def _book(self, now: float) -> None:
        """What goes out now, and which parcels are not on their way any more, for the budget."""
        for effect in self._effects:
            if isinstance(effect, Send) and isinstance(effect.frame, Parcel):
                self.rounds.throughput.began(effect.peer, frame_bytes(effect.frame), now)
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
                    self.rounds.pace.moving(peer, now)
            case StreamUp() | StreamDown():
                self._stream(event, now)
            case Met(record):
                self._effects += self.gossip.met(record, now)
                self._correct(record.peer, now)
            case Told(peer, message):
                self._alive(peer, now)
                self._control(peer, message, now)
            case Resumed(seconds):
                self._stood(seconds, now, clock_ran=False)
            case LearnerGone(reason):
                self._learner_gone(reason, now)
            case Leave():
                self._leave(event, now)
            case Moved(addresses):
                self._publish(addresses=addresses)
            case Measured() | Sketched() | Block():
                self._told_here(event, now)
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
                self.rounds.hold(event, now)
            case Pushed():
                self._effects += self.rounds.pushed(event, now)
            case Closed():
                self._closed(event, now)
            case Taken(src, epoch, number, half):
                if (taken := self._unanswered.answered(src, epoch, number)) is not None:
                    self._took(src, taken, now, half=half)
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
        self.rounds.sends(dst, key)
        self._absorb(self.links.push(dst, event.epoch, key, event.payload, event.delivery, now), now)

    def _ready(self, event: Ready, now: float) -> None:
        self.links.holds(event.bases, event.replicas)
        self._absorb(self.links.learner_started(event.life), now)
        self.life = event.life
        self.rounds.forget()
        self.seats.seek(now)
        self.reunions.settle(now)  # without a model there is nothing to be kept apart
        if self.generations is not None:
            self.generations.trains(None)
        self._publish(phase="seeking", life=event.life, round=event.round)
        if self._founder and event.round < 0 and not self.company:
            self._found(resume=False)
        else:
            self._seek(now)

    def _found(self, *, resume: bool) -> None:
        self.rounds.begin(Key(round=self.members.me.round + 1 if resume else 0))
        self._learner(Found(resume))

    def _seated(self, now: float) -> None:
        self.giving.forget()
        self.rounds.begin(max(self.key, self._unanswered.newest()))  # the sponsor's round, if there was one
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
        self.rounds.stop()
        self.gossip.sketches.forget_own()
        self.weight = 0.0
        self._unanswered.clear()
        if self.agreement is not None:
            self.agreement.early()  # they went with their links
        if self._leaving is None:
            self._publish(phase="idle", life=0, weight=0.0)
        else:
            self._leaving.learner_gone()

    # --- seats: sponsor or election --------------------------------------------------------------

    def _seek(self, now: float) -> None:
        sponsor = self.seats.ask(now)
        if sponsor is not None:
            self.upkeep.expect(sponsor, now)
            self._effects.append(Tell(sponsor, SponsorMe(self.members.me.life)))
        if not self.seats.is_election(now):
            return
        best = self.seats.elected(now)
        if best is not None and best.peer == self.me:
            self._note("nobody has mass: this device has the best checkpoint and begins", round=best.round)
            self._found(resume=True)
        elif best is None and self._founder and not self.company:
            self._found(resume=False)

    def _sponsor(self, peer: PeerId, life: int, now: float) -> None:
        record = next((r for r in self.members.alive() if r.peer == peer), None)
        gives = self.phase == "training" or (self.phase == "finished" and self.agreement is not None)
        if not gives or record is None or self.reunions.unsettled - {peer}:
            return  # or it is not settled yet whose model is to be given
        if record.phase == "training" and record.life == life:
            return  # somebody else was faster
        self.giving.promise(peer, life)
        self._correct(peer, now)
        self._give(peer, now)

    def _give(self, peer: PeerId, now: float) -> None:
        self._need(peer, now)
        if self.giving.is_due(peer):
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
        pressing = self.giving.is_pressing(now, alone=len(self.rounds.view) < 2)
        self.spending.saving = pressing or self.links.waiting()

    def _stream(self, event: StreamUp | StreamDown, now: float) -> None:
        peer, direction = event.peer, event.direction
        if isinstance(event, StreamUp):
            self._alive(peer, now)
            self._absorb(self.links.stream_up(peer, direction), now)
            return
        if direction == "out":
            self.rounds.throughput.broke_off(peer)
        self._absorb(self.links.stream_down(peer, direction), now)

    def _hear(self, peer: PeerId, direction: Direction, frame: Frame, now: float) -> None:
        self._alive(peer, now)
        self._watch_view(now)  # first: what comes from one that trained apart is not taken at once
        self._absorb(self.links.heard(peer, direction, frame, now), now)
        if direction == "out" and isinstance(frame, Ack):
            self.rounds.throughput.answered(peer, now)
        if isinstance(frame, Open) and self.phase == "seeking":
            self._refuse_outdated(peer, now)

    def _refuse_outdated(self, src: PeerId, now: float) -> None:
        """On a new stream, before an old model is sent over it once more."""
        self.seats.opened(src, now)
        if self.seats.is_outdated(src):
            self._absorb(self.links.refuse(src, OUTDATED), now)

    # --- rounds ----------------------------------------------------------------------------------

    def _open_next(self, now: float) -> None:
        """Open the next one, unless there is nobody yet to train with."""
        if self.phase != "training" or self.rounds.is_open or self.rounds.starting_over:
            return
        if len(self.rounds.view) < 2 and not self.company:
            return
        self._absorb(self.rounds.open(now), now)
        if self.rounds.is_open:
            self._deliver_early(now)
        elif self.rounds.done:
            self._finish(now)

    def _closed(self, event: Closed, now: float) -> None:
        self._weigh(event.weight)
        if self.rounds.closed(event, self._unanswered.rounds()):
            self._open_next(now)

    # --- reunions --------------------------------------------------------------------------------

    def _meet_again(self, now: float) -> None:
        """Members that trained apart are back: is it this node's turn to look at a model of theirs?"""
        self._effects += self.giving.show_all()
        linked = partial(self.links.has_stream, direction="in")
        peer = self.reunions.due(self.rounds.view, linked, now)
        if peer is not None:
            self._note("looks at the model of one it was parted from", peer=peer)
            self.upkeep.expect(peer, now)
            self._effects.append(Tell(peer, ShowMe()))
        if self.reunions.overdue(now):
            self._reunite(Reunion(()), now)

    def _looked(self, peer: PeerId, round_: int, near: bool, now: float) -> None:
        if peer not in self.reunions.estranged:
            return
        waits = self.agreement is None  # on an agreed graph all go to the furthest round
        verdict = self.reunions.judge(near, self.rounds.view, self.key.round, round_, waits=waits)
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
            self.reunions.settle(now)
            self._seen = -1
        else:
            self.reunions.yields(verdict)

    # --- generations -----------------------------------------------------------------------------

    def _agree(self, agreement: Agreement, now: float) -> None:
        """Answer what came too early, and propose a generation when the members have changed."""
        for parcel in agreement.overdue(self.phase == "training"):
            self._refuse(parcel, now)
        self._effects += self.rounds.give_up_end(now)
        if self.rounds.may_propose():
            self._effects += self.rounds.propose(agreement, now)
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        """A newer generation may have been heard of, or proposed."""
        if self.rounds.is_open:
            self._effects += self.rounds.hurry()
        else:
            self._open_next(now)

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
        self._go_on(now)

    def _correct(self, peer: PeerId, now: float) -> None:
        if self.agreement is not None:
            self._effects += self.agreement.correct(peer, now)

    def _sorted_out(self, parcel: Deliver, now: float) -> bool:
        """Is this parcel not for the learner, or not yet? Mass goes back to one that trained apart while
        nobody has said that it may be mixed; whole models are of their generation."""
        if parcel.delivery == "mass":
            reason = "we trained apart" if self.reunions.refuses(parcel.src) else ""
            if self.phase == "seeking" and self.seats.is_outdated(parcel.src):
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
        elif verdict == "keep" and self.rounds.is_open:
            self._effects += self.rounds.expect_senders()
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
        ending = self.rounds.ending
        self._finished = Finished(self.links, ending, now)
        self._publish(phase="finished")
        self._learner(Finish())
        if ending is not None and self.company and ending.is_alone:
            self._note("finishes alone: the others have gone", "warning")
        self._note("session finished", round=self.key.round)
        for peer in self.giving.promise_final(ending) if ending is not None else ():
            self._give(peer, now)

    def _came_late(self, now: float) -> None:
        self._note("came too late to train: is given the final model")
        self._finish(now)

    # --- membership ------------------------------------------------------------------------------

    def _told_here(self, event: Measured | Sketched | Block, now: float) -> None:
        """By the driver, of this device and what it sees."""
        match event:
            case Measured():
                self._measured(event, now)
            case Sketched(round_, layout, body) if self.phase == "training":
                self.gossip.sketches.limit(self.spending.bytes_per_min)
                self.gossip.sketches.took(Sketch(self.life, round_, layout, body), now)
            case Block(peers):
                self.members.blocked = peers

    def _alive(self, peer: PeerId, now: float) -> None:
        self.seats.heard(peer, now)
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
        alive = self.members.alive()
        self._absorb(self.links.lives({r.peer: r.life for r in alive}), now)
        lives = {r.peer: r.life for r in alive if r.phase == "training"}
        self.gossip.sketches.watch(lives)
        self.reunions.watch(lives, now)
        self.reunions.ended({r.peer: r.life for r in self.members.records()})
        if self.phase == "training":
            self.giving.train(lives)
        if self.phase in ("idle", "seeking"):
            self.reunions.settle(now)
        view = tuple(sorted(lives.keys() - self.reunions.estranged))
        self.company = self.company or len(view) > 1
        self._absorb(self.rounds.watch(view, self.reunions.estranged, now), now)
        self._open_next(now)

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
                case LinkUp(peer, "out") if self.giving.is_due(peer):
                    self._grant(peer, now)
                case LinkUp(peer, "in"):
                    self.rounds.pace.forget_rounds(peer)  # in a new life they may go backwards
                    self._unanswered.begins_anew(peer)
                case Deliver():
                    self._unanswered.given(command)
                case Acked(dst) if self._leaving is not None and dst == self._leaving.heir:
                    self._check_handed()
                case Returned(dst) | LinkDown(dst, "out") if self._leaving is not None:
                    self._leaving.came_back(dst)

    def _took(self, src: PeerId, key: Key, now: float, *, half: bool) -> None:
        """The learner has accepted a message of this round from `src`."""
        unplaced = self.generations is not None and self.generations.current is None
        if self.terms.rounds and unplaced and key.phase == FINAL and self.phase == "training":
            self._came_late(now)
            return
        self.rounds.took(src, key, now, half=half)

    # --- time ------------------------------------------------------------------------------------

    def _notice_gap(self, now: float) -> None:
        """Ticks have not come: this device was suspended or stopped. Whatever comes first afterwards is heard
        with that in mind."""
        gap = now - self._ticked_at
        if gap > STALL_S and math.isfinite(gap):
            self._ticked_at = now
            self.rounds.pace.stood_s += gap
            self._stood(gap, now, clock_ran=True)

    def _stood(self, seconds: float, now: float, *, clock_ran: bool) -> None:
        self._effects += self.gossip.stood(seconds, clock_ran=clock_ran)
        self.seats.stood()
        self.reunions.stood(seconds, now)
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
        self._absorb(self.upkeep.tick(self.members.others(), self.rounds.pace.uses, now), now)
        if self._finished is not None and self._finished.is_over(self.giving.promised, now):
            self._say_goodbye()

    # --- leaving ---------------------------------------------------------------------------------

    def _leave(self, event: Leave, now: float) -> None:
        if self._leaving is not None:
            return
        self._leaving = Leaving(self.members, self.links, self.upkeep, now)
        self._reason = "paused" if event.pause else "left"
        self._absorb(self.links.refuse_all(), now)
        self.rounds.stop()
        self._learner(TakeAll())
        self._absorb(self.upkeep.leave(), now)  # what was never sent is handed over as well
        self._publish(phase="leaving")

    def _hand_over(self, leaving: Leaving, now: float) -> None:
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
