"""Decoders of what models travel in: each kind of body with every type of values, each type of values, and
symbols that a link's memory explains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from random import Random
from unittest.mock import patch

import numpy as np
import torch

from badinput.decoding import Case, Decoder
from badinput.parts import Sample, damaged_message, sample
from compression.specs import SPECS
from peer.catalogue import parse_compression
from peer.compression import chunks
from peer.compression import history as memory
from peer.compression.bodies import (
    Body,
    Dense,
    Drawn,
    Empty,
    Layout,
    LowRank,
    Pair,
    Portion,
    Quantized,
    Recalled,
    Sparse,
    Strided,
    numbers_in,
)
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.history import History
from peer.compression.quantize import quantize
from peer.compression.values import VALUE_TYPES
from peer.errors import CodecError, UnknownBaseError
from peer.events import Key

LAYOUTS = [Layout((1,)), Layout((144, 16, 4, 700, 5), (12, 1, 1, 7, 1)), Layout((64, 64, 4800), (8, 1, 40))]
MORE = ["topk=50%,int8", "topk=35%", "globaltopk=0.1%", "bits=0.3", "bits=8", "lowrank=1", "grouped=2,int4"]
KINDS: dict[str, type[Body]] = {
    "empty": Empty,
    "dense": Dense,
    "sparse, its indices coded": Sparse,
    "strided (grouped)": Strided,
    "drawn (random-k)": Drawn,
    "low rank": LowRank,
    "quantized": Quantized,
    "quantized, with memory": Recalled,
    "pair": Pair,
    "portion": Portion,
}
CHUNK = 400  # where long models are tried: of the layouts one takes three
TIMES, SIDE = 24, 1 << 17  # decoding takes at most so many models' memory, and so many bytes besides


@cache
def remembered(layout: Layout, dtype: torch.dtype) -> History:
    """What both ends of a link remember after a first parcel."""
    v = torch.from_numpy(np.random.default_rng(1).laplace(size=layout.d)).to(dtype)
    return History.fresh(layout).after(quantize(v, 1.0, layout))


@cache
def good() -> list[tuple[Sample, Message, Layout, torch.dtype]]:
    """One good message of each compression, layout and dtype, of a link with memory too, and of halves."""
    generator, found = np.random.default_rng(0), []
    for layout, text, dtype in itertools.product(LAYOUTS, SPECS + MORE, (torch.float32, torch.float64)):
        v = torch.from_numpy(generator.laplace(size=layout.d)).to(dtype)
        pack = compressor(parse_compression(text), layout, dtype)
        body = pack(v, 7)
        sent: list[Body] = [body]
        if isinstance(body, Dense):
            part = body.values[: layout.d // 2 + 1]
            sent += [pack.every(v, 1, 2), Empty(layout.d, dtype), Pair(body, Dense(v, dtype))]
            if body.coding is None:
                sent.append(Portion(layout.d, part))
        elif isinstance(body, Quantized):
            with patch.object(memory, "SMALLEST_MODEL", 1):
                sent.append(remembered(layout, dtype).recall(body))
        for one in sent:
            message = Message(Key(1, 2), 16, one, 0.5, b"base" if len(found) % 3 == 0 else b"")
            found.append((sample(message, layout), message, layout, dtype))
    return found


def sound(data: bytes, layout: Layout, dtype: torch.dtype) -> bool:
    """Whether `data` was accepted. Raises for anything that is neither refused nor sound."""
    try:
        message = decode(data, layout, dtype)
    except CodecError:
        return False
    body = message.body
    if isinstance(body, Recalled):
        try:
            body = remembered(layout, dtype).read(body)
        except (CodecError, UnknownBaseError):
            return False
    for numbers in numbers_in(body):
        fits = 1 <= len(numbers) <= layout.d if isinstance(body, Portion) else len(numbers) == layout.d
        assert fits and numbers.dtype == dtype and bool(torch.isfinite(numbers).all())
    assert 0 <= message.weight < float("inf") and len(message.base) <= 32
    assert decode(encode(message, layout), layout, dtype) == message
    return True


class BodyDecoder(Decoder):
    """Of the good messages of one kind; others lend their parts."""

    def __init__(self, kind: type[Body] | None = None, values: str | None = None) -> None:
        self.others = [one for one, *_ in good()]
        self.good = [
            (one, layout, dtype)
            for one, message, layout, dtype in good()
            if (kind is None or isinstance(message.body, kind)) and values in (None, _type_of(message.body))
        ]
        assert self.good, f"no message has a body of {kind} with values of {values}"

    def case(self, random: Random) -> Case:
        one, layout, dtype = random.choice(self.good)
        if random.random() < 0.03:  # right, but for another model
            layout = random.choice(LAYOUTS)
        return Case((damaged_message(random, one, self.others),), (layout, dtype))

    def accepts(self, case: Case) -> bool:
        return sound(case.data[0], *case.about)

    def most_bytes(self, case: Case) -> int:
        layout, dtype = case.about
        return TIMES * (layout.d * dtype.itemsize + case.size) + SIDE


class LongDecoder(BodyDecoder):
    """Of symbols in several chunks. kind: Recalled, with a link's memory, or Quantized."""

    def __init__(self, kind: type[Body]) -> None:
        super().__init__(Quantized)
        self.good = []
        with patch.object(chunks, "CHUNK", CHUNK), patch.object(memory, "SMALLEST_MODEL", 1):
            for _, message, layout, dtype in good():
                body = message.body
                if isinstance(body, Quantized) and CHUNK < layout.d < 4 * CHUNK:
                    body = remembered(layout, dtype).recall(body) if kind is Recalled else body
                    self.good.append((sample(replace(message, body=body), layout), layout, dtype))
        assert self.good, f"no message of {kind} is long"

    def accepts(self, case: Case) -> bool:
        with patch.object(chunks, "CHUNK", CHUNK):
            return super().accepts(case)


def _type_of(body: Body) -> str | None:
    if isinstance(body, Empty | Quantized | Recalled | Pair):
        return None
    return "fp32" if body.coding is None else body.coding.type


DECODERS = {
    **{f"body: {name}": lambda kind=kind: BodyDecoder(kind) for name, kind in KINDS.items()},
    "in chunks: quantized": lambda: LongDecoder(Quantized),
    "in chunks: quantized, with memory": lambda: LongDecoder(Recalled),
    **{f"values: {name}": lambda name=name: BodyDecoder(values=name) for name in VALUE_TYPES},
}
