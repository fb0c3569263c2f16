"""Which parcels the learner has been given and has not answered yet, and of which rounds they are."""

from __future__ import annotations

from peer.events import Deliver, Key, PeerId

Name = tuple[PeerId, int, int]  # of a parcel: its sender, and epoch and number on that link


class Unanswered:
    """Of one learner's life."""

    def __init__(self) -> None:
        self._keys: dict[Name, Key] = {}
        self._earlier: set[Name] = set()  # those of them that came before their link's epoch

    def given(self, parcel: Deliver) -> None:
        self._keys[parcel.src, parcel.epoch, parcel.number] = parcel.key

    def answered(self, src: PeerId, epoch: int, number: int) -> Key | None:
        """The parcel's round, if it says how far its sender is."""
        name = src, epoch, number
        key, is_earlier = self._keys.pop(name, None), name in self._earlier
        self._earlier.discard(name)
        return None if is_earlier else key

    def begins_anew(self, src: PeerId) -> None:
        """Its link has a new epoch, in a new life perhaps: what is here still is of then."""
        self._earlier |= {name for name in self._keys if name[0] == src}

    def clear(self) -> None:
        self._keys.clear()
        self._earlier.clear()

    def newest(self) -> Key:
        return max(self._keys.values(), default=Key())

    def rounds(self) -> dict[PeerId, int]:
        """Of each sender's parcel."""
        return {src: key.round for (src, _, _), key in self._keys.items()}
