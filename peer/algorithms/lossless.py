"""What gossip algorithms share that cannot do without a message: exchanges that are whole or not at all.

    compose     what a node sends is made of its model and its local steps: the same to every neighbor
    finish      once every neighbor's message of this exchange has come, and only then

Messages are delivered once and in order, as mass is (the link keeps one until it is acknowledged), so that
nothing is lost but with a learner's life; and that makes a new generation, in which all begin anew from the
last exchange that each has finished. A round is closed without a message that takes too long, but its
exchange is not: the rounds that follow take no local steps until it is whole. A message says the how manieth
exchange of its generation it is of, for who begins again on an old generation is not where the others are.

Final rounds are D-PSGD's, on a complete graph: the exact mean. A subclass says what is sent (`compose`), how
the messages that have come make the next model (`finish`), what is wrong with one (`fault_in`), and what a
new generation changes (`begin_generation`). Look next at gradient_tracking.py, then detag.py.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message, refuse_overflow
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.whole_model import Values
from peer.compression.bodies import Body, Layout
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, PeerId

MAX_WAITING = 4  # messages of one neighbor: of two exchanges of this generation, and of two of the next
_NUMBER = struct.Struct("<I")


class Lossless(DPSGD):
    """EXCHANGE: meaning of the messages of rounds with local steps."""

    EXCHANGE: int

    def __init__(self, layout: Layout, dtype: torch.dtype, Q: Values = None) -> None:
        super().__init__(layout, dtype, Q)
        self.number = 0  # of exchanges finished in this generation
        self._sends: Body | None = None  # in the exchange under way
        self._owed: set[PeerId] = set()  # neighbors it has not been given to
        self._waiting: dict[PeerId, deque[Message]] = {}

    @property
    def still(self) -> bool:
        """Does an exchange wait for what should have come in an earlier round?"""
        return self._sends is not None and not self.is_final

    # --- a round ---------------------------------------------------------------------------------

    def open(self, links: Links) -> None:
        before = self.key
        if links.key.phase == FINAL:
            if before.phase != FINAL:
                self._drop_exchange()
            super().open(links)
            return
        self.links, self.expected = links, links.expected
        self.held.advance(links.key.round)
        if links.key.generation != before.generation:
            self._drop_exchange()
            self.number = 0
            self.begin_generation()

    def _drop_exchange(self) -> None:
        """What was not finished by all is finished by nobody."""
        self._sends, self._owed = None, set()

    @abstractmethod
    def compose(self, u: Tensor, lr: float) -> Body:
        """What goes to every neighbor, now that these local steps are done."""

    @abstractmethod
    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        """The next model; a message of every neighbor has come."""

    @abstractmethod
    def fault_in(self, body: Body) -> str:
        """Why nobody who follows the rules sends this; "" if somebody does."""

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        if links.key.phase == FINAL:
            return super().step(u, lr, links, now)
        self.open(links)
        if self._sends is None:
            self._sends, self._owed = self.compose(u, lr), set(links.out)
        owed, self._owed = sorted(self._owed), set()
        number = _NUMBER.pack(self.number)
        return {dst: Message(self.key, self.EXCHANGE, self._sends, base=number) for dst in owed}

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
        if self._sends is not None and not self._owed and self.ready():
            heard = {src: self._waiting[src].popleft().body for src in self.links.out}
            self.x = self.finish(heard)
            self._sends = None
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

    def returned(self, dst: PeerId, message: Message) -> None:
        """It goes there again in the next round, unless it is of another exchange."""
        if message.meaning != self.EXCHANGE:
            super().returned(dst, message)
        elif message.body is self._sends:
            self._owed.add(dst)


def _place(message: Message) -> tuple[int, int]:
    """Its generation, and the number of its exchange in it."""
    return message.key.generation, _NUMBER.unpack(message.base)[0]


def _misplaced(message: Message) -> str:
    if message.delivery != "mass":
        return "it is part of an exchange, and was sent as if it could be lost"
    if len(message.base) != _NUMBER.size:
        return "an exchange has a number"
    return "no exchange is part of a final round" if message.key.phase == FINAL else ""
