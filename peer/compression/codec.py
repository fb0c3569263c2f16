"""Messages as bytes, and back: the only thing peers exchange besides control.

    magic "pd"  version u8  generation u64  round u32  phase u8  meaning u8  delivery u8  weight f64
    base length u8, base  body kind u8  d u32  body (see packing)                       little-endian

A receiver knows the model, so nothing in a message can make it take more memory than the model warrants:
`decode` checks d, every length, count, index and number before using it, and raises CodecError alone.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace

import torch

from peer.compression.bodies import Body, Empty, Layout
from peer.compression.cursor import Cursor
from peer.compression.packing import KINDS, coming_body, read_body, write_body
from peer.compression.value_bytes import Piece
from peer.errors import CodecError
from peer.events import Delivery, Key

VERSION = 6
MAX_BASE_BYTES = 32  # SHA-256
_MAGIC = b"pd"
_HEAD = struct.Struct("<2sBQIBBBdB")
_BODY = struct.Struct("<BI")
# of a whole vector as it is, with no base: 7 zeros and the type of its values are the body's own (packing)
DENSE_HEAD_BYTES = _HEAD.size + _BODY.size + 8
_DELIVERIES: tuple[Delivery, ...] = ("mass", "latest")


@dataclass(frozen=True, slots=True)
class Message:
    """What travels on a link. `weight` and `base` mean what `meaning` says.

    SNAPSHOT  body is a model z: "weight units of push-sum weight of z"; base is its digest (an empty body
              then says: the model of that digest, which you hold)
    SHARE     body is numerator mass, weight the push-sum weight that goes with it
    """

    key: Key
    meaning: int
    body: Body
    weight: float = 0.0
    base: bytes = b""
    delivery: Delivery = "mass"


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A message as bytes, in parts that may be its body's own memory: valid while nobody changes that."""

    message: Message
    parts: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def is_like(self, other: Encoded) -> bool:
        """Are these the same bytes of the same body? One message to several neighbors is."""
        return self.message.body is other.message.body and self.parts[:3] == other.parts[:3]


def encode(message: Message, layout: Layout | None = None) -> bytes:
    """layout: of the model it is about, known to the reader; some bodies are shorter by it.

    Raises DivergedError if the body's values are not finite.
    """
    return b"".join(in_parts(message, layout).parts)


def in_parts(message: Message, layout: Layout | None = None) -> Encoded:
    """What `encode` gives, before it is put together. Raises DivergedError, too."""
    key, base = message.key, message.base
    assert 0 <= message.weight < math.inf, f"weight {message.weight}"
    assert len(base) <= MAX_BASE_BYTES, f"base of {len(base)} bytes"
    delivery = _DELIVERIES.index(message.delivery)
    place = key.generation, key.round, key.phase
    head = _HEAD.pack(_MAGIC, VERSION, *place, message.meaning, delivery, message.weight, len(base))
    body = message.body
    body_head = _BODY.pack(KINDS[type(body)], body.size)
    return Encoded(message, (head, base, body_head, *write_body(body, layout)))


def decode(
    data: bytes | bytearray | memoryview,
    layout: Layout,
    dtype: torch.dtype = torch.float32,
    *,
    lasting: bool = False,
) -> Message:
    """The message in `data` about a model of this layout; raises CodecError.

    dtype: the session's, float32 or float64. lasting: nobody changes `data` any more, so that the message
    may keep views of it, where it is writable memory; else it shares none with it.
    """
    cursor = Cursor(memoryview(data).cast("B"), lasting)
    message, kind = _read_head(cursor, layout, dtype)
    return replace(message, body=read_body(kind, Cursor(cursor.rest(), lasting), layout, dtype))


def coming(data: memoryview, layout: Layout, dtype: torch.dtype = torch.float32) -> Message | None:
    """The message of which no more than the head is there yet, if it is a whole vector in the session's own
    type. Its values are read where they lie, and nobody has looked at them. None of any other, and of what is
    no message: `decode` says what it is when it is whole."""
    cursor = Cursor(data, lasting=True)
    try:
        message, kind = _read_head(cursor, layout, dtype)
    except CodecError:
        return None
    body = None if message.base else coming_body(kind, Cursor(cursor.rest(), lasting=True), layout, dtype)
    return None if body is None else replace(message, body=body)


def _read_head(cursor: Cursor, layout: Layout, dtype: torch.dtype) -> tuple[Message, int]:
    """The message without its body, and that one's kind."""
    head = _HEAD.unpack(cursor.take(_HEAD.size, "header"))
    magic, version, generation, number, phase, meaning, delivery, weight, base_length = head
    if magic != _MAGIC or version != VERSION:
        raise CodecError(f"header: expected {_MAGIC!r} version {VERSION}, found {magic!r} version {version}")
    if delivery >= len(_DELIVERIES):
        raise CodecError(f"delivery: expected 0 or 1, found {delivery}")
    if not 0 <= weight < math.inf:
        raise CodecError(f"weight: expected a finite number from 0, found {weight}")
    if base_length > MAX_BASE_BYTES:
        raise CodecError(f"base: expected at most {MAX_BASE_BYTES} bytes, found {base_length}")
    base = bytes(cursor.take(base_length, "base"))
    kind, d = _BODY.unpack(cursor.take(_BODY.size, "body header"))
    if d != layout.d:
        raise CodecError(f"parameters: expected {layout.d}, found {d}")
    nothing = Empty(d, dtype)
    key = Key(generation, number, phase)
    return Message(key, meaning, nothing, weight, base, _DELIVERIES[delivery]), kind
