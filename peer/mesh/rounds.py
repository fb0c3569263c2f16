"""The rounds of one node: which is open, with whom, and when waiting is no longer worth it.

    next --open--> open [held] --Pushed--> pushed --Closed--> the next, or done

The learner does the work of a round; here it is told whom it exchanges with (neighbors.py), whom it can still
expect as members come and go, and to close without those that take too long (pace.py). Who is far behind goes
to the round that the others are at. Where all agree on a graph a round belongs to its generation: a newer one
is taken up between two rounds, and the last rounds come to their end together (ending.py).

All methods that return effects leave it to the node to pass them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from peer.events import (
    FINAL,
    TRAIN,
    Closed,
    Deadline,
    Effect,
    Expect,
    ForLearner,
    Held,
    Key,
    Note,
    OpenRound,
    PeerId,
    Pushed,
    StartOver,
)
from peer.mesh.agreement import Agreement
from peer.mesh.ending import Ending
from peer.mesh.generations import Generations
from peer.mesh.gossip import Gossip
from peer.mesh.links import Links
from peer.mesh.neighbors import Neighborhood
from peer.mesh.pace import Pace
from peer.mesh.terms import Terms
from peer.mesh.throughput import Throughput
from peer.mesh.upkeep import Upkeep

LATE_ROUNDS = 8  # on an agreed graph a neighbor that is behind goes to this node's round: worth a wait; guess
MAX_JUMP = 1 << 16  # rounds at a time, whatever a neighbor says: three hours of rounds of 0.2 s (guess)


class Rounds:
    """Read-only from outside: all without an underscore."""

    def __init__(
        self, terms: Terms, gossip: Gossip, links: Links, upkeep: Upkeep, agreement: Agreement | None
    ) -> None:
        """agreement: on the graph, where the algorithm needs one that all agree on."""
        self.terms, self.me = terms, gossip.members.me.peer
        self._gossip, self._members = gossip, gossip.members
        self._links, self._upkeep, self._agreement = links, upkeep, agreement
        self._beside = Neighborhood(terms, self._members, agreement)
        self.pace, self.throughput = Pace(late_is_lost=agreement is not None), Throughput()
        self.ending: Ending | None = None
        if agreement is not None:
            self.ending = Ending(self.me, self._members, agreement.generations)
        self.key = Key()  # the round being worked on, or to be opened next
        self.is_open = self.done = False  # done: the last one is over
        self.starting_over = False  # the learner is told to: others have ended without it
        self.alone = 0  # closed with nobody heard though somebody was to send, in a row
        self.alone_total = 0
        self.missed: frozenset[PeerId] = frozenset()  # expected and not heard in the round closed last
        self._allowance: int | None = None  # bytes that the open round's messages may take
        self._sending: set[PeerId] = set()  # whom the open round has sent something
        self._effects: list[Effect] = []

    @property
    def view(self) -> tuple[PeerId, ...]:
        """Whom this node trains with, itself too."""
        return self._beside.view

    @property
    def generations(self) -> Generations | None:
        """What is known of the graph that all agree on; None where the algorithm needs none."""
        return self._beside.generations

    def at_learner_s(self, now: float) -> float:
        """For how long the open round has waited for this device's own learner, s; 0: it does not."""
        held = self.pace.held is not None and any(map(self._links.unacked, self.pace.held.dsts))
        its_turn = self.pace.overdue or (self.pace.pushed_at is None and not held)
        return self.pace.began(now) if self.is_open and its_turn else 0.0

    # --- which round ---------------------------------------------------------------------------------

    def forget(self) -> None:
        """A life of the learner begins, without a model."""
        self.key, self.starting_over = Key(), False
        self.pace.forget_rounds()

    def begin(self, key: Key) -> None:
        """The next to be opened is this one."""
        self.key = key

    def open(self, now: float) -> list[Effect]:
        """Open the next one, if there is one and this node has a place in it. None is open."""
        self.done = False
        final = 0 < self.terms.rounds <= self.key.round
        if self._agreement is not None and not self._take_up(self._agreement, final=final):
            return self._take()
        if final:
            self.done = self.key.round >= self.terms.rounds + self._beside.final_rounds()
            if self.done:
                return self._take()
        generation = self.generations.number if self.generations is not None else 0
        self.key = Key(generation, self.key.round, FINAL if final else TRAIN)
        self.is_open = True
        self._allowance, self._sending = self._links.spending.open_round(final=final), set()
        self.pace.open(self.key, now)
        self._announce(now)
        return self._take()

    def stop(self) -> None:
        """No more, until there is a model again."""
        self.is_open = False
        self.pace.close()

    def closed(self, event: Closed, waiting: Mapping[PeerId, int]) -> bool:
        """Was that the open round? Then there is a next. waiting: rounds of parcels that the learner has."""
        if event.key != self.key or not self.is_open:
            return False
        self.stop()
        alone = not event.heard and (self._beside.has_senders or self._beside.is_by_itself)
        self.alone = self.alone + 1 if alone else 0
        self.alone_total += alone
        self.missed = self._beside.expected - set(event.heard)
        self.key = self._next_key({src: round_ for src, round_ in waiting.items() if src in self.view})
        return True

    def _take_up(self, agreement: Agreement, *, final: bool) -> bool:
        """The newest generation. Is there any with a place for this node?"""
        before = agreement.generations.current
        taken_up = agreement.take_up()
        self._effects += taken_up
        if agreement.generations.current is None:
            return False
        if final and taken_up and self.ending is not None:
            # final rounds begin at the same one for all its members
            self.key = replace(self.key, round=self.terms.rounds)
            self.ending.broke_off(before)
        return True

    def _next_key(self, waiting: Mapping[PeerId, int]) -> Key:
        """The round after this one; when far behind the others, the one they are at."""
        if self.generations is not None:
            # a message of another round is of no use: go where the neighbor is that is furthest on
            ahead = min(self.pace.furthest(self.key.generation), self.key.round + MAX_JUMP)
            return Key(self.key.generation, max(self.key.round + 1, ahead))
        cycle = self._beside.cycle()
        ahead = self.pace.median(self.view, cycle, waiting)  # no single member sets the pace
        round_ = self.key.round + 1
        # A cycle of links leads to everybody, so that a neighbor in step is no further ahead. What comes from
        # further ahead would wait here, and round a ring the waits add up until models hardly mix.
        far = cycle - 1
        return Key(self.key.generation, ahead if ahead > round_ + far else round_)

    # --- with whom -----------------------------------------------------------------------------------

    def watch(self, view: tuple[PeerId, ...], apart: frozenset[PeerId], now: float) -> list[Effect]:
        """Records of members have changed. view: whom to train with; apart: whom not, though they train."""
        before = self.view
        self._beside.watch(view, apart)
        if self.ending is not None:
            self.ending.watch()
        if view != before:
            if self.generations is not None:
                self.generations.watch(view, now)
            self.pace.view_changed(set(before) - set(view), now)
        if not self.is_open:
            return []
        if self.pace.pushed_at is not None or self.key.phase == FINAL:
            return self.expect_senders()
        if view != before:
            self._announce(now)
        return self._take()

    def expect_senders(self) -> list[Effect]:
        """Tell the learner if fewer can be expected."""
        if not self._beside.are_fewer(self.key):
            return []
        return [ForLearner(Expect(self.key, self._expected))]

    def _announce(self, now: float) -> None:
        beside = self._beside.draw(self.key)
        for dst in beside.dsts:
            self._effects += self._upkeep.need(dst, now)
        for src in beside.srcs:
            if not self._links.has_stream(src, "in"):
                self._upkeep.expect(src, now)
        graph = beside.graph
        opened = OpenRound(
            self.key,
            beside.out,
            self._expected,
            beside.n,
            beside.mean_weight,
            beside.trees,
            beside.mean_delay,
            self._allowance,
            beside.aligning,
            self.throughput.hides(beside.out),
            *((graph.spec, graph.place, graph.parents) if graph is not None else ()),
        )
        self._effects.append(ForLearner(opened))

    @property
    def _expected(self) -> tuple[PeerId, ...]:
        return tuple(sorted(self._beside.expected))

    # --- how long ------------------------------------------------------------------------------------

    def hold(self, event: Held, now: float) -> None:
        if event.key == self.key and self.is_open:
            self.pace.hold(event, now)

    def sends(self, dst: PeerId, key: Key) -> None:
        """The learner has a message of this round for `dst`."""
        if key == self.key:
            self._sending.add(dst)

    def pushed(self, event: Pushed, now: float) -> list[Effect]:
        if event.worked_s > 0:
            self.throughput.worked(event.worked_s)
        if event.key != self.key or not self.is_open:
            return []
        if event.half:
            self.pace.push_second(event.key, now)
            return [ForLearner(Expect(event.key, self._expected))]
        sent = self._sending.difference(event.held_back)
        self._links.spending.close_round(len(event.held_back), len(sent))
        still, worked_s = event.still, event.worked_s
        self.pace.push(event.key, self._links.unacked, now, still=still, worked_s=worked_s)
        # it may have pushed by an older view
        return [ForLearner(Expect(event.key, self._expected))]

    def took(self, src: PeerId, key: Key, now: float, *, half: bool = False) -> None:
        """The learner has accepted a message of round `key` from `src`. half: and waits for a second one."""
        behind = self._beside.cycle() if self.generations is None else LATE_ROUNDS
        view = self.view if self.terms.lockstep else ()
        self.pace.took(src, key, self.key, now, behind=behind, view=view, half=half)

    def check(self, now: float) -> list[Effect]:
        """A round that waits for acknowledgements is pushed without those that take too long, and closed
        without the neighbors that do."""
        if not self.is_open:
            return []
        if self.pace.held is not None:
            late = [dst for dst in self.pace.held.dsts if self._links.unacked(dst)]
            alive = {record.peer for record in self._members.alive()}
            if self.pace.gives_up_acks(late, alive, partial(self._is_absent, now), now):
                self._effects.append(ForLearner(Deadline(self.key)))
        end = self._end
        if end is not None and (end.is_broken(self._lacking()) or end.is_in_doubt()):
            self.pace.put_off(now)
        if self.terms.lockstep and not self.starting_over:
            going = self.generations is not None and self.generations.pending
            whole = self.generations is not None and self.generations.kind == "undirected"
            absent = partial(self._is_absent, now)
            without = self.pace.gives_up(self._expected, absent, now, going=going, whole=whole)
            if without and end is not None and end.finished():
                self._be_given_final()
            elif without is not None:
                fields: dict[str, object] = {"peers": ",".join(without), "round": self.key.round}
                deadline = Deadline(self.key, self.pace.halfway)
                self._effects += [Note("closes without", fields, "debug"), ForLearner(deadline)]
        return self._take()

    def _is_absent(self, now: float, peer: PeerId, ask: bool, quiet_s: float) -> bool:
        """Does this neighbor give no sign of life? ask: for one, if it has been quiet for so long."""
        if ask:
            self._effects += self._gossip.missing(peer, now, quiet_s=quiet_s)
        return self._gossip.absent(peer, now)

    # --- on which generation -------------------------------------------------------------------------

    def may_propose(self) -> bool:
        """Who proposes in a bounded session has local steps to do on its generation: without its messages
        that one's final rounds come to no end, so nobody finishes on it while others take up the next. Nor
        do they where one has gone."""
        if self.starting_over or self.ending is None or self._members.me.phase != "training":
            return False
        if self.generations is not None and self.generations.current is not None:
            return self._end is None or self._end.is_broken(self._lacking())
        return not self.terms.rounds or not self.ending.is_seated_elsewhere(self.view)

    def propose(self, agreement: Agreement, now: float) -> list[Effect]:
        """A generation, when the members have changed."""
        doubt = any(self._members.suspicion(peer) is not None for peer in self.view)
        return agreement.propose(self._members.alive(), self.view, now, doubt=doubt)

    def hurry(self) -> list[Effect]:
        """To a newer generation, if there is one: at the next round, which in final rounds is now."""
        going = self.generations is not None and self.generations.pending
        if self._end is not None and going and not self.pace.overdue:
            self.pace.overdue = True
            self._effects.append(ForLearner(Deadline(self.key, self.pace.halfway)))
        return self._take()

    def give_up_end(self, now: float) -> list[Effect]:
        """Final rounds that others have come to the end of without this node."""
        end = self._end
        if end is not None and end.is_overtaken(self._lacking(), self.pace.began(now)):
            self._be_given_final()
        return self._take()

    def _be_given_final(self) -> None:
        """Another mean than theirs is not to be computed."""
        if not self.starting_over:
            self.starting_over = True
            note = Note("starts over: others have finished without it", {}, "warning")
            self._effects += [note, StartOver()]

    @property
    def _end(self) -> Ending | None:
        """In final rounds on an agreed graph: what is known of their end."""
        training = self._members.me.phase == "training"
        return self.ending if training and self.key.phase == FINAL else None

    def _lacking(self) -> list[PeerId]:
        return self.pace.lacks(self._expected)

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
