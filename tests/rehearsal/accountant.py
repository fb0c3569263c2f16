"""Double-entry books of a rehearsal: where every parcel is, and what the sums of x and w ought to be.

A parcel is known by its payload object, which is handed through unchanged from the sender's exchange to the
receiver's. So the books need no word of the links they check. What may change the sums:

    a local step        x by min(w̄, overshoot w) u
    a beginning         from the initial model or a checkpoint: w by 1
    the end of a life   what it held, and what it had sent that nobody has applied. What it had applied and
                        its senders still keep comes back to them: it counts as on its way again
    a late arrival      of a parcel whose sender's life is over
    a late answer       the acknowledgement of a life that has ended, or a write-off: the parcel is gone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peer.algorithms.base import Message
from peer.algorithms.push_sum import PushSum
from peer.events import Deliver, PeerId, Push, Taken
from peer.learner.exchange import Exchange
from peer.rehearsal.driver import Device, Rehearsal

WRITTEN_OFF = "parcel written off"


@dataclass(eq=False)
class Life:
    peer: PeerId
    exchange: Exchange
    over: str = ""  # "crashed", "left"


@dataclass(eq=False)
class Sent:
    """One parcel. state: out, settled, returned, or written off; by whom it is applied, in which life."""

    by: Life
    dst: PeerId
    payload: object
    x: Tensor | None  # None: it moves no mass
    w: float
    state: str = "out"
    applied: Life | None = None
    lost_with: Life | None = None  # applied by this life, which has crashed

    def __str__(self) -> str:
        return f"parcel of {self.w} from {self.by.peer} to {self.dst} ({self.state})"


class Accountant:
    """Install it before the first device. `conserves`: the algorithm moves mass, whose sums are kept."""

    def __init__(self, r: Rehearsal, dim: int, *, conserves: bool = True) -> None:
        self.r, self.conserves = r, conserves
        self.x, self.w = torch.zeros(dim, dtype=torch.float64), 0.0
        self.left_unconfirmed = 0.0  # weight that leavers kept, or had on its way
        self._lives: dict[Exchange, Life] = {}
        self._sent: dict[int, Sent] = {}
        self._out: dict[tuple[Life, PeerId], Sent] = {}
        self._make, self._off, self._start_over = r._make_exchange, r._off, r._start_over
        r._make_exchange = self._make_exchange
        r._start_over = self._started_over  # type: ignore[method-assign]
        r._off = self._ended  # type: ignore[method-assign]

    def check(self) -> None:
        """The sums are what the books say, to 1e-9."""
        if not self.conserves:
            return
        x, w = torch.zeros_like(self.x), 0.0
        size = 1.0
        for life in self._lives.values():
            if not life.over:
                dx, dw = life.exchange.algorithm.mass()
                x, w, size = x + dx, w + dw, size + float(dx.norm())
        for sent in self._out.values():
            if not sent.by.over and sent.applied is None:
                assert sent.x is not None
                x, w, size = x + sent.x, w + sent.w, size + float(sent.x.norm())
        off_x, off_w = float((x - self.x).norm()), abs(w - self.w)
        assert off_w <= 1e-9 * max(1.0, self.w), f"sum of w is {w}, by the books {self.w}"
        assert off_x <= 1e-9 * size, f"sum of x is off by {off_x} of {size}"

    def state(self, payload: object) -> str:
        """Of the parcel with this payload."""
        return self._sent[id(payload)].state

    def is_applied(self, payload: object) -> bool:
        """In a life that still counts?"""
        return self._sent[id(payload)].applied is not None

    # --- hooks ---------------------------------------------------------------------------------------

    def _make_exchange(self, peer: PeerId, checkpoint: tuple[Tensor, int] | None) -> Exchange:
        exchange = self._make(peer, checkpoint)
        self.watch(Life(peer, exchange))
        return exchange

    def watch(self, life: Life) -> None:
        exchange, algorithm = life.exchange, life.exchange.algorithm
        self._lives[exchange] = life
        push, deliver, acked, returned = (
            exchange.outgoing.push, exchange._deliver, exchange._acked, exchange._returned,
        )  # fmt: skip
        begin, step = algorithm.begin, algorithm.step

        def pushed(dst: PeerId, message: Message) -> Push:
            event = push(dst, message)
            self._pushed(life, event, message)
            return event

        def delivered(command: Deliver, now: float, **late: bool) -> Any:
            answers = deliver(command, now, **late)
            if Taken(command.src, command.epoch, command.number) in answers:
                self._applied(life, command)
            return answers

        def on_acked(dst: PeerId, now: float) -> Any:
            if dst in exchange.unacknowledged():
                self._settled(life, dst)
            return acked(dst, now)

        def on_returned(dst: PeerId, now: float) -> Any:
            if dst in exchange.unacknowledged():
                self._returned(life, dst)
            return returned(dst, now)

        def on_begin(model: Tensor, weight: float) -> None:
            assert algorithm.weight == 0, f"{life.peer} begins and has mass"
            begin(model, weight)
            self._add(weight * model, weight)

        def on_step(u: Tensor, lr: float, links: Any, now: float) -> Any:
            if isinstance(algorithm, PushSum):
                self._add(min(links.mean_weight, algorithm.guard.overshoot * algorithm.weight) * u, 0.0)
            return step(u, lr, links, now)

        exchange.outgoing.push, exchange._deliver = pushed, delivered  # type: ignore[method-assign]
        exchange._acked, exchange._returned = on_acked, on_returned  # type: ignore[method-assign]
        algorithm.begin, algorithm.step = on_begin, on_step  # type: ignore[method-assign]

    # --- the books -----------------------------------------------------------------------------------

    def _add(self, x: Tensor | None, w: float, sign: float = 1.0) -> None:
        if x is not None:
            self.x, self.w = self.x + sign * x, self.w + sign * w

    def _pushed(self, life: Life, event: Push, message: Message) -> None:
        moves = event.delivery == "mass" and self.conserves
        x = life.exchange.algorithm.debited(event.dst, message) if moves else None  # type: ignore[attr-defined]
        sent = Sent(life, event.dst, event.payload, x, message.weight)
        self._sent[id(event.payload)] = sent
        if event.delivery == "mass":
            assert (life, event.dst) not in self._out, f"a second parcel is out: {sent}"
            self._out[life, event.dst] = sent

    def _applied(self, life: Life, command: Deliver) -> None:
        sent = self._sent[id(command.payload)]
        assert sent.applied is None, f"applied twice by {life.peer}: {sent}"
        assert sent.lost_with is None, f"applied again, by {life.peer}: {sent}"
        assert sent.state in ("out", "written off"), f"applied by {life.peer}: {sent}"
        assert sent.by.peer == command.src, f"applied in the name of {command.src}: {sent}"
        assert sent.dst == life.peer, f"applied by {life.peer}: {sent}"
        sent.applied = life
        if sent.by.over or sent.state == "written off":
            self._add(sent.x, sent.w)

    def _settled(self, life: Life, dst: PeerId) -> None:
        sent = self._out.pop((life, dst))
        sent.state = "settled"
        if sent.applied is None:
            if sent.lost_with is None:
                noted = any(note.text == WRITTEN_OFF and at == self.r.now for at, _, note in self.r.notes)
                assert noted, f"acknowledged and not applied: {sent}"
                sent.state = "written off"
            self._add(sent.x, sent.w, -1.0)

    def _returned(self, life: Life, dst: PeerId) -> None:
        sent = self._out.pop((life, dst))
        assert sent.applied is None, f"returned, and applied by {sent.applied}: {sent}"
        sent.state = "returned"

    def _ended(self, device: Device, silent: bool = False) -> None:
        life = self._lives[device.exchange]
        if not life.over:
            self._close(life, "left" if device.left else "crashed")
        self._off(device, silent)

    def _started_over(self, device: Device) -> None:
        self._close(self._lives[device.exchange], "crashed")
        self._start_over(device)

    def _close(self, life: Life, how: str) -> None:
        life.over = how
        x, w = life.exchange.algorithm.mass()
        self._add(x, w, -1.0)
        self.left_unconfirmed += w if how == "left" else 0.0
        for (by, _), sent in list(self._out.items()):
            if by is life:
                del self._out[by, sent.dst]
                if sent.applied is None:
                    self._add(sent.x, sent.w, -1.0)
                    self.left_unconfirmed += sent.w if how == "left" else 0.0
            elif sent.applied is life and how == "crashed":
                sent.applied, sent.lost_with = None, life
                self._add(sent.x, sent.w)
