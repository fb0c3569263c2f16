"""What goes over a learner's out-links: which are up and clear, what is on its way, and what waits for one.

mass             over a link that is up, one message at a time: `unacknowledged` until it is settled. What
                 does not wait for a round (`send`) waits for the one before it to be settled
a whole model    at any time; for a link that is not up yet the open round's is kept
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from peer.algorithms.base import Message
from peer.compression import codec
from peer.compression.bodies import Layout
from peer.events import Delivery, LinkUp, Payload, PeerId, Push

Which = Callable[[Message], bool]


class Outgoing:
    """Of one learner."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        # a driver that copies what it is given at once needs no copy made here: codec.in_parts
        self.encode: Callable[[Message, Layout], Payload] = codec.encode
        self.unacknowledged: dict[PeerId, Message] = {}  # mass sent, by destination
        # whole models of this round for links that are not up yet; of its second half, one more
        self.unsent: dict[PeerId, tuple[Message, ...]] = {}
        self._up: dict[PeerId, LinkUp] = {}
        self._waiting: dict[PeerId, deque[Message]] = {}  # mass, until that before it is settled
        self._encodings: dict[PeerId, Payload] = {}  # while it is seen which of them have room

    # --- links ---------------------------------------------------------------------------------------

    def link(self, dst: PeerId) -> LinkUp | None:
        """The link to `dst`, if it is up."""
        return self._up.get(dst)

    def link_up(self, link: LinkUp) -> tuple[Message, ...]:
        """What has waited for it."""
        self._up[link.peer] = link
        return self.unsent.pop(link.peer, ())

    def link_down(self, dst: PeerId) -> None:
        self._up.pop(dst, None)

    def is_clear(self, dst: PeerId) -> bool:
        """May mass go there?"""
        return dst in self._up and dst not in self.unacknowledged

    @property
    def clear(self) -> frozenset[PeerId]:
        return frozenset(filter(self.is_clear, self._up))

    def busy(self, dsts: Iterable[PeerId]) -> tuple[PeerId, ...]:
        """Those of them whose link is up, and the last mass over it not acknowledged."""
        return tuple(sorted(dst for dst in dsts if dst in self._up and dst in self.unacknowledged))

    # --- messages ------------------------------------------------------------------------------------

    def ready(self, messages: Mapping[PeerId, Message], *, too: bool = False) -> dict[PeerId, Message]:
        """Those of a round's messages that can go; whole models for links that are not up are kept. too: what
        was kept is of the same round."""
        before = self.unsent if too else {}
        kept = {
            dst: (*before.get(dst, ()), message)
            for dst, message in messages.items()
            if message.delivery == "latest" and dst not in self._up
        }
        self.unsent = {**before, **kept}
        return {dst: message for dst, message in messages.items() if dst not in kept}

    def sizes(self, ready: Mapping[PeerId, Message]) -> dict[PeerId, int]:
        """In bytes. What they are encoded to is kept for `push`, until `forget_encodings`."""
        self._encodings = {dst: self.encoded(message) for dst, message in ready.items()}
        return {dst: len(data) for dst, data in self._encodings.items()}

    def forget_encodings(self) -> None:
        self._encodings = {}

    def push(self, dst: PeerId, message: Message) -> Push:
        delivery: Delivery = message.delivery
        if delivery == "mass":
            assert self.is_clear(dst), f"a message for {dst}: link not clear"
            self.unacknowledged[dst] = message
        payload = self._encodings.pop(dst, None) or self.encoded(message)
        return Push(dst, self._up[dst].epoch, message.key, payload, delivery)

    def send(self, dst: PeerId, message: Message) -> list[Push]:
        """Push it, or have it wait until its link is clear."""
        if message.delivery == "latest" or (self.is_clear(dst) and dst not in self._waiting):
            return [self.push(dst, message)]
        self._waiting.setdefault(dst, deque()).append(message)
        return []

    def go_on(self, dst: PeerId) -> list[Push]:
        """Push what has waited for this link, if it is clear."""
        line = self._waiting.get(dst)
        if line is None or not self.is_clear(dst):
            return []
        message = line.popleft()
        if not line:
            del self._waiting[dst]
        return [self.push(dst, message)]

    def never_sent(self, dst: PeerId, which: Which = lambda message: True) -> list[Message]:
        """What has waited for this link, and is not to go over it any more, of those of which it is said."""
        line = self._waiting.pop(dst, deque())
        kept = deque(message for message in line if not which(message))
        if kept:
            self._waiting[dst] = kept
        return [message for message in line if which(message)]

    @property
    def waited_for(self) -> tuple[PeerId, ...]:
        """Far ends of the links that something waits for."""
        return tuple(self._waiting)

    def settle(self, dst: PeerId) -> Message | None:
        """The mass on its way to `dst` is acknowledged, or comes back."""
        return self.unacknowledged.pop(dst, None)

    def encoded(self, message: Message) -> Payload:
        return self.encode(message, self.layout)
