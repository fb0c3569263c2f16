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

from torch import Tensor

from peer.algorithms.base import Message
from peer.algorithms.whole_model import WholeModel
from peer.compression.bodies import Body, Dense
from peer.compression.compressor import Compressor
from peer.events import PeerId


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
        came = {j: W[j] for j in heard if j in W}
        total = own * y
        for j, w in came.items():
            total.add_(heard[j].body.dense(), alpha=w)
        return total.div_(own + sum(came.values()))

    def fault(self, message: Message) -> str:
        return "" if isinstance(message.body, Dense) else f"{self.name} sends whole models"
