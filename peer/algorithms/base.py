"""What every algorithm follows: pure state machines over flat tensors, one file and one class per paper.

    step(u, lr, links, now)   u is the model's change since mix() last gave one; what does each neighbor get?
    step_to(steps, …)         the same, where it is said as the models before and after
    receive(src, message)     fold one in
    returned(dst, message)    the link gives this message back: un-apply it
    ready()                   may the round close?
    mix()                     close it: the model to train from next

No clock, no socket, no global randomness. Nothing that came in or went out is changed in place.
`learner.exchange` is the only caller.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from peer.compression.bodies import Dense, Portion, largest, numbers_in, peak_of
from peer.compression.codec import Message as Message
from peer.errors import RemoteError
from peer.events import Direction, Key, LinkDown, LinkUp, PeerId
from peer.graphs import Graph

SNAPSHOT, SHARE, ESTATE = 0, 1, 2  # meanings every algorithm knows; an algorithm's own start at 16
MAX_WEIGHT = 1e6  # in one message; the weights of a whole session sum up to its founders' (guess)


def most_of(dtype: torch.dtype) -> float:
    """The largest value that is taken, after weighing."""
    return math.sqrt(torch.finfo(dtype).max)


def refuse_overflow(src: PeerId, message: Message, dtype: torch.dtype) -> None:
    """Raises RemoteError for numbers that are finite, and in products and sums soon would not be."""
    if message.weight > MAX_WEIGHT:
        raise RemoteError(f"message from {src}: weight of at most {MAX_WEIGHT:g}, not {message.weight:g}")
    body, most = message.body, most_of(dtype)
    known, weight = body.peak if isinstance(body, Dense | Portion) else None, max(1.0, message.weight)
    if known is not None and known * weight <= most:
        return
    peak = largest(map(peak_of, numbers_in(body)))
    if not peak * weight <= most:
        raise RemoteError(f"message from {src}: values of at most {most:.0e}, not {peak:g}, after weighing")


@dataclass(frozen=True, slots=True)
class Links:
    """One round as its node sees it.

    out: out-neighbors with mixing weights p_ji; this node keeps 1 - sum(out). clear: those of them whose
    last parcel is acknowledged; to the others nothing is sent, their share stays home. expected:
    in-neighbors that will send. mean_weight: w̄ over live members. trees: this node's neighbors on each
    spanning tree, of n members; mean_delay: mean over ordered pairs of max(hops - 1, 0). most_bytes: what
    each message may take, where this device has a budget for what it sends. aligning: rounds that
    news takes to everybody, where members of a new generation hold unlike models; else 0. hides: bytes that
    the link to each has room for while local steps are taken, as far as that is known. graph: the one that
    all of n members agree on, where there is one.
    """

    key: Key
    out: Mapping[PeerId, float]
    expected: frozenset[PeerId]
    n: int = 1
    mean_weight: float = 1.0
    clear: frozenset[PeerId] = field(default_factory=frozenset)
    trees: tuple[tuple[PeerId, ...], ...] = ()
    mean_delay: float = 0.0
    most_bytes: int | None = None
    aligning: int = 0
    hides: Mapping[PeerId, int] = field(default_factory=dict)
    graph: Graph | None = None


Lay = Callable[[Tensor | None], Tensor]
"""Puts a model into memory: into that of another one, if it is given one that nobody needs any more."""


class LocalSteps:
    """They led from the model z, which mix() gave last, to y. Given once, so that nobody on their way here
    keeps a model alive that the algorithm has no use for.

    y: or what lays it, which then is in memory once it is asked for. peak: no less than the largest |y|,
    finite, if that is known.
    """

    def __init__(self, z: Tensor, y: Tensor | Lay, peak: float | None = None) -> None:
        self.peak = peak
        self._z: Tensor | None = z
        self._y: Tensor | Lay | None = y

    def began_at(self, x: Tensor | None) -> bool:
        """Is z that very model?"""
        return x is not None and self._z is x

    def laid(self) -> LocalSteps:
        """Itself, with y in memory of its own."""
        self._y = _in_memory(self._y, None)
        return self

    def give(self) -> tuple[Tensor, Tensor]:
        """z and y."""
        z, y = self._given()
        return z, _in_memory(y, None)

    def give_over(self) -> Tensor:
        """y alone. If it is still to be laid, that may be done over z."""
        z, y = self._given()
        return _in_memory(y, z)

    def _given(self) -> tuple[Tensor, Tensor | Lay | None]:
        (z, y), self._z, self._y = (self._z, self._y), None, None
        assert z is not None, "these local steps are given away"
        return z, y


def _in_memory(y: Tensor | Lay | None, over: Tensor | None) -> Tensor:
    assert y is not None, "these local steps are given away"
    return y if isinstance(y, Tensor) else y(over)


class Folding(Protocol):
    """What a message is mixed into while it comes: in its own memory. void: that came to nothing."""

    void: bool

    def to(self, stop: int) -> None:
        """So many of its numbers are there, and finite."""

    def give_up(self) -> None:
        """It will never be whole."""


class Algorithm(ABC):
    """The protocol, as `learner.exchange` speaks it. x0: the initial model, as long as there is a use for it.
    takes_models: local steps are better handed over as models, by `step_to`. sends_models: and the model they
    led to goes to the neighbors as it is."""

    name: str
    x0: Tensor | None = None
    takes_models = False
    roundless = False  # messages answer each other, and rounds with local steps wait for none of them

    @property
    def sends_models(self) -> bool:
        return False

    @property
    def still(self) -> bool:
        """Is the open round one of averaging alone, without local steps?"""
        return False

    @property
    @abstractmethod
    def model(self) -> Tensor | None:
        """The de-biased model (flat); None before there is one."""

    @property
    @abstractmethod
    def weight(self) -> float:
        """Push-sum weight held; 0 before there is a model."""

    @property
    @abstractmethod
    def heard(self) -> frozenset[PeerId]:
        """In-neighbors whose message of the open round has come."""

    @property
    @abstractmethod
    def bases(self) -> tuple[bytes, ...]:
        """Digests of the models held that a message may name instead of sending them."""

    @abstractmethod
    def know(self, initial: Tensor) -> None:
        """The model that every member derives from the session's seed. Comes before everything else."""

    @abstractmethod
    def begin(self, model: Tensor, weight: float) -> None:
        """Start with this model and weight: as founder, or from a checkpoint."""

    def own(self) -> dict[str, Tensor]:
        """What a checkpoint is to hold besides the model: vectors like it, by name, per unit of weight."""
        return {}

    def restore(self, own: Mapping[str, Tensor]) -> None:  # noqa: B027 - most have nothing of their own
        """After begin() with the model of a checkpoint: what own() gave for it."""

    @abstractmethod
    def open(self, links: Links) -> None:
        """A round opens, or its links have changed before step()."""

    @abstractmethod
    def sponsor(self, dst: PeerId, key: Key, bases: tuple[bytes, ...]) -> Message:
        """Half of the mass for a newcomer, as a SNAPSHOT. bases: digests of models the newcomer holds."""

    def show(self, key: Key) -> Message:
        """The model alone, as a SNAPSHOT without weight, to look at."""
        return Message(key, SNAPSHOT, Dense(self.estimate()))

    @abstractmethod
    def hand_over(self, key: Key) -> Message:
        """All of the mass, exactly, as an ESTATE; nothing is left here."""

    @abstractmethod
    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]: ...

    def step_to(self, steps: LocalSteps, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        z, y = steps.give()
        return self.step(y - z, lr, links, now)

    @abstractmethod
    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]: ...

    def coming(self, src: PeerId, message: Message) -> Folding | None:
        """A vector that is still coming, from `src`: may it be mixed as far as it is there? It is received
        when it is whole, if it ever is. Asked again as it comes."""
        return None

    @abstractmethod
    def returned(self, dst: PeerId, message: Message) -> None: ...

    def is_stale(self, message: Message) -> bool:
        """Has nobody any use for this message, which has waited for its link, since another round is open?"""
        return False

    def settled(self, dst: PeerId, message: Message) -> None:  # noqa: B027 - most keep nothing for it
        """The message is acknowledged: what was kept to un-apply it can go."""

    @abstractmethod
    def mass(self) -> tuple[Tensor, float]:
        """(x, w) this node holds, mail that waits for its round included: what the invariants sum up."""

    def has_second(self, message: Message) -> bool:
        """Is this message of a round followed by one of its second half?"""
        return False

    def second(self, *, late: bool) -> dict[PeerId, Message] | None:
        """What a round in two halves sends in its second one, once that is due; None: nothing, now. late:
        whoever is not heard in the first half by now is left out of it."""
        return None

    @abstractmethod
    def ready(self) -> bool: ...

    @abstractmethod
    def mix(self) -> Tensor: ...

    def conclude(self) -> Tensor:
        """The session is over: fold in whatever has come, of any round; the model to keep."""
        return self.mix()

    @abstractmethod
    def estimate(self) -> Tensor: ...

    def wake(self, now: float) -> tuple[dict[PeerId, Message], float | None]:
        """For algorithms that meet on their own clock: messages due, and when to be called again."""
        return {}, None

    def on_links(self, change: LinkUp | LinkDown) -> None:  # noqa: B027 - most algorithms keep nothing per link
        """A link has a new epoch, or is gone: state kept per link starts anew."""

    @property
    def lr_scale(self) -> float:
        """What the local steps' learning rate is to be multiplied with, by the links of the open round."""
        return 1.0

    @property
    def least_bytes(self) -> int:
        """Of the smallest message worth sending; 0: messages cannot be made smaller."""
        return 0

    def nothing(self, key: Key) -> Message | None:
        """Says that nothing comes in this round, for a neighbor that waits for it; None: silence says it."""
        return None

    @property
    def room(self) -> bool:
        """Is there memory for what one more in-link would have this node keep?"""
        return True

    @property
    def lacking(self) -> frozenset[tuple[Direction, PeerId]]:
        """Links in use that do without what this algorithm would keep for them, for want of memory at one of
        their ends."""
        return frozenset()

    def evicted(self) -> tuple[PeerId, ...]:
        """Out-neighbors whose link's state made room for another: their links need a new epoch. Told once."""
        return ()

    def expect(self, expected: frozenset[PeerId]) -> None:  # noqa: B027
        """The in-neighbors still worth waiting for this round have changed."""
