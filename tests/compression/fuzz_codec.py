"""Damages real messages at random: `python tests/compression/fuzz_codec.py --seconds 60 [--seed 0]`.

Every damaged message must be refused with CodecError or decode to a sound one; anything else ends the run
with the message in hex. The tests of this folder do the same by the hundred; this does it by the million.
"""

import argparse
import functools
import itertools
import sys
import time

import numpy as np
import torch

from peer.catalogue import parse_compression
from peer.compression.bodies import Body, Dense, Half, Layout, Quantized, Recalled
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.history import History
from peer.compression.quantize import quantize
from peer.errors import CodecError, UnknownBaseError
from peer.events import Key

LAYOUTS = [Layout((1,)), Layout((144, 16, 4, 700, 5)), Layout((64, 64, 4800), (8, 1, 40))]
SPECS = ["none", "fp16", "int8", "topk=10%", "topk=1%,fp16", "topk=50%,int8", "bits=0.3", "bits=1", "bits=8"]


@functools.cache
def remembered(layout: Layout, dtype: torch.dtype) -> History:
    """What both ends of a link remember after a first parcel."""
    v = torch.from_numpy(np.random.default_rng(1).laplace(size=layout.d)).to(dtype)
    return History.fresh(layout).after(quantize(v, 1.0, layout))


def seeds(generator: np.random.Generator) -> list[tuple[bytes, Layout, torch.dtype]]:
    """One good message of each compression, layout and dtype; half of a whole vector too."""
    cases = []
    for layout, text, dtype in itertools.product(LAYOUTS, SPECS, (torch.float32, torch.float64)):
        v = torch.from_numpy(generator.laplace(size=layout.d)).to(dtype)
        body = compressor(parse_compression(text), layout, dtype)(v)
        sent: tuple[Body, ...] = (body,)
        if isinstance(body, Dense):
            sent = (body, Half.of(body, 1))
        elif isinstance(body, Quantized):
            sent = (body, remembered(layout, dtype).recall(body))
        cases += [(encode(Message(Key(1, 2), 16, one, 0.5, b"base"), layout), layout, dtype) for one in sent]
    return cases


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes flipped, cut out, repeated or replaced by noise; the first 32 mostly spared."""
    raw = bytearray(data)
    first = 0 if generator.random() < 0.1 else min(32, len(raw) - 1)
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(min(first, len(raw)), len(raw) + 1))
        length = int(generator.integers(1, 9))
        match generator.integers(5):
            case 0:
                raw[at : at + 1] = bytes((int(generator.integers(256)),))
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = raw[at : at + length]
            case 3:
                raw[at : at + length] = generator.bytes(length)
            case _:
                raw[at : at + 1] = bytes(b ^ 1 << int(generator.integers(8)) for b in raw[at : at + 1])
    return bytes(raw)


def check(data: bytes, layout: Layout, dtype: torch.dtype) -> bool:
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
    dense = body.dense()
    assert dense.shape == (layout.d,) and dense.dtype == dtype and bool(torch.isfinite(dense).all())
    assert decode(encode(message), layout, dtype) == message
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(arguments.seed)
    cases = seeds(generator)
    end = time.monotonic() + arguments.seconds
    trials = accepted = 0
    while time.monotonic() < end:
        data, layout, dtype = cases[int(generator.integers(len(cases)))]
        data = damaged(data, generator)
        try:
            accepted += check(data, layout, dtype)
        except Exception:
            sys.stderr.write(f"seed {arguments.seed}, {layout}, {dtype}: {data.hex()}\n")
            raise
        trials += 1
    sys.stdout.write(
        f"{trials} damaged messages: {accepted} decoded to a sound one, the others were refused\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
