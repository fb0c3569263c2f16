"""All directed links of one node: who is sent what, exactly once. No IO; see outlink and inlink.

    sender                              receiver
    Open(life, epoch)            --->   newer than or equal to what it knows, else ignored
                                 <---   Opened(its life, epoch, applied, bases), once it has a learner
    Parcel(epoch, number, ...)   --->   handed to the learner once, in order
                                 <---   Ack(epoch, number), when the learner has taken it
                                 <---   or Refuse(epoch, number): from `number` on nothing is applied

What a driver owes this file: StreamUp before the first frame of a stream; after StreamDown, or after the
StreamUp of a later stream of the same link and direction, no frame of the earlier one. Lives are positive
and rise, across restarts of the daemon too. Commands are emitted for the present learner only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peer.events import (
    Ack,
    Connect,
    Delivery,
    Direction,
    Disconnect,
    Dispose,
    Effect,
    Farewell,
    Frame,
    Key,
    Note,
    Open,
    Opened,
    Parcel,
    Payload,
    PeerId,
    Refuse,
)
from peer.mesh.budget import Spending
from peer.mesh.inlink import InLink, OwnLearner
from peer.mesh.outlink import Item, OutLink


@dataclass(frozen=True, slots=True)
class Unacked:
    """A mass parcel in the ledger. number: 0 while unsent. since: when it was pushed, s."""

    dst: PeerId
    epoch: int
    number: int
    payload: Payload
    since: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one directed link: parcels applied; unacknowledged (in: at the learner); refused (in: by fault);
    bytes of the newest one with values, 0 before there was any."""

    parcels: int = 0
    unacked: int = 0
    rejected: int = 0
    parcel_bytes: int = 0


class Links:
    def __init__(
        self,
        me: PeerId,
        farewells: Mapping[PeerId, Farewell] | None = None,
        spending: Spending | None = None,
    ) -> None:
        """farewells: of the learner that left here politely last (`farewells`). spending: None sets no
        budget."""
        self.me, self.spending = me, spending or Spending()
        self._before = dict(farewells or {})
        self._own = OwnLearner()
        self._out: dict[PeerId, OutLink] = {}
        self._in: dict[PeerId, InLink] = {}

    # --- the own learner -----------------------------------------------------------------------------

    def learner_started(self, life: int) -> list[Effect]:
        """A learner with this life is ready for parcels: every link starts anew. Ends `refuse_all`."""
        assert life > self._own.life, f"lives rise: {life} after {self._own.life}"
        effects = self.learner_gone()
        self._own.life, self._own.leaving = life, False
        effects += [e for out in self._out.values() for e in out.learner_started()]
        return effects + [e for into in self._in.values() for e in into.learner_started()]

    def learner_gone(self) -> list[Effect]:
        """Drop what it had sent (lost with it), and tell its senders that nothing it received counts."""
        if not self._own.life:
            return []
        self._own.life = 0
        effects = [e for out in self._out.values() for e in out.learner_gone()]
        return effects + [e for into in self._in.values() for e in into.learner_gone()]

    def holds(self, bases: tuple[bytes, ...], replicas: bool | None = None) -> None:
        """What later Open and Opened frames say; `replicas` None leaves that as it is."""
        self._own.bases = bases
        if replicas is not None:
            self._own.replicas = replicas

    def refuse_all(self) -> list[Effect]:
        """This node is leaving: only what is in the learner's hand (`in_hand`) may still be applied."""
        self._own.leaving = True
        return [e for link in self._in.values() for e in link.stop()]

    def refuse(self, src: PeerId, reason: str) -> list[Effect]:
        """The link from `src` brings nothing more before it begins anew."""
        return self._in[src].refuse(reason) if src in self._in else []

    def taken(self, src: PeerId, epoch: int, number: int) -> list[Effect]:
        return self._in[src].taken(epoch, number) if src in self._in else []

    def rejected(self, src: PeerId, epoch: int, number: int, reason: str, fault: bool = True) -> list[Effect]:
        return self._in[src].refused(epoch, number, reason, fault=fault) if src in self._in else []

    def push(
        self, dst: PeerId, epoch: int, key: Key, payload: Payload, delivery: Delivery, now: float
    ) -> list[Effect]:
        """Queue or send one message, composed for `epoch` of the link.

        Mass comes back as Returned, numbered 0, when the link is not wanted, is in another epoch, or has mass
        out. Between two streams it waits. `latest` replaces what is unsent; where it cannot go it is dropped.
        """
        return self._outlink(dst).push(Item(key, payload, delivery, now), epoch)

    # --- the mesh ------------------------------------------------------------------------------------

    def want(self, dst: PeerId) -> list[Effect]:
        """Open a link to `dst` (Connect) and keep it open."""
        return self._outlink(dst).want()

    def unwant(self, dst: PeerId) -> list[Effect]:
        """Unsent mass is Returned now; the link closes (Disconnect) when what was sent is settled."""
        return self._out[dst].unwant() if dst in self._out else []

    def renew(self, dst: PeerId) -> list[Effect]:
        """A new epoch on request, once what was sent is settled."""
        return self._out[dst].renew() if dst in self._out else []

    def lives(self, lives: Mapping[PeerId, int]) -> list[Effect]:
        """The newest known lives of others' learners: a link that an earlier one has answered begins anew, as
        soon as what was sent is settled, and nothing more is sent to a learner that is gone."""
        gone = [dst for dst, life in lives.items() if dst in self._out and 0 < self._out[dst].bound < life]
        return [effect for dst in gone for effect in self._out[dst].renew()]

    def goodbye(self, peer: PeerId, last: Farewell) -> list[Effect]:
        """`peer` goes, and says how far it has applied the link to it."""
        effects = self._out[peer].goodbye(last) if peer in self._out else []
        return effects + (self._in[peer].goodbye() if peer in self._in else [])

    def write_off(self, peer: PeerId) -> list[Effect]:
        """The dead record expires: what is out to it is gone, both links end. `want` begins anew."""
        effects = self._out[peer].write_off() if peer in self._out else []
        return effects + (self._in[peer].write_off() if peer in self._in else [])

    def dial_in(self, src: PeerId) -> list[Effect]:
        """Open the stream for the link from `src` from this end: it cannot, or does not, dial here."""
        return [Connect(src, "in")]

    def drop_in(self, src: PeerId) -> list[Effect]:
        return [Disconnect(src, "in")]

    def go_on(self) -> list[Effect]:
        """Begin what waits for the budget, as far as it lets; whoever has waited longest comes first."""
        waiting = [link for link in self._out.values() if link.outstanding and not link.moving]
        waiting.sort(key=lambda link: (link.outstanding[0].since, link.dst))
        return [effect for link in waiting for effect in link.go_on()]

    # --- the driver ----------------------------------------------------------------------------------

    def stream_up(self, peer: PeerId, direction: Direction) -> list[Effect]:
        return (self._outlink(peer) if direction == "out" else self._inlink(peer)).stream_up()

    def stream_down(self, peer: PeerId, direction: Direction) -> list[Effect]:
        return (self._outlink(peer) if direction == "out" else self._inlink(peer)).stream_down()

    def heard(self, peer: PeerId, direction: Direction, frame: Frame, now: float) -> list[Effect]:
        match direction, frame:
            case "in", Open():
                return self._inlink(peer).open(frame)
            case "in", Parcel():
                return self._inlink(peer).parcel(frame)
            case "out", Opened():
                return self._outlink(peer).on_opened(frame)
            case "out", Ack():
                return self._outlink(peer).on_ack(frame)
            case "out", Refuse():
                return self._outlink(peer).on_refuse(frame)
        fields: dict[str, object] = {"peer": peer, "what": f"{type(frame).__name__} on an {direction}-link"}
        dispose: list[Effect] = [Dispose(frame.payload)] if isinstance(frame, Parcel) else []
        return [Note("link protocol breach", fields, "warning"), *dispose]

    # --- questions -----------------------------------------------------------------------------------

    def clear(self, dst: PeerId, life: int = 0) -> bool:
        """May mass be pushed to `dst` and leave at once? Stream and link are open and no mass is out. life:
        of the learner there that it is for; 0: whichever it is."""
        return dst in self._out and self._out[dst].clear and life in (0, self._out[dst].bound)

    def unacked(self, dst: PeerId) -> bool:
        """Is a mass parcel to `dst` in the ledger?"""
        return dst in self._out and self._out[dst].mass is not None

    def pending(self) -> bool:
        """Is anything out, of either delivery, that is not acknowledged?"""
        return any(link.outstanding for link in self._out.values())

    def moving(self, dst: PeerId) -> bool:
        """Is a parcel to `dst` on a stream that is up, and not answered?"""
        return dst in self._out and self._out[dst].moving

    def waiting(self) -> bool:
        """Is there a parcel that could go if the budget had room for it?"""
        return any(link.opened and link.outstanding and not link.moving for link in self._out.values())

    def has_stream(self, peer: PeerId, direction: Direction) -> bool:
        ends: Mapping[PeerId, OutLink | InLink] = self._out if direction == "out" else self._in
        return peer in ends and ends[peer].up

    def in_hand(self) -> frozenset[PeerId]:
        """Whose parcels are at the learner. After `refuse_all`, say goodbye when this is empty."""
        return frozenset(src for src, link in self._in.items() if link.hand is not None)

    def applied(self, src: PeerId) -> tuple[int, int, int]:
        """(life, epoch, number) of the last parcel applied; zeros when `src` never opened a link to here."""
        link = self._in.get(src)
        return (link.life, link.epoch, max(link.applied, 0)) if link else (0, 0, 0)

    def farewell(self, src: PeerId, by: int) -> Farewell:
        """The last word of this node's learner `by` to `src`."""
        return self._in[src].farewell(by) if src in self._in else Farewell(by, 0, 0, 0)

    def farewells(self, by: int) -> dict[PeerId, Farewell]:
        """What is to be remembered when learner `by` has left politely: how far each in-link was applied."""
        return {**self._before, **{src: link.farewell(by) for src, link in self._in.items() if link.epoch}}

    def ledger(self) -> list[Unacked]:
        """Every mass parcel that is neither acknowledged nor returned."""
        out = ((dst, link, link.mass) for dst, link in sorted(self._out.items()))
        return [
            Unacked(dst, link.epoch, item.number, item.payload, item.since) for dst, link, item in out if item
        ]

    def counts(self, peer: PeerId, direction: Direction) -> Counts:
        if direction == "out" and peer in self._out:
            sender = self._out[peer]
            return Counts(sender.parcels, int(sender.mass is not None), sender.rejected, sender.parcel_bytes)
        if direction == "in" and peer in self._in:
            receiver = self._in[peer]
            return Counts(
                receiver.parcels, int(receiver.hand is not None), receiver.rejected, receiver.parcel_bytes
            )
        return Counts()

    def _outlink(self, dst: PeerId) -> OutLink:
        return self._out.setdefault(dst, OutLink(dst, self._own, self.spending))

    def _inlink(self, src: PeerId) -> InLink:
        return self._in.setdefault(src, InLink(src, self._own, self._before.get(src)))
