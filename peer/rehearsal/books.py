"""What the push-sum weights of a rehearsal ought to sum up to, so that what they do sum up to can be judged.

Crashes may take weight along, learners that start over, and who leaves while cut off; nothing else may. Where
a life ends, the sum afterwards is what it ought to be from then on. What that life had sent is booked apart:
it counts again if it arrives after all, and else is lost with it.
"""

from __future__ import annotations

from collections.abc import Callable

from peer.algorithms.push_sum import PushSum
from peer.events import PeerId, Taken
from peer.rehearsal.driver import Device, Rehearsal

UNCONFIRMED = "leaves without confirmation"  # what a node notes that could not hand over (mesh/node.py)


class Books:
    """`open` them when all have begun. Algorithms whose messages are whole models have none: `error` is
    None."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._sum = 0.0
        self._on_the_way: dict[tuple[PeerId, PeerId, int, int], float] = {}  # from lives that are over

    def open(self) -> None:
        self._sum = self._weights()

    def error(self) -> float | None:
        """How far the sum is off, relative to what it ought to be."""
        return abs(self._weights() / self._sum - 1) if self._sum else None

    def ends(self, device: Device, action: Callable[[], None]) -> None:
        """`action` ends the life of a device."""
        sent = self._sent_by(device)
        self._changes(action)
        self._on_the_way |= sent

    def begins(self, peer: PeerId, action: Callable[[], None]) -> None:
        """`action` begins another life of a device that was off. Its neighbors take back what the last one
        had not acknowledged; and what that one had sent has come by now, or never will."""
        self._on_the_way = {where: w for where, w in self._on_the_way.items() if where[0] != peer}
        self._changes(action)

    def left(self, device: Device) -> None:
        """A device has left. What neighbors that crashed did not give back is lost with them; so is the rest
        of what it had when it says that nobody has confirmed it, as where a cut lies between."""
        unsure = any(
            peer == device.peer and at == self._rehearsal.now and note.text.startswith(UNCONFIRMED)
            for at, peer, note in self._rehearsal.notes
        )
        for dst, message in device.exchange.unacknowledged().items():
            gone = unsure or not self._rehearsal.devices[dst].alive
            if gone and not self._rehearsal.is_applied(device, dst):
                self._sum -= message.weight
        if unsure:
            self._sum -= device.exchange.algorithm.mass()[1]
            self._on_the_way |= self._sent_by(device)

    def took(self, device: Device, event: Taken) -> None:
        """A device takes a parcel over."""
        self._sum += self._on_the_way.pop((event.src, device.peer, event.epoch, event.number), 0.0)

    def _sent_by(self, device: Device) -> dict[tuple[PeerId, PeerId, int, int], float]:
        """What is on its way from it, by receiver, epoch and number."""
        return {
            (device.peer, parcel.dst, parcel.epoch, parcel.number): message.weight
            for parcel in device.node.links.ledger()
            if parcel.number and (message := device.exchange.unacknowledged().get(parcel.dst)) is not None
            if not self._rehearsal.is_applied(device, parcel.dst)
        }

    def _changes(self, action: Callable[[], None]) -> None:
        before = self._weights()
        action()
        self._sum += self._weights() - before

    def _weights(self) -> float:
        devices = self._rehearsal.devices
        if not isinstance(next(iter(devices.values())).exchange.algorithm, PushSum):
            return 0.0
        return self._rehearsal.mass()[1]
