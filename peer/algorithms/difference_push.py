"""Difference-push, our own: push-sum of models that both ends of a link already know nearly.

    x_i <- x_i + w̄ u_i            z_i = x_i / w_i
    v = z_i - h_ij                 q = C_R(v)                   at R bits per parameter
    D = |v - q|^2 / |v|^2          p = min(p_ji, 1 - sqrt D)    clamped to [0, 1/2]
    h_ij <- h_ij + q               at i now, at j when it takes the parcel, in number order
    u = p w_i                      x_i <- x_i - u h_ij,  w_i <- w_i - u
                                   x_j <- x_j + u h_ij,  w_j <- w_j + u    at j

x_i, w_i: numerator and push-sum weight; u_i: the change of z_i by local steps; h_ij: what j knows of z_i.

A parcel is "u units of weight of the model h_ij", so the sums of x and w are exact for any C, D, p, link
pattern and delay. The error v - q stays in z_i and is offered again: error feedback without a buffer. p <=
1 - sqrt D, since the debit leaves z_i = h + (v - q)/(1 - p) at home: the residue must not grow. Kin:
quantized push-sum (Taheri, Mokhtari, Hassani, Pedarsani, ICML 2020), here per edge, with p adapted and a
quantizer at a budget. Final rounds are the same with more bits. C may be any other compressor in rounds with
local steps: p follows what it loses.

Where a device has a budget for what it sends, R is what a message may take, down to `LEAST_BITS`; then its
links' first parcels are not dense either, and what h lacks comes with the next.

h starts anew with each link epoch: from a base that both ends name by digest (the initial model while it
is recent, or a snapshot that one has served the other), else from a dense parcel without weight. A link
without replicas uses h = x0, the initial model, throughout: u units of weight of x0 + q, with q at more
bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.push_sum import GUARD, Guard, PushSum
from peer.algorithms.replicas import REPLICA_MB, Replicas, size_of
from peer.compression.bodies import Body, Empty, Layout, Recalled
from peer.compression.compressor import Compress
from peer.compression.history import History
from peer.compression.quantize import SMALLEST_BUDGET
from peer.events import FINAL, Direction, Key, LinkDown, LinkUp, PeerId
from peer.grammar import MAX_BITS

DIFFERENCE = 16  # h += body, from the model `base` if one is named; weight units of h
REPLICA = 17  # h = body, weight 0
DEVIATION = 18  # weight units of x0 + body, base names x0; no replica

LEAST_BITS = 0.5  # per parameter; rather than with fewer it sends more rarely (measured: better than at 0.1)
HEAD_BYTES = 96  # of a message, at the most, besides what is counted in bits per parameter
DENSE_BITS = 9.0  # about what a link's dense first parcel takes: int8 and its scales
MOST = 0.5  # of the weight in one parcel: more would leave the residue amplified even where D = 0 (guess)


Quantizer = Callable[[Tensor, float, History | None], Body]


@dataclass(frozen=True, slots=True)
class Budget:
    """Bits per parameter. R: rounds with local steps; final: final rounds; fixed: links without replicas.

    share: cap on p. Defaults measured with 8 peers on Fashion-MNIST, 54k parameters: the number of exchanges
    counts more than their bits, hence R = 1; R = 2 at the end; without replicas 3 bits were best.
    """

    R: float = 1.0
    final: float = 2.0
    fixed: float = 3.0
    share: float = MOST


class DifferencePush(PushSum):
    """auto: R of each link is what its exchange has room for beside the local steps, from LEAST_BITS on.

    C(v, R, history): quantizer at R bits per parameter, coded with that history if there is one. opening:
    compressor of a new link's first, dense parcel. usual: compressor of rounds with local steps on links with
    replicas, where it is not C.

    replicas: False keeps none; replica_mb: megabytes for all of them, after which links do without.
    """

    name = "difference-push"

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        C: Quantizer,
        opening: Compress,
        budget: Budget = Budget(),
        *,
        usual: Compress | None = None,
        auto: bool = False,
        replicas: bool = True,
        replica_mb: float = REPLICA_MB,
        lockstep: bool = True,
        guard: Guard = GUARD,
    ) -> None:
        super().__init__(layout, dtype, lockstep=lockstep, guard=guard)
        self.layout, self.C, self.opening, self.budget = layout, C, opening, budget
        self.usual, self.auto = usual, auto
        self._most_bits = math.inf  # in the round that is pushed
        self._hidden_bits: dict[PeerId, float] = {}  # of each link in that round
        self.replicas = Replicas(self.held, allowed=replicas, mb=replica_mb)

    # --- the update ------------------------------------------------------------------------------

    def push(self, links: Links) -> dict[PeerId, Message]:
        z, w = self.estimate(), self.w  # all out-links of a round see the same model
        self._most_bits = self._affordable(links.most_bytes)
        if self.auto:
            self._hidden_bits = {j: self._affordable(size) for j, size in links.hides.items()}
        return {j: self._parcel(j, p, z, w, links.key) for j, p in self.shares(links).items()}

    def _parcel(self, j: PeerId, p: float, z: Tensor, w: float, key: Key) -> Message:
        if not self.replicas.keeps(j, z):
            return self._without_replica(j, p, z, w, key)
        link = self.replicas.link_to(j)
        h, history, base = link.h, link.history, b""
        if h is None or history is None:
            history = History.fresh(self.layout)
            common = self.replicas.opening(j)
            if common is None:
                dense = self._most_bits >= DENSE_BITS
                bits = min(self._most_bits, MAX_BITS)
                body = self.opening(z, key.round) if dense else self.C(z, bits, None)
                self.replicas.keep(j, body.dense(), key.round, history)
                return Message(key, REPLICA, body)
            h, base = common
        body, q, p = self._difference(z - h, p, self._coder(key, history, j))
        h = h + q
        self.replicas.keep(j, h, key.round, history.after(body))
        self.lend(j, h, p * w)
        return Message(key, DIFFERENCE, history.recall(body), p * w, base)

    def _without_replica(self, j: PeerId, p: float, z: Tensor, w: float, key: Key) -> Message:
        h = self.initial_model()
        bits = min(max(self._bits(key, j), self.budget.fixed), self._most_bits)
        body, q, p = self._difference(z - h, p, lambda v: self.C(v, bits, None))
        self.lend(j, h + q, p * w)
        return Message(key, DEVIATION, body, p * w, self.x0_digest)

    def _difference(self, v: Tensor, p: float, coder: Callable[[Tensor], Body]) -> tuple[Body, Tensor, float]:
        """q as a body and as a tensor, and the share p that goes with it."""
        body = coder(v) if v.any() else Empty(self.d, self.dtype)
        q = body.dense()
        return body, q, max(0.0, min(p, self.budget.share, MOST, 1 - lost(v, q)))

    def _coder(self, key: Key, history: History, j: PeerId) -> Callable[[Tensor], Body]:
        usual = self.usual
        if usual is not None and key.phase != FINAL:
            return lambda v: usual(v, key.round)
        return lambda v: self.C(v, self._bits(key, j), history)

    def _bits(self, key: Key, j: PeerId) -> float:
        bits = self.budget.final if key.phase == FINAL else self.budget.R
        if key.phase != FINAL and j in self._hidden_bits:
            bits = min(max(LEAST_BITS, self._hidden_bits[j]), MAX_BITS)
        return min(bits, self._most_bits)

    def _affordable(self, most_bytes: int | None) -> float:
        """Bits per parameter that a message of so many bytes has room for."""
        return math.inf if most_bytes is None else 8 * max(0, most_bytes - HEAD_BYTES) / self.d

    @property
    def least_bytes(self) -> int:
        if self.usual is not None:
            return 0
        bits = min(LEAST_BITS, self.budget.R)
        return HEAD_BYTES + max(SMALLEST_BUDGET, math.ceil(bits * self.d / 8))

    # --- mail ------------------------------------------------------------------------------------

    def explained(self, src: PeerId, message: Message) -> Message:
        """With what is remembered of the link. Raises UnknownBaseError."""
        if not isinstance(message.body, Recalled):
            return message
        return replace(message, body=self.replicas.history_of(src).read(message.body))

    def mass_of(self, src: PeerId, message: Message) -> Tensor | None:
        meaning, q = message.meaning, message.body
        if meaning == REPLICA:
            self.replicas.learn(src, q.dense(), History.fresh(self.layout))
            return None
        if meaning == DIFFERENCE:
            h, history = self._known_of(src, message.base)
            h = h + q.dense()
            self.replicas.learn(src, h, history.after(q))
            return message.weight * h
        if meaning == DEVIATION:
            h = self.initial_model(message.base) + q.dense()
            self.replicas.does_without(src)
            return message.weight * h
        return super().mass_of(src, message)

    def _known_of(self, src: PeerId, base: bytes) -> tuple[Tensor, History]:
        """What a difference of `src` adds to. Raises UnknownBaseError."""
        if base:
            return self.held.get(base), History.fresh(self.layout)
        return self.replicas.known_of(src), self.replicas.history_of(src)

    def returned(self, dst: PeerId, message: Message) -> None:
        super().returned(dst, message)
        self.replicas.forget(dst)

    def on_links(self, change: LinkUp | LinkDown) -> None:
        self.replicas.on_links(change)

    @property
    def room(self) -> bool:
        return self.replicas.room(size_of(self.x))

    @property
    def lacking(self) -> frozenset[tuple[Direction, PeerId]]:
        return frozenset(self.replicas.lacking)

    def evicted(self) -> tuple[PeerId, ...]:
        evicted, self.replicas.evicted = tuple(self.replicas.evicted), []
        return evicted

    # --- joining ---------------------------------------------------------------------------------

    def sponsor(self, dst: PeerId, key: Key, bases: tuple[bytes, ...]) -> Message:
        message = super().sponsor(dst, key, bases)
        self.replicas.served(dst, self.held.hold(self._lent[dst], key.round))
        return message

    def take_snapshot(self, message: Message) -> Tensor:
        z = super().take_snapshot(message)
        self.held.hold(z, message.key.round)
        return z


def lost(v: Tensor, q: Tensor) -> float:
    """sqrt D = |v - q| / |v|; 0 where v = 0, since then nothing is lost."""
    size = float(v.norm())
    return float((v - q).norm()) / size if size > 0 else 0.0
