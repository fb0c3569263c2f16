"""What happens to the devices of a rehearsal, and in which round: decided by the seed before it begins."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from peer.rehearsal.plan import Churn, Plan

What = Literal["leave", "crash", "return", "split", "heal"]


@dataclass(frozen=True, slots=True, order=True)
class Scene:
    """It happens when the first peer has closed `round` rounds. peer: "" when it is about all."""

    round: int
    what: What
    peer: str = ""


def scenes_of(plan: Plan) -> list[Scene]:
    """All scenes, in order."""
    scenes = list(_churn(plan, plan.churn)) if plan.churn is not None else []
    for partition in plan.partitions:
        scenes += [Scene(partition.first, "split"), Scene(partition.last, "heal")]
    return sorted(scenes)


def halves(plan: Plan) -> list[set[str]]:
    """The two sides of a partition."""
    names = plan.names()
    return [set(names[: plan.peers // 2]), set(names[plan.peers // 2 :])]


def _churn(plan: Plan, churn: Churn) -> Iterator[Scene]:
    """In every `every` rounds each of so many peers leaves or crashes, as a coin says, and is back after a
    quarter of them. Who could not be back before the end does not go."""
    draw = random.Random(f"peerd churn {plan.session.seed}")
    away = max(1, churn.every // 4)
    for first in range(0, plan.session.rounds, churn.every):
        for peer in draw.sample(plan.names(), round(churn.share * plan.peers)):
            gone = first + draw.randint(1, churn.every - 2 * away)
            what: What = draw.choice(("leave", "crash"))
            if gone + 2 * away <= plan.session.rounds:
                yield Scene(gone, what, peer)
                yield Scene(gone + away, "return", peer)
