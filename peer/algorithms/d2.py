"""D2, decentralized training over decentralized data (Tang, Lian, Yan, Zhang, Liu, ICML 2018, algorithm 1).

    v_i = 2 x_i - x_i' + u_i - u_i'       x', u': of the exchange before;  v_i = x_i + u_i in the first
    x_i <- sum_j W_ij v_j

x: model; u: its change by local steps, -gamma grad F_i(x_i) in the paper; W: weights that leave no
disagreement standing at -1/3: the smallest eigenvalue must be larger, or the differences, which enter twice,
grow for ever.

Metropolis weights do not see to that: a ring of even length sits on -1/3, a torus of even sides at -0.6. So W
is (I + W) / 2 here, which has no negative eigenvalues, and makes D2 the exact diffusion of Yuan, Ying, Zhao,
Sayed (IEEE TSP 67, 2019); it halves the gap, which is less than it sounds, since D2 is slow near -1/3, too.
`lazy` False: W itself where it is allowed, the other where it is not.

The paper's: all but that. Ours: several local steps; u' is as large as its own learning rate made it, so that
the rate may change; a new graph begins as a session does.

Memory beyond the model's: v, x', u'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peer.algorithms.lossless import Lossless
from peer.algorithms.spectrum import SURE, eigenvalues
from peer.compression.bodies import Body, Dense, Layout
from peer.events import PeerId

LEAST = -1 / 3  # no eigenvalue of W may be as small: the paper's assumption 1


class D2(Lossless):
    """lazy: (I + W) / 2 on every graph."""

    name = "d2"
    EXCHANGE = 51  # body: v

    def __init__(self, layout: Layout, dtype: torch.dtype, *, lazy: bool = True) -> None:
        super().__init__(layout, dtype)
        self.lazy = self.halves = lazy
        self.v: Tensor | None = None
        self.u = torch.zeros(layout.d, dtype=dtype)
        self.before: tuple[Tensor, Tensor] | None = None  # x' and u'

    def begin_generation(self) -> None:
        graph, self.before = self.links.graph, None
        self.halves = self.lazy or (graph is not None and not allowed(eigenvalues(graph.adjacency)))

    def compose(self, u: Tensor, lr: float) -> Body:
        x, self.u = self.estimate(), u
        self.v = x + u if self.before is None else 2 * x - self.before[0] + u - self.before[1]
        return Dense(self.v)

    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        assert self.v is not None
        self.before = self.estimate(), self.u
        Wv = self.gossip(self.v, {j: body.dense() for j, body in heard.items()})
        return (self.v + Wv) / 2 if self.halves else Wv


def allowed(eigenvalues: tuple[float, ...]) -> bool:
    """Is D2 stable with these of W, ascending?"""
    return eigenvalues[0] > LEAST + SURE
