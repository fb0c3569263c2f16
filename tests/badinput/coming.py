"""Long messages, looked at while they come: whatever comes, and however far it has come when, the end is the
same as where it is decoded when it is whole, and before that nothing but its own memory is written to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import torch

from badinput.decoding import Case, Decoder
from badinput.holding import Original, held
from badinput.parts import damaged_message, sample
from peer.algorithms.base import Links, Message
from peer.algorithms.d_psgd import DPSGD
from peer.algorithms.whole_model import NOTHING
from peer.catalogue import parse_compression
from peer.compression.bodies import Dense, Empty, Layout
from peer.compression.codec import DENSE_HEAD_BYTES, encode
from peer.compression.compressor import compressor
from peer.errors import RemoteError
from peer.events import Deliver, Key
from peer.learner.early import Early
from peer.learner.incoming import Incoming

LAYOUT = Layout((200, 56), (10, 1))
DTYPE = torch.float32
OUT = {"1": 0.25, "2": 0.25, "3": 0.25}
AT = Key(round=4)


class Memory:
    """Of a parcel that comes in bit by bit."""

    def __init__(self, data: bytes) -> None:
        self._data, self._room = data, bytearray(len(data))

    def __len__(self) -> int:
        return len(self._data)

    def view(self) -> memoryview:
        return memoryview(self._room)

    def close(self) -> None:
        return

    def fill(self, start: int, stop: int) -> None:
        self._room[start:stop] = self._data[start:stop]

    def is_blank_from(self, stop: int) -> bool:
        return not any(self._room[stop:])

    def has_head(self, stop: int) -> bool:
        upto = min(stop, DENSE_HEAD_BYTES)
        return self._room[:upto] == self._data[:upto]


@dataclass(frozen=True, slots=True)
class About:
    """heard: from how many of the three neighbors the open round has heard. stops: bytes. end: it comes
    whole, or its link ends, or the round does."""

    heard: int
    src: str
    key: Key
    stops: tuple[int, ...]
    end: str


class Coming(Decoder):
    """Of D-PSGD, which mixes early."""

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(1)
        node = DPSGD(LAYOUT, DTYPE)
        node.begin(self._vector(), 1.0)
        node.step(self._vector(), 0.1, Links(AT, OUT, frozenset(OUT), 4, clear=frozenset(OUT)), 0.0)
        self.fresh = [node]
        for src in ("1", "2"):
            heard = copy.deepcopy(self.fresh[-1])
            heard.receive(src, _model(self._vector()), 0.0)
            self.fresh.append(heard)
        for node in self.fresh:
            node._begun = None  # on the class so far: see _is_as_before
        self.before = [held(node) for node in self.fresh]
        self.originals = [Original(node, node.links) for node in self.fresh]  # nobody writes to their links
        v, huge = self._vector(), torch.finfo(DTYPE).max
        large = [v * huge**0.5, v.clamp(-1, 1) * huge**0.5, v.clamp(-1, 1) * huge]
        bodies = [Dense(v), Dense(v), Dense(v), *map(Dense, large), Empty(LAYOUT.d, DTYPE)]
        bodies += [
            compressor(parse_compression(text), LAYOUT, DTYPE)(v, 3) for text in ("fp16", "int8", "bf16")
        ]
        self.messages = [Message(AT, DPSGD.MEANING, body, delivery="latest") for body in bodies]
        self.messages.append(Message(AT, NOTHING, Empty(LAYOUT.d, DTYPE), delivery="latest"))
        self.samples = [sample(message, LAYOUT) for message in self.messages]

    def _vector(self) -> torch.Tensor:
        return torch.randn(LAYOUT.d, generator=self._random, dtype=DTYPE)

    def case(self, random: Random) -> Case:
        at = random.randrange(len(self.messages))
        message = self.messages[at]
        match random.randrange(6):
            case 0 | 1 | 2:
                data = damaged_message(random, self.samples[at], self.samples)
            case 3:
                message = replace(message, key=replace(AT, round=random.choice((0, 3, 5, (1 << 32) - 1))))
                data = encode(message, LAYOUT)
            case 4:
                weight = random.choice((0.0, 1e-300, 1.0, 3.0, 1e6, 1.1e6, 1e30))
                data = encode(replace(message, weight=weight), LAYOUT)
            case _:
                data = bytearray(self.samples[0].data)
                value = random.choice((float("nan"), float("inf"), 3e38, -1e20, 1e18, 0.0))
                number = torch.tensor([value], dtype=DTYPE).numpy().tobytes()
                place = DENSE_HEAD_BYTES + len(number) * random.randrange(LAYOUT.d)
                data[place : place + len(number)] = number
        stops = {random.randrange(len(data) + 1) for _ in range(random.randrange(5))} if data else set()
        about = About(
            random.choice((2, 2, 2, 2, 0, 1)),
            "3" if random.random() < 0.85 else random.choice(("1", "stranger")),
            AT if random.random() < 0.9 else replace(AT, round=5),
            tuple(sorted(stops)),
            random.choice(("whole", "whole", "whole", "whole", "link", "round")),
        )
        return Case((bytes(data),), about)

    def accepts(self, case: Case) -> bool:
        about, data = case.about, case.data[0]
        node, plain = self._fresh(about.heard), self._fresh(about.heard)
        memory = Memory(data)
        parcel = Deliver(about.src, 1, 1, about.key, memory, "latest")
        early, filled = Early(parcel, memory, LAYOUT, DTYPE), 0
        for stop in about.stops:
            memory.fill(filled, stop)
            early.advance(stop, node)
            filled = stop
            assert memory.is_blank_from(stop) and memory.has_head(stop), "written where it had no business"
            assert self._is_as_before(node, about.heard), "of a message that is not whole nothing counts"
        if about.end == "link":
            early.give_up()
        elif about.end == "round":
            assert torch.equal(node.mix(), plain.mix()), "half of a message is in the mean"
        fine = False
        if about.end != "link":
            memory.fill(filled, len(data))
            early.advance(len(data), node)
            if early.lost:  # its place was taken by a mean that came to nothing: it is answered as late
                assert about.end == "round"
                return False
            fine = self._take(node, replace(parcel, payload=early))
            assert fine == self._take(plain, replace(parcel, payload=data)), (
                "judged otherwise than when whole"
            )
        if about.end != "round":
            self._hear_the_rest(node, plain)
            mixed = node.mix()
            assert bool(mixed.isfinite().all())
            assert torch.equal(mixed, plain.mix()), "another mean than of the whole message"
        return fine

    def _fresh(self, heard: int) -> DPSGD:
        node: DPSGD = self.originals[heard].copy()
        return node

    def _take(self, node: DPSGD, parcel: Deliver) -> bool:
        try:
            node.receive(parcel.src, Incoming(LAYOUT, DTYPE, lockstep=True).decoded(parcel), 0.0)
        except RemoteError:
            return False
        return True

    def _hear_the_rest(self, node: DPSGD, plain: DPSGD) -> None:
        for src in sorted(OUT.keys() - node.heard):
            vector = self._vector()
            for one in (node, plain):
                one.receive(src, _model(vector.clone()), 0.0)

    def _is_as_before(self, node: DPSGD, heard: int) -> bool:
        """But for the mean that it has begun, which lies in the parcel's memory."""
        begun, node._begun = node._begun, None
        try:
            return bool(held(node) == self.before[heard])
        finally:
            node._begun = begun

    def most_bytes(self, case: Case) -> int:
        return (1 << 19) + 64 * (case.size + LAYOUT.d * DTYPE.itemsize)


def _model(vector: torch.Tensor) -> Message:
    """As one comes from a neighbor that means well."""
    return Message(AT, DPSGD.MEANING, Dense(vector, came=True), delivery="latest")


DECODERS: dict[str, Callable[[], Decoder]] = {"models while they come": Coming}
