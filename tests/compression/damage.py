"""Messages with something wrong in them: bytes, and fields where a body has them."""

from __future__ import annotations

import numpy as np

HEAD, KIND = 32, 27  # bytes of a header with no base, and where the body's kind is
EXTREME = [
    number.to_bytes(size, "little")
    for size, numbers in {
        1: (0, 1, 2, 0x7F, 0x80, 0xFF),
        2: (
            0,
            1,
            0x7F,
            0x80,
            0x7BFF,
            0x7C00,
            0x7F80,
            0x7FFF,
            0x8000,
            0xFF80,
            0xFFFF,
        ),  # as float16, bfloat16, exponent
        4: (0, 1, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFFFFFFFF),
    }.items()
    for number in numbers
]


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes flipped, cut out, repeated or replaced by noise or by extreme numbers, or the body taken for
    one of another kind; the header mostly spared."""
    raw = bytearray(data)
    first = 0 if generator.random() < 0.1 else min(HEAD, len(raw) - 1)
    last = len(raw) if generator.random() < 0.5 else min(len(raw), HEAD + 24)  # where most fields are
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(min(first, len(raw), last), min(len(raw), last) + 1))
        length = int(generator.integers(1, 9))
        match generator.integers(7):
            case 0:
                raw[at : at + 1] = bytes((int(generator.integers(256)),))
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = raw[at : at + length]
            case 3:
                raw[at : at + length] = generator.bytes(length)
            case 4:
                field = EXTREME[int(generator.integers(len(EXTREME)))]
                raw[at : at + len(field)] = field
            case 5 if len(raw) > KIND:
                raw[KIND] = int(generator.integers(9))
            case _:
                raw[at : at + 1] = bytes(b ^ 1 << int(generator.integers(8)) for b in raw[at : at + 1])
    return bytes(raw)
