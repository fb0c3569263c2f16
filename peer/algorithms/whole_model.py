"""What algorithms share whose messages are whole models: nothing moves, and what is lost is sent anew.

    local steps     u_i, the change of x_i by them
    send            something made of y_i = x_i + u_i to every neighbor, as `latest`: never acknowledged or
                    returned
    mix             x_i <- something made of both and of what the neighbors sent

x_i is the model of a node; its weight is 1, and 0 before it has one. There is no mass to conserve: a sponsor
or a leaver gives its model away and is no poorer, and whoever has a model already ignores a leaver's.

A message is of one round of one generation. In lockstep it counts in that round; one that is ahead waits for
it, the newest of each neighbor only; a late one is lost, as in the papers. With pace "free" the last message
of each neighbor counts, whatever its round in the generation, in every round until the next one comes. Who
has no room for a round's message says so, and is not waited for: to the mix it is as if that had been lost.

A subclass says what a round sends (`push`), what is wrong with a message (`fault`) and what they come to
(`average`), and what y_i is if it is something else (`stepped`). A body shares memory with what it is made
of, so nothing here is changed in place. Look next at d_psgd.py, then relay_sum.py.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.algorithms.base import ESTATE, SNAPSHOT, Algorithm, Links, LocalSteps, Message, refuse_overflow
from peer.algorithms.bases import Bases, snapshot
from peer.compression.bodies import Body, Dense, Empty, Layout, Strided
from peer.compression.compressor import Compressor, Fitting
from peer.errors import RemoteError
from peer.events import FINAL, Key, PeerId

Values = Compressor | Fitting | None
"""How values travel: None for exactly as they are, Fitting as each link has room for."""

NOTHING = 21  # no body: no message comes in this round
BEFORE = Key(-1, -1)  # no round is open yet: mail of every generation waits


@dataclass(slots=True)
class Mail:
    """Of one neighbor. now: it counts in the open round; ahead: the newest that may count in a later one."""

    now: Message | None = None
    ahead: Message | None = None


class WholeModel(Algorithm):
    """Q: how values travel; final rounds go without it."""

    MEANINGS: tuple[int, ...]  # of a round's messages
    LETS_GO = frozenset[str]()
    """What a class does without, each for itself, since those built on it may not: "u", it is handed models;
    "x" once y is there, which is the model then until the round is mixed, and may be laid over x; "x0" once
    rounds have begun."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.LETS_GO = cls.__dict__.get("LETS_GO", frozenset())
        cls.takes_models = "u" in cls.LETS_GO

    def __init__(
        self, layout: Layout, dtype: torch.dtype, Q: Values = None, *, lockstep: bool = True
    ) -> None:
        self.d, self.dtype, self.lockstep = layout.d, dtype, lockstep
        self.Q = Q
        self.links = Links(BEFORE, {}, frozenset())
        self.expected = frozenset[PeerId]()
        self.x: Tensor | None = None
        self.x0: Tensor | None = None
        self.held = Bases()
        self._y: Tensor | None = None  # of a round that is pushed and not mixed
        self._peak: float | None = None  # of |y|, if it is known
        self._mail: dict[PeerId, Mail] = {}
        self._news: set[PeerId] = set()  # something has come from them since the last mix

    # --- the state, as others see it -------------------------------------------------------------

    @property
    def model(self) -> Tensor | None:
        return self.x

    @property
    def weight(self) -> float:
        return 0.0 if self.x is None else 1.0

    @property
    def bases(self) -> tuple[bytes, ...]:
        return self.held.names

    @property
    def key(self) -> Key:
        return self.links.key

    @property
    def heard(self) -> frozenset[PeerId]:
        """Those whose message of the open round, or of a later one of its generation, has come."""
        return frozenset(src for src, mail in self._mail.items() if self._has_come(src, mail))

    def _has_come(self, src: PeerId, mail: Mail) -> bool:
        if not self.lockstep:  # what counts again is no news
            return mail.now is not None and src in self._news
        return mail.now is not None or (mail.ahead is not None and self._is_of_this_generation(mail.ahead))

    def mass(self) -> tuple[Tensor, float]:
        return torch.zeros(self.d, dtype=self.dtype) if self.x is None else self.x, self.weight

    def estimate(self) -> Tensor:
        assert self.x is not None, "a node that no model has come to has none"
        return self.x

    # --- a round ---------------------------------------------------------------------------------

    def know(self, initial: Tensor) -> None:
        self.x0 = initial.to(self.dtype)
        self.held.hold(self.x0, 0)

    def begin(self, model: Tensor, weight: float) -> None:
        self.x = model.to(self.dtype)

    def open(self, links: Links) -> None:
        if links.key != self.key:
            self._forget_x0()
            if self._y is not None:
                self.mix()  # that round closes as it is: its local steps are done
            anew = links.key.generation != self.key.generation
            self.links = links
            self._sort_mail()
            if anew:
                self.begin_generation()
        self.links, self.expected = links, links.expected
        self.held.advance(links.key.round)

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)
        return self._push_from(self.stepped(self.estimate(), u))

    def step_to(self, steps: LocalSteps, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)
        if {"u", "x"} <= self.LETS_GO and steps.began_at(self.x):
            return self._push_from(steps.give_over(), steps.peak)
        z, handed = steps.give()
        y = self.stepped_to(self.estimate(), z, handed)
        return self._push_from(y, steps.peak if y is handed else None)

    def _push_from(self, y: Tensor, peak: float | None = None) -> dict[PeerId, Message]:
        self._y, self._peak = y, peak
        if "x" in self.LETS_GO:
            self.x = y
        return self.push(y)

    def stepped(self, x: Tensor, u: Tensor) -> Tensor:
        """y: what this round is about."""
        return x + u

    def stepped_to(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """The same of local steps from z to y. z is x itself if nothing has come between."""
        return y if "u" in self.LETS_GO and z is x else self.stepped(x, y - z)

    @abstractmethod
    def push(self, y: Tensor) -> dict[PeerId, Message]:
        """What the open round sends to whom."""

    @abstractmethod
    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        """The next x, from what this round pushed and what has been heard."""

    @abstractmethod
    def fault(self, src: PeerId, message: Message) -> str:
        """Why nobody who follows the rules sends this message in this generation; "" if somebody does."""

    @property
    def needs_x0(self) -> bool:
        """In rounds, that is, and not only to be told that this is the model to begin with."""
        return "x0" not in self.LETS_GO

    def _forget_x0(self) -> None:
        """Who has a model takes no other from a sponsor, so no message will name x0 to it."""
        if self.x0 is not None and not self.needs_x0:
            self.x0, self.held = None, Bases()

    def begin_generation(self) -> None:
        """The graph is another one: what is kept of earlier rounds' messages goes."""

    def expect(self, expected: frozenset[PeerId]) -> None:
        self.expected = expected

    def nothing(self, key: Key) -> Message | None:
        return Message(key, NOTHING, Empty(self.d, self.dtype), delivery="latest")

    def ready(self) -> bool:
        return not self.lockstep or self.expected <= self.heard

    def mix(self) -> Tensor:
        if self._y is not None:
            y, self._y = self._y, None
            self.x = self.average(self.estimate(), y, self._take_mail())
        return self.estimate()

    # --- mail ------------------------------------------------------------------------------------

    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        refuse_overflow(src, message, self.dtype)
        if message.meaning == NOTHING and not isinstance(message.body, Empty):
            raise RemoteError(f"message from {src}: nothing comes, it says, with values")
        if message.meaning == NOTHING and not self.lockstep:
            return {}  # nobody waits, and the last message goes on counting
        if message.meaning in (*self.MEANINGS, NOTHING):
            self._keep(src, message)
        elif message.meaning in (SNAPSHOT, ESTATE):
            late = message.meaning == SNAPSHOT and message.key.phase == FINAL and self.key == BEFORE
            if self.x is None or late:  # who has seen no round is given the model that all end with
                self.x = self._given(src, message)
        else:
            raise RemoteError(f"message from {src}: {self.name} knows no meaning {message.meaning}")
        return {}

    def _given(self, src: PeerId, message: Message) -> Tensor:
        """The model of a sponsor or leaver. Raises RemoteError."""
        if message.meaning == SNAPSHOT:
            return self.held.model_of(message)
        if not isinstance(message.body, Dense):
            raise RemoteError(f"message from {src}: a leaver gives a whole model")
        return message.body.dense()

    def _keep(self, src: PeerId, message: Message) -> None:
        here = self._is_of_this_generation(message)
        if here and (fault := self._fault(src, message)):
            raise RemoteError(f"message from {src}: {fault}")
        if here and self.lockstep and message.key < self.key:
            return  # late is lost
        mail = self._box(message).setdefault(src, Mail())
        if message.key == self.key or (here and not self.lockstep):
            mail.now = message
        else:
            mail.ahead = message
        self._news.add(src)

    def _box(self, message: Message) -> dict[PeerId, Mail]:
        return self._mail

    def _fault(self, src: PeerId, message: Message) -> str:
        return "" if message.meaning == NOTHING else self.fault(src, message)

    def _is_of_this_generation(self, message: Message) -> bool:
        return message.key.generation == self.key.generation

    def _sort_mail(self) -> None:
        """Another round is open: what is ahead may be of it, and what is of another generation goes, as does
        what turns out to be faulty; it was taken over before its generation was known here."""
        self._mail = self._sorted(self._mail)

    def _sorted(self, before: dict[PeerId, Mail]) -> dict[PeerId, Mail]:
        after = {}
        for src, mail in before.items():
            kept = [m for m in (mail.now, mail.ahead) if m is not None and self._still_counts(src, m)]
            if kept and (kept[-1].key == self.key or not self.lockstep):
                after[src] = Mail(now=kept[-1])
            elif kept:
                after[src] = Mail(ahead=kept[-1])
        return after

    def _still_counts(self, src: PeerId, message: Message) -> bool:
        late = self.lockstep and message.key < self.key
        return self._is_of_this_generation(message) and not late and not self._fault(src, message)

    def _take_mail(self) -> dict[PeerId, Message]:
        """What counts in the round that is mixed now; with pace "free" it will count again."""
        heard = {src: mail.now for src, mail in self._mail.items() if mail.now is not None}
        if self.lockstep:
            for src in heard:
                self._mail[src].now = None
        self._news = set()
        return {src: message for src, message in heard.items() if message.meaning != NOTHING}

    def returned(self, dst: PeerId, message: Message) -> None:
        if message.meaning == ESTATE:
            self.x = message.body.dense()

    # --- joining and leaving ---------------------------------------------------------------------

    def sponsor(self, dst: PeerId, key: Key, bases: tuple[bytes, ...]) -> Message:
        return snapshot(self.estimate(), 1.0, key, bases)

    def hand_over(self, key: Key) -> Message:
        estate = Message(key, ESTATE, self.exactly(self.mix()), 1.0)
        self.x = None
        return estate

    # --- for subclasses --------------------------------------------------------------------------

    @property
    def is_final(self) -> bool:
        return self.key.phase == FINAL

    def exactly(self, v: Tensor, part: tuple[int, int] | None = None) -> Body:
        """No compression: `v` in the session's own type. part: start and step, if not all of it travels."""
        if part is None:
            return Dense(v, peak=self._peak if v is self._y else None)
        start, step = part
        return Strided(self.d, start, step, v[start::step].clone(), self.dtype)

    def packed(self, v: Tensor, part: tuple[int, int] | None, dst: PeerId) -> Body:
        """`v`, or a part of it, as the open round sends it to that neighbor."""
        Q = self.values_for(dst, of=1 if part is None else part[1])
        if Q is None:
            return self.exactly(v, part)
        return Q(v) if part is None else Q.every(v, *part)

    def values_for(self, dst: PeerId, *, of: int = 1) -> Compressor | None:
        """of: the message has one of so many parts of the vector."""
        if self.is_final or self.still:
            return None  # an exact mean
        if isinstance(self.Q, Fitting):
            return self.Q.fit(self.links.hides.get(dst), self.links.most_bytes, of=of)
        return self.Q

    @property
    def least_bytes(self) -> int:
        if self.is_final or self.still or not isinstance(self.Q, Fitting):
            return 0
        return self.Q.least_bytes(self.least_part)

    @property
    def least_part(self) -> int:
        """The smallest messages of the open round have one of so many parts of the vector."""
        return 1
