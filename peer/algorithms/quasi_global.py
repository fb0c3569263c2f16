"""QG-DSGDm, D-PSGD with quasi-global momentum (Lin, Karimireddy, Stich, Jaggi, ICML 2021, algorithm 1).

    y_i = x_i + u_i - eta beta m_i                              sent to every neighbor
    x_i' = sum_j W_ij y_j
    m_i <- beta m_i + (1 - beta) (x_i - x_i') / eta             x_i <- x_i'

x: model; u: its change by local steps, -eta grad F_i(x_i) in the paper; W: Metropolis weights; eta: learning
rate; m: momentum, of what the model did after gossip, so that it goes where all models go together.

The paper's: all of the above, with mu = beta as in its experiments, and heavy-ball steps. Ours: several local
steps; what D-PSGD (d_psgd.py) does where a message is missing. The optimizer's own momentum is to be 0.

Memory beyond the model's: m.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.whole_model import Values
from peer.compression.bodies import Layout
from peer.events import PeerId


class QuasiGlobal(DPSGD):
    name = "qg-d-psgd"
    MEANING = 53  # body: y of its sender
    MEANINGS = (MEANING,)

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        Q: Values = None,
        *,
        beta: float = 0.9,
        lockstep: bool = True,
    ) -> None:
        super().__init__(layout, dtype, Q, lockstep=lockstep)
        self.beta, self.eta, self.m = beta, 0.0, torch.zeros(layout.d, dtype=dtype)

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)  # what closes a round before this one is done with its own learning rate
        self.eta = lr
        return super().step(u, lr, links, now)

    def stepped(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u if self.is_final else x + u - self.eta * self.beta * self.m

    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        mixed = super().average(x, y, heard)
        if self.eta > 0 and not self.is_final:
            self.m = self.beta * self.m + (1 - self.beta) * (x - mixed) / self.eta
        return mixed
