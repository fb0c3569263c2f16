"""All-reduce: the exact mean of all models in every round, in parts.

On the complete graph of n members a model has n parts, and each member owns one:

    first half     y_i = x_i + u_i; of it the part of member j goes to j
    second half    each has its own part of all members, and sends their mean to everybody
    mix            x_i <- the means of all parts

So a device sends 2 (n - 1) / n models in a round, however many members there are, where D-PSGD on this graph
sends n - 1 for the same mean. It is the reduce-scatter and all-gather of Patarasuk and Yuan (JPDC 69, 2009:
nothing takes fewer bytes), each part by its owner as hivemind has it (Ryabinin et al., NeurIPS 2021).

Ours is what becomes of messages that do not come. Each half is waited for as any round is. The mean of a part
is that of those which have come and of its owner's; where no mean comes, a member keeps what it has. So for
a round members may differ; the next one that is whole makes them equal again. Who owns which part goes round
with the rounds: two that never hear each other, or one that hangs, leave no part without a mean for long.

Whole models go to everybody, as D-PSGD has it: in final rounds; where a compression rounds values, as a mean
that is rounded would lose small steps; between two members, to whom parts save nothing; and of small models,
as waiting twice takes longer than their bytes do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from peer.algorithms.base import Folding, Links, Message
from peer.algorithms.d_psgd import DPSGD, Mean
from peer.algorithms.whole_model import Mail, Values
from peer.compression.bodies import Dense, Layout, Portion
from peer.events import FINAL, Key, PeerId

LEAST_MEMBERS = 3
LEAST_BYTES = 1 << 20  # of a model that has parts without being asked for; guess: .1 s of Wi-Fi at 10 MB/s


class AllReduce(DPSGD):
    name = "all-reduce"
    PART = 54  # body: the part of the sender's y that its reader owns
    MEAN = 55  # body: the mean of the part that the sender owns
    MEANINGS = (DPSGD.MEANING, PART, MEAN)
    LETS_GO = frozenset({"u", "x", "x0"})

    def __init__(
        self, layout: Layout, dtype: torch.dtype, Q: Values = None, *, parts: bool | None = None
    ) -> None:
        """parts: are models averaged in parts? None: those of LEAST_BYTES."""
        super().__init__(layout, dtype, Q)
        is_long = self.d * dtype.itemsize >= LEAST_BYTES
        self._has_parts = Q is None and (is_long if parts is None else parts)
        self._parts: dict[PeerId, Mail] = {}
        self._halfway = False  # the second half of the open round has begun

    # --- a round ---------------------------------------------------------------------------------

    def open(self, links: Links) -> None:
        before = self.key
        super().open(links)
        self._halfway = self._halfway and self.key == before

    def _is_in_parts(self, key: Key) -> bool:
        """Is what is sent in that round, of this generation?"""
        n = self.links.n
        return self._has_parts and key.phase != FINAL and LEAST_MEMBERS <= n <= self.d

    def _part(self, key: Key, owner: PeerId | None = None) -> slice:
        """Of that neighbor in that round, or of this member itself."""
        n, graph = self.links.n, self.links.graph
        assert graph is not None, "parts have owners on the graph that all agree on"
        place = graph.place
        if owner is not None:
            place = graph.adjacency[place][list(self.links.out).index(owner)]
        part = (place + key.round) % n
        return slice(self.d * part // n, self.d * (part + 1) // n)

    def push(self, y: Tensor) -> dict[PeerId, Message]:
        if not self._is_in_parts(self.key):
            return super().push(y)
        messages = {}
        for j in self.links.out:
            part = y[self._part(self.key, j)]  # to be laid out yet, perhaps: nobody reads it here
            body = Portion(self.d, part, self.dtype, peak=self._peak)
            messages[j] = Message(self.key, self.PART, body, delivery="latest")
        return messages

    def second(self, *, late: bool) -> dict[PeerId, Message] | None:
        y = self._y
        if y is None or self._halfway or not self._is_in_parts(self.key):
            return None
        if not late and not self.expected <= self.heard | self._first_heard:
            return None
        out = self.links.out
        come = {j: mail.now for j, mail in self._parts.items() if mail.now is not None and j in out}
        self._halfway = True
        mean, share = y[self._part(self.key)], 1 / (len(come) + 1)
        Mean(mean, share, [(share, _numbers(message)) for message in come.values()], mean).to(len(mean))
        for j in come:
            self._parts[j].now = None
        peaks = [self._peak, *(m.body.peak for m in come.values() if isinstance(m.body, Portion))]
        known = [peak for peak in peaks if peak is not None]
        body = Portion(self.d, mean, self.dtype, peak=max(known) if len(known) == len(peaks) else None)
        message = Message(self.key, self.MEAN, body, delivery="latest")
        return dict.fromkeys(self.links.out, message)

    @property
    def heard(self) -> frozenset[PeerId]:
        """Those whose mean has come, and those who are in a later round, and send none any more."""
        further = {src for src, mail in self._parts.items() if self._is_of_a_later_round(mail)}
        return super().heard | further

    @property
    def _first_heard(self) -> frozenset[PeerId]:
        return frozenset(src for src, mail in self._parts.items() if mail.now is not None)

    def _is_of_a_later_round(self, mail: Mail) -> bool:
        return mail.ahead is not None and self._is_of_this_generation(mail.ahead)

    def has_second(self, message: Message) -> bool:
        return message.meaning == self.PART

    def ready(self) -> bool:
        return super().ready() and (self._halfway or not self._is_in_parts(self.key))

    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        if not self._is_in_parts(self.key):
            return super().average(x, y, heard)
        if not self.links.out.keys() <= self.links.clear:
            y = y.clone()  # a part may still wait for its link
        for j, message in heard.items():
            if j in self.links.out:
                y[self._part(self.key, j)] = _numbers(message)
        return y

    def show(self, key: Key) -> Message:
        shown = super().show(key)
        if self._y is None:
            return shown
        return replace(shown, body=Dense(shown.body.dense().clone()))  # y is mixed where it lies

    # --- mail ------------------------------------------------------------------------------------

    def _box(self, message: Message) -> dict[PeerId, Mail]:
        return self._parts if message.meaning == self.PART else super()._box(message)

    def _sort_mail(self) -> None:
        super()._sort_mail()
        self._parts = self._sorted(self._parts)

    def coming(self, src: PeerId, message: Message) -> Folding | None:
        return None if self._is_in_parts(self.key) else super().coming(src, message)

    def fault(self, src: PeerId, message: Message) -> str:
        in_parts = self._is_in_parts(message.key)
        if message.meaning == self.MEANING:
            return "models go in parts between so many" if in_parts else super().fault(src, message)
        if not in_parts:
            return "models go whole in this round, and not in parts"
        if src not in self.links.out:
            return "it has no place on this graph"
        part = self._part(message.key, None if message.meaning == self.PART else src)
        body, size = message.body, part.stop - part.start
        fits = isinstance(body, Portion) and body.coding is None and body.values.numel() == size
        return "" if fits else f"that part has {size} numbers, as they are"


def _numbers(message: Message) -> Tensor:
    assert isinstance(message.body, Portion), "another body is a fault"
    return message.body.numbers()
