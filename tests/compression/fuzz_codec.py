"""Damages real messages at random: `PYTHONPATH=tests python tests/compression/fuzz_codec.py --seconds 60`.

Every damaged message must be refused with CodecError or decode to a sound one; anything else ends the run
with the message in hex. The tests of this folder do the same by the hundred; this does it by the million.
"""

import argparse
import functools
import itertools
import sys
import time
import warnings

import numpy as np
import torch

from compression.damage import damaged
from compression.specs import SPECS
from peer.catalogue import parse_compression
from peer.compression.bodies import Body, Dense, Layout, Quantized, Recalled
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.history import History
from peer.compression.quantize import quantize
from peer.errors import CodecError, UnknownBaseError
from peer.events import Key

LAYOUTS = [Layout((1,)), Layout((144, 16, 4, 700, 5)), Layout((64, 64, 4800), (8, 1, 40))]
MORE = ["topk=50%,int8", "bits=0.3", "bits=8", "lowrank=1", "grouped=2,int4"]


@functools.cache
def remembered(layout: Layout, dtype: torch.dtype) -> History:
    """What both ends of a link remember after a first parcel."""
    v = torch.from_numpy(np.random.default_rng(1).laplace(size=layout.d)).to(dtype)
    return History.fresh(layout).after(quantize(v, 1.0, layout))


def seeds(generator: np.random.Generator) -> list[tuple[bytes, Layout, torch.dtype]]:
    """One good message of each compression, layout and dtype, of a link with memory too, and of halves."""
    cases = []
    for layout, text, dtype in itertools.product(LAYOUTS, SPECS + MORE, (torch.float32, torch.float64)):
        v = torch.from_numpy(generator.laplace(size=layout.d)).to(dtype)
        pack = compressor(parse_compression(text), layout, dtype)
        body = pack(v, 7)
        sent: tuple[Body, ...] = (body,)
        if isinstance(body, Dense):
            sent = (body, pack.every(v, 1, 2))
        elif isinstance(body, Quantized):
            sent = (body, remembered(layout, dtype).recall(body))
        cases += [(encode(Message(Key(1, 2), 16, one, 0.5), layout), layout, dtype) for one in sent]
    return cases


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
    assert decode(encode(message, layout), layout, dtype) == message
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
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
