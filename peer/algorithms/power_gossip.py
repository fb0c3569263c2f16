"""PowerGossip (Vogels, Karimireddy, Jaggi, NeurIPS 2020, algorithm 1; the authors' code, epfml/powergossip).

    Q <- orth(Q);  i sends X_i Q      odd it;   P <- X_hi Q - X_lo Q
    P <- orth(P);  i sends X_i^T P    even it;  Q <- X_hi^T P - X_lo^T P
    X_lo += g W_ij P Q^T,  X_hi -= g W_ij P Q^T     on every edge, when both its products are in
    b_i <- sum_j W_ij b_j                           the other tensors, in the first of a round's s iterations
    x_i <- x_i + u_i                                after the last

X: a tensor of the model x_i as a matrix; b: one that is no matrix, or too small a one to be factored; lo,
hi: an edge's ends, by their places on the graph; it: iterations of an edge. Each is one of power iteration
for the difference of its ends' models, begun with what the last one has come to, and a step of gossip with
full weight. g: diffusion; u_i: local steps, taken at the model before the gossip.

The paper's: rank, s, warm start, g, gradient and gossip at the same model, and a first round without
products, as models are equal then (it == 0: the iterations of that round are counted and left out). Ours: g
is 1 unless asked for. The authors' 1.308 on a ring of 8 (`diffusion=auto` is that for any graph) is the best
where all edges are exact and in step, and has no margin where some lag behind. Numbers to start from are
uniform (factors.py), local steps as many as one likes.

What becomes of an edge when messages are lost is ours. An iteration is done by both ends or by neither: each
does its half when its own message is on its way and the other's is here, a message that cannot be paired is
refused, and whoever gets one back undoes its half. So the sum of all models stays, but for a crash, which
takes its half along, and rounding. An edge has a number: whoever gets a message back, or sees the link end,
begins again with the next, and who hears of a higher one follows. A message says its number, its iteration,
and a checksum of the factors it was made with; in a new generation all begin again. An edge whose message is
late does not hold up the others after the round's deadline: it goes on from where it is. Final rounds are
D-PSGD's. The linear algebra is factors.py; look next at d_psgd.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from peer.algorithms import factors
from peer.algorithms.base import Links, Message, refuse_overflow
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.factors import Change, Doubles, Draws, Tensors
from peer.algorithms.spectrum import eigenvalues
from peer.compression.bodies import Body, Empty, Layout, Portion
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, Key, LinkDown, LinkUp, PeerId
from peer.graphs import Graph

_BASE = struct.Struct(f"<QQ{factors.CHECK_BYTES}s")
MAX_COUNT = 1 << 62  # of numbers and iterations, whatever a neighbor says


class Place(NamedTuple):
    """What a message is of: number of its edge, iteration, checksum of the factors of that."""

    number: int
    it: int
    check: bytes


@dataclass(slots=True)
class Edge:
    """To one neighbor. rate: W_ij, negative at the higher end. inputs: factors of iteration `it`. own,
    theirs: the two messages of it, as far as they are there. landed: `own` is acknowledged. used: anything
    has been sent under this number. due: the open round's iterations are not all done."""

    draws: Draws
    rate: float
    it: int = 0
    inputs: tuple[Doubles, ...] = ()
    check: bytes = bytes(factors.CHECK_BYTES)
    own: Message | None = None
    theirs: Tensor | None = None
    landed: bool = False
    used: bool = False
    due: bool = False

    @property
    def place(self) -> Place:
        return Place(self.draws.number, self.it, self.check)


class PowerGossip(DPSGD):
    name = "power-gossip"
    roundless = True  # an edge has its own count, and nothing more to send before it is answered
    PRODUCTS = 32  # body: products and then other tensors' entries, as far as they are due; base: Place

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        *,
        rank: int = 1,
        iterations: int = 1,
        diffusion: float | None = 1.0,
        warm: bool = True,
    ) -> None:
        """iterations: s, of a round. diffusion: g; None: the best for the graph."""
        super().__init__(layout, dtype)
        self.tensors = Tensors(layout, rank)
        self.s = iterations if self.tensors.matrices else 1
        self.diffusion, self.warm = diffusion, warm
        self.g = 1.0 if diffusion is None else diffusion
        self.salt = b""
        self.places: dict[PeerId, int] = {}  # of the neighbors, on the graph
        self.edges: dict[PeerId, Edge] = {}
        self._u: Tensor | None = None  # of a round that is pushed and not mixed
        self._batch = frozenset[PeerId]()  # whose last products were made of one model
        self._early: dict[PeerId, Message] = {}  # of generations that are not open here yet
        self._halves: dict[tuple[PeerId, Key, bytes], Change] = {}  # done, own message not acknowledged

    # --- a round ---------------------------------------------------------------------------------

    def know(self, initial: Tensor) -> None:
        super().know(initial)
        self.salt = self.held.names[0]

    def open(self, links: Links) -> None:
        anew = links.key.generation != self.key.generation
        if links.key != self.key:
            self._add_local_steps()  # of a round that closes as it is
        if links.key.phase == FINAL:
            if anew:
                self.edges = {}
            super().open(links)
            return
        self.links, self.expected = links, links.expected
        self.held.advance(links.key.round)
        if anew:
            self._begin_edges()

    def _begin_edges(self) -> None:
        """The graph is another one."""
        graph = self.links.graph
        assert graph is not None, "gossip is on a graph that all agree on"
        self.places = dict(zip(self.links.out, graph.adjacency[graph.place], strict=True))
        if self.diffusion is None:
            self.g = best_diffusion(graph)
        self.edges = {j: self._edge(j, 0) for j in self.links.out}
        here, early = self.key.generation, self._early
        self._early = {src: one for src, one in early.items() if one.key.generation > here}
        for src, one in early.items():
            if one.key.generation == here and self._fits(src, _place(one)):
                self._pair(src, one)

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)
        if self.is_final:
            self.edges, self._halves = {}, {}  # what is averaged now stays as it is
            return super().step(u, lr, links, now)
        self._u, self._batch = u, frozenset()
        for edge in self.edges.values():
            edge.due = True
        return self._go_on()

    def _go_on(self) -> dict[PeerId, Message]:
        """The next messages of all edges that are due: when the last are answered, so that all are of one
        model; by those given up they are not."""
        unanswered = {j for j in self._batch & self.expected if self._is_sent(j)}
        if self._u is None or unanswered:
            return {}
        self._batch = frozenset(j for j, edge in self.edges.items() if edge.due and edge.own is None)
        x = self.estimate()
        messages = {j: self._message(self.edges[j], x) for j in sorted(self._batch)}
        for j, message in messages.items():
            edge = self.edges[j]
            edge.own, edge.landed, edge.used = message, False, True
            self._finish(j, edge)
        return messages

    def _is_sent(self, j: PeerId) -> bool:
        return j in self.edges and self.edges[j].own is not None

    def _message(self, edge: Edge, x: Tensor) -> Message:
        parts = [self.tensors.products(x, edge.inputs, edge.it)] if edge.it else []
        if edge.it % self.s == 0:
            parts.append(self.tensors.unfactored(x))
        numbers = torch.cat(parts)
        body: Body = Portion(self.d, numbers, self.dtype) if len(numbers) else Empty(self.d, self.dtype)
        return Message(self.key, self.PRODUCTS, body, base=_BASE.pack(*edge.place))

    @property
    def heard(self) -> frozenset[PeerId]:
        if self.is_final:
            return super().heard
        return frozenset(j for j, edge in self.edges.items() if not edge.due)

    def ready(self) -> bool:
        return super().ready() if self.is_final else self.expected <= self.heard

    def mix(self) -> Tensor:
        if self.is_final:
            return super().mix()
        self._add_local_steps()
        return self.estimate()

    def _add_local_steps(self) -> None:
        if self._u is not None:
            self.x, self._u = self.estimate() + self._u, None

    def mass(self) -> tuple[Tensor, float]:
        x, w = super().mass()
        return (x if self._u is None else x + self._u), w

    def hand_over(self, key: Key) -> Message:
        self.edges, self._halves = {}, {}
        return super().hand_over(key)

    # --- an edge ---------------------------------------------------------------------------------

    def _edge(self, j: PeerId, number: int, *, due: bool = False) -> Edge:
        graph = self.links.graph
        assert graph is not None
        lo, hi = sorted((graph.place, self.places[j]))
        w = self.links.out[j]
        return Edge(self._draws(lo, hi, number), w if lo == graph.place else -w, due=due)

    def _draws(self, lo: int, hi: int, number: int) -> Draws:
        return Draws(self.salt, lo, hi, number, self.warm)

    def _renew(self, j: PeerId) -> None:
        """Begin again with the next number, in the next round; not any more in final ones."""
        edge = self.edges.get(j)
        if self.is_final:
            self.edges.pop(j, None)
        elif edge is not None and edge.used:
            self.edges[j] = self._edge(j, edge.place.number + 1)

    def _finish(self, j: PeerId, edge: Edge) -> None:
        """If both messages are there, do this end's half and go to the next iteration."""
        if edge.own is None or edge.theirs is None:
            return
        own, it = _numbers(edge.own.body), edge.it
        difference = edge.theirs - own if edge.rate > 0 else own - edge.theirs  # of the higher end, the lower
        size = self.tensors.product_size(it) if it else 0
        outputs = self.tensors.outputs(difference[:size], it) if it else ()
        plain = edge.rate * difference[size:] if it % self.s == 0 else None
        half = factors.change(edge.inputs, outputs, it, self.g * edge.rate, plain, self.dtype)
        self.x = half.added_to(self.estimate(), self.tensors)
        if not edge.landed:
            self._halves[_name(j, edge.own)] = half
        edge.own = edge.theirs = None
        edge.it = it + 1 if it else self.s
        edge.due = edge.due and edge.it % self.s != 0
        before = outputs if self.warm and it else None
        edge.inputs = factors.begun(self.tensors, edge.draws, edge.it, before)
        edge.check = factors.check_of(edge.inputs)

    def is_stale(self, message: Message) -> bool:
        return message.meaning == self.PRODUCTS and message.key.generation < self.key.generation

    def settled(self, dst: PeerId, message: Message) -> None:
        self._halves.pop(_name(dst, message), None)
        edge = self.edges.get(dst)
        if edge is not None and edge.own is message:
            edge.landed = True

    def returned(self, dst: PeerId, message: Message) -> None:
        if message.meaning != self.PRODUCTS:
            super().returned(dst, message)
            return
        half = self._halves.pop(_name(dst, message), None)
        if half is not None and self.x is not None:
            self.x = half.added_to(self.x, self.tensors, -1)
        edge = self.edges.get(dst)
        if edge is not None and (message.key.generation, _place(message).number) == (
            self.key.generation,
            edge.place.number,
        ):
            self._renew(dst)

    def on_links(self, change: LinkUp | LinkDown) -> None:
        if isinstance(change, LinkDown) and change.direction == "out":
            self._renew(change.peer)

    # --- mail ------------------------------------------------------------------------------------

    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        if message.meaning != self.PRODUCTS:
            return super().receive(src, message, now)
        refuse_overflow(src, message, self.dtype)
        if fault := self._fault_in(message):
            raise RemoteError(f"message from {src}: {fault}")
        if self.x is None:
            raise UnknownBaseError(f"message from {src}: there is no model here yet")
        if message.key.generation > self.key.generation:
            self._early[src] = message
            return {}
        place = _place(message)
        if message.key.generation < self.key.generation or not self._fits(src, place):
            raise UnknownBaseError(f"message from {src}: {place} is not where the edge is, here")
        self._pair(src, message)
        return self._go_on()

    def _fault_in(self, message: Message) -> str:
        if message.delivery != "mass":
            return "half of an iteration was sent as if it could be lost"
        if message.key.phase == FINAL:
            return "no iteration is part of a final round"
        if len(message.base) != _BASE.size or max(_place(message)[:2]) > MAX_COUNT:
            return "an iteration has an edge, a number and a checksum"
        it = _place(message).it
        if 0 < it < self.s:
            return f"iterations of an edge begin with 0 and {self.s}, not {it}"
        size = (self.tensors.product_size(it) if it else 0) + self.tensors.plain_size * (it % self.s == 0)
        if not isinstance(message.body, Portion | Empty) or len(_numbers(message.body)) != size:
            return f"iteration {it} has {size} numbers"
        return ""

    def _fits(self, src: PeerId, place: Place) -> bool:
        """Is this what is next on the edge, or the beginning of a newer number?"""
        edge = self.edges.get(src)
        if edge is None:
            return False
        if place.number > edge.place.number:
            return place.it == 0 and not self.is_final
        return place == edge.place and edge.theirs is None

    def _pair(self, src: PeerId, message: Message) -> None:
        edge, number = self.edges[src], _place(message).number
        if number > edge.place.number:
            edge = self.edges[src] = self._edge(src, number, due=self._u is not None)
        edge.theirs = _numbers(message.body)
        self._finish(src, edge)


def best_diffusion(graph: Graph) -> float:
    """2 / ((1 - lambda_2) + (1 - lambda_n)) of the graph's Metropolis weights: of all g the one that leaves
    least of the worst disagreement, if products were exact. To six digits, so that all have the same."""
    values = eigenvalues(graph.adjacency)[:-1]
    return round(2 / (2 - values[0] - values[-1]), 6) if values else 1.0


def _numbers(body: Body) -> Tensor:
    return body.numbers() if isinstance(body, Portion) else torch.zeros(0, dtype=body.dtype)


def _place(message: Message) -> Place:
    return Place(*_BASE.unpack(message.base))


def _name(dst: PeerId, message: Message) -> tuple[PeerId, Key, bytes]:
    return dst, message.key, message.base
