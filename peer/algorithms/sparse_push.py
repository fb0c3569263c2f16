"""Sparse-Push and SCSP (Aketi, Singh, Rabaey, arXiv 2102.05715): SGP with error-compensated top-k.

    x_i <- x_i + w̄ u_i
    s_i = x_i + e_i        q_i = C(s_i)        e_i <- s_i - q_i
    x_i <- x_i + gamma (sum_j p_ij q_j - q_i)
    w_i <- w_i + gamma (sum_j p_ij w_j - w_i)          z_i = x_i / w_i
    SCSP, the final rounds:   x_i <- sum_j p_ij x_j,   w_i <- sum_j p_ij w_j

x_i: numerator, w_i: push-sum weight; u_i: the change of z_i by local steps; p_ji: the share that i gives
to j; e_i: what is still owed, private, no mass; C: top-k by magnitude inside every tensor; gamma:
consensus step, about k/d, the fraction kept (`consensus_step`).

The paper's (rebuilt from its abstract and its first author's public code, not from its text): all of the
above, with one local step per round. Ours: it is written per parcel, so that mass is exact on links that
lose and delay: j gets (gamma p_ji q_i, gamma p_ji w_i), the sender debits the sum of what went out, and
the share of a link that is not clear stays home; of what comes back unapplied, e is as if it had not gone
(its part of y - q, with today's y); C rounds what it keeps to the type on the wire, and that
error goes into e as well, so that C may be any compressor; e outlives changes of neighbors, and a restart
from this device's own checkpoint (with any other model it starts at zero). Also ours: `reference` "initial"
applies C to y_i = x_i - w_i x0, the deviation from the initial model. The paper's s holds the whole model,
which leaves a spread of about gamma d/k |x| between nodes (on quadratics of ring 5, d = 40, k/d = 10 %: 1.0,
and 0.19 on deviations).

Memory beyond the model's: e, as many bytes as the model, whatever the number of links.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from peer.algorithms.base import SHARE, Links, Message
from peer.algorithms.push_sum import GUARD, Guard, PushSum
from peer.compression.bodies import Body, Empty, Layout
from peer.compression.compressor import Compress, Compressor
from peer.compression.low_rank import factored
from peer.events import FINAL, Key, PeerId
from peer.grammar import Compression

DEVIATION = 16  # body is y, mass less weight units of the initial model

Reference = Literal["zero", "initial"]

SIGN_STEP = 0.45


def consensus_step(spec: Compression, layout: Layout) -> float:
    """gamma where nobody gives one: how much of a vector C keeps for sure.

    k/d with sparsifiers, as in the authors' scripts. lowrank: r / min(rows, columns), the share of |M|^2 that
    the best rank-r product keeps at least, as k/d is that of top-k (Vogels et al. 2019; Koloskova et al.
    2019), mean over the parameters. sign: SIGN_STEP times that, from the CHOCO-SGD scripts (0.45 to 0.5 with
    sign and norm on a ring of 8; Koloskova et al. 2020).
    """
    step, d = 1.0, layout.d
    if spec.sparsifier is not None:
        kept = Compressor(Compression(spec.sparsifier), layout)(torch.ones(d)).dense()
        step = int(kept.count_nonzero()) / d
    elif spec.transform is not None:
        r = int(spec.transform.amount)
        kept_of = (min(1.0, r / min(s)) if factored(s, r) else 1.0 for s in layout.shapes)
        step = sum(size * share for size, share in zip(layout.sizes, kept_of, strict=True)) / d
    return SIGN_STEP * step if spec.values == "sign" else step


class SparsePush(PushSum):
    """C: compressor, given the round too; gamma: consensus step in (0, 1]."""

    name = "sparse-push"

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        C: Compress,
        gamma: float,
        *,
        reference: Reference = "zero",
        lockstep: bool = True,
        guard: Guard = GUARD,
    ) -> None:
        super().__init__(layout, dtype, lockstep=lockstep, guard=guard)
        self.C, self.gamma, self.reference = C, gamma, reference
        self.e = torch.zeros_like(self.x)  # of this node, not of a link: neighbors may change
        self._gone: dict[PeerId, tuple[Key, float, float]] = {}  # of the last parcel: gamma p, part of all

    def own(self) -> dict[str, Tensor]:
        return {"e": self.e / self.w} if self.w > 0 and self.e.any() else {}

    def restore(self, own: Mapping[str, Tensor]) -> None:
        if "e" in own:
            self.e = self.w * own["e"].to(self.dtype)

    def push(self, links: Links) -> dict[PeerId, Message]:
        if links.key.phase == FINAL:
            return self.average(links, self.exactly)
        shares = {j: self.gamma * p for j, p in self.shares(links, self.gamma).items()}
        bodies, w = self._compressed(set(shares.values()), links.key.round), self.w
        zero = self.reference == "zero"
        meaning, base = (SHARE, b"") if zero else (DEVIATION, self.x0_digest)
        messages = {j: Message(links.key, meaning, bodies[p], p * w, base) for j, p in shares.items()}
        for message in messages.values():
            self.debit(self._mass(message), message.weight)
        whole = sum(shares.values())
        self._gone |= {j: (links.key, p, p / whole) for j, p in shares.items() if p > 0}
        return messages

    def returned(self, dst: PeerId, message: Message) -> None:
        super().returned(dst, message)
        if (gone := self._parcel(dst, message)) is not None:
            p, part = gone
            self.e += part * (message.body.dense() / p - self._deviation())

    def settled(self, dst: PeerId, message: Message) -> None:
        super().settled(dst, message)
        self._parcel(dst, message)

    def _parcel(self, dst: PeerId, message: Message) -> tuple[float, float] | None:
        """gamma p of this parcel, and its part of all that went out with it; from now on it is forgotten."""
        key, p, part = self._gone.get(dst, (None, 0.0, 0.0))
        if key != message.key or message.meaning not in (SHARE, DEVIATION):
            return None
        del self._gone[dst]
        return p, part

    def _compressed(self, shares: set[float], turn: int) -> dict[float, Body]:
        """Body of the parcel for each gamma p_ji; e <- s - q, unless nothing goes out at all."""
        largest = max(shares, default=0.0)
        if largest == 0:
            return {p: Empty(self.d, self.dtype) for p in shares}
        s = self._deviation() + self.e
        body = self.C(largest * s, turn)  # no C cares about scale, and what is rounded is what travels
        q = body.dense() / largest
        self.e = s - q
        return {p: body if p == largest else self.C(p * q, turn) for p in shares}

    def _deviation(self) -> Tensor:
        return self.x if self.reference == "zero" else self.x - self.w * self.initial_model()

    def mass_of(self, src: PeerId, message: Message) -> Tensor | None:
        if message.meaning != DEVIATION:
            return super().mass_of(src, message)
        self.initial_model(message.base)
        return self._mass(message)

    def debited(self, dst: PeerId, message: Message) -> Tensor:
        return self._mass(message) if message.meaning == DEVIATION else super().debited(dst, message)

    def _mass(self, message: Message) -> Tensor:
        y = message.body.dense()
        return y if message.meaning == SHARE else y + message.weight * self.initial_model()
