"""Models that two devices can name to each other by digest instead of sending them.

The initial model, which every member derives from the session's seed, and snapshots served or received. A
link of difference_push opens with the newest one that both ends hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from peer.algorithms.base import SNAPSHOT, Message
from peer.compression.bodies import Body, Dense, Empty
from peer.errors import RemoteError, UnknownBaseError
from peer.events import Key

DIGEST_BYTES = 16
USABLE_ROUNDS = 32  # a base older than this is named no more; guess: by then a dense int8 opening is nearer
HELD_ROUNDS = 2 * USABLE_ROUNDS  # and is kept for those who named it while they still could
MAX_HELD = 8  # models; bounds the memory of a member that serves many snapshots (guess)


def digest(z: Tensor) -> bytes:
    """16 bytes of SHA-256 over the little-endian values of a flat model."""
    values = z.detach().cpu().numpy()
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(values.tobytes()).digest()[:DIGEST_BYTES]


def snapshot(z: Tensor, weight: float, key: Key, bases: tuple[bytes, ...]) -> Message:
    """The model z for a newcomer, which holds models of those digests: if z is among them, its name alone."""
    name = digest(z)
    body: Body = Empty(z.numel(), z.dtype) if name in bases else Dense(z)
    return Message(key, SNAPSHOT, body, weight, name)


class Bases:
    """Models held by digest, each with the round it is of. Forgets the old ones as `round` moves on."""

    def __init__(self) -> None:
        self.round = 0
        self._held: dict[bytes, tuple[Tensor, int]] = {}

    @property
    def names(self) -> tuple[bytes, ...]:
        """Digests of the models that may still be named, newest first."""
        usable = [(-of, name) for name, (_, of) in self._held.items() if self.round - of <= USABLE_ROUNDS]
        return tuple(name for _, name in sorted(usable))

    def hold(self, model: Tensor, of_round: int) -> bytes:
        """Keep `model` (not copied: nobody may change it in place); gives its digest."""
        name = digest(model)
        self._held[name] = model, max(of_round, self._held.get(name, (model, 0))[1])
        self.advance(of_round)
        return name

    def advance(self, to_round: int) -> None:
        """Time has moved on to this round."""
        self.round = max(self.round, to_round)
        newest = sorted(self._held.items(), key=lambda item: -item[1][1])[:MAX_HELD]
        self._held = {name: held for name, held in newest if self.round - held[1] <= HELD_ROUNDS}

    def get(self, name: bytes) -> Tensor:
        """The model of that digest. Raises UnknownBaseError."""
        if name not in self._held:
            raise UnknownBaseError(f"the model {name.hex()} is not held here (any more); open the link anew")
        return self._held[name][0]

    def model_of(self, message: Message) -> Tensor:
        """The model z of a SNAPSHOT. Raises RemoteError."""
        if isinstance(message.body, Empty):
            z = self.get(message.base)
        else:
            z = message.body.dense()
            if digest(z) != message.base:
                raise RemoteError("a snapshot's model has another digest than its message says")
        self.advance(message.key.round)  # a newcomer learns how late it is
        return z

    def newest_of(self, names: Iterable[bytes]) -> bytes | None:
        """The newest model held here that is among `names` and may still be named."""
        theirs = frozenset(names)
        return next((name for name in self.names if name in theirs), None)
