"""Messages that a live algorithm is handed: what it refuses leaves all it holds as it was, bit for bit."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from unittest.mock import patch

import numpy as np
import torch

from badinput.decoding import Case, Decoder
from badinput.holding import held
from badinput.parts import damaged_message, sample
from compression.specs import SPECS
from peer.algorithms import make
from peer.algorithms.base import Algorithm, Links
from peer.algorithms.whole_model import WholeModel
from peer.catalogue import parse_compression
from peer.compression import history as memory
from peer.compression.bodies import Body, Dense, Empty, Layout
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.errors import CodecError, RemoteError
from peer.events import FINAL, TRAIN, Key, LinkUp
from peer.graphs import Graph

LAYOUT = Layout((24, 6, 10), (6, 1, 2))
NAMES = ("0", "1", "2", "3")  # 0 is the one that is tried; with trees, it is joined with all others
TAKEN = 64  # messages that one instance accepts before its round is closed and another takes its place;
TAKEN_WHOLE = 24  # where a round's messages are kept until it ends
ALGORITHMS: dict[str, tuple[str, dict[str, str], str, torch.dtype]] = {
    "sgp": ("sgp", {}, "", torch.float32),
    "sparse-push": ("sparse-push", {"reference": "initial"}, "topk=20%", torch.float32),
    "difference-push": ("difference-push", {}, "", torch.float32),
    "relay-sum": ("relay-sum", {}, "", torch.float32),
    "relay-sum-grad": ("relay-sum-grad", {}, "int8", torch.float32),
    "d-psgd": ("d-psgd", {}, "fp16", torch.float64),
    "a2cid2": ("a2cid2", {"rate": "2"}, "", torch.float32),
    "ad-psgd": ("ad-psgd", {"rate": "2"}, "int8", torch.float64),
    "power-gossip": ("power-gossip", {"iterations": "2"}, "", torch.float32),
    "all-reduce": ("all-reduce", {"parts": "off"}, "", torch.float32),
    "all-reduce in parts": ("all-reduce", {"parts": "on"}, "", torch.float32),
    "qg-d-psgd": ("qg-d-psgd", {}, "int8", torch.float32),
    "d2": ("d2", {}, "", torch.float32),
    "dsgt": ("dsgt", {}, "", torch.float64),
    "detag": ("detag", {"rounds": "2", "momentum": "0.5"}, "", torch.float32),
    "choco-sgd": ("choco-sgd", {}, "topk=20%", torch.float32),
}


def links(name: str, i: int, key: Key) -> Links:
    others = [j for j in NAMES if j != NAMES[i]]
    trees: tuple[tuple[str, ...], ...] = ()
    if name.startswith("relay"):
        others = others if i == 0 else ["0"]
        trees = (tuple(others),)
    out, near = dict.fromkeys(others, 0.25), frozenset(others)
    aligning, graph = 3 * (key.generation == 2), Graph("complete", len(NAMES), i)
    return Links(key, out, near, len(NAMES), 1.0, near, trees, 0.5, aligning=aligning, graph=graph)


class Live:
    """Nodes that have trained together for some rounds, and what the first of them was sent."""

    def __init__(self, name: str, options: dict[str, str], compression: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype
        generator = torch.Generator().manual_seed(1)
        self.random = lambda: torch.randn(LAYOUT.d, generator=generator, dtype=dtype)
        self.nodes = [make(name, options, LAYOUT, dtype, compression) for _ in NAMES]
        self.seeking = make(name, options, LAYOUT, dtype, compression)
        self.sent: list[tuple[str, Message]] = []
        initial = self.random()
        for node in (*self.nodes, self.seeking):
            node.know(initial)
        for i, node in enumerate(self.nodes):
            node.begin(initial + 0.1 * self.random(), 1.0)
            for j in NAMES:
                if j != NAMES[i]:
                    node.on_links(LinkUp(j, "out", 1, node.bases if j == "3" else (), True))
                    node.on_links(LinkUp(j, "in", 1, (), True))
        for node_round in range(1, 4):
            self.round(Key(1, node_round))
        self.states = [
            self.seeking,
            *self.amid(Key(1, 4)),
            *self.amid(Key(2, 5)),
            *self.amid(Key(2, 6, FINAL)),
        ]
        key = Key(1, 4)
        for i in (1, 2, 3):
            copied = copy.deepcopy(self.nodes[i])
            given = [copied.sponsor("0", key, ()), copied.show(key), copied.nothing(key)]
            given += [copied.sponsor("0", key, copied.bases), copied.hand_over(key)]
            self.sent += [(NAMES[i], one) for one in given if one is not None]

    def round(self, key: Key, upto: int = len(NAMES)) -> None:
        """All push; the first node hears from so many of the others, and they from all."""
        pushed = [
            node.step(0.01 * self.random(), 0.1, links(self.name, i, key), 0.0)
            for i, node in enumerate(self.nodes)
        ]
        line = deque((i, j, message) for i, messages in enumerate(pushed) for j, message in messages.items())
        while line or line.extend(self._second_halves(upto)) or line:
            i, j, message = line.popleft()
            if j == "0":
                self.sent.append((NAMES[i], message))
            if j != "0" or i < upto:
                heard = decode(encode(message, LAYOUT), LAYOUT, self.dtype)
                replies = self.nodes[int(j)].receive(NAMES[i], heard, 0.0)
                line.extend((int(j), dst, reply) for dst, reply in replies.items())
            self.nodes[i].settled(j, message)
        if upto == len(NAMES):
            for node in self.nodes:
                node.mix()

    def _second_halves(self, upto: int) -> list[tuple[int, str, Message]]:
        """What is due in the middle of the round; for the first node that is so as it is, if it hears few."""
        due = ((i, node.second(late=i == 0 and upto < len(NAMES))) for i, node in enumerate(self.nodes))
        return [(i, j, message) for i, messages in due for j, message in (messages or {}).items()]

    def amid(self, key: Key) -> Iterator[Algorithm]:
        """The first node in a round that has pushed and heard one message; and before that."""
        yield copy.deepcopy(self.nodes[0])
        self.round(key, upto=2)
        yield copy.deepcopy(self.nodes[0])
        for node in self.nodes:
            node.mix()


class Receiving(Decoder):
    def __init__(self, name: str, options: dict[str, str], compression: str, dtype: torch.dtype) -> None:
        with patch.object(memory, "SMALLEST_MODEL", 1):  # so that links of this small model use their memory
            live = Live(name, options, compression, dtype)
        self.name, self.dtype, self.fresh = name, dtype, live.states
        self.sent = live.sent
        self.rounds = [state.key for state in self.fresh]
        self.keys = sorted({message.key for _, message in self.sent})
        self.bases = sorted({message.base for _, message in self.sent})
        self.bodies = [message.body for _, message in self.sent] + _bodies(dtype)
        self.samples = [sample(message, LAYOUT) for _, message in self.sent]
        self.nodes = [copy.deepcopy(state) for state in self.fresh]
        self.before = [held(node) for node in self.nodes]
        self.taken = [0] * len(self.nodes)

    def case(self, random: Random) -> Case:
        at = random.randrange(len(self.sent))
        src, message = self.sent[at]
        if random.random() < 0.15:
            src = random.choice((*NAMES[1:], "stranger"))
        about = random.randrange(len(self.fresh)), src
        key = self.rounds[about[0]]
        if key > Key() and random.random() < 0.5:  # of the round that is open there
            message = replace(message, key=key)
        if random.random() < 0.4:
            return Case((damaged_message(random, self.samples[at], self.samples),), about)
        for _ in range(random.choice((1, 1, 2, 3))):
            message = self._changed(random, message)
        return Case((encode(message, LAYOUT),), about)

    def _changed(self, random: Random, message: Message) -> Message:
        key = message.key
        match random.randrange(7):
            case 0:
                places = (key.round - 1, key.round + 1, 0, (1 << 32) - 1)
                round_ = min(max(0, random.choice(places)), (1 << 32) - 1)
                return replace(message, key=replace(key, round=round_, phase=random.choice((TRAIN, FINAL))))
            case 1:
                return replace(
                    message, key=random.choice((*self.keys, replace(key, generation=(1 << 63) - 1)))
                )
            case 2:
                meanings = (0, 1, 2, *range(15, 22), *range(31, 57), 255)
                return replace(message, meaning=random.choice(meanings))
            case 3:
                weights = (0.0, 5e-324, 1e-300, 1e-40, 1e-9, 0.5, 1.0, 3.0, 1e6, 1.1e6, 1e30, 1e300)
                return replace(message, weight=random.choice(weights))
            case 4:
                counts = [random.randrange(6) for _ in range(random.choice((1, 1, 2)))]
                bases = (
                    random.choice(self.bases),
                    b"",
                    random.randbytes(16),
                    np.array(counts, "<u2").tobytes(),
                )
                return replace(message, base=random.choice(bases)[:32])
            case 5:
                return replace(message, delivery=random.choice(("mass", "latest")))
            case _:
                return replace(message, body=random.choice(self.bodies))

    def accepts(self, case: Case) -> bool:
        state, src = case.about
        try:
            message = decode(case.data[0], LAYOUT, self.dtype)
        except CodecError:
            return False
        node = self.nodes[state]
        try:
            replies = node.receive(src, message, 0.0)
        except RemoteError:
            assert held(node) == self.before[state], "a refused message has changed something"
            return False
        for dst, reply in replies.items():
            assert decode(encode(reply, LAYOUT), LAYOUT, self.dtype).meaning == reply.meaning
            node.settled(dst, reply)
        self._check(node)
        self.taken[state] += 1
        if self.taken[state] == (TAKEN_WHOLE if isinstance(node, WholeModel) else TAKEN):
            self._close(node)
            self.nodes[state], self.taken[state] = copy.deepcopy(self.fresh[state]), 0
        self.before[state] = held(self.nodes[state])
        return True

    def _check(self, node: Algorithm) -> None:
        x, w = node.mass()
        assert x.shape == (LAYOUT.d,) and x.dtype == self.dtype and bool(x.isfinite().all())
        assert math.isfinite(w) and w >= 0
        assert node.heard <= {*NAMES[1:], "stranger"}
        assert node.model is None or bool(node.estimate().isfinite().all()), "a model that is not finite"

    def _close(self, node: Algorithm) -> None:
        """What was accepted can be worked with: this round ends and the next one goes out."""
        if node.model is None:
            return
        node.ready()
        assert bool(node.mix().isfinite().all())
        key = max(*self.keys, Key(3, 7, TRAIN))
        pushed = node.step(torch.zeros(LAYOUT.d, dtype=self.dtype), 0.1, links(self.name, 0, key), 0.0)
        for message in pushed.values():
            assert decode(encode(message, LAYOUT), LAYOUT, self.dtype).key == key
        assert bool(node.mix().isfinite().all())

    def most_bytes(self, case: Case) -> int:
        return (1 << 19) + 64 * (case.size + LAYOUT.d * self.dtype.itemsize)


def _bodies(dtype: torch.dtype) -> list[Body]:
    """Of every compression, and of values as large as they come."""
    v = torch.linspace(-1, 1, LAYOUT.d, dtype=dtype)
    huge = torch.finfo(dtype).max
    bodies = [compressor(parse_compression(text), LAYOUT, dtype)(v, 3) for text in SPECS]
    bodies += [
        compressor(parse_compression(text), LAYOUT, dtype)(v * (huge / 4), 3) for text in ("fp16", "int8")
    ]
    bodies += [Dense(v * huge**0.5 * scale) for scale in (0.9, 1.1)] + [
        Dense(v * huge),
        Empty(LAYOUT.d, dtype),
    ]
    halves = compressor(parse_compression("none"), LAYOUT, dtype)
    return bodies + [halves.every(v, start, 2) for start in (0, 1)]


DECODERS: dict[str, Callable[[], Decoder]] = {
    f"messages for {name}": lambda made=made: Receiving(*made) for name, made in ALGORITHMS.items()
}
