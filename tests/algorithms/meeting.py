"""n nodes whose exchanges are whole or not at all, each at its own pace; messages come once, in any order.

Nodes are "0" to "n-1", in the order of their places. What `learner.exchange` and its node do is done here by
chance: a round may be closed before all have been heard, and the next ones take no local steps then.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.lossless import Lossless
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.events import FINAL, TRAIN, Key
from peer.graphs import Graph, metropolis

F64 = torch.float64
LR = 0.1
Update = Callable[[int, Tensor, int], Tensor]  # node, its model, the how manieth exchange -> u


def metropolis_of(spec: str, n: int) -> Tensor:
    rows = metropolis(Graph(spec, n, 0).adjacency)
    return torch.tensor([[row.get(place, 0.0) for place in range(n)] for row in rows], dtype=F64)


@dataclass
class Meeting:
    """spec: the graph; W: other weights on it, of which nothing is known then. late: how probable it is that
    a round is closed as it is."""

    nodes: dict[int, Lossless]
    layout: Layout
    spec: str = "ring"
    W: Tensor | None = None
    seed: int = 0
    late: float = 0.0
    lr: float = LR
    generation: int = 1
    broken: set[tuple[int, int]] = field(default_factory=set)  # nothing comes over these
    flight: dict[tuple[int, int], deque[Message]] = field(default_factory=dict)
    sent: list[tuple[int, int, Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.g = random.Random(self.seed)
        self.done = dict.fromkeys(self.nodes, 0)  # exchanges finished
        self.round = dict.fromkeys(self.nodes, 0)
        self.pushed: set[int] = set()

    def begin(self, models: Sequence[Tensor]) -> Meeting:
        for node, model in zip(self.nodes.values(), models, strict=True):
            node.know(models[0])
            node.begin(model, 1.0)
        return self

    @property
    def X(self) -> Tensor:
        return torch.stack([node.estimate() for node in self.nodes.values()])

    def links(self, i: int, phase: int = TRAIN) -> Links:
        names, n = list(self.nodes), len(self.nodes)
        place, spec = names.index(i), "complete" if phase == FINAL else self.spec
        W = metropolis_of(spec, n) if self.W is None or phase == FINAL else self.W
        out = {str(names[j]): float(w) for j, w in enumerate(W[place]) if j != place and w > 0}
        graph = None if self.W is not None else Graph(spec, n, place)
        key = Key(self.generation, self.round[i], phase)
        return Links(key, out, frozenset(out), n, 1.0, frozenset(out), graph=graph)

    def new_generation(self) -> Meeting:
        """Nothing of the old one is on its way any more."""
        self.generation += 1
        self.flight.clear()
        self.pushed.clear()
        self.done = dict.fromkeys(self.nodes, 0)
        self.round = dict.fromkeys(self.nodes, max(self.round.values(), default=0) + 1)
        for i, node in self.nodes.items():
            node.open(self.links(i))
        return self

    def run(self, exchanges: int, update: Update) -> list[Tensor]:
        """Everybody's models after each exchange: n x d each. Stops where nothing can happen any more."""
        first = dict(self.done)
        models: list[dict[int, Tensor]] = [{} for _ in range(exchanges)]
        quiet = 0
        while quiet < 200 * len(self.nodes) and any(len(one) < len(self.nodes) for one in models):
            i = self.g.choice(list(self.nodes))
            at = self.done[i] - first[i]
            moved = self.take(i) if self.g.random() < 0.6 else self.act(i, at < exchanges, update)
            if self.done[i] - first[i] > at:
                models[at][i] = self.nodes[i].estimate()
            quiet = 0 if moved else quiet + 1
        whole = [one for one in models if len(one) == len(self.nodes)]
        return [torch.stack([one[i] for i in self.nodes]) for one in whole]

    def act(self, i: int, wanted: bool, update: Update) -> bool:
        """Open and push a round, or close it. Did anything change?"""
        node = self.nodes[i]
        if i not in self.pushed:
            if not wanted:
                return False
            again = node.still
            return bool(self.push(i, update)) or not again
        if not node.ready() and self.g.random() >= self.late:
            return False
        whole = node.ready()
        node.mix()
        self.pushed.discard(i)
        self.round[i] += 1
        if node.still:
            return whole
        self.done[i] += 1
        return True

    def push(self, i: int, update: Update) -> dict[str, Message]:
        node, links = self.nodes[i], self.links(i)
        node.open(links)
        u = torch.zeros(self.layout.d, dtype=node.dtype)
        if not node.still:
            u = update(i, node.estimate(), self.done[i])
        messages = node.step(u, self.lr, links, 0.0)
        for dst, message in messages.items():
            self.sent.append((i, int(dst), message))
            self.flight.setdefault((i, int(dst)), deque()).append(message)
        self.pushed.add(i)
        return messages

    def take(self, i: int) -> bool:
        """Something that is on its way to i comes."""
        lines = [way for way, line in self.flight.items() if way[1] == i and line and way not in self.broken]
        if not lines:
            return False
        way = self.g.choice(lines)
        message, node = self.flight[way].popleft(), self.nodes[i]
        assert message.delivery == "mass"
        heard = codec.decode(codec.encode(message, self.layout), self.layout, node.dtype)
        assert node.receive(str(way[0]), heard, 0.0) == {}
        return True

    def give_back(self, i: int, j: int) -> None:
        """The link from i to j ends its epoch: what is on its way goes back."""
        for message in self.flight.pop((i, j), ()):
            self.nodes[i].returned(str(j), message)

    def average(self) -> Tensor:
        """The final round."""
        messages = {i: node.step(0 * node.estimate(), 0.0, self.links(i, FINAL), 0.0)
                    for i, node in self.nodes.items()}  # fmt: skip
        for i, sent in messages.items():
            for dst, message in sent.items():
                assert message.delivery == "latest"
                self.nodes[int(dst)].receive(str(i), message, 0.0)
        assert all(node.ready() for node in self.nodes.values())
        return torch.stack([node.mix() for node in self.nodes.values()])


def still(i: int, x: Tensor, t: int) -> Tensor:
    return torch.zeros_like(x)
