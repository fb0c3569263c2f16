"""Where the rounds of a session close: after how many of its local steps.

What two devices drift apart in a round is about what their learning rates sum up to. So where the rate falls,
exchanges are placed by it: of R rounds of H steps in the mean, round r closes with the step that takes the
sum of the rates to (r + 1) / R of what it comes to in the end. While the rate is at its peak that is sooner
than after H steps, at the end later; at a constant rate it is every H steps.

    C(n) = sum of c(t) over t < n            n_r = least n with R C(n) >= (r + 1) C(R H)

c(t): the schedule's factor in units of 2^-20, so that all sums are of integers and all devices find the same
n_r; at least half the mean, so that no round has many more than 2 H steps. Else the last had a tenth of all,
and ended with devices far apart: where data is unlike, further than final rounds can bring together. Where
the rate's peak is so high that a round would have no step of its own, all c(t) are raised by as much as gives
it one.

Measured with 8 peers on Fashion-MNIST, data alike, one or two seeds: placed by the rate alone 0.2 points
better than every H steps, with the bound as good; on one speaker's digits each, with the bound 0.4 better. On
quadratics, where nothing is alike, final rounds at 2 bits leave .08 of distance with every H steps, .23 with
the bound, .41 without. With logit adjustment every H steps is better before the final rounds; not-true
distillation was found with that (noniid_experiments).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Literal, Self

from peer import catalogue
from peer.config import Descriptor
from peer.schedule import Schedule

UNIT = 1 << 20
LONGEST = 2  # times H: about the longest round (measured, see above)
GRID = 8192  # sums are over so many stretches of equal rate at most: longer sessions have longer ones

# options with which it is every H steps (see above)
FOR_SKEWED_LABELS = ("task.logit-adjustment", "task.not-true-distillation")

Placed = Literal["rate", "steps"]


class Placing:
    """Rounds of `local_steps` each; with a schedule, of so many in the mean, by its rate. Counted from 0."""

    def __init__(self, local_steps: int, rounds: int = 0, schedule: Schedule | None = None) -> None:
        self.local_steps, self.rounds = local_steps, rounds
        self._sums: list[int] = []  # of c(t) up to each stretch's beginning, and to the end
        self._rates: list[int] = []  # c(t) within it
        self._stretch = 1
        if schedule is not None and rounds and local_steps > 1:
            self._sum_up(schedule)

    @classmethod
    def of(cls, session: Descriptor) -> Self:
        """Of a session. Raises ConfigError for a schedule that is off."""
        steps = session.rounds * session.local_steps
        schedule = Schedule.of(session.options, steps)
        placed = placed_by(session.algorithm, session.options) if steps else "steps"
        by_rate = placed == "rate" and schedule.kind != "constant"
        return cls(session.local_steps, session.rounds, schedule if by_rate else None)

    def first(self, round_: int) -> int:
        """Local steps of the session before this round."""
        if not self._sums or round_ <= 0 or round_ >= self.rounds:
            return round_ * self.local_steps
        goal = -(-round_ * self._sums[-1] // self.rounds)
        at = bisect_left(self._sums, goal) - 1
        return at * self._stretch + -(-(goal - self._sums[at]) // self._rates[at])

    def steps(self, round_: int) -> int:
        """Local steps of this round; 1 at least."""
        return self.first(round_ + 1) - self.first(round_)

    def closed(self, step: int) -> int:
        """How many rounds close within so many local steps."""
        if not self._sums:
            return step // self.local_steps
        return bisect_left(range(1, self.rounds + 1), step + 1, key=self.first)

    def _sum_up(self, schedule: Schedule) -> None:
        steps = self.rounds * self.local_steps
        self._stretch = -(-steps // GRID)
        starts = range(0, steps, self._stretch)
        sizes = [min(self._stretch, steps - start) for start in starts]
        middles = (start + size // 2 for start, size in zip(starts, sizes, strict=True))
        rates = [max(1, round(UNIT * schedule.factor(step))) for step in middles]
        total = sum(rate * size for rate, size in zip(rates, sizes, strict=True))
        rates = [max(rate, total // (LONGEST * steps)) for rate in rates]
        total = sum(rate * size for rate, size in zip(rates, sizes, strict=True))
        # no step may be worth more than a round: max + raised <= (total + steps * raised) / rounds
        lacking = max(rates) * self.rounds - total
        raised = max(0, -(-lacking // (steps - self.rounds)))
        self._rates = [rate + raised for rate in rates]
        worth = (rate * size for rate, size in zip(self._rates, sizes, strict=True))
        self._sums = list(accumulate(worth, initial=0))


def placed_by(algorithm: str, options: Mapping[str, str]) -> Placed:
    """What a session's rounds are placed by, as far as its options say."""
    if "placing" not in catalogue.algorithm(algorithm).options:
        return "steps"
    said = options.get("algorithm.placing")
    if said is not None:
        return "rate" if said == "rate" else "steps"
    return "steps" if any(float(options.get(option, "0")) > 0 for option in FOR_SKEWED_LABELS) else "rate"
