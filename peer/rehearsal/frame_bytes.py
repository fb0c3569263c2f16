"""How many bytes a frame takes on the wire, without making one: the size of its protobuf message.

proto/peer.proto is the source of the fields; protobuf leaves out what is 0, and writes a number in 7 bits per
byte. A test compares with what `mesh/frames.py` makes. Control messages (probes, records) and a stream's
first frame are not counted: they do not depend on the algorithm.
"""

from __future__ import annotations

from peer.events import Ack, Farewell, Frame, Open, Opened, Parcel, Refuse

CHUNK_BYTES = 256 * 1024  # as in mesh/stream.py
_DIGEST = 32  # SHA-256, at a parcel's end
_DELIVERY = 1  # never 0 on the wire


def frame_bytes(frame: Frame) -> int:
    """Bytes of all gRPC messages that carry this frame, a parcel's payload included."""
    match frame:
        case Parcel(epoch, number, key, payload):
            head = _numbers(epoch, number, key.generation, key.round, key.phase, _DELIVERY, len(payload))
            return _field(head) + _chunks(len(payload)) + _field(_field(_DIGEST))
        case Ack(epoch, number):
            return _field(_numbers(epoch, number))
        case Open(life, epoch, replicas):
            return _field(_numbers(life, epoch, int(replicas)))
        case Opened(life, epoch, applied, bases, replicas, before):
            said = _numbers(life, epoch, applied, int(replicas)) + sum(_field(len(base)) for base in bases)
            return _field(said + (_farewell(before) if before is not None else 0))
        case Refuse(epoch, number, reason):
            return _field(_numbers(epoch, number) + (_field(len(reason.encode())) if reason else 0))


def _chunks(length: int) -> int:
    whole, rest = divmod(length, CHUNK_BYTES)
    return whole * _field(CHUNK_BYTES) + (_field(rest) if rest else 0)


def _farewell(last: Farewell) -> int:
    return _field(_numbers(last.by, last.life, last.epoch, last.applied))


def _numbers(*values: int) -> int:
    return sum(1 + _varint(value) for value in values if value)


def _field(length: int) -> int:
    """A field of so many bytes: its tag, its length, itself."""
    return 1 + _varint(length) + length


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
