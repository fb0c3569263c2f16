"""A model of another half of the session, shown to be looked at: may it be mixed with the own one?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from peer.events import PeerId

# relative distance of two models that may be mixed, and the loss half way between them by that of the worse:
# reliability note, section c
NEAR, MIDPOINT = 0.5, 1.2


@dataclass(frozen=True, slots=True)
class Look:
    """The flat model that a peer has shown, and the round it was at."""

    peer: PeerId
    round: int
    model: Tensor


def mixes(mine: Tensor, theirs: Tensor, loss: Callable[[Tensor], float] | None = None) -> bool:
    """May two flat models be averaged, as far as their distance tells and, where it can be had, the loss?"""
    if not float((mine - theirs).norm()) < NEAR * max(float(mine.norm()), float(theirs.norm())):
        return False
    return loss is None or loss((mine + theirs) / 2) <= MIDPOINT * max(loss(mine), loss(theirs))
