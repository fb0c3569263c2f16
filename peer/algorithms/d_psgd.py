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

import torch
from torch import Tensor

from peer.algorithms.base import Message
from peer.algorithms.whole_model import WholeModel
from peer.compression.bodies import Body, Dense
from peer.compression.compressor import Compressor
from peer.events import PeerId

BLOCK = 1 << 16  # numbers that are mixed at once: what that takes stays in a processor's cache


class DPSGD(WholeModel):
    name = "d-psgd"
    MEANING = 16  # body: y of its sender
    MEANINGS = (MEANING,)
    LETS_GO = frozenset({"u", "x", "x0"})

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
        W = self.links.out
        own = 1 - sum(W.values())
        models = [(W[j], *_values(message.body)) for j, message in heard.items() if j in W]
        rooms = [values for _, values, is_room in models if is_room and self.lockstep]
        mixed, part_of_W = rooms[0] if rooms else torch.empty_like(y), own + sum(w for w, _, _ in models)
        for start in range(0, self.d, BLOCK):
            block = slice(start, start + BLOCK)
            place = mixed[block]
            total = torch.mul(y[block], own, out=None if models else place)
            for i, (w, values, _) in enumerate(models, 1):
                total = torch.add(total, values[block], alpha=w, out=total if i < len(models) else place)
            if part_of_W != 1:
                total.div_(part_of_W)
        return mixed

    def fault(self, message: Message) -> str:
        return "" if isinstance(message.body, Dense) else f"{self.name} sends whole models"


def _values(body: Body) -> tuple[Tensor, bool]:
    """A neighbor's model, and whether the mixed one may take its place: it counts once, in lockstep, and is
    nobody else's."""
    values = body.dense()
    return values, isinstance(body, Dense) and (body.came or values is not body.values)


class AllReduce(DPSGD):
    """D-PSGD on the complete graph alone, where Metropolis weights are 1/n: synchronous SGD on all data, as
    an all-reduce makes it. For reference."""

    name = "all-reduce"
