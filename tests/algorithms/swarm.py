"""n nodes of one algorithm ; every parcel goes through the codec, in any order across links.

Names are "0" to "n-1". A parcel not delivered stays in flight, and its link is not clear meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.push_sum import PushSum
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.events import TRAIN, Key, LinkDown, LinkUp

F64 = torch.float64
Graph = Callable[[int], Tensor]  # round -> P, P[j, i]: the share that i gives to j; columns sum to 1


def ring(n: int, selves: Sequence[float] | None = None) -> Graph:
    return lambda t: _one_peer(n, 1, selves)


def exponential(n: int, selves: Sequence[float] | None = None) -> Graph:
    """One peer a round, hops 1, 2, 4, …, below n, cycling."""
    hops = [1 << k for k in range((n - 1).bit_length())]
    return lambda t: _one_peer(n, hops[t % len(hops)], selves)


def skewed(n: int) -> list[float]:
    """Shares kept, .35 to .65: the columns sum to 1, the rows do not."""
    return [0.35 + 0.3 * i / (n - 1) for i in range(n)]


def random_out(n: int, k: int, seed: int) -> Graph:
    """k random out-neighbors a round, shares equal."""

    def P(t: int) -> Tensor:
        g = random.Random(f"{seed}/{t}")
        out = torch.eye(n, dtype=F64)
        for i in range(n):
            for j in g.sample([j for j in range(n) if j != i], k):
                out[j, i] = 1
        return out / out.sum(0)

    return P


def _one_peer(n: int, hop: int, selves: Sequence[float] | None) -> Tensor:
    c = torch.tensor(selves or [0.5] * n, dtype=F64)
    P = torch.diag(c)
    for i in range(n):
        P[(i + hop) % n, i] = 1 - c[i]
    return P


@dataclass
class Swarm:
    """`late`: chance that a parcel stays in flight in a round."""

    nodes: list[PushSum]
    layout: Layout
    graph: Graph
    seed: int = 0
    late: float = 0.0
    weight: float = 1.0  # that each node begins with
    round: int = 0
    flight: dict[tuple[int, int], Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.g = random.Random(self.seed)

    def begin(self, models: Sequence[Tensor], initial: Tensor | None = None) -> Swarm:
        for node, model in zip(self.nodes, models, strict=True):
            node.know(models[0] if initial is None else initial)
            node.begin(model, self.weight)
        return self

    def links(self, *, bases: bool = True) -> Swarm:
        """All links come up; with `bases`, ends tell each other which models they hold."""
        for i in range(len(self.nodes)):
            for j, far in enumerate(self.nodes):
                if i != j:
                    self.link(i, j, far.bases if bases else ())
        return self

    def link(
        self, i: int, j: int, bases: tuple[bytes, ...] = (), *, replicas: bool = True, epoch: int = 1
    ) -> None:
        """The link i->j has a new epoch."""
        self.nodes[i].on_links(LinkDown(str(j), "out"))
        self.nodes[j].on_links(LinkDown(str(i), "in"))
        self.nodes[i].on_links(LinkUp(str(j), "out", epoch, bases, replicas))
        self.nodes[j].on_links(LinkUp(str(i), "in", epoch, (), replicas))

    def exchange(self, U: Sequence[Tensor], phase: int = TRAIN) -> list[Tensor]:
        """One round of everyone; the mixed models."""
        P, n = self.graph(self.round), len(self.nodes)
        key = Key(0, self.round, phase)
        order = self.g.sample(range(n), n)
        for i in order:
            out = {str(j): float(P[j, i]) for j in range(n) if j != i and P[j, i] > 0}
            expected = frozenset(str(k) for k in range(n) if k != i and P[i, k] > 0)
            clear = frozenset(j for j in out if (i, int(j)) not in self.flight)
            links = Links(key, out, expected, n, self.weight, clear)
            for j, message in self.nodes[i].step(U[i], 0.1, links, 0.0).items():
                self.flight[i, int(j)] = message
            self.deliver(0.5)  # some hear of this round before their own step
        self.deliver(1.0)
        self.round += 1
        return [node.mix() for node in self.nodes]

    def deliver(self, chance: float) -> None:
        """Deliver some of the parcels in flight, through the codec."""
        for i, j in self.g.sample(sorted(self.flight), len(self.flight)):
            if self.g.random() < chance and self.g.random() >= self.late:
                message = self.flight.pop((i, j))
                self.take(i, j, message)
                self.nodes[i].settled(str(j), message)

    def take(self, i: int, j: int, message: Message) -> None:
        heard = codec.decode(codec.encode(message, self.layout), self.layout, self.nodes[j].dtype)
        assert self.nodes[j].receive(str(i), heard, 0.0) == {}

    def mass(self) -> tuple[Tensor, float]:
        """Sum of x and w over the nodes and what is in flight."""
        x, w = torch.zeros(self.layout.d, dtype=self.nodes[0].dtype), 0.0
        for node in self.nodes:
            dx, dw = node.mass()
            x, w = x + dx, w + dw
        for (i, j), message in self.flight.items():
            x, w = x + self.nodes[i].debited(str(j), message), w + message.weight
        return x, w

    @property
    def X(self) -> Tensor:
        return torch.stack([node.x for node in self.nodes])

    @property
    def w(self) -> Tensor:
        return torch.tensor([node.w for node in self.nodes], dtype=F64)


def randoms(n: int, d: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return list(torch.randn(n, d, generator=g, dtype=F64))
