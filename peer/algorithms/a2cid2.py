"""A2CiD2, asynchronous decentralized SGD with continuous local momentum (Nabli, Belilovsky, Oyallon, NeurIPS
2023, arXiv 2306.08289).

    between events     x, x~ <- x + w (x~ - x), x~ - w (x~ - x)     w = (1 - exp(-2 eta dt)) / 2
    gradient event     x, x~ <- x + u, x~ + u
    pair event i, j    x_i, x~_i <- x_i - alpha m, x~_i - alpha~ m     m = x_i - x_j, and -m at the other end
    constants          eta = 1 / (2 sqrt(chi_1 chi_2)), alpha = 1/2, alpha~ = 1/2 sqrt(chi_1 / chi_2)
                       chi_1 = 1 / lambda_2(L), chi_2 = half the largest resistance of an edge in L
                       L = sum over edges of lambda_ij (e_i - e_j)(e_i - e_j)^T

x: model; x~: its momentum, which never travels; u: the change of x by the local steps of a round, -gamma grad
f_i(x_i) in the paper; dt: time since this device's last event, 1 for a gradient event. lambda_ij: how often i
and j average in that time; a device that takes part in `rate` averagings per gradient event, and has asked
for half of them, chooses the neighbor at random: rate / 2 (1 / deg i + 1 / deg j).

The paper's: all of that. Ours: pairs meet without a coordinator (rendezvous.py); both ends take the
difference of snapshots that were mixed first, as the other reads them, and the smaller alpha~ of the two, so
that sum(x + x~) is kept (the authors' code sends the unmixed x); constants follow the rate that is realized
here and at the neighbors, since those for a much higher one diverge, and a device that finds less than a
third of it has no momentum; alpha~ is 4 at the most. dt is in this device's own steps, so sum x and sum x~
are kept exactly only where all are equally fast. On a complete graph chi_1 = chi_2: the momentum gains
nothing.

Nobody waits for anybody: a round is a gradient event, and closes at once. Final rounds average (x + x~) / 2;
where one is pushed with an exchange in doubt, that counts at one end, before the average. A new generation
keeps x~, for which any start is sound; a life that begins from a checkpoint does not, for without the others'
x~ its own is no momentum but a bias.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from peer.algorithms.base import ESTATE, Links, Message, refuse_overflow
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.pair_words import (
    ACCEPT,
    ALPHA,
    BUSY,
    MAX_ALPHA_TILDE,
    MEANINGS,
    OFFER,
    Word,
    number_of,
    read,
)
from peer.algorithms.rendezvous import Offered, Rendezvous, Terms
from peer.algorithms.tempo import Asking, Clock, Rate
from peer.algorithms.whole_model import BEFORE, Values
from peer.compression.bodies import Body, Empty, Layout
from peer.errors import UnknownBaseError
from peer.events import FINAL, Key, LinkDown, LinkUp, PeerId
from peer.graphs import Adjacency, Graph

HEARD_ROUNDS = 10  # a neighbor heard in as many is company; guess


@dataclass(frozen=True, slots=True)
class Constants:
    """eta and alpha~; what they are without momentum."""

    eta: float = 0.0
    alpha: float = ALPHA


PLAIN = Constants()


def constants(chi_1: float, chi_2: float) -> Constants:
    """chi_2 <= chi_1, but for rounding. alpha~ is kept within bounds, and eta with it."""
    chi_1 = min(max(chi_1, chi_2), (2 * MAX_ALPHA_TILDE) ** 2 * chi_2)
    alpha = min(max(ALPHA, math.sqrt(chi_1 / chi_2) / 2), MAX_ALPHA_TILDE)
    return Constants(1 / (2 * math.sqrt(chi_1 * chi_2)), alpha)


def chi(n: int, rates: Mapping[tuple[int, int], float]) -> tuple[float, float]:
    """chi_1 and chi_2 of a connected graph with these edges, lambda_ij each."""
    L = np.zeros((n, n))
    for (i, j), rate in rates.items():
        L[[i, j], [i, j]] += rate
        L[[i, j], [j, i]] -= rate
    inverse = np.linalg.pinv(L, hermitian=True)
    resistances = (inverse[i, i] + inverse[j, j] - 2 * inverse[i, j] for i, j in rates)
    return 1 / float(np.linalg.eigvalsh(L)[1]), max(map(float, resistances)) / 2


@lru_cache(maxsize=64)
def constants_of(graph: Adjacency) -> Constants:
    """At a rate of 1. eta is in proportion to the rate, alpha~ is independent of it."""
    if len(graph) < 2:
        return PLAIN
    edges = {
        (i, j): (1 / len(beside) + 1 / len(graph[j])) / 2
        for i, beside in enumerate(graph)
        for j in beside
        if i < j
    }
    return constants(*chi(len(graph), edges))


def mixed(x: Tensor, x_tilde: Tensor, eta: float, dt: float) -> tuple[Tensor, Tensor]:
    """x and x~ after dt without an event."""
    delta = (x_tilde - x) * (-math.expm1(-2 * eta * dt) / 2)
    return x + delta, x_tilde - delta


class A2CiD2(DPSGD):
    """rate: averagings per gradient event that each device takes part in."""

    name = "a2cid2"
    roundless = True
    accelerates = True

    def __init__(self, layout: Layout, dtype: torch.dtype, Q: Values = None, rate: float = 1.0) -> None:
        super().__init__(layout, dtype, Q)
        self.x_tilde: Tensor | None = None
        self.clock, self.rate = Clock(), Rate(rate)
        self.rendezvous = Rendezvous()
        self._graph: Graph | None = None
        self._at_rate_1 = PLAIN
        self.asking = Asking()
        self._met = 0  # averagings before the last own step
        self._up: set[PeerId] = set()  # out-links
        self._heard_at: dict[PeerId, int] = {}  # in which round

    # --- the equations -----------------------------------------------------------------------------

    @property
    def constants(self) -> Constants:
        """In use now."""
        if not self.accelerates or self.rate.is_too_rare:
            return PLAIN
        return Constants(self._at_rate_1.eta * self.rate.assumed, self._at_rate_1.alpha)

    def mix_to(self, now: float) -> None:
        dt, eta = self.clock.dt(now), self.constants.eta
        if self.x_tilde is not None and eta * dt > 0:
            self.x, self.x_tilde = mixed(self.estimate(), self.x_tilde, eta, dt)

    def snapshot(self, dst: PeerId, now: float) -> Body:
        self.mix_to(now)
        return self.packed(self.estimate(), None, dst)

    def meet(self, m: Tensor, alpha: float, now: float) -> None:
        self.mix_to(now)
        self._add(-ALPHA * m, -alpha * m)

    def _add(self, to_x: Tensor, to_x_tilde: Tensor) -> None:
        self.x = self.estimate() + to_x
        if self.x_tilde is not None:
            self.x_tilde = self.x_tilde + to_x_tilde

    def _restart(self) -> None:
        """There is another x, from elsewhere."""
        self.x_tilde = self.x if self.accelerates else None

    # --- the model ---------------------------------------------------------------------------------

    def begin(self, model: Tensor, weight: float) -> None:
        super().begin(model, weight)
        self._restart()

    # --- a round -----------------------------------------------------------------------------------

    def open(self, links: Links) -> None:
        super().open(links)
        if links.key.phase == FINAL:
            self.rendezvous.drop()
        elif links.graph is not None and links.graph != self._graph:
            self._graph = links.graph
            self._at_rate_1 = constants_of(links.graph.adjacency)

    def begin_generation(self) -> None:
        place = self.links.graph.place if self.links.graph is not None else 0
        self.rendezvous.place = place
        self.asking.begin(f"{self.name} {self.key.generation} {place}")

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)
        if self.is_final:
            self.rendezvous.forget()  # what is averaged now stays as it is
            return super().step(u, lr, links, now)
        pairs, before = self.rendezvous, self._met
        self.clock.step(now)
        self.mix_to(now)
        self._add(u, u)
        self._met = pairs.tally.met
        self.rate.step(self._met - before, links.out)
        late = pairs.give_up(now)
        if late is not None:
            self.asking.refused(late)
        pairs.due = self.asking.step(pairs.due, self.rate.asked / 2)
        return self._ask(links.clear, now)

    def nothing(self, key: Key) -> Message | None:
        return super().nothing(key) if key.phase == FINAL else None

    @property
    def heard(self) -> frozenset[PeerId]:
        if self.is_final:
            return super().heard
        since = self.key.round - HEARD_ROUNDS
        return frozenset(peer for peer in self.links.out if self._heard_at.get(peer, -1) >= max(since, 0))

    def ready(self) -> bool:
        return super().ready() if self.is_final else True

    def stepped(self, x: Tensor, u: Tensor) -> Tensor:
        """In a final round half of each: only sum(x + x~) is kept whatever the devices' clocks."""
        half = x if self.x_tilde is None or not self.is_final else (x + self.x_tilde) / 2
        return half + u

    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        mean = super().average(x, y, heard)
        self.x_tilde = mean if self.accelerates else None
        return mean

    # --- exchanges ---------------------------------------------------------------------------------

    def _ask(self, up: Collection[PeerId], now: float) -> dict[PeerId, Message]:
        """The next exchange that is due, if the slot is free. up: links that may carry it."""
        pairs = self.rendezvous
        free = [peer for peer in self.links.out if peer in up and pairs.may_ask(peer)]
        peer = self.asking.choose(free) if pairs.due > 0 and not self.is_final else None
        if peer is None:
            return {}
        return {peer: self._message(pairs.ask(peer, self._terms(), now))}

    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        if message.meaning in MEANINGS:
            return self._hear(src, message, now)
        before = self.x
        replies = super().receive(src, message, now)
        if self.x is not before:
            self._restart()
        return replies

    def _hear(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        refuse_overflow(src, message, self.dtype)
        if self.x is None or self.key == BEFORE:
            raise UnknownBaseError(f"message from {src}: there is no model here yet, or no round")
        word, pairs, slot = read(src, message), self.rendezvous, self.rendezvous.slot
        is_neighbor = src in self.links.out
        if word.meaning == OFFER and not is_neighbor:
            return {}  # on another graph than this device; no link leads back to say so
        willing = message.key.generation == self.key.generation and not self.is_final
        answer = pairs.hear(src, word, self._terms(willing=willing), self, now)
        self._heard_at[src] = self.key.round
        if word.tells_rate and is_neighbor:
            self.rate.told[src] = word.rate
        if word.meaning == BUSY and isinstance(slot, Offered) and pairs.slot is None:
            self.asking.refused(src)
        elif word.meaning == ACCEPT:
            self.asking.accepted(src)
        replies = {} if answer is None else {src: self._message(answer)}
        return replies | self._ask(self._up, now)

    def returned(self, dst: PeerId, message: Message) -> None:
        if message.meaning in MEANINGS:
            undone = self.rendezvous.returned(dst, message.meaning, number_of(message))
            if undone is not None and self.x is not None:
                self._add(ALPHA * undone.m, undone.alpha * undone.m)
            return
        super().returned(dst, message)
        if message.meaning == ESTATE:
            self._restart()

    def settled(self, dst: PeerId, message: Message) -> None:
        if message.meaning in MEANINGS:
            self.rendezvous.settled(dst, message.meaning, number_of(message))

    def on_links(self, change: LinkUp | LinkDown) -> None:
        is_up = isinstance(change, LinkUp)
        if change.direction == "out":
            (self._up.add if is_up else self._up.discard)(change.peer)
        if change.direction == "in" or not is_up:
            self.rendezvous.begins_anew(change.peer, incoming=change.direction == "in")

    def _terms(self, *, willing: bool = True) -> Terms:
        return Terms(self.constants.alpha, self.rate.own, willing)

    def _message(self, word: Word) -> Message:
        return word.message(self.key, Empty(self.d, self.dtype))
