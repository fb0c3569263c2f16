"""DeTAG, decentralized SGD by tracking accelerated gossip (Lu, De Sa, ICML 2021; JMLR 24, 22-0044, alg. 2).

In phase k, of R rounds r = 0 .. R-1, with z = x~ and y alike:
    z_i <- (1 + eta) sum_j W_ij z_j - eta z_i'        z' is z of the round before, not mixed; z' = z at r = 0
    g_i <- g_i + grad F_i(x_i) / R                    at x_i, which stands still
and at its end:
    x_i <- x~_i - alpha y_i       y_i <- y_i + g_i(k) - g_i(k-1)       x~_i <- x_i

x: model; x~: what of it is gossiped meanwhile; y: tracker of the mean gradient, 0 at first, as is g(-1), so
that mean(y) = mean(g(k-1)) always; W: Metropolis weights; alpha: learning rate of the phase's last round;
lambda: second largest |eigenvalue| of W. DeTAGM, with momentum beta: v <- beta v + g(k), and v stands for g
in the tracker.

The paper's: all of the above. Its (15) names no moment of y: here it is y after the phase's gossip, as the
listing has it when run from top to bottom (with y from before it, it takes 2 to 3 times the rounds). So the
first phase moves nothing, and each step uses gradients one phase old. With R = 1 and eta = 0 it is DSGT.

Ours: what training hands over is u = -lr g: one plain step gives the paper's gradient, several local steps
their sum. An optimizer's momentum should be 0: it would go on through a phase's gradients, which are all of
one point, and comes to the model a phase late, with which quadratics that DSGT solves diverge; `momentum` is
for that. A new graph ends a phase at once: all go on from the last phase that each has finished, with y = its
own last g, which keeps mean(y) = mean(g); who joins has y = g = 0.

eta is (1 - s) / (1 + s), s = sqrt(1 - lambda^2), the best where R is large. Where R rounds with it would
leave more of a disagreement than a plain round leaves, which happens where R is small for the graph, it is
halved until they do not (`fitted`). R: the theory asks for ln n / (2 sqrt(1 - lambda)) at least: 2 on a ring
of 6, 7 of 16, 37 of 64. But the authors train with 1 or 2 rounds, and with 4 where batches are small, since
all that a phase's gradients do is make one larger batch; so that "auto" is the theory's, and 4 at the most.

One exchange takes two vectors. Memory beyond the model's: x~, y, both of the round before, g and g(k-1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from peer.algorithms.lossless import Lossless, Vectors, fault_in_pair, gradient
from peer.algorithms.spectrum import SURE, accelerated, left_over, slowest
from peer.compression.bodies import Body, Dense, Layout, Pair
from peer.events import PeerId
from peer.graphs import Adjacency

Auto = Literal["auto"]
MOST_ROUNDS = 4  # of "auto": the paper's ImageNet runs; more only makes a phase's batch larger


class DeTAG(Lossless):
    """R, eta: as above, "auto": from the graph. beta: momentum, 0 for none."""

    name = "detag"
    EXCHANGE = 48  # body: (x~, y)

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        *,
        R: int | Auto = "auto",
        eta: float | Auto = "auto",
        beta: float = 0.0,
    ) -> None:
        super().__init__(layout, dtype)
        self.asked, self.beta = (R, eta), beta
        self.R, self.eta, self.r, self.alpha = 1, 0.0, 0, 0.0
        self.y = self.g = self.v = torch.zeros(layout.d, dtype=dtype)  # v: g(k-1), or the momentum
        self.z: Vectors | None = None  # x~ and y of this round; None between phases
        self.before: Vectors | None = None

    def begin_generation(self) -> None:
        self.y, self.g, self.z, self.r = self.v, torch.zeros_like(self.v), None, 0
        self.R, self.eta = fitted(self.links.graph.adjacency if self.links.graph else ((),), *self.asked)

    def compose(self, u: Tensor, lr: float) -> Body:
        if self.z is None:
            self.z = self.before = self.estimate(), self.y
        self.alpha, self.g = lr, self.g + gradient(u, lr) / self.R
        return Pair(*map(Dense, self.z))

    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        assert self.z is not None and self.before is not None
        gossiped = self.gossip_both(self.z, heard)
        after = [(1 + self.eta) * Wz - self.eta * z for Wz, z in zip(gossiped, self.before, strict=True)]
        self.before, self.z, self.r = self.z, (after[0], after[1]), self.r + 1
        return self.estimate() if self.r < self.R else self._end_phase(*self.z)

    def _end_phase(self, x: Tensor, y: Tensor) -> Tensor:
        v = self.beta * self.v + self.g
        self.y, self.v, self.g = y + v - self.v, v, torch.zeros_like(v)
        self.z, self.r = None, 0
        return x - self.alpha * y

    def fault_in(self, body: Body) -> str:
        return fault_in_pair(self.name, body)


def fitted(beside: Adjacency, R: int | Auto, eta: float | Auto) -> tuple[int, float]:
    """R and eta on this graph. Shrinks an eta with which R rounds would leave more than a plain one does."""
    lam = slowest(beside)
    rounds = rounds_for(len(beside), lam) if R == "auto" else R
    eta = accelerated(lam) if eta == "auto" else eta
    while eta > SURE and left_over(beside, rounds, eta) > lam + SURE:
        eta /= 2
    return rounds, eta if eta > SURE else 0.0


def rounds_for(n: int, lam: float) -> int:
    theory = math.log(n) / 2 / math.sqrt(1 - lam)
    return min(MOST_ROUNDS, max(1, math.ceil(theory - SURE)))
