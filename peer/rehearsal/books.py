"""What the push-sum weights of a rehearsal ought to sum up to, so that what they do sum up to can be judged.

Each parcel is known by its payload object, which goes unchanged from the sender's exchange to the receiver's,
so nothing is taken from the links that are judged. What may change the sum:

    a beginning         by 1
    the end of a life   by what it held and had on its way; what it had applied, and a sender still keeps, is
                        on its way again. Who leaves holds nothing, unless it says so or the session is over
    a late arrival      of what such a life had on its way
    a late answer       from a life that is over: what it acknowledges is lost with it
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.algorithms.push_sum import PushSum
from peer.events import Acked, Deliver, Found, FromLearner, PeerId, Push, Returned, Taken, ToLearner
from peer.learner.exchange import Exchange
from peer.rehearsal.driver import Device, Rehearsal

# what a node notes that could not hand over (mesh/leaving.py)
UNCONFIRMED = "leaves without confirmation", "leaves with its mass"


@dataclass(slots=True, eq=False)
class _Sent:
    """A parcel. An exchange is one life of a learner. over: its sender's life is."""

    payload: object
    weight: float
    over: bool = False
    by: Exchange | None = None  # whoever has applied it
    lost: bool = False  # with the life that had applied it


class Books:
    """They see all that learners are told and say. Algorithms whose messages are whole models have none:
    `error` is None."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._sum = 0.0
        self._sent: dict[int, _Sent] = {}
        self._out: dict[tuple[Exchange, PeerId], _Sent] = {}  # of lives that go on: not answered yet
        self._in_hand: dict[tuple[Exchange, PeerId], _Sent | None] = {}  # by receiver and sender

    def error(self) -> float | None:
        """How far the sum is off, relative to what it ought to be."""
        devices = self._rehearsal.devices
        if not isinstance(next(iter(devices.values())).exchange.algorithm, PushSum):
            return None
        held = sum(_weight(device.exchange) for device in self._rehearsal.alive())
        on_the_way = sum(sent.weight for sent in self._out.values() if sent.by is None)
        return abs((held + on_the_way) / self._sum - 1)

    def told(self, device: Device, command: ToLearner) -> None:
        """A learner is about to hear this."""
        exchange = device.exchange
        match command:
            case Found() if exchange.state == "seeking":
                self._sum += 1.0
            case Deliver(src, payload=payload):
                self._in_hand[exchange, src] = self._sent.get(id(payload))
            case Acked(dst) | Returned(dst) if (exchange, dst) in self._out:
                sent = self._out.pop((exchange, dst))
                del self._sent[id(sent.payload)]
                if isinstance(command, Acked) and sent.by is None and sent.lost:
                    self._sum -= sent.weight

    def said(self, device: Device, event: FromLearner) -> None:
        """A learner has said this."""
        exchange = device.exchange
        match event:
            case Push(dst, payload=payload, delivery="mass"):
                sent = _Sent(payload, exchange.unacknowledged()[dst].weight)
                self._out[exchange, dst] = self._sent[id(payload)] = sent
            case Taken(src) if (taken := self._in_hand.pop((exchange, src), None)) is not None:
                if taken.over and taken.by is None:
                    self._sum += taken.weight
                taken.by = exchange

    def ends(self, device: Device) -> None:
        """A learner's life is about to end."""
        life, left = device.exchange, bool(device.left)
        if not left or device.left == "finished" or self._is_unconfirmed(device):
            self._sum -= _weight(life)
        for (sender, dst), sent in list(self._out.items()):
            if sender is life:
                del self._out[sender, dst]
                sent.over = True
                self._sum -= sent.weight if sent.by is None else 0.0
            elif sent.by is life and not left:
                sent.by, sent.lost = None, True
                self._sum += sent.weight

    def _is_unconfirmed(self, device: Device) -> bool:
        return any(
            peer == device.peer and at == self._rehearsal.now and note.text.startswith(UNCONFIRMED)
            for at, peer, note in self._rehearsal.notes
        )


def _weight(exchange: Exchange) -> float:
    algorithm = exchange.algorithm
    return algorithm.mass()[1] if isinstance(algorithm, PushSum) else 0.0
