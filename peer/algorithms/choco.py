"""CHOCO-SGD (Koloskova, Stich, Jaggi, ICML 2019, algorithm 2; Koloskova, Lin, Stich, Jaggi, ICLR 2020).

    x_i <- x_i + u_i
    q_i = C(x_i - x^_i)               sent to every neighbor
    x^_j <- x^_j + q_j                for i itself and its neighbors
    x_i <- x_i + gamma sum_j W_ij (x^_j - x^_i)

x: model; u: its change by local steps, -eta grad F_i(x_i) in the paper; x^: what all neighbors know of a
model; C: compressor; W: Metropolis weights; gamma: consensus step, by what C keeps (`consensus_step`). What C
leaves out is in the next difference, so nothing is lost by it.

The paper's: all of the above, in the form that needs least memory (Koloskova et al. 2020, appendix): of the
neighbors' x^ only s_i = sum_j W_ij x^_j is used, which becomes s_i + sum_j W_ij q_j. It holds as every
message comes once. Ours: several local steps; C rounds what it keeps to the type on the wire; and on each new
graph the first message is the whole model, exactly, from which x^ begins, while the paper's begins at 0.

Memory beyond the model's: x^ and s, as many bytes each as the model, whatever the number of neighbors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peer.algorithms.lossless import Lossless
from peer.compression.bodies import Body, Dense, Layout
from peer.compression.compressor import Compress
from peer.events import PeerId


class ChocoSGD(Lossless):
    """C: compressor, given the number of the exchange too; gamma: consensus step in (0, 1]."""

    name = "choco-sgd"
    EXCHANGE = 52  # body: x in the first exchange of a generation, then q

    def __init__(self, layout: Layout, dtype: torch.dtype, C: Compress, gamma: float) -> None:
        super().__init__(layout, dtype)
        self.C, self.gamma = C, gamma
        self.half: Tensor | None = None  # x + u
        self.q: Body | None = None
        self.x_hat = self.s = torch.zeros(layout.d, dtype=dtype)

    def begin_generation(self) -> None:
        self.x_hat = self.s = torch.zeros_like(self.s)

    def compose(self, u: Tensor, lr: float) -> Body:
        self.half = self.estimate() + u
        self.q = self.C(self.half - self.x_hat, self.number) if self.number else Dense(self.half)
        return self.q

    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        assert self.half is not None and self.q is not None
        q = self.q.dense()
        self.x_hat = self.x_hat + q
        self.s = self.s + self.gossip(q, {j: body.dense() for j, body in heard.items()})
        return self.half + self.gamma * (self.s - self.x_hat)
