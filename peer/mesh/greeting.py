"""What two peers tell each other in Hello, and whether they can talk at all.

A Greeting without a record only asks for the other end's leaf certificate: that is all that goes over a
channel which trusts the whole session. The rest (record, descriptor, model signature) follows on a channel
that trusts that leaf.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.errors import RemoteError
from peer.events import PeerId, Record
from peer.mesh.frames import Seal, clean, peer_id, record_from_wire, record_to_wire
from peer.wire import peer_pb2 as pb

MAGIC = 0x70656572  # "peer"
# 1 had unsigned records, 2 messages of the codec's version 4, 3 another digest of a parcel, 4 shorter chunks
PROTOCOL_MIN = PROTOCOL_MAX = 6
MAX_LEAF = 4096  # bytes; ours have about 500
MAX_DESCRIPTOR = 64 * 1024
MAX_SIGNATURE = 256 * 1024  # bytes of canonical JSON, about 3000 tensors


class VersionError(RemoteError):
    """The other end speaks no version of the protocol that this one speaks."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Names, shapes and dtypes of a model. text: canonical JSON, b"" where it is too long to send."""

    sha256: bytes
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a peer says of itself. session: the descriptor's id, descriptor: its canonical JSON; empty while
    unknown.
    """

    record: Record
    session: str = ""
    descriptor: bytes = b""
    signature: Signature | None = None
    features: int = 0


@dataclass(frozen=True, slots=True)
class Greeting:
    """A Hello message, either way. leaf: DER."""

    peer: PeerId
    boot: int
    leaf: bytes
    introduction: Introduction | None = None
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX

    def agree(self) -> int:
        """The highest protocol version both ends speak. VersionError names both if there is none."""
        version = min(self.protocol_max, PROTOCOL_MAX)
        if version < max(self.protocol_min, PROTOCOL_MIN):
            raise VersionError(
                f"{self.peer} speaks protocol {_versions(self.protocol_min, self.protocol_max)}, this device "
                f"{_versions(PROTOCOL_MIN, PROTOCOL_MAX)}; upgrade peerd on the one with the lower number"
            )
        return version


def _versions(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def greeting_to_wire(greeting: Greeting, seal: Seal) -> pb.HelloMessage:
    message = pb.HelloMessage(
        magic=MAGIC,
        protocol_min=greeting.protocol_min,
        protocol_max=greeting.protocol_max,
        id=greeting.peer,
        boot=greeting.boot,
        leaf=greeting.leaf,
    )
    said = greeting.introduction
    if said is not None:
        message.features = said.features
        message.session = said.session
        message.record.CopyFrom(record_to_wire(said.record, seal))
        message.descriptor = said.descriptor
        if said.signature is not None:
            text = said.signature.text if len(said.signature.text) <= MAX_SIGNATURE else b""
            message.signature.CopyFrom(pb.Signature(sha256=said.signature.sha256, text=text))
    return message


def greeting_from_wire(message: pb.HelloMessage, seal: Seal) -> Greeting:
    """Checks form only; who sent it is the transport's to check. Of a foreign version only that much is
    read.
    """
    if message.magic != MAGIC:
        raise RemoteError("a Hello without its magic number")
    if not 0 < message.protocol_min <= message.protocol_max:
        raise RemoteError(f"a Hello with protocol versions {message.protocol_min} to {message.protocol_max}")
    if len(message.leaf) > MAX_LEAF:
        raise RemoteError(f"a Hello with {len(message.leaf)} bytes of certificate; at most {MAX_LEAF}")
    greeting = Greeting(
        peer=peer_id(message.id),
        boot=message.boot,
        leaf=message.leaf,
        protocol_min=message.protocol_min,
        protocol_max=message.protocol_max,
    )
    greeting.agree()
    if not message.HasField("record"):
        return greeting
    return Greeting(greeting.peer, greeting.boot, greeting.leaf, _introduction(message, seal))


def _introduction(message: pb.HelloMessage, seal: Seal) -> Introduction:
    record = record_from_wire(message.record, seal)
    if record.peer != message.id:
        raise RemoteError(f"a Hello with the record of {record.peer}")
    if len(message.descriptor) > MAX_DESCRIPTOR or len(message.signature.text) > MAX_SIGNATURE:
        raise RemoteError("a Hello with an oversized descriptor or model signature")
    signature = None
    if message.HasField("signature"):
        if len(message.signature.sha256) != 32:
            raise RemoteError("a Hello whose model signature has no SHA-256")
        signature = Signature(message.signature.sha256, message.signature.text)
    session = clean(message.session, 64)
    return Introduction(record, session, message.descriptor, signature, message.features)
