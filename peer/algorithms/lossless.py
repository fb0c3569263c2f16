"""What gossip algorithms share that cannot do without a message: exchanges that are whole or not at all.

    compose     what a node sends is made of its model and its local steps: the same to every neighbor
    finish      once every neighbor's message of this exchange has come, and only then

Messages are delivered once and in order, as mass is (the link keeps one until it is acknowledged), so that
nothing is lost but with a learner's life; and that makes a new generation, in which all begin anew from the
last exchange that each has finished. A round is closed without a message that takes too long, but its
exchange is not: the rounds that follow take no local steps until it is whole. A message says the how manieth
exchange of its generation it is of, for who begins again on an old generation is not where the others are.
What comes back from a link goes over it again, even if its exchange is finished here: it is not there.

Neighbors are one exchange apart at the most, so the sum of all models, which an exchange keeps, is kept once
all have finished it. A new generation in between finds some before it and some behind it, and they go on from
there.

Final rounds are D-PSGD's, on a complete graph: the exact mean. A subclass says what is sent (`compose`), how
the messages that have come make the next model (`finish`), what is wrong with one (`fault_in`), and what a
new generation changes (`begin_generation`). Look next at gradient_tracking.py, then detag.py.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message, refuse_overflow
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.whole_model import Values
from peer.compression.bodies import Body, Layout, Pair, Portion, numbers_in
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, PeerId

MAX_WAITING = 4  # messages of one neighbor: of two exchanges of this generation, and of two of the next
_NUMBER = struct.Struct("<I")
Vectors = tuple[Tensor, Tensor]


class Lossless(DPSGD):
    """EXCHANGE: meaning of the messages of rounds with local steps."""

    EXCHANGE: int

    def __init__(self, layout: Layout, dtype: torch.dtype, Q: Values = None) -> None:
        super().__init__(layout, dtype, Q)
        self.number = 0  # of exchanges finished in this generation
        self._under_way = False  # one is composed, and not finished
        self._owed: dict[PeerId, list[Message]] = {}  # what is to go to neighbors yet, in order
        self._waiting: dict[PeerId, deque[Message]] = {}

    @property
    def still(self) -> bool:
        """Does an exchange wait for what should have come in an earlier round?"""
        return self._under_way and not self.is_final

    # --- a round ---------------------------------------------------------------------------------

    def open(self, links: Links) -> None:
        before, final = self.key, links.key.phase == FINAL
        anew = links.key.generation != before.generation
        if (anew or final) and not self.is_final:
            self.mix()  # what is whole is finished
            self._under_way, self._owed = False, {}
        if final:
            super().open(links)
            return
        self.links, self.expected = links, links.expected
        self.held.advance(links.key.round)
        if anew:
            self.number = 0
            self.begin_generation()

    @abstractmethod
    def compose(self, u: Tensor, lr: float) -> Body:
        """What goes to every neighbor, now that these local steps are done."""

    @abstractmethod
    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        """The next model; a message of every neighbor has come."""

    def fault_in(self, body: Body) -> str:
        """Why nobody who follows the rules sends this; "" if somebody does."""
        return f"{self.name} sends one vector" if isinstance(body, Pair | Portion) else ""

    def begin_generation(self) -> None:
        """The graph is another one, and all begin from what they have."""

    def gossip(self, own: Tensor, others: Mapping[PeerId, Tensor]) -> Tensor:
        """sum_j W_ij v_j, over the neighbors and this node itself."""
        W = self.links.out
        total = (1 - sum(W.values())) * own
        for j, v in others.items():
            total.add_(v, alpha=W[j])
        return total

    def gossip_both(self, own: Vectors, heard: Mapping[PeerId, Body]) -> Vectors:
        """The same of two vectors, where each message is a Pair."""
        pairs = {j: numbers_in(body) for j, body in heard.items()}
        first, second = (self.gossip(own[k], {j: pair[k] for j, pair in pairs.items()}) for k in (0, 1))
        return first, second

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        if links.key.phase == FINAL:
            return super().step(u, lr, links, now)
        self.open(links)
        if not self._under_way:
            self._under_way, body = True, self.compose(u, lr)
            for dst in links.out:
                self._owe(dst, Message(self.key, self.EXCHANGE, body, base=_NUMBER.pack(self.number)))
        now_due = {dst: line.pop(0) for dst, line in sorted(self._owed.items())}
        self._owed = {dst: line for dst, line in self._owed.items() if line}
        return {dst: replace(message, key=self.key) for dst, message in now_due.items()}

    def _owe(self, dst: PeerId, message: Message) -> None:
        insort(self._owed.setdefault(dst, []), message, key=_place)

    @property
    def heard(self) -> frozenset[PeerId]:
        if self.is_final:
            return super().heard
        return frozenset(src for src in self.links.out if self._next_of(src) is not None)

    def ready(self) -> bool:
        """All of them: without one this exchange comes to nothing."""
        return super().ready() if self.is_final else self.heard == self.links.out.keys()

    def mix(self) -> Tensor:
        if self.is_final:
            return super().mix()
        if self._under_way and self.ready():
            heard = {src: self._waiting[src].popleft().body for src in self.links.out}
            self.x = self.finish(heard)
            self._under_way = False
            self.number += 1
        return self.estimate()

    # --- mail ------------------------------------------------------------------------------------

    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        if message.meaning != self.EXCHANGE:
            return super().receive(src, message, now)
        refuse_overflow(src, message, self.dtype)
        if self.x is None:
            raise UnknownBaseError(f"message from {src}: there is no model here yet")
        if fault := self.fault_in(message.body) or _misplaced(message):
            raise RemoteError(f"message from {src}: {fault}")
        counts = self.key.generation, message.key.generation
        line = [one for one in self._waiting.get(src, ()) if one.key.generation in counts]
        if len(line) >= MAX_WAITING:
            raise RemoteError(f"message from {src}: {len(line)} are still to be used")
        self._waiting[src] = deque([*line, message])
        return {}

    def _next_of(self, src: PeerId) -> Message | None:
        """The message of `src` for the exchange under way. What is of an earlier one goes."""
        here, line = (self.key.generation, self.number), self._waiting.get(src, deque())
        while line and _place(line[0]) < here:
            line.popleft()
        return line[0] if line and _place(line[0]) == here else None

    def is_stale(self, message: Message) -> bool:
        return message.meaning == self.EXCHANGE and message.key.generation < self.key.generation

    def returned(self, dst: PeerId, message: Message) -> None:
        """It goes there again, unless it is of another generation."""
        if message.meaning != self.EXCHANGE:
            super().returned(dst, message)
        elif message.key.generation == self.key.generation and not self.is_final and self.x is not None:
            self._owe(dst, message)


def _place(message: Message) -> tuple[int, int]:
    """Its generation, and the number of its exchange in it."""
    return message.key.generation, _NUMBER.unpack(message.base)[0]


def _misplaced(message: Message) -> str:
    if message.delivery != "mass":
        return "it is part of an exchange, and was sent as if it could be lost"
    if len(message.base) != _NUMBER.size:
        return "an exchange has a number"
    return "no exchange is part of a final round" if message.key.phase == FINAL else ""


# --- what gradients come in, and two vectors go out by -----------------------------------------------


def gradient(u: Tensor, lr: float) -> Tensor:
    """g of u = -lr g: what local steps made of this learning rate came to. A rate of 0 says nothing of it."""
    return u / -lr if lr > 0 else torch.zeros_like(u)


def fault_in_pair(name: str, body: Body) -> str:
    exact = isinstance(body, Pair) and body.first.coding is None and body.second.coding is None
    return "" if exact else f"{name} sends a model and a tracker, exactly"
