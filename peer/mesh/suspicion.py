"""How long a member that does not answer is only suspected, and how far this node trusts its own ears.

Lifeguard (Dadgar, Phillips, Currey, 2017), with the formulas of memberlist: a suspicion lasts its longest
time, and the shorter the more members say independently that they do not hear the suspect either. A node that
has reason to think that it is itself slow, because nobody answers it, because others suspect it, or because
it stood still, waits longer before it blames anybody.
"""

from __future__ import annotations

import math

from peer.events import PeerId

# reliability note, section e, for Wi-Fi; memberlist's for a LAN are 1 s, 4, 6, 8
INTERVAL_S = 2.0
MULT, MAX_MULT, MAX_AWARENESS = 4, 4, 8


def needed(n: int) -> int:
    """How many others must confirm for the shortest time; nobody can where there are too few."""
    return MULT - 2 if n - 2 >= MULT - 2 else 0


def bounds(n: int) -> tuple[float, float]:
    """The shortest and the longest time of a suspicion among `n` members, s."""
    least = MULT * max(1.0, math.log10(max(1, n))) * INTERVAL_S
    return least, MAX_MULT * least if needed(n) else least


def timeout(confirmations: int, of: int, least: float, most: float) -> float:
    """From `most` without a confirmation down to `least` with `of` of them, s."""
    if of == 0:
        return least
    return max(least, most - math.log(confirmations + 1) / math.log(of + 1) * (most - least))


class Suspicion:
    """Of one member at one incarnation, among n members. by: those who do not hear it."""

    def __init__(self, incarnation: int, by: PeerId, n: int, now: float) -> None:
        self.incarnation = incarnation
        self.since = now
        self.by = {by}
        self._needed = needed(n)
        self._least, self._most = bounds(n)

    def confirm(self, by: PeerId) -> bool:
        """One more does not hear it. True if that counts."""
        if by in self.by or len(self.by) > self._needed:
            return False
        self.by.add(by)
        return True

    def until(self, awareness: int) -> float:
        """When the suspect is taken for dead. Doubts about oneself double the shortest time, at the most."""
        waits = timeout(len(self.by) - 1, self._needed, self._least, self._most)
        waits *= 1 + awareness / MAX_AWARENESS
        return self.since + min(waits, max(self._most, 2 * self._least))


class Awareness:
    """0: this node hears well. Up to 8 times more patience the worse it seems to hear."""

    def __init__(self) -> None:
        self.score = 0

    def worse(self) -> None:
        self.score = min(self.score + 1, MAX_AWARENESS)

    def better(self) -> None:
        self.score = max(self.score - 1, 0)
