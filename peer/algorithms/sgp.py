"""SGP, stochastic gradient push (Assran, Loizou, Ballas, Rabbat, ICML 2019, algorithm 1).

    x_i <- x_i + w̄ u_i
    x_i <- sum_j p_ij x_j      w_i <- sum_j p_ij w_j      z_i = x_i / w_i

x_i: numerator, w_i: push-sum weight, z_i: de-biased model; u_i: the change of z_i by local steps, -lr grad
F_i(z_i) in the paper; p_ji: the share that i gives to j, chosen by i alone and for each round anew,
columns sum to 1.

The paper's: all of the above, with one step per round and w̄ = 1. Ours: several local steps, and parcels
v = Q(p_ji x_i) with Q to a smaller type of values, where the sender debits exactly v, so that the rounding
error stays with it. The final rounds of a bounded session are the same push without Q.
"""

from __future__ import annotations

import torch

from peer.algorithms.base import Links, Message
from peer.algorithms.push_sum import GUARD, Guard, PushSum
from peer.compression.bodies import Layout
from peer.compression.compressor import Compress, Fitting
from peer.events import FINAL, PeerId


class SGP(PushSum):
    """Q: how values travel, None for exactly as they are."""

    name = "sgp"

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype = torch.float32,
        Q: Compress | Fitting | None = None,
        *,
        lockstep: bool = True,
        guard: Guard = GUARD,
    ) -> None:
        super().__init__(layout, dtype, lockstep=lockstep, guard=guard)
        self.Q = Q

    def push(self, links: Links) -> dict[PeerId, Message]:
        if links.key.phase == FINAL or self.Q is None:
            return self.average(links, self.exactly)
        Q, turn = self.Q, links.key.round
        if isinstance(Q, Fitting):
            most = links.most_bytes
            fits = {j: Q.fit(links.hides.get(j), most) for j in links.out}
            return self.average(links, Q.fit(None, most), fits)
        return self.average(links, lambda v: Q(v, turn))

    @property
    def least_bytes(self) -> int:
        return self.Q.least_bytes() if isinstance(self.Q, Fitting) and self.key.phase != FINAL else 0
