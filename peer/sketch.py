"""A model in 64 numbers, by which devices tell how far apart their models are. Standard library only.

    S(x)_b = sum of s_i x_i over the coordinates i in bucket b      s_i = ±1 and buckets drawn by the session

(the count sketch of Charikar, Chen and Farach-Colton, ICALP 2002). It is linear, so |S(x) - S(y)| estimates
|x - y|, and sketches can be averaged as models are: without bias in the square, whose standard error is at
the most sqrt(2 / 64) = 18 % of it, of the distance 9 %.

On the wire there is a scale, and 64 whole numbers of 16 bits: what that rounds off is some 3e-5 of the
model's norm, and distances below that are noise. peer/learner/projection.py makes the numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

COUNT = 64  # numbers: more say more, and all of them fit with their head into 160 bytes
STANDARD_ERROR = math.sqrt(2 / COUNT) / 2  # of a distance, relative
TAG_BYTES = 8  # of the digest that names session and layout: no secret, and no two of one device's collide
_FORM = struct.Struct(f"<f{COUNT}h")
BODY_BYTES = _FORM.size
_MOST = (1 << 15) - 1

Numbers = tuple[float, ...]


def pack(numbers: Sequence[float]) -> bytes | None:
    """The body of a sketch, rounded to 16 bits; None where it is not finite, or beyond what fp32 holds."""
    assert len(numbers) == COUNT, f"a sketch of {COUNT} numbers, not {len(numbers)}"
    peak = max(map(abs, numbers))
    if not all(map(math.isfinite, numbers)) or peak > 1e38:
        return None
    scale = struct.unpack("<f", struct.pack("<f", peak / _MOST))[0]
    if scale == 0:
        return _FORM.pack(0.0, *([0] * COUNT))
    whole = (max(-_MOST, min(_MOST, round(number / scale))) for number in numbers)
    return _FORM.pack(scale, *whole)


def unpack(body: bytes) -> Numbers:
    """The 64 numbers of what `is_body`."""
    assert is_body(body), f"{len(body)} bytes are no sketch"
    scale, *whole = _FORM.unpack(body)
    return tuple(scale * number for number in whole)


def is_body(body: object) -> bool:
    """Is that the body of a sketch, all of whose numbers are finite?"""
    if not isinstance(body, bytes) or len(body) != BODY_BYTES:
        return False
    scale: float = _FORM.unpack(body)[0]
    return 0 <= scale < math.inf  # which no NaN is


def norm(numbers: Sequence[float]) -> float:
    """About the Euclidean norm of the model."""
    return math.hypot(*numbers)


def distance(some: Sequence[float], others: Sequence[float]) -> float:
    """About the Euclidean distance of the two models."""
    return math.dist(some, others)


def spread(sketches: Sequence[Numbers]) -> float:
    """About the consensus distance: root mean square, over the models, of the distance from their mean."""
    mean = [math.fsum(column) / len(sketches) for column in zip(*sketches, strict=True)]
    return math.sqrt(math.fsum(math.dist(one, mean) ** 2 for one in sketches) / len(sketches))
