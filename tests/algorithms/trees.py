"""n nodes that send whole models, on one tree or two or any graph; each at its own pace, in any order.

Nodes are "0" to "n-1". Nobody waits for more than the messages of its round, so others may be ahead; as in
`learner.exchange`, only one message ahead of its receiver is delivered.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.whole_model import WholeModel
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.events import FINAL, TRAIN, Key

F64 = torch.float64
Edges = Sequence[tuple[int, int]]
Update = Callable[[int, Tensor, int], Tensor]  # node, its model, round -> u


def chain(n: int) -> list[tuple[int, int]]:
    return list(pairwise(range(n)))


def heap(n: int) -> list[tuple[int, int]]:
    """Root 0, children 2i+1 and 2i+2."""
    return [((i - 1) // 2, i) for i in range(1, n)]


def authors_tree(n: int) -> list[tuple[int, int]]:
    """As the authors number it: 0 hangs off 1, w off w // 2."""
    return [(0, 1), *((w // 2, w) for w in range(2, n))]


def double_tree(n: int) -> list[list[tuple[int, int]]]:
    first = authors_tree(n)
    return [first, [(n - 1 - a, n - 1 - b) for a, b in first]]


def around(n: int, edges: Edges) -> list[tuple[int, ...]]:
    """Each node's neighbors."""
    near: list[set[int]] = [set() for _ in range(n)]
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    return [tuple(sorted(one)) for one in near]


def hops(n: int, edges: Edges) -> Tensor:
    near, far = around(n, edges), torch.full((n, n), -1)
    for start in range(n):
        far[start, start] = 0
        line = deque([start])
        while line:
            here = line.popleft()
            for there in near[here]:
                if far[start, there] < 0:
                    far[start, there] = far[start, here] + 1
                    line.append(there)
    return far


def delays(n: int, edges: Edges) -> Tensor:
    """tau_ij = max(hops - 1, 0)."""
    return (hops(n, edges) - 1).clamp(min=0)


@dataclass
class Grove:
    """trees: their edges. W: mixing weights instead, on the graph where they are not 0. drops: messages lost,
    by round. aligning: as in Links."""

    nodes: list[WholeModel]
    layout: Layout
    trees: list[list[tuple[int, int]]]
    W: Tensor | None = None
    seed: int = 0
    drops: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    aligning: int = 0
    generation: int = 1
    round: int = 0
    sent: list[tuple[int, int, Message]] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)  # after each round, on the first tree

    def __post_init__(self) -> None:
        self.g = random.Random(self.seed)
        self.n = len(self.nodes)
        self.near = [around(self.n, edges) for edges in self.trees]
        taus = [delays(self.n, edges).double().mean() for edges in self.trees]
        self.mean_delay = float(sum(taus) / len(taus)) if taus else 0.0

    def begin(self, models: Sequence[Tensor], initial: Tensor | None = None) -> Grove:
        for node, model in zip(self.nodes, models, strict=True):
            node.know(models[0] if initial is None else initial)
            node.begin(model, 1.0)
        return self

    def links(self, i: int, t: int, phase: int = TRAIN) -> Links:
        trees = tuple(tuple(str(j) for j in near[i]) for near in self.near)
        if self.W is not None:
            out = {str(j): float(w) for j, w in enumerate(self.W[i]) if j != i and w > 0}
        else:
            neighbors = sorted({j for tree in trees for j in tree})
            out = {j: 1 / (len(neighbors) + 1) for j in neighbors}
        key = Key(self.generation, t, phase)
        expected, delay = frozenset(out), self.mean_delay
        return Links(key, out, expected, self.n, 1.0, frozenset(), trees, delay, aligning=self.aligning)

    def run(self, rounds: int, update: Update, phase: int = TRAIN) -> list[Tensor]:
        """Everybody's models after each round: n x d each."""
        first, last = self.round, self.round + rounds
        at, waits = [first] * self.n, [False] * self.n
        flight: dict[tuple[int, int], deque[Message]] = {}
        models = [[torch.empty(0)] * self.n for _ in range(rounds)]
        counts = [[0] * self.n for _ in range(rounds)]
        while min(at) < last:
            i = self.g.randrange(self.n)
            node, t = self.nodes[i], at[i]
            lines = [(j, line) for (j, dst), line in flight.items() if dst == i and line]
            if lines and self.g.random() < 0.7:
                j, line = self.g.choice(lines)
                if line[0].key.round <= node.key.round + 1:
                    self.take(j, i, line.popleft())
            elif not waits[i] and t < last:
                links = self.links(i, t, phase)
                for dst, message in node.step(update(i, node.estimate(), t), 0.1, links, 0.0).items():
                    self.sent.append((i, int(dst), message))
                    if (i, int(dst)) not in self.drops.get(t, ()):
                        flight.setdefault((i, int(dst)), deque()).append(message)
                lost = {str(src) for src, dst in self.drops.get(t, ()) if dst == i}
                node.expect(links.expected - lost)
                waits[i] = True
            elif waits[i] and node.ready():
                models[t - first][i] = node.mix()
                counts[t - first][i] = self.count(i)
                waits[i], at[i] = False, t + 1
        self.round = last
        self.counts += counts
        return [torch.stack(X) for X in models]

    def average(self, rounds: int) -> list[Tensor]:
        """Final rounds."""
        return self.run(rounds, lambda i, x, t: torch.zeros_like(x), FINAL)

    def take(self, i: int, j: int, message: Message) -> None:
        assert message.delivery == "latest"
        node = self.nodes[j]
        heard = codec.decode(codec.encode(message), self.layout, node.dtype)
        assert node.receive(str(i), heard, 0.0) == {}

    def count(self, i: int) -> int:
        """Nodes in the sum that i has just divided."""
        relay = getattr(self.nodes[i], "relay", None)
        return 0 if relay is None else 1 + sum(c for _, c in relay.stored[0].values())
