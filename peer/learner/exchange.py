"""The learner's half of a session: algorithm and codec, as a pure state machine.

It answers its node at once, whatever the training thread does, and meets the training thread in two calls:
`submit` takes the model's change of the last local steps, `take` gives the mixed model once the round has
closed. The daemon's node sits behind the local socket for `attach`, or in the same process in a rehearsal.

    seeking --Found, or any mass--> training --HandOver--> left
                                       |--Finish--> finished

Two things keep neighbors at one pace without a clock, unless messages are of no round. A round is not pushed
while a parcel to one of its out-neighbors is unacknowledged (`Held`): its share would stay home, and the
neighbor would wait for nothing. And what one neighbor sends too far ahead is put off (incoming.py). What goes
out in a round that may not take as many bytes as it would is for sending.py to say.

Nothing here reads a clock or draws a random number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from peer.algorithms.base import ESTATE, SNAPSHOT, Algorithm, LocalSteps, Message
from peer.compression.bodies import Layout
from peer.errors import RemoteError, UnknownBaseError
from peer.events import (
    FINAL,
    Acked,
    Closed,
    Deadline,
    Deliver,
    Expect,
    Finish,
    Found,
    FromLearner,
    HandOver,
    Held,
    Holds,
    Key,
    LinkDown,
    LinkUp,
    OpenRound,
    PeerId,
    Pushed,
    Rejected,
    Renew,
    Returned,
    Sponsor,
    TakeAll,
    Taken,
    ToLearner,
)
from peer.learner.early import Early
from peer.learner.incoming import Incoming
from peer.learner.look import Look
from peer.learner.outgoing import Outgoing
from peer.learner.portions import FRAMES_BYTES
from peer.learner.sending import Sending

State = Literal["seeking", "training", "finished", "left"]


class Resume(NamedTuple):
    """A model of this device's own to begin with again, its round, and what the algorithm had besides it."""

    model: Tensor
    round: int
    own: Mapping[str, Tensor] = {}


Change = Tensor | LocalSteps
"""What local steps have come to: the model's change u, or the models before and after."""


class Exchange:
    """One learner's exchanges. `initial` is the flat model every member derives from the session's seed; a
    new life of a learner whose last one had no more use for it is without, and has `resume`.

    `resume`, when set, is this device's own checkpoint: what `Found(resume=True)` begins with.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: Layout,
        initial: Tensor | None,
        *,
        lockstep: bool = True,
        resume: tuple[Tensor, int] | Resume | None = None,
    ) -> None:
        self.algorithm, self.layout = algorithm, layout
        self.lockstep = lockstep
        self.resume = None if resume is None else Resume(*resume)
        first = initial if initial is not None else self.resume.model if self.resume is not None else None
        assert first is not None, "a learner begins with the initial model or with its own"
        self.dtype = first.dtype
        self.outgoing = Outgoing(layout)
        self._sending = Sending(algorithm, self.outgoing, lockstep=lockstep)
        # a driver may send messages here, before anybody reads the model they are made of; it gives the rest
        self.emit: Callable[[list[FromLearner]], list[FromLearner]] = lambda sent: sent
        self._incoming = Incoming(layout, self.dtype, lockstep=lockstep)
        self.state: State = "seeking"
        if initial is not None:
            algorithm.know(initial)
        self.key = Key()  # the round being worked on, or the last one
        self.open = False  # a round is open: submit() is allowed
        self._final = False
        self._pushed = self._halfway = False
        self._closed: Key | None = None
        self._held: tuple[Change, float] | None = None  # a change to be pushed when its links are clear
        self._weight = 0.0  # before the open round's push
        self._worked_s = 0.0  # of the last local steps
        self._leaving = False  # nothing is put off any more
        self._round: OpenRound | None = None
        self._mixed: Tensor | None = None
        self._idle = False  # what is held, if anything is, is of a round without local steps
        self._owes = False  # what the training thread handed over last has not been answered with a model
        self._look: Look | None = None
        self._heir: PeerId | None = None
        self._asked: list[Sponsor] = []  # by newcomers, in the middle of a round

    # --- the training thread's two calls ---------------------------------------------------------

    def submit(self, u: Change, lr: float, now: float, worked_s: float = 0.0) -> Sequence[FromLearner]:
        """Hand over the model's change since `take` last gave one; only while `open`.

        u: flat, the session's dtype, or the model that `take` gave and the one it has become. lr: the
        learning rate of these steps. worked_s: how long they took; 0 is not known. In lockstep the round
        closes when the expected in-neighbors are heard; else at once.
        """
        self._worked_s = worked_s
        if self._final or self.state != "training":
            return []  # the session ended under this local step: its change is not part of it
        if not self.open:
            raise AssertionError(f"submit() with no round open (last key {self.key})")
        self._owes, self._idle = True, False
        return self._exchange(u, lr, now)

    def missed(self) -> None:
        """A change was handed over for a round that is not open any more, since another graph's has come: it
        comes to nothing, and whoever waits is given a model when there is a round for local steps again."""
        self._owes = True

    def take(self) -> Tensor | None:
        """The mixed model of the round that closed, once; None while there is none."""
        mixed, self._mixed = self._mixed, None
        self._owes = self._owes and mixed is None
        return mixed

    def take_look(self) -> Look | None:
        """A model that a neighbor has shown, once: is it near to the own one? `Looked` is the answer."""
        look, self._look = self._look, None
        return look

    def estimate(self) -> Tensor:
        """The model a user would deploy now: flat, the session's dtype."""
        if self.algorithm.model is not None:
            return self.algorithm.estimate()
        assert self.initial is not None, "it has given its model away"
        return self.initial

    def kept(self, round_: int) -> Resume | None:
        """What to resume from after a restart, as of this round; None while there is no model."""
        if self.algorithm.model is None:
            return None
        return Resume(self.algorithm.estimate(), round_, self.algorithm.own())

    @property
    def initial(self) -> Tensor | None:
        """The initial model, as long as the algorithm has a use for it."""
        return self.algorithm.x0

    @property
    def position(self) -> int:
        """The round that the next change is for."""
        handed_over = self._pushed or self._held is not None or self._closed == self.key
        return self.key.round + handed_over

    @property
    def lr_scale(self) -> float:
        """What the local steps' learning rate is to be multiplied with."""
        return self.algorithm.lr_scale

    def unacknowledged(self) -> dict[PeerId, Message]:
        """What is sent and not yet acknowledged, by destination."""
        return dict(self.outgoing.unacknowledged)

    # --- the node's side -------------------------------------------------------------------------

    def handle(self, command: ToLearner, now: float) -> Sequence[FromLearner]:
        """Answer one command of the node. Never waits."""
        match command:
            case Found():
                return self._begin(command)
            case OpenRound():
                return self._open(command, now)
            case Expect(key, expected):
                if key == self.key and self._pushed:
                    self.algorithm.expect(frozenset(expected))
                return self._try_close(now)
            case Deadline(key, half) if key == self.key:
                return self._give_up(now, half=half)
            case Deliver():
                return self._deliver(command, now)
            case Acked(dst):
                return self._acked(dst, now)
            case Returned(dst):
                return self._returned(dst, now)
            case LinkUp() | LinkDown():
                return self._on_link(command, now)
            case TakeAll():
                self._leaving = True
                return self._take_later(now)
            case Sponsor():
                return self._sponsor(command)
            case HandOver(dst):
                return self._hand_over(dst)
            case Finish():
                return self._finish(now)
        return []

    def _give_up(self, now: float, *, half: bool) -> Sequence[FromLearner]:
        if self._held is not None:
            return self._push_all(*self._held, now)
        if not self._pushed or (self._halfway and not half):
            return []  # what was waited for has come since, and the second half has begun
        second = self._second_half(late=True)
        return [*second, *self._try_close(now)] if second else self._close(now)

    def _finish(self, now: float) -> Sequence[FromLearner]:
        answers = [*self._take_later(now), *self._sponsor_all()]
        self.state, self.open, self._held = "finished", False, None
        self.key = replace(self.key, phase=FINAL)  # of what is given to those who come late
        self._mixed = self.algorithm.conclude() if self.algorithm.model is not None else None
        return answers

    def _begin(self, command: Found) -> Sequence[FromLearner]:
        if self.state != "seeking":
            return []
        if command.resume and self.resume is not None:
            self.key = self._closed = Key(round=self.resume.round)
            self.algorithm.begin(self.resume.model, 1.0)
            self.algorithm.restore(self.resume.own)
        else:
            self.algorithm.begin(self._first(), 1.0)
        return [self._now_training()]

    def _first(self) -> Tensor:
        """The model of a founder: the initial one, or what its last life had."""
        if self.initial is not None:
            return self.initial
        assert self.resume is not None
        return self.resume.model

    def _now_training(self) -> Holds:
        self.state, self.resume = "training", None
        self._mixed = self.algorithm.mix()
        return self._holds()

    def _holds(self) -> Holds:
        whole = self.layout.d * self.dtype.itemsize + 2 * FRAMES_BYTES
        return Holds(self.algorithm.bases, self.algorithm.weight, self.algorithm.room, whole)

    def _open(self, command: OpenRound, now: float) -> Sequence[FromLearner]:
        over = command.key < self.key or (self._closed is not None and command.key <= self._closed)
        if self.state != "training" or over or (command.key == self.key and self._pushed):
            return []
        self._round, self.key = command, command.key
        self._pushed = False
        self.algorithm.open(self._sending.links(command))
        self._drop_stale()
        if self._idle and not self.algorithm.still:
            self._held = None  # this one is to have local steps, which that had none of
        self.open = self._held is None and not self.algorithm.still
        if self.open and self._owes and self._mixed is None:
            self._mixed = self.algorithm.estimate()  # a new graph: that exchange has come to nothing
        answers = self._take_later(now, self._is_ahead)  # a round that was jumped to may be what they are of
        if self._held is not None:
            return [*answers, *self._exchange(*self._held, now)]
        self._final = self._final or command.key.phase == FINAL
        if self._final or self.algorithm.still:
            self._idle = not self._final
            nothing = torch.zeros(self.layout.d, dtype=self.dtype)
            return [*answers, *self._exchange(nothing, 0.0, now)]
        return answers

    def _exchange(self, u: Change, lr: float, now: float) -> Sequence[FromLearner]:
        """Push this round, in lockstep as soon as the links it uses are clear."""
        self.open, r = False, self._round
        assert r is not None
        in_turn = self.lockstep and (not self.algorithm.roundless or self._final)
        if in_turn and (waiting := self.outgoing.busy(r.out)):
            self._held = (u.laid() if isinstance(u, LocalSteps) else u, lr)
            return [Held(self.key, waiting)]
        return self._push_all(u, lr, now)

    def _push_all(self, u: Change, lr: float, now: float) -> Sequence[FromLearner]:
        self._held, self.open, self._pushed, self._halfway = None, False, True, False
        self._weight, r = self.algorithm.weight, self._round
        assert r is not None
        links, still = self._sending.affordable(r), self.algorithm.still
        if isinstance(u, LocalSteps):
            messages = self.algorithm.step_to(u, lr, links, now)
        else:
            messages = self.algorithm.step(u, lr, links, now)
        sent, held_back = self._sending.send(r, messages, final=self._final)
        sent = self.emit(sent)
        worked_s, self._worked_s = self._worked_s, 0.0  # rounds without local steps follow, perhaps
        return [
            *sent,
            Pushed(self.key, held_back, still, worked_s),
            *self._renewed(),
            *self._try_close(now),
        ]

    def _retry(self, now: float) -> Sequence[FromLearner]:
        """A link is clear, or gone: push what waited for it."""
        if self._held is None or self.state != "training":
            return []
        return self._exchange(*self._held, now)

    def _renewed(self) -> list[FromLearner]:
        return [Renew(dst) for dst in self.algorithm.evicted()]

    def _try_close(self, now: float) -> Sequence[FromLearner]:
        second = self._second_half()
        if second:
            return [*second, *self._try_close(now)]
        if self._final and self.outgoing.unsent:
            return []  # the next round's message would take the place of this one's, and no sum be whole
        if self._pushed and (not self.lockstep or self.algorithm.ready()):
            return self._close(now)
        return []

    def _second_half(self, *, late: bool = False) -> list[FromLearner]:
        """What the algorithm sends in the middle of the open round, if it does and that is due."""
        messages = self.algorithm.second(late=late) if self._pushed else None
        if messages is None:
            return []
        self._halfway = True
        ready = self.outgoing.ready(messages, too=True)
        sent = [push for dst, message in ready.items() for push in self.outgoing.send(dst, message)]
        return [*sent, Pushed(self.key, half=True)]

    def _close(self, now: float) -> Sequence[FromLearner]:
        self._pushed, self._closed = False, self.key
        heard = tuple(sorted(self.algorithm.heard))
        mixed = self.algorithm.mix()
        if not self._final and not self.algorithm.still:
            self._mixed = mixed
        # with pace "free" what is pushed is missing until mail comes in, mostly between two rounds: what
        # this node trains with, and w̄ is the mean of, is the weight before the push
        weight = self.algorithm.weight if self.lockstep else self._weight
        self._incoming.mixed()
        answers = [Closed(self.key, heard, weight), *self._take_later(now, self._is_ahead)]
        return [*answers, *self._sponsor_all()]

    def _is_ahead(self, src: PeerId, key: Key) -> bool:
        return self._incoming.is_ahead(src, key, self.key)

    def _take_later(
        self, now: float, keep: Callable[[PeerId, Key], bool] = lambda src, key: False
    ) -> Sequence[FromLearner]:
        """Take over the parcels put off, but for those to `keep`."""
        due = self._incoming.due(keep)
        return [answer for command in due for answer in self._deliver(command, now, late=True)]

    def _deliver(self, command: Deliver, now: float, *, late: bool = False) -> Sequence[FromLearner]:
        src, name = command.src, (command.src, command.epoch, command.number)
        if self.state in ("left", "finished"):
            return [Rejected(*name, "this learner is leaving", fault=False)]
        if isinstance(command.payload, Early) and command.payload.lost:
            return [Taken(*name)]  # its round was closed without it, as late
        try:
            message = self._incoming.decoded(command)
            if message.meaning == SNAPSHOT and message.weight == 0:
                self._look = Look(src, message.key.round, message.body.dense())
                return [Taken(*name)]
            at_once = late or self._leaving or self.state != "training" or message.meaning == ESTATE
            # the newest counts, wherever this node is; and what is of no round
            at_once = at_once or message.delivery == "latest" or self.algorithm.roundless
            at_once = at_once or (message.meaning, message.key.phase) == (SNAPSHOT, FINAL)  # no round follows
            if not at_once and self._is_ahead(src, message.key):
                self._incoming.put_off(command)
                return []
            replies = self.algorithm.receive(src, message, now)
        except UnknownBaseError as error:
            return [self._holds(), Rejected(*name, str(error), fault=False)]  # what its next epoch builds on
        except RemoteError as error:
            return [Rejected(*name, str(error))]
        self._incoming.took(src, message)
        answers: list[FromLearner] = [Taken(*name, self.algorithm.has_second(message)), *self._renewed()]
        answers += [push for dst, reply in replies.items() for push in self.outgoing.send(dst, reply)]
        if self.state == "seeking" and self.algorithm.weight > 0:
            self.key = replace(message.key, generation=0)  # the first round here may be of any
            answers.insert(0, self._now_training())
        return [*answers, *self._try_close(now)]

    def _acked(self, dst: PeerId, now: float) -> Sequence[FromLearner]:
        message = self.outgoing.settle(dst)
        if message is not None:
            self.algorithm.settled(dst, message)
        if self.state == "left" and dst == self._heir:
            return self._give_all()
        return [*self.outgoing.go_on(dst), *self._retry(now)]

    def _returned(self, dst: PeerId, now: float) -> Sequence[FromLearner]:
        message = self.outgoing.settle(dst)
        if message is None:
            return []
        self.algorithm.returned(dst, message)
        self._take_back(dst)
        return [self._holds(), *(self._give_all() if self.state == "left" else self._retry(now))]

    def _take_back(self, dst: PeerId) -> None:
        """What has waited to follow it does not go out any more."""
        for message in self.outgoing.never_sent(dst):
            self.algorithm.returned(dst, message)

    def _drop_stale(self) -> None:
        """Another generation: what has waited for a link since the one before has no reader."""
        for dst in self.outgoing.waited_for:
            for message in self.outgoing.never_sent(dst, self.algorithm.is_stale):
                self.algorithm.returned(dst, message)

    def _on_link(self, change: LinkUp | LinkDown, now: float) -> Sequence[FromLearner]:
        # what was put off builds on the state that goes now
        answers = self._take_later(now, lambda src, _: change.direction == "out" or src != change.peer)
        if change.direction == "out":
            if isinstance(change, LinkDown) or self.outgoing.link(change.peer) is not None:
                self._take_back(change.peer)
            if isinstance(change, LinkUp):
                unsent = [one for one in self.outgoing.link_up(change) if one.key == self.key]
                answers = [*answers, *(self.outgoing.push(change.peer, message) for message in unsent)]
                answers += self._try_close(now) if unsent else []
            else:
                self.outgoing.link_down(change.peer)
        self.algorithm.on_links(change)
        if change.direction == "in":
            return answers
        return [*answers, *self.outgoing.go_on(change.peer), *self._retry(now)]

    def _sponsor_all(self) -> list[FromLearner]:
        asked, self._asked = self._asked, []
        return [answer for command in asked for answer in self._sponsor(command)]

    def _sponsor(self, command: Sponsor) -> Sequence[FromLearner]:
        """Give a newcomer a model, or show it. In the middle of a round it would be this node's own local
        steps on the last mixed one: it is given the next mixed one."""
        dst = command.dst
        if self._pushed and self.lockstep and not command.show:
            self._asked.append(command)
            return []
        link = self.outgoing.link(dst)
        if self.state not in ("training", "finished") or link is None or not self.outgoing.is_clear(dst):
            return []
        if command.show:
            return [self.outgoing.push(dst, self.algorithm.show(self.key))]
        message = self.algorithm.sponsor(dst, self.key, link.bases)
        return [self.outgoing.push(dst, message), self._holds()]

    def _hand_over(self, dst: PeerId | None) -> Sequence[FromLearner]:
        self.state, self.open, self._held, self._heir = "left", False, None, dst
        for waited_for in self.outgoing.waited_for:
            self._take_back(waited_for)
        return self._give_all()

    def _give_all(self) -> Sequence[FromLearner]:
        """All mass to the heir, once its link is clear. Holds with weight 0 says that nothing is left."""
        heir = self._heir
        if heir is None or self.algorithm.weight == 0:
            return [Holds((), 0.0)]
        if not self.outgoing.is_clear(heir):
            return []  # the last round's message is on its way there; or the node is about to name another
        return [self.outgoing.push(heir, self.algorithm.hand_over(self.key)), Holds((), 0.0)]
