"""What a round's messages may take where this device has a budget for what it sends: which links get one, and
how large. Pure, as sending.py is, which composes and sends them.

Each message gets the same part. If that is too little, fewer links get one, in turn: those that were sent
nothing for longest come first. Neighbors that would wait are told that nothing comes, as far as that costs
no more than a message since the last one: half of what is sent. Who hears nothing waits as it has learnt to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from peer.algorithms.base import Links
from peer.events import Key, PeerId

FRAMES_BYTES = 112  # at the most, around a message on the wire; some more for each chunk of a long one
ALIKE = 0.9  # of the size that had no room; a link that opens anew sends something smaller first (guess)
BEFORE = Key(-1, -1)  # any round


class Portions:
    """Of one learner. All sizes are bytes of messages, an allowance is bytes on the wire."""

    def __init__(self) -> None:
        self._usual = 0  # the largest message of the last round that had any
        self._needs: dict[PeerId, int] = {}  # the size of a message that had no room, until one like it goes
        self._words = 0  # bytes on the wire of words that nothing comes, since the last message
        self._sent_at: dict[PeerId, Key] = {}  # the last round with a message to that neighbor

    def turns(self, dsts: Iterable[PeerId]) -> list[PeerId]:
        """In the order in which they are sent something where not all can be."""
        return sorted(dsts, key=lambda dst: (self._sent_at.get(dst, BEFORE), dst))

    def affordable(self, links: Links, allowance: int, least: int, word: int) -> Links:
        """With as many clear links as there is room for messages: of the least size or, where that is 0, as
        large as they were last and as those that had no room; not seen yet, it is tried. word: bytes of
        telling one that nothing comes."""
        turns = self.turns(links.clear & links.out.keys())
        sizes = [on_wire(least or max(self._usual, self._needs.get(dst, 0))) for dst in turns]
        number = len(turns)
        while number and sum(sizes[:number]) + (len(turns) - number) * word > allowance:
            number -= 1
        rest = allowance - (len(turns) - number) * word
        clear = frozenset(turns[:number]) | (links.clear - links.out.keys())
        return replace(links, clear=clear, most_bytes=message_of(rest // max(1, number)))

    def within(
        self, sizes: Mapping[PeerId, int], allowance: int, key: Key, *, at_any_rate: bool
    ) -> tuple[list[PeerId], int]:
        """Who gets its message of these sizes, and what is left then. at_any_rate: all do."""
        sent = []
        for dst in self.turns(sizes):
            if at_any_rate or on_wire(sizes[dst]) <= allowance:
                allowance -= on_wire(sizes[dst])
                self._sent_at[dst], self._words = key, 0
                sent.append(dst)
                if sizes[dst] > ALIKE * self._needs.get(dst, 0):
                    self._needs.pop(dst, None)
            else:
                self._needs[dst] = max(sizes[dst], self._needs.get(dst, 0))
        self._usual = max(sizes.values(), default=self._usual)
        return sent, allowance

    def words(self, most: int, left: int, word: int, least: int) -> int:
        """How many of at most so many neighbors can be told that nothing comes."""
        room = min(left, on_wire(least or self._usual) - self._words)
        number = min(most, max(0, room) // word) if word else 0
        self._words += number * word
        return number


def on_wire(size: int) -> int:
    """Bytes on the wire of a message of so many, at the most."""
    return size + FRAMES_BYTES + (size >> 14)


def message_of(size: int) -> int:
    """Bytes of the largest message that takes no more than `size` on the wire."""
    return max(0, size - FRAMES_BYTES - (size >> 14))
