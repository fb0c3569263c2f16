"""Nodes that meet two by two, on links that deliver mass: once, in order, or back to its sender.

Nodes are "0" to "n-1". `Calm` brings about what happens when it is told to, at one time for all. `Storm` has
messages, acknowledgements and ends of links come in any order that the links of peer/mesh allow.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from peer.algorithms import make
from peer.algorithms.a2cid2 import A2CiD2
from peer.algorithms.base import Links, Message
from peer.algorithms.tempo import Clock, Rate
from peer.compression.bodies import Layout
from peer.compression.codec import decode, encode
from peer.events import TRAIN, Key, LinkDown, LinkUp
from peer.graphs import Graph

F64 = torch.float64


class Common(Clock):
    """The same time for all: units are seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.unit_s, self._counted_to = 1.0, 0.0

    def step(self, now: float) -> None:
        pass


class Steady(Rate):
    """What is asked for comes about."""

    def step(self, met: int, neighbors: object) -> None:
        pass


def nodes_of(
    name: str, models: Sequence[Tensor], *, compression: str = "", rate: float = 1.0, common: bool = True
) -> list[A2CiD2]:
    made: list[A2CiD2] = []
    for model in models:
        layout = Layout((len(model),))
        node = make(name, {"rate": str(rate)}, layout, model.dtype, compression)
        assert isinstance(node, A2CiD2)
        node.know(models[0])
        node.begin(model, 1.0)
        if common:
            node.clock, node.rate = Common(), Steady(rate)
        made.append(node)
    return made


def links_of(spec: str, n: int, i: int, key: Key, clear: Iterable[str] | None = None) -> Links:
    graph = Graph(spec if key.phase == TRAIN else "complete", n, i)
    beside = [str(j) for j in graph.adjacency[i]]
    out = dict.fromkeys(beside, 1.0 / (1 + len(beside)))
    clear = frozenset(beside if clear is None else clear)
    return Links(key, out, frozenset(out), n, 1.0, clear, graph=graph)


def total(nodes: Sequence[A2CiD2]) -> Tensor:
    """Sum of x + x~."""
    return sum((node.estimate() + tilde(node) for node in nodes), torch.zeros_like(nodes[0].estimate()))


def tilde(node: A2CiD2) -> Tensor:
    return node.estimate() if node.x_tilde is None else node.x_tilde


def stacked(nodes: Sequence[A2CiD2]) -> tuple[Tensor, Tensor]:
    return torch.stack([node.estimate() for node in nodes]), torch.stack([tilde(node) for node in nodes])


def consensus(nodes: Sequence[A2CiD2]) -> float:
    X, _ = stacked(nodes)
    return float((X - X.mean(0)).square().sum(1).mean())


class Calm:
    """Events that take no time."""

    def __init__(self, nodes: list[A2CiD2], spec: str, layout: Layout) -> None:
        self.nodes, self.spec, self.layout = nodes, spec, layout
        self.key = Key(1, 1)
        self.sent: list[Message] = []
        for i, node in enumerate(nodes):
            node.rate.asked = 0.0  # no exchange but those that are told
            node.open(links_of(spec, len(nodes), i, self.key))

    def step(self, i: int, u: Tensor, t: float) -> None:
        assert self.nodes[i].step(u, 0.1, links_of(self.spec, len(self.nodes), i, self.key), t) == {}

    def begin(self, i: int, j: int, t: float) -> Message:
        """i asks j; the OFFER."""
        node = self.nodes[i]
        node.rendezvous.due = 1
        node.asking.accepted(str(j))  # whatever it said before
        return node._ask((str(j),), t)[str(j)]

    def deliver(self, i: int, j: int, message: Message, t: float) -> Message | None:
        """From i to j; the answer."""
        self.sent.append(message)
        heard = decode(encode(message, self.layout), self.layout, self.nodes[j].dtype)
        replies = self.nodes[j].receive(str(i), heard, t)
        self.nodes[i].settled(str(j), message)
        assert replies.keys() <= {str(i)}
        return replies.get(str(i))

    def meet(self, i: int, j: int, t: float) -> None:
        message: Message | None = self.begin(i, j, t)
        while message is not None:
            message = self.deliver(i, j, message, t)
            i, j = j, i

    def flush(self, t: float) -> None:
        for node in self.nodes:
            node.mix_to(t)


class Line:
    """One directed link, as both learners see it. A message is on its way, applied and not acknowledged, or
    waits; `stale` is one that goes back, and nobody is told yet."""

    def __init__(self) -> None:
        self.up = True
        self.waiting: deque[Message] = deque()
        self.flying: Message | None = None
        self.applied = False
        self.stale: Message | None = None
        self.owes_down = False  # the far end has not heard of the end of this epoch


class Storm:
    """Any order of things, by numbers."""

    def __init__(self, nodes: list[A2CiD2], spec: str, layout: Layout) -> None:
        self.nodes, self.spec, self.layout, self.n = nodes, spec, layout, len(nodes)
        self.now, self.round = 0.0, [0] * self.n
        self.generation = [1] * self.n
        pairs = [(i, j) for i in range(self.n) for j in range(self.n) if i != j]
        self.lines = {pair: Line() for pair in pairs}
        self.drawn = random.Random(1)
        self.given = torch.zeros(layout.d, dtype=F64)  # sum of all u, twice: to x and to x~
        for i, j in pairs:
            self.nodes[i].on_links(LinkUp(str(j), "out", 1))
            self.nodes[i].on_links(LinkUp(str(j), "in", 1))
        for i, node in enumerate(nodes):
            node.open(self.links(i))

    def act(self, what: int, a: int, b: int) -> None:
        """what: of some things more often than of others; a, b: to whom of those it can happen to."""
        self.now += 0.02
        kinds = ["step"] * 3 + ["deliver"] * 8 + ["acknowledge"] * 4
        kind = [*kinds, "end", "begin", "give", "wait", "regraph"][what % 20]
        able = {
            "deliver": lambda line: line.flying is not None and not line.applied,
            "acknowledge": lambda line: line.flying is not None and line.applied,
            "begin": lambda line: not line.up,
            "give": lambda line: line.stale is not None,
        }.get(kind, lambda line: True)
        pairs = [pair for pair, line in self.lines.items() if able(line)]
        if not pairs:
            return
        i, j = pairs[(16 * a + b) % len(pairs)]
        if kind == "step" or kind == "wait":
            self.step(i, 0.1 if kind == "step" else 3.0)
        elif kind == "deliver":
            self.deliver(i, j)
        elif kind == "acknowledge":
            self.acknowledge(i, j)
        elif kind == "end" and a % 4 == 0:
            self.end(i, j, first_far=bool(a & 4))
        elif kind == "begin":
            self.begin_anew(i, j)
        elif kind == "give":
            self.give_back(i, j)
        elif kind == "regraph" and (a % 8 == 0 or len(set(self.generation)) > 1):
            self.regraph(i)

    # --- what happens -------------------------------------------------------------------------------

    def step(self, i: int, seconds: float) -> None:
        self.now += seconds
        self.round[i] += 1
        u = torch.tensor([self.drawn.gauss(0, 1) for _ in range(self.layout.d)], dtype=F64)
        self.given = self.given + 2 * u
        messages = self.nodes[i].step(u, 0.1, self.links(i), self.now)
        self.send(i, messages)

    def links(self, i: int) -> Links:
        """Who stands where is another in each generation."""
        view = random.Random(self.generation[i]).sample(range(self.n), self.n)
        graph = Graph(self.spec, self.n, view.index(i))
        beside = [view[place] for place in graph.adjacency[graph.place]]
        clear = frozenset(str(j) for j in beside if self.is_clear(i, j))
        out = {str(j): 1.0 / (1 + len(beside)) for j in beside}
        key = Key(self.generation[i], self.round[i])
        return Links(key, out, frozenset(out), self.n, 1.0, clear, graph=graph)

    def is_clear(self, i: int, j: int) -> bool:
        line = self.lines[i, j]
        return line.up and line.flying is None and line.stale is None and not line.waiting

    def regraph(self, i: int) -> None:
        """It takes up the newest generation, or, when all are on it, the next, where it has another place."""
        newest = max(self.generation)
        self.generation[i] = newest if min(self.generation) < newest else newest + 1
        self.nodes[i].open(self.links(i))

    def send(self, i: int, messages: dict[str, Message]) -> None:
        for dst, message in messages.items():
            self.lines[i, int(dst)].waiting.append(message)
            self.flow(i, int(dst))

    def flow(self, i: int, j: int) -> None:
        line = self.lines[i, j]
        if line.up and line.flying is None and line.stale is None and line.waiting:
            line.flying, line.applied = line.waiting.popleft(), False

    def deliver(self, i: int, j: int) -> None:
        line = self.lines[i, j]
        if line.flying is None or line.applied or not line.up or line.owes_down:
            return
        heard = decode(encode(line.flying, self.layout), self.layout, F64)
        replies = self.nodes[j].receive(str(i), heard, self.now)
        line.applied = True
        self.send(j, replies)

    def acknowledge(self, i: int, j: int) -> None:
        line = self.lines[i, j]
        if line.flying is not None and line.applied:
            message, line.flying = line.flying, None
            self.nodes[i].settled(str(j), message)
            self.flow(i, j)

    def end(self, i: int, j: int, *, first_far: bool) -> None:
        """The epoch of this link ends. first_far: because its far end refuses it."""
        line = self.lines[i, j]
        if not line.up or line.stale is not None:
            return
        if first_far:
            self.nodes[j].on_links(LinkDown(str(i), "in"))
        elif line.flying is not None and not line.applied:
            return  # what is out is settled first
        if line.flying is not None and line.applied:
            self.acknowledge(i, j)
        line.stale, line.flying = line.flying, None
        line.up, line.owes_down = False, not first_far
        waiting, line.waiting = line.waiting, deque()
        for message in waiting:
            self.nodes[i].returned(str(j), message)
        self.nodes[i].on_links(LinkDown(str(j), "out"))

    def give_back(self, i: int, j: int) -> None:
        line = self.lines[i, j]
        if line.stale is not None:
            message, line.stale = line.stale, None
            self.nodes[i].returned(str(j), message)
            self.flow(i, j)

    def begin_anew(self, i: int, j: int) -> None:
        """The far end hears of it first."""
        line = self.lines[i, j]
        if line.up:
            return
        if line.owes_down:
            self.nodes[j].on_links(LinkDown(str(i), "in"))
        self.nodes[j].on_links(LinkUp(str(i), "in", 2))
        line.up, line.owes_down = True, False
        self.nodes[i].on_links(LinkUp(str(j), "out", 2))
        self.flow(i, j)

    def settle(self) -> None:
        """Everything arrives, and nothing new begins."""
        for node in self.nodes:
            node.rate.asked, node.rendezvous.due = 0.0, -(10**6)
        for _ in range(40):
            for i, j in self.lines:
                self.begin_anew(i, j)
                self.give_back(i, j)
                self.deliver(i, j)
                self.acknowledge(i, j)
        for i in range(self.n):
            self.step(i, 1000.0)  # who has waited for too long gives up
