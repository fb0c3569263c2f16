"""A message of the codec taken apart, as packing.py and golomb.py say, so that a field can be changed and
what depends on it can still fit, or not."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from badinput.damage import EXTREMES, WIDTHS, damaged, number, varint
from peer.compression import chunks
from peer.compression.bodies import (
    Body,
    Drawn,
    Layout,
    LowRank,
    Portion,
    Quantized,
    Recalled,
    Sparse,
    Strided,
)
from peer.compression.codec import Message, encode
from peer.compression.golomb import read_varint

HEAD = ("u16", "u8", "u64", "u32", "u8", "u8", "u8", "f64", "u8", "base", "u8", "u32")  # then the body
_FIELDS: dict[type[Body], tuple[str, ...]] = {
    Strided: ("u16", "u16", "values"),
    Drawn: ("u32", "u32", "values"),
    LowRank: ("u8", "values"),
    Portion: ("u32", "values"),
    Sparse: ("sized", "values"),
    Quantized: ("u8", "f64", "section"),
    Recalled: ("u8", "f64", "u32", "section"),
}


@dataclass(frozen=True, slots=True)
class Plain:
    """A number of some width, or bytes that are no section."""

    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Section:
    """golomb's three streams. sized: its length goes before it. off: what its lengths say too much."""

    head: tuple[int, ...]
    fixed: bytes
    unary: bytes
    sized: bool = False
    off: tuple[int, int, int] = (0, 0, 0)

    @property
    def data(self) -> bytes:
        head = b"".join(map(varint, self.head))
        lengths = varint(len(head) + self.off[0]) + varint(len(self.fixed) + self.off[1])
        whole = lengths + head + self.fixed + self.unary
        return varint(len(whole) + self.off[2]) + whole if self.sized else whole


Part = Plain | Section


@dataclass(frozen=True, slots=True)
class Sample:
    """A good message. near: numbers that its lengths and counts have to do with."""

    parts: tuple[Part, ...]
    near: tuple[int, ...]

    @property
    def data(self) -> bytes:
        return b"".join(part.data for part in self.parts)


def sample(message: Message, layout: Layout) -> Sample:
    data = encode(message, layout)
    parts: list[Part] = []
    at = 0
    for kind in HEAD + _FIELDS.get(type(message.body), ("values",)):
        if kind == "values":
            parts += _values(data[at:])
            at = len(data)
        elif kind == "section" and layout.d > chunks.CHUNK:
            for _ in chunks.chunks(layout.d):
                size, at = read_varint(memoryview(data), at, len(data), "section")
                parts.append(_section(data[at : at + size], sized=True))
                at += size
        elif kind in ("section", "sized"):
            size = len(data) - at
            if kind == "sized":
                size, at = read_varint(memoryview(data), at, len(data), "section")
            parts.append(_section(data[at : at + size], sized=kind == "sized"))
            at += size
        else:
            size = len(message.base) if kind == "base" else WIDTHS[kind]
            parts.append(Plain(kind, data[at : at + size]))
            at += size
    found = Sample(tuple(parts), (layout.d, len(layout.sizes), *layout.sizes[:3], len(data)))
    assert found.data == data, "taking a message apart loses something"
    return found


def _values(data: bytes) -> list[Part]:
    kind = data[:1]
    if kind in (b"\0", b"\3", b""):  # fp32, fp64
        return [Plain("u8", kind), Plain("raw", data[1:])] if kind else []
    return [Plain("u8", kind), Plain("u16", data[1:3]), Plain("raw", data[3:])]


def _section(data: bytes, *, sized: bool) -> Section:
    view = memoryview(data)
    head_bytes, at = read_varint(view, 0, len(data), "head")
    fixed, at = read_varint(view, at, len(data), "fixed")
    head, end = [], at + head_bytes
    while at < end:
        value, at = read_varint(view, at, 1 << 35, "number")
        head.append(value)
    return Section(tuple(head), data[at : at + fixed], data[at + fixed :], sized)


def damaged_message(random: Random, one: Sample, others: Sequence[Sample]) -> bytes:
    """Fields changed to extreme and to nearby values, sections and values from other messages; often also
    something wrong in the bytes of the outcome."""
    parts = list(one.parts)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        at = _place(random, len(parts))
        if random.random() < 0.15:
            other = random.choice(others)
            start = min(at, len(other.parts))
            if random.random() < 0.5:
                parts[at:] = other.parts[start:]
            else:
                parts[at : at + 1] = other.parts[start : start + 1]
        elif at < len(parts):
            parts[at] = _changed(random, parts[at], one.near)
    data = b"".join(part.data for part in parts)
    if data == one.data or random.random() < 0.25:
        return _damaged_body(random, data, others)
    return data


def _damaged_body(random: Random, data: bytes, others: Sequence[Sample]) -> bytes:
    spared = 32 if random.random() < 0.9 else 0  # of the header, whose magic number would refuse all
    other = [random.choice(others).data[spared:]]
    return data[:spared] + damaged(random, data[spared:], other)


def _place(random: Random, count: int) -> int:
    """Mostly in the body: what is wrong in a header is seen at once."""
    first = 0 if random.random() < 0.15 else len(HEAD) - 2
    return random.randrange(first, max(count, first + 1))


def _changed(random: Random, part: Part, near: Sequence[int]) -> Part:
    if isinstance(part, Section):
        return _changed_section(random, part, near)
    if part.kind in WIDTHS:
        width = WIDTHS[part.kind]
        if part.kind == "f64" and random.random() < 0.3:
            return Plain(
                part.kind, struct.pack("<d", random.choice((0.0, 1e-38, 1e-300, 0.5, 1e6, 3e38, 1e300)))
            )
        old = int.from_bytes(part.data, "little")
        return Plain(part.kind, number(random, width, old, near).to_bytes(width, "little"))
    return Plain(part.kind, _changed_bytes(random, part.data))


def _changed_bytes(random: Random, data: bytes) -> bytes:
    match random.randrange(5):
        case 0:
            return random.choice((b"\0", b"\xff", b"\x80")) * len(data)
        case 1:
            return random.randbytes(len(data))
        case 2:
            width = random.choice((1, 2, 4))
            at = random.randrange(len(data) + 1)
            return data[:at] + random.choice(EXTREMES[width]).to_bytes(width, "little") + data[at + width :]
        case _:
            return damaged(random, data)


def _changed_section(random: Random, part: Section, near: Sequence[int]) -> Section:
    head = list(part.head)
    match random.randrange(8):
        case 0 if head:
            del head[random.randrange(len(head))]
        case 1:
            head.insert(random.randrange(len(head) + 1), number(random, 4, 0, near))
        case 2:
            return replace(part, fixed=_changed_bytes(random, part.fixed))
        case 3:
            return replace(part, unary=_changed_bytes(random, part.unary))
        case 4:
            off = [0, 0, 0]
            off[random.randrange(3)] = random.choice((-1, 1, 2, 127, 1 << 20, 1 << 31, (1 << 35) - 1))
            return replace(part, off=(off[0], off[1], off[2]))
        case 5:
            return replace(part, fixed=part.unary, unary=part.fixed)
        case _ if head:
            at = random.randrange(len(head))
            head[at] = number(random, random.choice((1, 2, 4)), head[at], [*near, *head])
    return replace(part, head=tuple(head))
