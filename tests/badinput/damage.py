"""Something wrong in bytes, in fields of protobuf, and in plain values: what a stranger might send, so near
to what is right that it gets far.

Everything is drawn from a `random.Random`, so an input can be made again from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f64": 8}
EXTREMES = {
    1: (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF),
    # as numbers, float16, bfloat16 and exponents
    2: (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7BFF, 0x7C00, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0xFF80, 0xFFFF),
    4: (0, 1, 0xFF, 0xFFFF, 0x10000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    8: (
        0,
        1,
        1 << 31,
        1 << 32,
        (1 << 53) + 1,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
        0x3FF0000000000000,  # as float64: 1, the largest, infinity, NaN, the least normal, below it
        0x7FEFFFFFFFFFFFFF,
        0x7FF0000000000000,
        0x7FF8000000000000,
        0x0010000000000000,
        0x380FFFFFFFFFFFFF,  # just below the least normal float32
        0x47F0000000000000,  # just above the largest
    ),
}
NUMBERS = sorted({number for numbers in EXTREMES.values() for number in numbers})


def number(random: Random, width: int, old: int, near: Sequence[int] = ()) -> int:
    """Another value for a field of so many bytes: extreme, close to the old one or one in `near`, or any."""
    match random.randrange(5):
        case 0:
            new = random.choice(EXTREMES[width])
        case 1:
            new = old + random.choice((-2, -1, 1, 2))
        case 2:
            new = old ^ 1 << random.randrange(8 * width)
        case 3 if near:
            new = random.choice(near) + random.choice((-1, 0, 0, 1))
        case _:
            new = random.getrandbits(8 * width)
    return new % (1 << 8 * width)


def damaged(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Some bits flipped; bytes cut out, repeated, put in or replaced by noise or extremes; an end cut off or
    added, or taken from another input."""
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        at, size = random.randrange(len(raw) + 1), random.choice((1, 1, 2, 3, 4, 8, 30))
        match random.randrange(9):
            case 0:
                del raw[at : at + size]
            case 1:
                raw[at:at] = raw[at : at + size]
            case 2:
                raw[at : at + size] = random.randbytes(size)
            case 3:
                width = random.choice((1, 2, 4, 8))
                order = random.choice(("little", "big"))
                raw[at : at + width] = random.choice(EXTREMES[width]).to_bytes(width, order)
            case 4:
                del raw[at:]
            case 5:
                raw += random.randbytes(size) if random.random() < 0.5 else bytes(size)
            case 6 if others:
                other = random.choice(others)
                raw[at:] = other[random.choice((at, random.randrange(len(other) + 1))) :]
            case _:
                if at < len(raw):
                    raw[at] ^= 1 << random.randrange(8)
    return bytes(raw)


def varint(value: int, *, too_long: bool = False) -> bytes:
    """LEB128 of the lowest 64 bits; too_long: in a byte more than it takes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value | 128, 0]) if too_long else bytes([*out, value])


# --- protobuf ------------------------------------------------------------------------------------------

Field = list[Any]  # number, wire type, value: an int, bytes, or the fields of a message
NUMBER, EIGHT, BYTES, GROUP, END_GROUP, FOUR = range(6)


def fields_of(data: bytes, kind: Descriptor, inside: Callable[[str], Descriptor | None]) -> list[Field]:
    """A good message as fields. inside: by a field's full name, what message its bytes are, if any."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        place, wire = tag >> 3, tag & 7
        if wire == NUMBER:
            value: Any
            value, at = _read_varint(data, at)
        elif wire in (EIGHT, FOUR):
            size = 8 if wire == EIGHT else 4
            value, at = data[at : at + size], at + size
        else:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
            field: FieldDescriptor = kind.fields_by_number[place]
            nested = field.message_type or inside(field.full_name)
            if nested is not None:
                value = fields_of(value, nested, inside)
        fields.append([place, wire, value])
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7


def bytes_of(fields: list[Field]) -> bytes:
    """Fields as a message; what is no value of its wire type is brought into one."""
    out = bytearray()
    for place, wire, value in fields:
        out += varint(place << 3 | wire)
        if isinstance(value, list):
            value = bytes_of(value)
        if wire == NUMBER:
            out += varint(value) if isinstance(value, int) else value[:10]
        elif wire in (EIGHT, FOUR, BYTES):
            raw = varint(value) if isinstance(value, int) else value
            out += varint(len(raw)) + raw if wire == BYTES else raw[: 8 if wire == EIGHT else 4]
    return bytes(out)


TEXTS = (b"", b"\0", b"\xff\xfe", b"\x1b[2J\x07", "\u202e\u2028".encode(), b"A" * 70, b"A" * 5000, b"\xc3")


def damaged_fields(random: Random, fields: list[Field], others: Sequence[list[Field]]) -> list[Field]:
    """A copy with a few fields changed, lost, repeated, of other types, or taken from others."""
    fields = _copied(fields)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        level = _some_level(random, fields)
        if not level:
            level.append([random.randrange(1, 14), random.randrange(6), random.getrandbits(64)])
            continue
        at = random.randrange(len(level))
        match random.randrange(10):
            case 0:
                del level[at]
            case 1:
                level[at:at] = _copied([level[at]]) * random.choice((1, 1, 2, 9, 70, 300))
            case 2:
                level[at][0] = random.choice(
                    (level[at][0] + 1, random.randrange(1, 16), 19000, (1 << 29) - 1)
                )
            case 3:
                level[at][1] = random.randrange(8)
            case 4:
                random.shuffle(level)
            case 5:
                level[at:] = _copied(_some_level(random, random.choice(others)))
            case 6:
                level[at][2] = random.choice(NUMBERS)
            case _:
                level[at][2] = _other_value(random, level[at][2])
    return fields


def _other_value(random: Random, value: Any) -> Any:
    if isinstance(value, int):
        return number(random, 8, value)
    if isinstance(value, list):
        return random.choice((b"", random.randbytes(9), []))
    if random.random() < 0.4:
        return random.choice(TEXTS) if random.random() < 0.7 else (value * random.choice((2, 9, 99)))[:9999]
    return damaged(random, value)


def _copied(fields: list[Field]) -> list[Field]:
    return [[place, wire, _copied(v) if isinstance(v, list) else v] for place, wire, v in fields]


def _some_level(random: Random, fields: list[Field]) -> list[Field]:
    level = fields
    while True:
        deeper = [value for _, _, value in level if isinstance(value, list)]
        if not deeper or random.random() < 0.3:
            return level
        level = random.choice(deeper)


# --- plain values: what msgpack and JSON carry ---------------------------------------------------------


def _nested(depth: int) -> Any:
    value: Any = []
    for at in range(depth):
        value = [value] if at % 2 else {"a": value}
    return value


FLOATS = (float("inf"), float("-inf"), float("nan"), 0.5, 1e300)
PLAIN: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 255, 1 << 16, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1,
    0.0, -0.5, 1e-320, 1e308, float("inf"), float("nan"), "", "x", "\0\x1b[2J", "\u202e", "x" * 5000, "1e999",
    [], {}, [[]], {"": None}, [0] * 5000, list(range(300)), {str(n): n for n in range(300)}, _nested(40),
)  # fmt: skip


def damaged_plain(random: Random, value: Any, others: Sequence[Any], more: Sequence[Any] = ()) -> Any:
    """A copy with a few values, keys or items changed. more: further values that may take another's place."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(random, value, others, more)
    return value


def _changed(random: Random, value: Any, others: Sequence[Any], more: Sequence[Any]) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.85:
        return _changed_map(random, value, others, more)
    if isinstance(value, list) and value and random.random() < 0.7:
        items, at = list(value), random.randrange(len(value))
        match random.randrange(4):
            case 0:
                del items[at]
            case 1:
                items[at:at] = [items[at]] * random.choice((1, 2, 300))
            case _:
                items[at] = _changed(random, items[at], others, more)
        return items
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.6:
        return random.choice((value - 1, value + 1, value + (1 << 31), value + (1 << 62), *FLOATS))
    if isinstance(value, bytes) and random.random() < 0.6:
        return damaged(random, value)
    if isinstance(value, str) and random.random() < 0.5:
        return damaged(random, value.encode()).decode("utf-8", "replace")
    return random.choice(more) if more and random.random() < 0.4 else random.choice(PLAIN)


def _changed_map(random: Random, value: dict[Any, Any], others: Sequence[Any], more: Sequence[Any]) -> Any:
    value = dict(value)
    key = random.choice(list(value))
    match random.randrange(8):
        case 0:
            del value[key]
        case 1:
            value[random.choice(("extra", "", "x" * 99, "op", "fd", *value))] = value[key]
        case 2:
            other = random.choice(others)
            if isinstance(other, dict) and other:
                key = random.choice(list(other))
                value[key] = other[key]
        case 3:
            value = {k: value[k] for k in random.sample(list(value), len(value))}
        case _:
            value[key] = _changed(random, value[key], others, more)
    return value
