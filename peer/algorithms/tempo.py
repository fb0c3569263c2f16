"""When a device that meets others one by one does so: its clock, how often it comes about, and whom to ask.

Time is counted in the device's own steps, one for each round's local steps, so that a slow device asks and
mixes as rarely as it takes them; for how long an answer is waited for is learnt in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from random import Random

from peer.events import PeerId

GAP_GAIN, RATE_GAIN = 0.1, 0.05  # of averages over own steps: note on A2CiD2; a guess
LEAST_GAP_S, MOST_GAPS = 1e-3, 10.0  # an own step is not shorter, and nothing counts as so many; guesses
RECOMPUTE, TOO_RARE = 1.25, 1 / 3  # of the rate: note on A2CiD2, which tolerates a factor of 2
MOST_DUE = 4  # exchanges that were put off; guess
MOST_DOUBLINGS = 4  # of the own steps to wait after a refusal; guess
FIRST_S, LEAST_S, MOST_S = 2.0, 0.25, 120.0  # of patience; guesses, the second a stall of Wi-Fi


class Clock:
    """Time in units of this device's own gradient events."""

    def __init__(self) -> None:
        self.unit_s: float | None = None
        self._stepped_at: float | None = None
        self._counted_to: float | None = None

    def step(self, now: float) -> None:
        """A gradient event."""
        before, self._stepped_at = self._stepped_at, now
        if before is None:
            return
        gap_s = max(LEAST_GAP_S, now - before)
        if self.unit_s is None:
            self.unit_s = gap_s
        else:
            self.unit_s += GAP_GAIN * (min(gap_s, MOST_GAPS * self.unit_s) - self.unit_s)

    def dt(self, now: float) -> float:
        """Time since this was last asked; 0 before there is a unit."""
        since, self._counted_to = self._counted_to, now
        if since is None or self.unit_s is None:
            return 0.0
        return min(max(0.0, now - since) / self.unit_s, MOST_GAPS)


class Rate:
    """Averagings per gradient event, as they come about: here, and by what the neighbors say."""

    def __init__(self, asked: float) -> None:
        self.asked, self.own = asked, asked
        self.assumed = asked  # by the constants in use
        self.told: dict[PeerId, float] = {}

    def step(self, met: int, neighbors: Container[PeerId]) -> None:
        """A gradient event, with so many averagings since the last."""
        self.own += RATE_GAIN * (max(met, 0) - self.own)
        self.told = {peer: rate for peer, rate in self.told.items() if peer in neighbors}
        realized = self.realized
        if not self.assumed / RECOMPUTE <= realized <= self.assumed * RECOMPUTE:
            self.assumed = realized

    @property
    def realized(self) -> float:
        return (self.own + sum(self.told.values())) / (1 + len(self.told))

    @property
    def is_too_rare(self) -> bool:
        """Is what this device finds too little for the constants that it shares with its neighbors?"""
        return self.own < TOO_RARE * self.assumed


class Patience:
    """How long an answer is waited for, s: four times what it usually takes, and twice as long after one that
    did not come in time, but not for much longer than any has taken: models have moved on by then."""

    def __init__(self) -> None:
        self._usual_s: float | None = None
        self._misses = 0

    @property
    def wait_s(self) -> float:
        if self._usual_s is None:
            return min(MOST_S, FIRST_S * float(2**self._misses))
        return max(LEAST_S, 4 * self._usual_s) * float(2 ** min(self._misses, 2))

    def came(self, after_s: float) -> None:
        """In time, or too late."""
        before = after_s if self._usual_s is None else self._usual_s
        self._usual_s = min(0.875 * before + 0.125 * after_s, MOST_S / 4)  # gain: RFC 6298, section 2
        self._misses = 0

    def missed(self) -> None:
        self._misses += 1


class Asking:
    """Whom to ask for an exchange, drawn by a seed of this device's own."""

    def __init__(self) -> None:
        self._steps = 0
        self._dice = Random(0)
        self._away: dict[PeerId, tuple[int, int]] = {}  # until which own step, and so many refusals

    def begin(self, seed: str) -> None:
        self._dice = Random(seed)
        self._away = {}

    def step(self, due: int, mean: float) -> int:
        """A gradient event: how many are due now, where so many were. mean: of those that are new."""
        self._steps += 1
        return min(due + poisson(mean, self._dice), MOST_DUE)

    def choose(self, peers: Sequence[PeerId]) -> PeerId | None:
        """One of these, if there is one that has not just refused."""
        free = [peer for peer in sorted(peers) if self._away.get(peer, (0, 0))[0] <= self._steps]
        return self._dice.choice(free) if free else None

    def refused(self, peer: PeerId) -> None:
        """It is not to be asked for some own steps, twice as many after each time."""
        times = min(self._away.get(peer, (0, 0))[1] + 1, MOST_DOUBLINGS)
        self._away[peer] = self._steps + self._dice.randrange(1 << times), times

    def accepted(self, peer: PeerId) -> None:
        self._away.pop(peer, None)


def poisson(mean: float, dice: Random) -> int:
    """Knuth's, for a small mean."""
    least, product, count = math.exp(-mean), dice.random(), 0
    while product > least:
        product, count = product * dice.random(), count + 1
    return count
