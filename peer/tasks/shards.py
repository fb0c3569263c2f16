"""Which part of a data set is this device's. The same answer on every device of a session, by its seed.

    3/8                  the fourth of eight equal random parts
    dirichlet=0.1:3/8    the fourth of eight parts with label proportions drawn from Dir(0.1)
    natural:3/8          the fourth of eight equal parts cut along the speakers, one each when there are eight
    speaker=jackson      one speaker by name

`random.Random` draws, not numpy: its streams do not change between versions.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from peer.errors import DataError, UsageError
from peer.grammar import parse_shard


def select(shard: str | None, labels: Sequence[int], speakers: Sequence[str], seed: int) -> list[int]:
    """Indices of the shard's examples, ascending; None is everything. labels, speakers: one per example.
    Raises DataError that lists what is known."""
    if not shard:
        return list(range(len(labels)))
    try:
        asked = parse_shard(shard)
    except UsageError as error:
        raise DataError(str(error)) from error
    if asked.kind == "speaker":
        return _group(shard, asked.speaker, speakers)
    if asked.count > len(labels):
        raise DataError(f"shard '{shard}': {len(labels)} examples cannot be cut into {asked.count} parts")
    if asked.kind == "dirichlet":
        return list(_dirichlet_parts(tuple(labels), asked.alpha, asked.count, seed)[asked.index])
    order = list(range(len(labels)))
    random.Random(f"peerd shards {seed}").shuffle(order)
    if asked.kind == "natural":
        order.sort(key=lambda i: speakers[i])
    first, behind = (len(order) * k // asked.count for k in (asked.index, asked.index + 1))
    return sorted(order[first:behind])


def _group(shard: str, speaker: str, speakers: Sequence[str]) -> list[int]:
    found = [i for i, name in enumerate(speakers) if name == speaker]
    if not found:
        known = ", ".join(sorted(set(speakers)))
        raise DataError(f"shard '{shard}': no speaker is called '{speaker}'; there are {known}")
    return found


@lru_cache(maxsize=4)  # a rehearsal asks for every device
def _dirichlet_parts(labels: tuple[int, ...], alpha: float, n: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Equal quotas: each device in turn draws label proportions and takes its examples without replacement;
    a label that has run out is left out of the draw, so the last devices get what is left."""
    rng = random.Random(f"peerd dirichlet {seed}")
    left: dict[int, deque[int]] = {}
    order = list(range(len(labels)))
    rng.shuffle(order)
    for i in order:
        left.setdefault(labels[i], deque()).append(i)
    kinds = sorted(left)
    parts: list[tuple[int, ...]] = []
    for device in range(n):
        weights = dict(zip(kinds, _dirichlet(rng, alpha, len(kinds)), strict=True))
        quota = len(labels) * (device + 1) // n - len(labels) * device // n
        parts.append(tuple(sorted(_take(rng, weights, left, quota))))
    return tuple(parts)


def _dirichlet(rng: random.Random, alpha: float, n: int) -> list[float]:
    """Gamma(alpha) as Gamma(alpha + 1) U^(1/alpha), in logarithms: small alpha would underflow to all
    zeros."""
    logs = [math.log(rng.gammavariate(alpha + 1, 1)) + math.log(1 - rng.random()) / alpha for _ in range(n)]
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return [weight / sum(weights) for weight in weights]


def _take(
    rng: random.Random, weights: dict[int, float], left: dict[int, deque[int]], quota: int
) -> list[int]:
    """So many examples, each of a kind drawn from those of which some are left."""
    taken: list[int] = []
    while len(taken) < quota:
        there = [kind for kind in weights if left[kind]]
        total = list(accumulate(weights[kind] for kind in there))
        while len(taken) < quota:
            if total[-1] > 0:
                kind = rng.choices(there, cum_weights=total)[0]
            else:
                kind = rng.choice(there)
            taken.append(left[kind].popleft())
            if not left[kind]:
                break
    return taken
