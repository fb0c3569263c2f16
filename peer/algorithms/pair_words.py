"""What two devices say to each other that average with each other: a message's meaning, and its `base`.

    OFFER, ACCEPT     number u64, alpha~ f64, rate f32, place u16; ACCEPT brings a snapshot
    COMMIT, DONE      number u64, 16 bytes of SHA-256 over both snapshots; COMMIT brings one
    others            number u64                                                       little-endian

Who says what, and when, is rendezvous.py.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from torch import Tensor

from peer.algorithms.base import Message
from peer.compression.bodies import Body, Dense, Empty
from peer.errors import RemoteError
from peer.events import Key, PeerId

OFFER, ACCEPT, BUSY, COMMIT, DONE, ABORTED, WITHDRAWN = MEANINGS = tuple(range(40, 47))
ALPHA = 0.5  # of x: both ends take the midpoint
MAX_ALPHA_TILDE = 4.0  # note on A2CiD2: what rounding and errors are multiplied by
DIGEST_BYTES = 16
MAX_RATE = 1e3  # exchanges per gradient event: more is nonsense (guess)

_TERMS = struct.Struct("<QdfH")  # number, alpha~, rate, place
_CHECK = struct.Struct(f"<Q{DIGEST_BYTES}s")
_NAME = struct.Struct("<Q")
_BASES = {OFFER: _TERMS, ACCEPT: _TERMS, COMMIT: _CHECK, DONE: _CHECK}


@dataclass(frozen=True, slots=True)
class Word:
    """A message. number: of the exchange, by whoever asked for it. rate: exchanges per gradient event, as its
    sender finds. place: its sender's on the graph. digest: of both snapshots. body: a snapshot, or None."""

    meaning: int
    number: int
    alpha: float = ALPHA
    rate: float = 0.0
    place: int = 0
    digest: bytes = bytes(DIGEST_BYTES)
    body: Body | None = None

    @property
    def tells_rate(self) -> bool:
        return self.meaning in (OFFER, ACCEPT)

    def message(self, key: Key, nothing: Empty) -> Message:
        fields = {
            _TERMS: (self.number, self.alpha, self.rate, self.place),
            _CHECK: (self.number, self.digest),
            _NAME: (self.number,),
        }
        form = _BASES.get(self.meaning, _NAME)
        return Message(key, self.meaning, self.body or nothing, base=form.pack(*fields[form]))


def read(src: PeerId, message: Message) -> Word:
    """Raises RemoteError."""
    form, meaning, body = _BASES.get(message.meaning, _NAME), message.meaning, message.body
    kind = Dense if meaning in (ACCEPT, COMMIT) else Empty
    if len(message.base) != form.size or not isinstance(body, kind) or message.delivery != "mass":
        raise RemoteError(f"message from {src}: no word of an exchange ({meaning}) looks like this")
    number, *rest = form.unpack(message.base)
    if form is _NAME:
        return Word(meaning, number)
    if form is _CHECK:
        return Word(meaning, number, digest=rest[0], body=body if meaning == COMMIT else None)
    alpha, rate, place = rest
    if not ALPHA <= alpha <= MAX_ALPHA_TILDE or not 0.0 <= rate <= MAX_RATE:
        raise RemoteError(f"message from {src}: alpha~ of {alpha:g} at a rate of {rate:g}")
    return Word(meaning, number, alpha, rate, place, body=body if meaning == ACCEPT else None)


def number_of(message: Message) -> int:
    """Of the exchange that an own word is about."""
    number: int = _NAME.unpack_from(message.base)[0]
    return number


def digest(theirs: Tensor, ours: Tensor) -> bytes:
    """Over two vectors, the accepting end's first."""
    found = hashlib.sha256()
    for vector in (theirs, ours):
        values = vector.detach().cpu().numpy()
        found.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return found.digest()[:DIGEST_BYTES]
