"""The sending end of one directed link: a stop-and-wait ledger of at most one unacknowledged mass parcel.

An epoch begins with Open and is bound to the receiver's life that first answers it. A parcel gets its number
when it is first sent, is sent again whenever the same life answers Open on a new stream without having
applied it, and leaves the ledger in one of these ways only:

    Acked     applied by the life the epoch is bound to (or written off with a dead peer: nothing to un-apply)
    Returned  never applied in a life that counts: refused, or the receiver's new life or its goodbye says so
              (a new life repeats what an earlier one has said when it left politely)
    lost      with this node's own learner

A new epoch begins only when nothing is out, so an epoch change can never deliver twice.
`latest` parcels are whole models: they are replaced and dropped silently, never Acked or Returned.
A parcel that the device's budget has no room for waits, and `go_on` tries again.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.events import (
    Ack,
    Acked,
    Connect,
    Delivery,
    Disconnect,
    Dispose,
    Effect,
    Farewell,
    ForLearner,
    Key,
    LinkDown,
    LinkUp,
    Note,
    Open,
    Opened,
    Parcel,
    Payload,
    PeerId,
    Refuse,
    Returned,
    Send,
    ToLearner,
)
from peer.mesh.budget import Spending
from peer.mesh.frame_bytes import frame_bytes, value_bytes
from peer.mesh.inlink import OwnLearner

# Of whole models the newest two wait. In lockstep both are of use: a neighbor's next message can overtake its
# acknowledgement of this node's last, and then this node is a round further before it has sent another.
LATEST_QUEUED = 2


@dataclass(slots=True, eq=False)
class Item:
    """A pushed message. number: 0 until it is first sent. since: when it was pushed, s."""

    key: Key
    payload: Payload
    delivery: Delivery
    since: float
    number: int = 0


class OutLink:
    def __init__(self, dst: PeerId, own: OwnLearner, spending: Spending) -> None:
        self.dst, self.own, self.spending = dst, own, spending
        self.wanted = False
        self.dialing = False  # has the driver been asked to Connect?
        self.up = False  # is there a stream?
        self.active = False  # is an epoch going?
        self.opened = False  # has the receiver answered on this stream?
        self.epoch = 0
        self.bound = 0  # the receiver's life this epoch is bound to; then the learner has its LinkUp
        self.newest = 0  # the receiver's newest life ever shown
        self.number = 0  # of the last parcel numbered in this epoch
        self.flying: Item | None = None  # sent, unacknowledged
        self.begun = False  # has what is flying been sent on this stream?
        self.queue: list[Item] = []  # unsent: at most one of mass, LATEST_QUEUED of `latest`
        self.renewing = False
        self.parcels = self.rejected = 0
        self.parcel_bytes = 0  # of the newest one with values

    @property
    def outstanding(self) -> list[Item]:
        return [self.flying, *self.queue] if self.flying else list(self.queue)

    @property
    def mass(self) -> Item | None:
        """The one mass parcel that is out, sent or not."""
        return next((item for item in self.outstanding if item.delivery == "mass"), None)

    @property
    def moving(self) -> bool:
        """Is a parcel on this stream that is not answered?"""
        return self.up and self.begun and self.flying is not None

    @property
    def clear(self) -> bool:
        return self.wanted and self.opened and not self.renewing and self.mass is None

    # --- this node -----------------------------------------------------------------------------------

    def want(self) -> list[Effect]:
        self.wanted = True
        effects: list[Effect] = [] if self.dialing else [Connect(self.dst, "out")]
        self.dialing = True
        return effects + ([] if self.active else self._begin())

    def unwant(self) -> list[Effect]:
        """Closes when nothing sent is unacknowledged any more."""
        self.wanted = False
        return self._drain()

    def renew(self) -> list[Effect]:
        """A new epoch, as soon as nothing sent is unacknowledged any more."""
        if not self.active:
            return []
        self.renewing = True
        return self._drain()

    def learner_started(self) -> list[Effect]:
        return self._begin() if self.wanted else []

    def learner_gone(self) -> list[Effect]:
        """What is out is lost with the life that sent it; the learner cannot be told any more."""
        effects: list[Effect] = [Dispose(item.payload) for item in self.outstanding]
        self.flying, self.queue = None, []
        self.active = self.opened = False
        self.bound = 0
        return effects + self._hang_up()

    def push(self, item: Item, epoch: int) -> list[Effect]:
        if not self.active or not self.wanted or self.renewing or epoch != self.epoch:
            return self._returned(item)
        if item.delivery == "mass" and self.mass is not None:
            note = Note("second mass parcel on a link refused", {"peer": self.dst}, "warning")
            return [note, *self._returned(item)]
        effects: list[Effect] = []
        if item.delivery == "latest":
            older = [queued for queued in self.queue if queued.delivery == "latest"][: 1 - LATEST_QUEUED]
            effects += [Dispose(queued.payload) for queued in older]
            self.queue = [queued for queued in self.queue if queued not in older]
        self.queue.append(item)
        return effects + self._flow()

    def go_on(self) -> list[Effect]:
        """The budget may have room again for what has waited."""
        return self._flow()

    # --- the stream and the receiver -----------------------------------------------------------------

    def stream_up(self) -> list[Effect]:
        self.up, self.opened, self.begun = True, False, False
        return self._open()

    def stream_down(self) -> list[Effect]:
        self.up = self.opened = self.begun = False
        return []

    def on_opened(self, frame: Opened) -> list[Effect]:
        if not self._current(frame.epoch) or frame.life < self.newest:
            return []
        self.newest = frame.life
        if self.bound and frame.life != self.bound:
            return [*self._settle(self._counted(frame.before)), *self._restart()]
        if frame.applied > self.number:
            return [self._breach(f"claims parcel {frame.applied} of {self.number}")]
        effects: list[Effect] = []
        if not self.bound:
            self.bound = frame.life
            replicas = self.own.replicas and frame.replicas
            effects += self._tell(LinkUp(self.dst, "out", self.epoch, frame.bases, replicas))
        self.opened = True
        item = self.flying
        if item is None or item.number <= frame.applied:
            return effects + self._landed()
        newer = sum(queued.delivery == "latest" for queued in self.queue)
        if item.delivery == "latest" and newer == LATEST_QUEUED and self.queue[0].delivery == "latest":
            self.flying = None
            return [*effects, Dispose(item.payload), *self._flow()]
        self.begun = False
        return [*effects, *self._flow()]

    def on_ack(self, frame: Ack) -> list[Effect]:
        if not self._current(frame.epoch) or not self.opened:
            return []
        if frame.number > self.number:
            return [self._breach(f"acknowledges parcel {frame.number} of {self.number}")]
        if self.flying is None or frame.number < self.flying.number:
            return []
        return self._landed()

    def on_refuse(self, frame: Refuse) -> list[Effect]:
        if not self._current(frame.epoch):
            return []
        if self.flying is not None and 0 < frame.number <= self.flying.number:
            self.rejected += 1
        fields: dict[str, object] = {"peer": self.dst, "epoch": frame.epoch, "reason": frame.reason}
        return [Note("link refused", fields), *self._settle(frame.number - 1), *self._restart()]

    def goodbye(self, last: Farewell) -> list[Effect]:
        mine = (last.life, last.epoch) == (self.own.life, self.epoch)
        if not self.active or (self.bound and not (mine and last.by == self.bound)):
            return []  # not about this epoch, or not of the life that has answered it since: late
        return [*self._settle(last.applied if mine else 0), *self._restart()]

    def write_off(self) -> list[Effect]:
        """Nothing is refunded: the learner is told Acked, so that it forgets and un-applies nothing."""
        effects: list[Effect] = []
        for item in self.outstanding:
            if item.delivery == "mass":
                fields: dict[str, object] = {"peer": self.dst, "epoch": self.epoch, "number": item.number}
                effects.append(Note("parcel written off", fields, "warning"))
                effects += self._tell(Acked(self.dst, self.epoch, item.number))
            effects.append(Dispose(item.payload))
        self.flying, self.queue, self.wanted = None, [], False
        return effects + self._restart()

    # --- inside --------------------------------------------------------------------------------------

    def _counted(self, said: Farewell | None) -> int:
        """How far the life this epoch was bound to has applied it, so that it still counts."""
        mine = (self.bound, self.own.life, self.epoch)
        return said.applied if said is not None and (said.by, said.life, said.epoch) == mine else 0

    def _current(self, epoch: int) -> bool:
        return self.up and self.active and epoch == self.epoch

    def _begin(self) -> list[Effect]:
        if not self.own.life:
            return []
        self.epoch += 1
        self.active, self.opened, self.renewing = True, False, False
        self.bound = self.number = 0
        return self._open()

    def _restart(self) -> list[Effect]:
        """End this epoch, whose parcels are settled; begin the next if the link is still wanted."""
        effects = self._tell(LinkDown(self.dst, "out")) if self.bound else []
        self.active = self.opened = False
        self.bound = 0
        return effects + (self._begin() if self.wanted else self._hang_up())

    def _hang_up(self) -> list[Effect]:
        if self.wanted or not self.dialing:
            return []
        self.dialing = False
        return [Disconnect(self.dst, "out")]

    def _open(self) -> list[Effect]:
        if not self.up or not self.active:
            return []
        return [Send(self.dst, "out", Open(self.own.life, self.epoch, self.own.replicas))]

    def _drain(self) -> list[Effect]:
        """Take back what was never sent; end the epoch unless a mass parcel is on its way."""
        flying = self.flying
        if flying is None or flying.delivery == "latest":
            return [*self._settle(0), *self._restart()]
        queue, self.queue = self.queue, []
        return [effect for item in queue for effect in self._returned(item)]

    def _landed(self) -> list[Effect]:
        """What was flying is applied; go on with whatever waited for that."""
        effects: list[Effect] = []
        if self.flying is not None:
            item, self.flying = self.flying, None
            effects += self._acked(item)
        if not self.wanted or self.renewing:
            return effects + self._restart()
        return effects + self._flow()

    def _flow(self) -> list[Effect]:
        """Send what is next, or again what a stream that is gone was to bring over, if the budget lets it."""
        if not self.opened or (self.flying is not None and self.begun):
            return []
        item = self.flying or (self.queue[0] if self.queue else None)
        if item is None:
            return []
        number = item.number or self.number + 1
        parcel = Parcel(self.epoch, number, item.key, item.payload, item.delivery)
        size = frame_bytes(parcel)
        if not self.spending.lets(size):
            return []
        self.spending.begin(self.dst, size)
        if self.flying is None:
            self.flying, item.number, self.number = self.queue.pop(0), number, number
        self.begun, self.parcel_bytes = True, value_bytes(parcel) or self.parcel_bytes
        return [Send(self.dst, "out", parcel)]

    def _settle(self, applied: int) -> list[Effect]:
        """The epoch is over and the receiver applied up to `applied` of it."""
        effects: list[Effect] = []
        for item in self.outstanding:
            landed = 0 < item.number <= applied
            effects += self._acked(item) if landed else self._returned(item)
        self.flying, self.queue = None, []
        return effects

    def _acked(self, item: Item) -> list[Effect]:
        self.parcels += 1
        told = self._tell(Acked(self.dst, self.epoch, item.number)) if item.delivery == "mass" else []
        return [*told, Dispose(item.payload)]

    def _returned(self, item: Item) -> list[Effect]:
        told = self._tell(Returned(self.dst, self.epoch, item.number)) if item.delivery == "mass" else []
        return [*told, Dispose(item.payload)]

    def _tell(self, command: ToLearner) -> list[Effect]:
        return [ForLearner(command)] if self.own.life else []

    def _breach(self, text: str) -> Note:
        return Note("link protocol breach", {"peer": self.dst, "epoch": self.epoch, "what": text}, "warning")
