"""Two running devices with one key: a disk was copied, and both speak in one name.

A device that starts again is a new instance, and the one before it is heard no more. So an instance that
another had followed, and that speaks up again, is another device. What is merely old, a record from before a
restart or from before a backup was put back, is passed on by others, and never said anew.
"""

from __future__ import annotations

from peer.events import PeerId, Record


class Copies:
    """found: by id, the last word of each of the two, of the one first that started first."""

    def __init__(self) -> None:
        self.found: dict[PeerId, tuple[Record, Record]] = {}
        self._before: dict[PeerId, Record] = {}  # the last word of the instance that another has followed

    def of_another(self, known: Record, record: Record) -> None:
        """A member's record is followed by one of another instance."""
        self._heard(known, record)
        self._before[record.peer] = known

    def of_me(self, me: Record, record: Record) -> None:
        """Another instance has spoken for this device, which goes on speaking for itself."""
        self._heard(me, record)
        self._before[record.peer] = record

    def forget(self, peer: PeerId) -> None:
        self.found.pop(peer, None)
        self._before.pop(peer, None)

    def _heard(self, known: Record, record: Record) -> None:
        before = self._before.get(record.peer)
        if before is not None and before.instance == record.instance:
            later = known.instance > record.instance
            self.found[record.peer] = (record, known) if later else (known, record)
        else:
            self.found.pop(record.peer, None)  # one of the two has started again


def differ(known: Record, record: Record) -> bool:
    """Are they of two instances? Of none that says which it is."""
    return 0 not in (known.instance, record.instance) and known.instance != record.instance
