"""D-PSGD, decentralized parallel SGD (Lian, Zhang, Zhang, Hsieh, Zhang, Liu, NeurIPS 2017, algorithm 1).

    y_i = x_i + u_i               sent to every neighbor
    x_i <- sum_j W_ij y_j         over its neighbors and itself

x_i: model; u_i: the change of x_i by local steps, -gamma grad F_i(x_i) in the paper; W: symmetric, its rows
sum to 1. Ours are Metropolis weights, 1 / (1 + the larger degree), which the node computes.

The paper's: gossip after the step, one step per round. Ours: several local steps; y_i in a smaller
type of values, whose rounding is not fed back; and where a neighbor's message is missing, the row is divided
by the weight that has come (as in epfml/relaysgd, commit 0e7551a). A baseline: with unlike data the models
come to rest away from the minimum. From the push to the mix x_i is y_i: nothing asks for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peer.algorithms.base import Folding, Message
from peer.algorithms.whole_model import NOTHING, WholeModel
from peer.compression.bodies import Body, Dense
from peer.compression.compressor import Compressor
from peer.events import PeerId

LANES = 64  # numbers; between two of as many, sums come to the same bits wherever they are begun
BLOCK = 1 << 16  # numbers that are mixed at once: what that takes stays in a processor's cache


class DPSGD(WholeModel):
    name = "d-psgd"
    MEANING = 16  # body: y of its sender
    MEANINGS: tuple[int, ...] = (MEANING,)
    LETS_GO = frozenset({"u", "x", "x0"})

    _begun: Mean | None = None  # with a message that is still coming

    @property
    def sends_models(self) -> bool:
        return self.Q is None

    def push(self, y: Tensor) -> dict[PeerId, Message]:
        bodies, messages = dict[Compressor | None, Body](), {}
        for j in self.links.out:
            Q = self.values_for(j)
            if Q not in bodies:
                bodies[Q] = self.packed(y, None, j)
            messages[j] = Message(self.key, self.MEANING, bodies[Q], delivery="latest")
        return messages

    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        mean, self._begun = self._begun, None
        if mean is not None and mean.void:
            mean = None
        if mean is not None and not any(_is_at(mean.mixed, message.body) for message in heard.values()):
            mean.give_up()  # what it was begun for has not come
            mean = None
        mean = mean or self._mean(y, heard)
        mean.to(self.d)
        return mean.mixed

    def coming(self, src: PeerId, message: Message) -> Folding | None:
        """Yes, where it is the last one that the open round can hear: the mean takes its place."""
        come = {j: mail.now for j, mail in self._mail.items() if mail.now is not None}
        is_free = self._begun is None or self._begun.void
        is_last = self.lockstep and is_free and self.links.out.keys() - come.keys() == {src}
        y = self._y
        if y is None or not is_last or (message.key, message.meaning) != (self.key, self.MEANING):
            return None
        heard = {j: m for j, m in come.items() if m.meaning != NOTHING} | {src: message}
        self._begun = begun = self._mean(y, heard, message.body.dense())
        return begun

    def _mean(self, y: Tensor, heard: dict[PeerId, Message], place: Tensor | None = None) -> Mean:
        """place: where it comes to lie; else where a message has come that nobody else has."""
        W = self.links.out
        models = [(W[j], *_values(message.body)) for j, message in heard.items() if j in W]
        rooms = [values for _, values, is_room in models if is_room and self.lockstep]
        if place is None:
            place = rooms[0] if rooms else torch.empty_like(y)
        return Mean(y, 1 - sum(W.values()), [(w, values) for w, values, _ in models], place)

    def fault(self, src: PeerId, message: Message) -> str:
        return "" if isinstance(message.body, Dense) else f"{self.name} sends whole models"


@dataclass(slots=True)
class Mean:
    """Of y, with the weight of its own node, and neighbors' models with theirs, as far as it is made: `at`
    numbers. mixed: where it comes to lie, one of the models' memory perhaps."""

    y: Tensor
    own: float
    models: list[tuple[float, Tensor]]
    mixed: Tensor
    at: int = 0
    void: bool = False

    def to(self, stop: int) -> None:
        if self.void:
            return
        stop = stop if stop == len(self.y) else stop // LANES * LANES
        part_of_W = self.own + sum(w for w, _ in self.models)
        for start in range(self.at, stop, BLOCK):
            block = slice(start, min(start + BLOCK, stop))
            place = self.mixed[block]
            total = torch.mul(self.y[block], self.own, out=None if self.models else place)
            for i, (w, values) in enumerate(self.models, 1):
                last = i == len(self.models)
                total = torch.add(total, values[block], alpha=w, out=place if last else total)
            if part_of_W != 1:
                total.div_(part_of_W)
        self.at = max(self.at, stop)

    def give_up(self) -> None:
        nothing = self.y.new_empty(0)  # a view of y would keep its memory
        self.void, self.models, self.y, self.mixed = True, [], nothing, nothing


def _is_at(place: Tensor, body: Body) -> bool:
    return isinstance(body, Dense) and body.values.data_ptr() == place.data_ptr()


def _values(body: Body) -> tuple[Tensor, bool]:
    """A neighbor's model, and whether the mixed one may take its place: it counts once, in lockstep, and is
    nobody else's."""
    values = body.dense()
    return values, isinstance(body, Dense) and (body.came or values is not body.values)
