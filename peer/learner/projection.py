"""The 64 numbers of a model's sketch (peer/sketch.py says what they are good for).

Buckets and signs are bits of a generator seeded by the session's id, one byte for each coordinate in order:
the same on every device, whose NumPy may be another (its bit generators keep their streams, NEP 19), and
nowhere kept. One pass over the model, chunk by chunk, so that it takes no memory to speak of.
"""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from peer.sketch import COUNT, TAG_BYTES

CHUNK = 1 << 16  # coordinates: half a MB of double numbers stays in a small cache
_BUCKET, _SIGN = np.uint8(COUNT - 1), np.uint8(COUNT)  # bits of a coordinate's byte


def project(x: Tensor, session: str) -> list[float]:
    """S(x) of a flat CPU tensor, summed in double precision."""
    bits = np.random.PCG64(int.from_bytes(hashlib.sha256(f"peerd sketch {session}".encode()).digest()[:16]))
    sums = np.zeros(COUNT)
    values = x.detach().numpy()
    for at in range(0, len(values), CHUNK):
        part = values[at : at + CHUNK].astype(np.float64)
        words = bits.random_raw(-(-len(part) // 8))
        drawn = words.astype("<u8", copy=False).view(np.uint8)[: len(part)]
        np.negative(part, out=part, where=(drawn & _SIGN) != 0)
        sums += np.bincount(drawn & _BUCKET, weights=part, minlength=COUNT)
    return [float(number) for number in sums]


def tag_of(session: str, signature: bytes) -> bytes:
    """Names the layout that a sketch is of: sketches of other models, or of another session, say nothing."""
    named = hashlib.blake2b(digest_size=TAG_BYTES, person=b"peerd sketch 1")
    named.update(session.encode() + b"\0" + signature)
    return named.digest()
