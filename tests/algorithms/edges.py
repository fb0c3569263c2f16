"""n nodes that gossip over links which deliver once and in order, at their own pace, in any order.

Nodes are "0" to "n-1", at the places of a graph. Of each directed link one message is on its way at a time,
as in `learner.outgoing`; the others wait for its acknowledgement. A link can end: what is on its way then
comes back, or is found to be applied, and what waits comes back too. A node can begin a new life.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.power_gossip import PowerGossip
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.errors import UnknownBaseError
from peer.events import FINAL, TRAIN, Key, LinkDown, LinkUp
from peer.graphs import Graph, metropolis

F64 = torch.float64
Update = Callable[[int, Tensor, int], Tensor]  # node, its model, round -> u


def nothing(i: int, x: Tensor, t: int) -> Tensor:
    return torch.zeros_like(x)


@dataclass
class Line:
    """A directed link. flying: the one on its way; applied: its receiver has taken it, unacknowledged yet."""

    flying: Message | None = None
    applied: bool = False
    waiting: deque[Message] = field(default_factory=deque)


@dataclass
class Edges:
    """faults: the chance, at each turn, that some link ends. gives_up: that a round is closed as it is."""

    nodes: list[PowerGossip]
    layout: Layout
    spec: str = "ring"
    seed: int = 0
    faults: float = 0.0
    gives_up: float = 0.0
    round: int = 0
    sent: list[tuple[int, int, Message]] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self.g = random.Random(self.seed)
        self.n = len(self.nodes)
        self.lines = {(i, j): Line() for i in range(self.n) for j in range(self.n) if i != j}
        self.generations = [1] * self.n
        self.own = torch.zeros(self.layout.d, dtype=F64)  # sum of all local steps

    def begin(self, models: Sequence[Tensor], initial: Tensor | None = None) -> Edges:
        for node, model in zip(self.nodes, models, strict=True):
            node.know(models[0] if initial is None else initial)
            node.begin(model, 1.0)
        return self

    def links(self, i: int, t: int, phase: int = TRAIN) -> Links:
        graph = Graph("complete" if phase == FINAL else self.spec, self.n, i)
        row = metropolis(graph.adjacency)[i]
        out = {str(j): row[j] for j in graph.adjacency[i]}
        return Links(Key(self.generations[i], t, phase), out, frozenset(out), self.n, graph=graph)

    def run(self, rounds: int, update: Update = nothing, phase: int = TRAIN) -> list[Tensor]:
        """Everybody's models after each round: n x d each."""
        first, last = self.round, self.round + rounds
        at, waits = [first] * self.n, [False] * self.n
        models = [[torch.empty(0)] * self.n for _ in range(rounds)]
        while min(at) < last:
            i = self.g.randrange(self.n)
            node, t = self.nodes[i], at[i]
            if self.g.random() < self.faults:
                self.end_link(*self.g.choice(list(self.lines)))
            if (busy := self.busy()) and self.g.random() < 0.7:
                self.move(*self.g.choice(busy))
            elif not waits[i] and t < last:
                u = update(i, node.estimate(), t)
                self.own += u
                self.push(i, node.step(u, 0.1, self.links(i, t, phase), 0.0))
                waits[i] = True
            elif waits[i] and (node.ready() or self.g.random() < self.gives_up):
                models[t - first][i] = node.mix()
                waits[i], at[i] = False, t + 1
        self.round = last
        return [torch.stack(X) for X in models]

    def average(self) -> Tensor:
        """The final round, of which nothing is lost: when mass has settled, as in `learner.exchange`."""
        for i, node in enumerate(self.nodes):
            node.open(self.links(i, self.round, FINAL))
        self.settle()
        heard = [node.step(torch.zeros(self.layout.d, dtype=F64), 0.0, self.links(i, self.round, FINAL), 0.0)
                 for i, node in enumerate(self.nodes)]  # fmt: skip
        for i, messages in enumerate(heard):
            for j, message in messages.items():
                self.nodes[int(j)].receive(str(i), message, 0.0)
        self.round += 1
        return torch.stack([node.mix() for node in self.nodes])

    def settle(self) -> None:
        """Until nothing is on its way."""
        while busy := self.busy():
            self.move(*self.g.choice(busy))

    # --- links ---------------------------------------------------------------------------------------

    def busy(self) -> list[tuple[int, int]]:
        return [key for key, line in self.lines.items() if line.flying is not None]

    def push(self, i: int, messages: dict[str, Message]) -> None:
        for j, message in messages.items():
            assert message.delivery == "mass"
            self.sent.append((i, int(j), message))
            self.lines[i, int(j)].waiting.append(message)
            self.go_on(i, int(j))

    def go_on(self, i: int, j: int) -> None:
        line = self.lines[i, j]
        if line.flying is None and line.waiting:
            line.flying, line.applied = line.waiting.popleft(), False

    def move(self, i: int, j: int) -> None:
        """What is on its way from i to j comes there, or its acknowledgement comes back."""
        line = self.lines[i, j]
        assert line.flying is not None
        if line.applied:
            self.settle_one(i, j)
            self.go_on(i, j)
        else:
            heard = codec.decode(codec.encode(line.flying), self.layout, self.nodes[j].dtype)
            try:
                replies = self.nodes[j].receive(str(i), heard, 0.0)
            except UnknownBaseError:
                self.refused += 1
                self.end_link(i, j)
            else:
                line.applied = True
                self.push(j, replies)

    def settle_one(self, i: int, j: int) -> None:
        message, self.lines[i, j].flying = self.lines[i, j].flying, None
        assert message is not None
        self.nodes[i].settled(str(j), message)

    def end_link(self, i: int, j: int) -> None:
        """From i to j: a new epoch begins."""
        line, node = self.lines[i, j], self.nodes[i]
        if line.flying is not None and line.applied:
            self.settle_one(i, j)
        elif line.flying is not None:
            message, line.flying = line.flying, None
            node.returned(str(j), message)
        while line.waiting:
            node.returned(str(j), line.waiting.popleft())
        node.on_links(LinkDown(str(j), "out"))
        node.on_links(LinkUp(str(j), "out", 1))

    def crash(self, i: int, node: PowerGossip, model: Tensor) -> None:
        """i begins a new life, of which nobody is told but by its links."""
        for j in range(self.n):
            if j != i:
                self.lines[i, j] = Line()
                if self.lines[j, i].flying is not None:
                    self.lines[j, i].applied = False  # what the life before applied does not count
                self.end_link(j, i)
        node.know(torch.zeros_like(model))
        node.begin(model, 1.0)
        self.nodes[i] = node

    # --- what can be measured --------------------------------------------------------------------------

    def sum(self) -> Tensor:
        """Of all models, without halves whose others are not done."""
        import copy

        total = torch.zeros(self.layout.d, dtype=F64)
        for i, node in enumerate(self.nodes):
            copied = copy.deepcopy(node)
            for (src, j), line in self.lines.items():
                if src != i:
                    continue
                if line.flying is not None and not line.applied:
                    copied.returned(str(j), line.flying)
                for message in line.waiting:
                    copied.returned(str(j), message)
            total += copied.mass()[0]
        return total
