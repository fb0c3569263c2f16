"""How many bytes a frame takes on the wire, without making one: the size of its protobuf message.

proto/peer.proto is the source of the fields; protobuf leaves out what is 0, and writes a number in 7 bits per
byte. A test compares with what `mesh/frames.py` makes. A stream's first frame is not counted. Control
messages are signed, and made elsewhere: what they take is estimated here, for rehearsals.
"""

from __future__ import annotations

from peer.events import (
    Ack,
    Control,
    Farewell,
    Frame,
    Generation,
    Goodbye,
    Open,
    Opened,
    Parcel,
    Probe,
    Refuse,
)

CHUNK_BYTES = 256 * 1024  # as in mesh/chunks.py; quick links have fewer, longer ones
FRAMES_BYTES = 112  # at the most, of a parcel's frames without its message, in one chunk
_DIGEST = 16  # at a parcel's end
_DELIVERY = 1  # never 0 on the wire
RECORD_BYTES = 420  # of a signed record, about (measured)
SUSPICION_BYTES, MEMBER_BYTES, CALL_BYTES = 70, 32, 16  # same; the last of any other control message
WORD_BYTES = 64  # of a message without values: a head and the name of a model, as in compression/codec.py
SKETCH_BYTES = 164  # of a model, at the most


def control_bytes(message: Control) -> int:
    """About how many bytes a control message takes."""
    match message:
        case Probe(view, records, suspicions, _, sketch):
            told = RECORD_BYTES * len(records) + SUSPICION_BYTES * len(suspicions)
            return CALL_BYTES + len(view) + told + (SKETCH_BYTES if sketch is not None else 0)
        case Goodbye():
            return CALL_BYTES + RECORD_BYTES
        case Generation(view=view):
            return CALL_BYTES + MEMBER_BYTES * len(view)
        case _:
            return CALL_BYTES + MEMBER_BYTES


def value_bytes(parcel: Parcel) -> int:
    """Those of one that carries values; 0 for one of a word, or of a model that is only named."""
    return frame_bytes(parcel) if len(parcel.payload) > WORD_BYTES else 0


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
