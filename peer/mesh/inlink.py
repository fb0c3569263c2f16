"""The receiving end of one directed link: what comes in is handed to the learner once, in order.

A sender says Open(life, epoch). It is answered with Opened once there is a learner to apply things, and from
then on parcels of that epoch are taken: number after number, one at the learner at a time, acknowledged when
the learner has taken it over. An epoch that cannot go on is void and answered with Refuse(epoch, number):
everything before `number` is applied, and it and all after it never will be. The learner's end voids every
epoch it has answered, with number 0: nothing a lost life applied counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.events import (
    Ack,
    Deliver,
    Dispose,
    Effect,
    Farewell,
    ForLearner,
    Frame,
    LinkDown,
    LinkUp,
    Note,
    Open,
    Opened,
    Parcel,
    PeerId,
    Refuse,
    Send,
)
from peer.mesh.frame_bytes import value_bytes

LOST = -1  # `applied` of an epoch whose receiving learner is gone: Refuse then names number 0


@dataclass(slots=True)
class OwnLearner:
    """What both ends of every link need to know of this node's own learner."""

    life: int = 0  # 0: there is none
    bases: tuple[bytes, ...] = ()
    replicas: bool = True
    leaving: bool = False  # nothing more is applied


class InLink:
    def __init__(self, src: PeerId, own: OwnLearner, before: Farewell | None = None) -> None:
        self.src, self.own, self.before = src, own, before
        self.up = False  # is there a stream?
        self.live = False  # has Open been heard on it?
        self.life = self.epoch = 0  # the newest Open
        self.applied = 0
        self.void = ""  # why this epoch cannot go on
        self.told = False  # the learner knows this epoch (LinkUp), the sender has its Opened
        self.ending = False  # the sender said goodbye: the epoch is over when its stream is
        self.replicas = True
        self.hand: Parcel | None = None  # at the learner
        self.orphan = False  # the parcel in hand is of an earlier (life, epoch), whose sender is not answered
        self.waiting: Parcel | None = None  # next in hand
        self.parcels = self.rejected = 0
        self.parcel_bytes = 0  # of the newest one with values that was taken

    # --- the stream ----------------------------------------------------------------------------------

    def stream_up(self) -> list[Effect]:
        self.up, self.live = True, False
        return []

    def stream_down(self) -> list[Effect]:
        self.up = self.live = False
        return self._end("its sender said goodbye") if self.ending else []

    def open(self, frame: Open) -> list[Effect]:
        if not self.up or (frame.life, frame.epoch) < (self.life, self.epoch):
            return [Note("stale open ignored", {"peer": self.src, "epoch": frame.epoch}, "debug")]
        effects: list[Effect] = []
        if (frame.life, frame.epoch) > (self.life, self.epoch):
            effects += self._forget()
            self.orphan = self.hand is not None
            self.life, self.epoch, self.applied = frame.life, frame.epoch, 0
            self.void, self.ending = "", False
        self.live, self.replicas = True, frame.replicas
        return effects + self._answer()

    def parcel(self, parcel: Parcel) -> list[Effect]:
        dispose = Dispose(parcel.payload)
        if not self.live or not self.told or parcel.epoch != self.epoch:
            return [dispose]  # of an epoch that is over; its Refuse or the next Open is on its way
        if parcel.number <= self.applied:
            return [dispose, self._send(Ack(self.epoch, self.applied))]
        if any(held.number == parcel.number for held in self._held()):
            return [dispose]  # re-sent after a reconnect; Ack follows when the learner has taken it
        if self.own.leaving:
            return [dispose, *self._end("leaving")]
        if not self._in_order(parcel):
            self.rejected += 1
            return [dispose, *self._end(f"parcel {parcel.number} after {self._last()}")]
        if self.hand is None:
            return self._deliver(parcel)
        replaced, self.waiting = self.waiting, parcel
        return [Dispose(replaced.payload)] if replaced else []

    # --- the learner ---------------------------------------------------------------------------------

    def learner_started(self) -> list[Effect]:
        return self._answer()

    def learner_gone(self) -> list[Effect]:
        """Everything this life applied is lost: what is not acknowledged goes back to its sender."""
        effects: list[Effect] = [Dispose(p.payload) for p in (self.hand, self.waiting) if p]
        self.hand = self.waiting = None
        if self.told or self.void:
            self.told, self.applied = False, LOST
            self.void = self.void or "its learner is gone"
            effects += self._answer()
        return effects

    def taken(self, epoch: int, number: int) -> list[Effect]:
        if self.hand is None or (self.hand.epoch, self.hand.number) != (epoch, number):
            return []  # of an earlier life
        effects: list[Effect] = [Dispose(self.hand.payload)]
        self.parcel_bytes = value_bytes(self.hand) or self.parcel_bytes
        self.hand = None
        self.parcels += 1
        if not self.orphan:
            self.applied = number
            if self.void:
                effects += self._answer()
            elif self.live:
                effects.append(self._send(Ack(epoch, number)))
        return effects + self._next()

    def refused(self, epoch: int, number: int, reason: str, *, fault: bool) -> list[Effect]:
        """The learner rejected the parcel in hand."""
        if self.hand is None or (self.hand.epoch, self.hand.number) != (epoch, number):
            return []
        effects: list[Effect] = [Dispose(self.hand.payload)]
        self.hand = None
        self.rejected += fault
        if not self.orphan:
            effects += self._end(reason)
        return effects + self._next()

    def refuse(self, reason: str) -> list[Effect]:
        """This node wants nothing more of this epoch."""
        return self._end(reason)

    def stop(self) -> list[Effect]:
        """This node is leaving: what the learner has not been handed yet it will not get."""
        effects: list[Effect] = [Dispose(self.waiting.payload)] if self.waiting else []
        self.waiting = None
        return effects

    # --- the sender ----------------------------------------------------------------------------------

    def goodbye(self) -> list[Effect]:
        """What is still on its stream counts."""
        self.ending = True
        return [] if self.up else self._end("its sender said goodbye")

    def write_off(self) -> list[Effect]:
        return self._end("written off")

    def farewell(self, by: int) -> Farewell:
        """What the next life will repeat; of an epoch that an earlier life has applied, what it said."""
        if self.before is not None and self._applied_before() > 0:
            return self.before
        return Farewell(by, self.life, self.epoch, max(self.applied, 0))

    # --- inside --------------------------------------------------------------------------------------

    def _applied_before(self) -> int:
        """How far an earlier life of ours has applied this epoch and left politely; LOST if none has."""
        before = self.before
        if before is None or (before.life, before.epoch) != (self.life, self.epoch):
            return LOST
        return before.applied

    def _answer(self) -> list[Effect]:
        if not self.live:
            return []
        if self.void:
            if self.hand is not None and not self.orphan:
                return []  # whether it counts is known when the learner has answered
            return [self._send(Refuse(self.epoch, max(self.applied, self._applied_before()) + 1, self.void))]
        if self.own.leaving and self.told:
            return self._end("leaving")  # its sender may not have heard what was applied
        if not self.own.life or self.own.leaving:
            return []
        replicas = self.own.replicas and self.replicas
        effects: list[Effect] = []
        if not self.told:
            self.told = True
            effects.append(ForLearner(LinkUp(self.src, "in", self.epoch, (), replicas)))
        own = self.own
        answer = Opened(own.life, self.epoch, self.applied, own.bases, own.replicas, self.before)
        return [*effects, self._send(answer)]

    def _end(self, reason: str) -> list[Effect]:
        """This epoch applies nothing more, besides what is in the learner's hand."""
        if self.epoch == 0:
            return []
        effects = self._forget()
        self.void = self.void or reason
        return effects + self._answer()

    def _forget(self) -> list[Effect]:
        effects = self.stop()
        if self.told and self.own.life:
            effects.append(ForLearner(LinkDown(self.src, "in")))
        self.told = False
        return effects

    def _in_order(self, parcel: Parcel) -> bool:
        if self.waiting is not None and self.waiting.delivery == "mass":
            return False
        last = self._last()
        # a superseded `latest` parcel leaves a gap that only a later `latest` may jump
        return parcel.number == last + 1 or (parcel.delivery == "latest" and parcel.number > last)

    def _held(self) -> list[Parcel]:
        """Parcels of this epoch that are here and not taken yet."""
        return [p for p in (None if self.orphan else self.hand, self.waiting) if p]

    def _last(self) -> int:
        return max([self.applied, *(p.number for p in self._held())])

    def _deliver(self, parcel: Parcel) -> list[Effect]:
        self.hand, self.orphan = parcel, False
        return [
            ForLearner(
                Deliver(self.src, parcel.epoch, parcel.number, parcel.key, parcel.payload, parcel.delivery)
            )
        ]

    def _next(self) -> list[Effect]:
        if self.hand is not None or self.waiting is None:
            return []
        parcel, self.waiting = self.waiting, None
        return self._deliver(parcel)

    def _send(self, frame: Frame) -> Send:
        return Send(self.src, "in", frame)
