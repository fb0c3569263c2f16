"""What comes over a learner's in-links: whose parcel waits to be mixed, and what is put off until it is.

Of what one neighbor sends only one parcel ahead of this node's own round is taken over: the next is answered
when that round is mixed, so a node that hangs costs the others one share each, not all they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from peer.algorithms.base import Message
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.errors import CodecError
from peer.events import Deliver, Key, PeerId
from peer.learner.early import Early


class Incoming:
    """Of one learner."""

    def __init__(self, layout: Layout, dtype: torch.dtype, *, lockstep: bool) -> None:
        self.layout, self.dtype, self.lockstep = layout, dtype, lockstep
        self._ahead: dict[PeerId, Key] = {}  # in-neighbors' last parcels taken, while not mixed
        self._later: list[Deliver] = []  # parcels not taken over yet

    def decoded(self, parcel: Deliver) -> Message:
        """Raises RemoteError for what is no message, or is of another round than its parcel."""
        early = parcel.payload.message() if isinstance(parcel.payload, Early) else None
        if early is not None:
            return early
        message = codec.decode(_bytes(parcel.payload), self.layout, self.dtype, lasting=True)
        if message.key != parcel.key:
            raise CodecError(f"parcel says round {parcel.key}, its message {message.key}")
        return message

    def took(self, src: PeerId, message: Message) -> None:
        if self.lockstep or message.delivery == "mass":  # of whole models with pace "free" the newest counts
            self._ahead[src] = message.key

    def mixed(self) -> None:
        """The open round has been closed. In lockstep its key says what of that is past."""
        if not self.lockstep:
            self._ahead.clear()

    def is_ahead(self, src: PeerId, key: Key, at: Key) -> bool:
        """Does a parcel wait to be mixed already that `src` sent before this one? at: the round worked on."""
        last = self._ahead.get(src)
        return last is not None and (not self.lockstep or (last > at and key > at))

    def put_off(self, parcel: Deliver) -> None:
        is_read = isinstance(parcel.payload, Early) and parcel.payload.message() is not None
        self._later.append(parcel if is_read else replace(parcel, payload=_bytes(parcel.payload)))

    def due(self, keep: Callable[[PeerId, Key], bool]) -> Iterator[Deliver]:
        """All that was put off but for those to `keep`; asked of each when those before it are taken."""
        later, self._later = self._later, []
        for parcel in later:
            if keep(parcel.src, parcel.key):
                self._later.append(parcel)
            else:
                yield parcel


def _bytes(payload: object) -> bytes | bytearray | memoryview:
    """A view of a shared buffer outlives the buffer."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return payload
    view = payload.view()  # type: ignore[attr-defined]  # a shared buffer; peer.local is not imported here
    assert isinstance(view, memoryview)
    return view
