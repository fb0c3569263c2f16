"""DSGT, decentralized stochastic gradient tracking (Pu, Nedic, Mathematical Programming 187, 2021; the form
of Bluefog's gradient tracking).

    x_i <- sum_j W_ij x_j - alpha y_i
    y_i <- sum_j W_ij y_j + grad F_i(x_i) - g_i       at the new x_i;  g_i <- that gradient

x: model; y: tracker of the mean gradient, and at first, as on every new graph, the node's own gradient; W:
Metropolis weights; alpha: learning rate. So mean(y) = mean(g) always, and with unlike data the models come to
rest at the minimum, where D-PSGD's do not.

The paper's: all of the above. Ours: W y is kept from one exchange to the next, so that x and y travel in one
message; u = -alpha g is what training hands over, several local steps' sum or an optimizer's momentum too.

Twice D-PSGD's bytes. Memory beyond the model's: y, g.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peer.algorithms.lossless import Lossless, fault_in_pair, gradient
from peer.compression.bodies import Body, Dense, Layout, Pair
from peer.events import PeerId


class DSGT(Lossless):
    name = "dsgt"
    EXCHANGE = 50  # body: (x, y)

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        super().__init__(layout, dtype)
        self.alpha = 0.0
        self.Wy = self.y = self.g = torch.zeros(layout.d, dtype=dtype)  # all 0: y becomes the next gradient

    def begin_generation(self) -> None:
        self.Wy = self.g

    def compose(self, u: Tensor, lr: float) -> Body:
        g = gradient(u, lr)
        self.alpha, self.y, self.g = lr, self.Wy + g - self.g, g
        return Pair(Dense(self.estimate()), Dense(self.y))

    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        Wx, self.Wy = self.gossip_both((self.estimate(), self.y), heard)
        return Wx - self.alpha * self.y

    def fault_in(self, body: Body) -> str:
        return fault_in_pair(self.name, body)
