"""Push-sum (Kempe, Dobra, Gehrke 2003): what all algorithms share whose mass moves along directed links.

    x_i  numerator, R^d      w_i  push-sum weight      z_i = x_i / w_i  the de-biased model
    local update   x_i += w̄ u                   w̄: mean weight over live members, so that u moves z by about u
    parcel to j    x_i -= v,  w_i -= u;  at j  x_j += v,  w_j += u       debit = credit, whatever v and u are

So the sums of x and of w over nodes and parcels in flight change by local updates alone, under any
compression, any shares, any delay. Mail is taken over the moment it comes (it may then be acknowledged)
and waits for the round it is of: in lockstep it is folded into x and w when that round is mixed, late mail
at the next mix; with pace "free", or on a node without weight, at once. A node without weight becomes a
member by any parcel that brings some.

A subclass says what a round sends (`push`) and what its own messages mean (`mass_of`). Look next at sgp.py.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from peer.algorithms.base import ESTATE, SHARE, SNAPSHOT, Algorithm, Links, Message, refuse_overflow
from peer.algorithms.bases import Bases, snapshot
from peer.compression.bodies import Body, Dense, Empty, Layout
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, Key, PeerId

Pack = Callable[[Tensor], Body]


@dataclass(frozen=True, slots=True)
class Guard:
    """What keeps a node that is short of weight from running away. Ours; the papers have neither: `OFF`.

    min_weight: fraction of w̄ below which no push takes a node in rounds with local steps (w_min of
    sparse_push.md f; guess). overshoot: x_i += w̄ u moves z_i by (w̄ / w_i) u, and past about twice the change
    of several local steps training diverges (measured: six devices, 16 local steps, one link down for
    seconds); so a light node enters overshoot w_i u at most (guess: outer steps up to 1.4 were found stable).
    """

    min_weight: float = 0.4
    overshoot: float = 1.25


GUARD, OFF = Guard(), Guard(0.0, math.inf)
LEAST_WEIGHT = 1e-12  # of a node's first mass, which is divided by it; guess, far below honest ones


@dataclass(frozen=True, slots=True)
class Mass:
    """So much numerator and weight. x may be a message's own memory."""

    x: Tensor
    w: float

    def __add__(self, other: Mass) -> Mass:
        return Mass(self.x + other.x, self.w + other.w)


class PushSum(Algorithm):
    """State and mail of one node. `lockstep`: False folds mail the moment it comes (pace "free")."""

    def __init__(
        self, layout: Layout, dtype: torch.dtype, *, lockstep: bool = True, guard: Guard = GUARD
    ) -> None:
        self.d, self.dtype = layout.d, dtype
        self.lockstep, self.guard = lockstep, guard
        self.key, self.expected = Key(), frozenset[PeerId]()
        self.x, self.w = torch.zeros(self.d, dtype=dtype), 0.0
        self.held = Bases()
        self.x0: Tensor | None = None
        self.x0_digest = b""
        self._mail: dict[Key, Mass] = {}
        self._heard: dict[Key, set[PeerId]] = {}
        self._lent: dict[PeerId, Tensor] = {}  # the model whose weight the last parcel to that peer moved

    # --- the state, as others see it -------------------------------------------------------------

    @property
    def model(self) -> Tensor | None:
        return self.x / self.w if self.w > 0 else None

    @property
    def weight(self) -> float:
        return self.w

    @property
    def bases(self) -> tuple[bytes, ...]:
        return self.held.names

    @property
    def heard(self) -> frozenset[PeerId]:
        """Those whose mail of the open round, or of a later one, has come: nothing older follows it."""
        return frozenset(src for key, peers in self._heard.items() if key >= self.key for src in peers)

    def mass(self) -> tuple[Tensor, float]:
        """(x, w) of this node, mail that waits for its round included: one term of the invariant."""
        mails = self._mail.values()
        return sum((mail.x for mail in mails), self.x.clone()), self.w + sum(mail.w for mail in mails)

    def estimate(self) -> Tensor:
        z = self.model
        assert z is not None, "a node without weight has no model"
        return z

    # --- a round ---------------------------------------------------------------------------------

    def know(self, initial: Tensor) -> None:
        self.x0 = initial.to(self.dtype)
        self.x0_digest = self.held.hold(self.x0, 0)

    def begin(self, model: Tensor, weight: float) -> None:
        self.x, self.w = weight * model.to(self.dtype), weight

    def open(self, links: Links) -> None:
        self.key, self.expected = links.key, links.expected
        self.held.advance(links.key.round)
        self._heard = {key: peers for key, peers in self._heard.items() if key >= self.key}

    def step(self, u: Tensor, lr: float, links: Links, now: float) -> dict[PeerId, Message]:
        self.open(links)
        self.x += min(links.mean_weight, self.guard.overshoot * self.w) * u
        return self.push(links)

    @abstractmethod
    def push(self, links: Links) -> dict[PeerId, Message]:
        """What this round sends to whom, debited from x and w."""

    def expect(self, expected: frozenset[PeerId]) -> None:
        self.expected = expected

    def nothing(self, key: Key) -> Message | None:
        return Message(key, SHARE, Empty(self.d, self.dtype))

    def ready(self) -> bool:
        return not self.lockstep or self.expected <= self.heard

    def mix(self) -> Tensor:
        for key in sorted(key for key in self._mail if key <= self.key):
            mail = self._mail.pop(key)
            self._credit(mail.x, mail.w)
        return self.estimate()

    def conclude(self) -> Tensor:
        self._fold_all()
        return self.estimate()

    # --- mail ------------------------------------------------------------------------------------

    def receive(self, src: PeerId, message: Message, now: float) -> dict[PeerId, Message]:
        message = self.explained(src, message)
        refuse_overflow(src, message, self.dtype)
        if self.w == 0 and 0 < message.weight < LEAST_WEIGHT:
            raise RemoteError(
                f"message from {src}: a first weight of at least {LEAST_WEIGHT:g}, not {message.weight:g}"
            )
        v = self.mass_of(src, message)
        of_round = max(message.key, self.key) if self.lockstep else self.key
        if message.key >= self.key or not self.lockstep:
            self._heard.setdefault(of_round, set()).add(src)
        if v is None:
            return {}
        if self.lockstep and self.w > 0:
            came, before = Mass(v, message.weight), self._mail.get(of_round)
            self._mail[of_round] = came if before is None else before + came
        else:
            self._credit(v, message.weight)
        return {}

    def explained(self, src: PeerId, message: Message) -> Message:
        """Its body made one that explains itself. Raises RemoteError."""
        return message

    def mass_of(self, src: PeerId, message: Message) -> Tensor | None:
        """The numerator mass in `message`; None for none. Raises RemoteError, with nothing changed."""
        if message.meaning in (SHARE, ESTATE):
            return message.body.dense()
        if message.meaning == SNAPSHOT:
            return message.weight * self.take_snapshot(message)
        raise RemoteError(f"message from {src}: {self.name} knows no meaning {message.meaning}")

    def take_snapshot(self, message: Message) -> Tensor:
        """The model z of a SNAPSHOT. Raises RemoteError."""
        return self.held.model_of(message)

    def initial_model(self, name: bytes | None = None) -> Tensor:
        """x0, checked against the digest a message gives it. Raises UnknownBaseError."""
        if name is not None and name != self.x0_digest:
            raise UnknownBaseError(f"the initial model here is {self.x0_digest.hex()}, not {name.hex()}")
        assert self.x0 is not None, "know(initial) comes before anything that builds on the initial model"
        return self.x0

    def returned(self, dst: PeerId, message: Message) -> None:
        self._credit(self.debited(dst, message), message.weight)
        self._lent.pop(dst, None)

    def debited(self, dst: PeerId, message: Message) -> Tensor:
        """The numerator mass that went out with `message`."""
        if message.meaning in (SHARE, ESTATE):
            return message.body.dense()
        return message.weight * self._lent[dst] if message.weight > 0 else torch.zeros_like(self.x)

    def settled(self, dst: PeerId, message: Message) -> None:
        self._lent.pop(dst, None)

    # --- joining and leaving ---------------------------------------------------------------------

    def sponsor(self, dst: PeerId, key: Key, bases: tuple[bytes, ...]) -> Message:
        z, u = self.estimate(), self.w / 2
        self.lend(dst, z, u)
        return snapshot(z, u, key, bases)

    def hand_over(self, key: Key) -> Message:
        self._fold_all()
        share = Message(key, ESTATE, Dense(self.x), self.w)
        self.x, self.w = torch.zeros_like(self.x), 0.0
        return share

    def _fold_all(self) -> None:
        for mail in self._mail.values():
            self._credit(mail.x, mail.w)
        self._mail = {}

    # --- for subclasses --------------------------------------------------------------------------

    def shares(self, links: Links, gamma: float = 1.0) -> dict[PeerId, float]:
        """p_ji of out-neighbors with a clear link; less if gamma times that made this node too light."""
        shares = {j: p for j, p in links.out.items() if j in links.clear}
        given = gamma * sum(shares.values())
        if links.key.phase == FINAL or given == 0:
            return shares
        spare = 1 - self.guard.min_weight * links.mean_weight / self.w
        scale = min(1.0, max(0.0, spare) / given)
        return {j: scale * p for j, p in shares.items()}

    def average(
        self, links: Links, q: Pack, others: Mapping[PeerId, Pack] | None = None
    ) -> dict[PeerId, Message]:
        """Plain push-sum: v = q(p_ji x_i), u = p_ji w_i for each clear link, debited as it goes out. others:
        links with a q of their own."""
        x, w, bodies = self.x, self.w, dict[tuple[float, Pack], Body]()
        messages = {}
        for j, p in self.shares(links).items():
            which = p, (others or {}).get(j, q)
            if which not in bodies:
                bodies[which] = which[1](p * x) if p > 0 else Empty(self.d, self.dtype)
            messages[j] = Message(links.key, SHARE, bodies[which], p * w)
        for message in messages.values():
            self.debit(message.body.dense(), message.weight)
        return messages

    def exactly(self, v: Tensor) -> Body:
        """No compression: `v`, which is nobody else's, in the session's own type."""
        return Dense(v)

    def debit(self, v: Tensor, u: float) -> None:
        self.x -= v
        self.w -= u

    def lend(self, dst: PeerId, z: Tensor, u: float) -> None:
        """Debit u units of weight of the model z, which a parcel takes to `dst`. z is kept until settled."""
        self._lent[dst] = z
        self.debit(u * z, u)

    def _credit(self, v: Tensor, u: float) -> None:
        self.x += v
        self.w += u
