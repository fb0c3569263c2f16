"""What `status` shows of one session, gathered from the node, the transport and the learner's reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peer.config import Descriptor
from peer.daemon.company import consensus, members, shown_state, verdict
from peer.events import TRAIN, Closed, Direction, HandOver, OpenRound, PeerId, Push, Pushed, Record, ToLearner
from peer.local import Frame
from peer.mesh.budget import Spending
from peer.mesh.contacts import Contact
from peer.mesh.frames import MAX_DEVICE_NAME, clean
from peer.mesh.links import Counts
from peer.mesh.node import Node
from peer.mesh.transport import Transport
from peer.placing import Placing
from peer.status import BudgetStatus, LinkStatus

FLOAT32_BYTES = 4
ROUND_GAIN = 0.2  # of the newest round's time (guess)
LinkEnd = tuple[PeerId, Direction]
DIRECTIONS: tuple[Direction, Direction] = ("out", "in")


class Figures:
    """Running numbers of one session on this device. Times are of the event loop's clock.

    folder: where its learner keeps checkpoints. local_steps: what the learner takes per exchange. placing: of
    the session's own local steps."""

    def __init__(self, folder: Path) -> None:
        self.local_steps = 1
        self.placing: Placing | None = None
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.step_s: float | None = None
        self.round_s: float | None = None
        self.round: int | None = None
        self.parameters: int | None = None
        self.computes_on: str | None = None
        self.checkpoint_at: float | None = None
        self.checkpoint_problem = ""
        self.links_without_replica: int | None = None
        self.replica_mb: float | None = None
        self.bytes_dense = 0
        self.bytes_dense_exchanges = 0
        self.rounds_closed = 0
        self._alone_before = 0  # rounds that earlier nodes of this session closed alone
        self._counts_before: dict[LinkEnd, Counts] = {}  # by the links of those nodes
        self._folder = folder
        self._checkpoint: tuple[int, int | None] | None = None  # the newest one's round, and its file's time
        self._round: OpenRound | None = None
        self._used: set[PeerId] = set()  # out-neighbors that this round has sent something
        self._closed_at: float | None = None

    def report(self, frame: Frame, now: float) -> None:
        """A learner's report; what is no number is left out."""
        self.loss = _number(frame.get("loss"), self.loss)
        self.step_s = _number(frame.get("step_s"), self.step_s)
        parameters = frame.get("parameters")
        if isinstance(parameters, int) and parameters > 0:
            self.parameters = parameters
        if "computes_on" in frame:
            self.computes_on = clean(str(frame["computes_on"]), MAX_DEVICE_NAME) or None
        local_steps = frame.get("local_steps")
        if isinstance(local_steps, int) and local_steps > 0:
            self.local_steps = local_steps
        self.replica_mb = _number(frame.get("replica_mb"), self.replica_mb)
        without = frame.get("links_without_replica")
        if isinstance(without, int) and without >= 0:
            self.links_without_replica = without
        metrics = frame.get("metrics")
        if isinstance(metrics, dict) and metrics:
            found = {str(name): _number(value, None) for name, value in metrics.items()}
            self.metrics = {name: value for name, value in found.items() if value is not None}
        saved = frame.get("checkpoint_round")
        if isinstance(saved, int) and saved >= 0 and (last := self._checkpoint_of(saved)) != self._checkpoint:
            self._checkpoint, self.checkpoint_at = last, now
        if "checkpoint_problem" in frame:
            self.checkpoint_problem = str(frame["checkpoint_problem"] or "")

    def _checkpoint_of(self, round_: int) -> tuple[int, int | None]:
        """That round, and when its checkpoint was written: the same round's may be written again."""
        try:
            return round_, (self._folder / f"ckpt-{round_}.peerd").stat().st_mtime_ns
        except OSError:  # a folder that cannot be read, or a file that is gone: only the round tells
            known = self._checkpoint
            return known if known is not None and known[0] == round_ else (round_, None)

    def commanded(self, command: ToLearner) -> None:
        """What the learner is told, in order with its pushes: which links are a round's."""
        if isinstance(command, OpenRound):
            if self._round is None or self._round.key != command.key:
                self._used = set()
            self._round = command
        elif isinstance(command, HandOver):
            self._round = None

    def pushed(self, event: Push) -> None:
        """Only a round's own links count, not snapshots and hand-overs; and of those only links that carry
        something: nothing is saved where nothing is sent."""
        if self._round is not None and event.key == self._round.key and event.dst in self._round.out:
            self._used.add(event.dst)

    def held_back(self, event: Pushed) -> None:
        """To these no more went than word that nothing comes."""
        self._used.difference_update(event.held_back)

    def closed(self, event: Closed, now: float) -> None:
        """A round is mixed: count what sending the whole model in fp32 would have taken."""
        self.round = event.key.round
        self.rounds_closed += 1
        links = len(self._used) if self._round is not None and self._round.key == event.key else 0
        self._used = set()
        model = FLOAT32_BYTES * (self.parameters or 0)
        self.bytes_dense_exchanges += model * links
        self.bytes_dense += model * links * (self.steps(event.key.round) if event.key.phase == TRAIN else 1)
        if self._closed_at is not None:
            took = now - self._closed_at
            self.round_s = took if self.round_s is None else self.round_s + ROUND_GAIN * (took - self.round_s)
        self._closed_at = now

    def steps(self, round_: int) -> int:
        """Local steps that the learner takes in this round."""
        placing = self.placing
        if placing is None or placing.local_steps != self.local_steps:
            return self.local_steps
        return placing.steps(round_)

    def usual_s(self, round_: int) -> float | None:
        """How long this round is likely to take, as rounds of late did; they may grow longer."""
        before = max(0, round_ - round(1 / ROUND_GAIN))
        longer = max(1.0, self.steps(round_) / self.steps(before))
        return None if self.round_s is None else longer * self.round_s

    def interrupted(self) -> None:
        """The learner is gone: the time until the next one's first round is not a round's."""
        self._closed_at = None
        self.links_without_replica = self.replica_mb = self.computes_on = None

    def node_ends(self, node: Node) -> None:
        """Another node takes its place: what this one counted goes on."""
        self._alone_before += node.rounds.alone_total
        for end in ((record.peer, d) for record in node.members.members() for d in DIRECTIONS):
            now, before = node.links.counts(*end), self._counts_before.get(end, Counts())
            if now != Counts():
                self._counts_before[end] = Counts(
                    now.parcels + before.parcels,
                    0,
                    now.rejected + before.rejected,
                    now.parcel_bytes or before.parcel_bytes,
                )

    def status(
        self, now: float, descriptor: Descriptor | None, node: Node | None, transport: Transport
    ) -> dict[str, Any]:
        """The fields of peer.status.SessionStatus that come from here."""
        sent = sum(contact.bytes_sent for contact in transport.contacts.ever())
        age = None if self.checkpoint_at is None else now - self.checkpoint_at
        fields: dict[str, Any] = {
            "loss": self.loss,
            "metrics": self.metrics,
            "step_s": self.step_s,
            "round_s": self.round_s,
            "round": self.round,
            "bytes_sent": sent,
            "message_bytes_sent": sum(contact.frame_bytes_sent for contact in transport.contacts.ever()),
            "bytes_received": sum(contact.bytes_received for contact in transport.contacts.ever()),
            "bytes_dense": self.bytes_dense,
            "bytes_dense_exchanges": self.bytes_dense_exchanges,
            "reduction": self.bytes_dense / sent if sent and self.bytes_dense else None,
            "checkpoint_age_s": age,
            "rounds_closed": self.rounds_closed,
            "links_without_replica": self.links_without_replica,
            "replica_mb": self.replica_mb,
            "computes_on": self.computes_on,
        }
        if descriptor is not None:
            task = descriptor.task
            fields |= {"algorithm": descriptor.algorithm, "topology": descriptor.topology, "task": task}
            fields["local_steps"] = descriptor.local_steps
        if node is not None:
            fields |= {
                **_generation(node),
                "members": len(node.members.alive()),
                "weight": node.weight,
                "rounds_alone": self._alone_before + node.rounds.alone_total,
                "links": links(node, transport, now, self._counts_before, self.parameters),
                "budget": budget(node.spending, now),
                "peers": members(node, transport, now),
                **consensus(node, now),
            }
        return fields


def _generation(node: Node) -> dict[str, int | str | None]:
    """The epoch of the graph in use and its mark; None without one, or where the algorithm needs none."""
    if node.generations is None or node.generations.current is None:
        return {"generation": None, "graph": None}
    epoch, mark = divmod(node.generations.number, 1 << 32)
    return {"generation": epoch, "graph": f"{mark:08x}"}


def budget(spending: Spending, now: float) -> BudgetStatus | None:
    """What is spent of this device's budget, if it has one."""
    if spending.bytes_per_min is None:
        return None
    spending.advance(now)
    return BudgetStatus(
        spending.bytes_per_min, spending.spent_last_min, spending.forecast_day, spending.rounds_held_back
    )


def links(
    node: Node,
    transport: Transport,
    now: float,
    before: Mapping[LinkEnd, Counts] | None = None,
    parameters: int | None = None,
) -> tuple[LinkStatus, ...]:
    """One row per directed link that is open or has carried anything. before: what was counted by the nodes
    whose place this one took. parameters: of the model, None while that is not known."""
    rows = []
    for record in node.members.members():
        if record.peer == node.me:
            continue
        contact = transport.contacts.get(record.peer)
        used = [d for d in DIRECTIONS if _is_used(node, record, d)]
        rows += [_with(_link(node, record, contact, d, used, now), before or {}, parameters) for d in used]
    return tuple(rows)


def _is_used(node: Node, record: Record, direction: Direction) -> bool:
    counts = node.links.counts(record.peer, direction)
    return node.links.has_stream(record.peer, direction) or bool(counts.parcels or counts.unacked)


def _with(row: LinkStatus, before: Mapping[LinkEnd, Counts], parameters: int | None) -> LinkStatus:
    counted = before.get((row.peer, row.direction), Counts())
    newest = row.parcel_bytes or counted.parcel_bytes
    return replace(
        row,
        parcels=(row.parcels or 0) + counted.parcels,
        rejected=(row.rejected or 0) + counted.rejected,
        parcel_bytes=newest or None,
        bits_per_parameter=8 * newest / parameters if newest and parameters else None,
    )


def _link(
    node: Node,
    record: Record,
    contact: Contact | None,
    direction: Direction,
    used: list[Direction],
    now: float,
) -> LinkStatus:
    counts = node.links.counts(record.peer, direction)
    heard = now - node.members.heard_at(record.peer)
    reached = node.rounds.pace.reached(record.peer) if direction == "in" else None
    # bytes are counted per peer: what was sent is shown on its out-link, what came on its in-link
    sends, hears = direction == "out" or len(used) == 1, direction == "in" or len(used) == 1
    return LinkStatus(
        peer=record.peer,
        device=record.device or None,
        direction=direction,
        state=shown_state(record, contact),
        address=contact.addresses[0] if contact is not None and contact.addresses else None,
        rtt_ms=1000 * contact.rtt_s if contact is not None and contact.rtt_s is not None else None,
        bytes_sent=contact.bytes_sent if contact is not None and sends else None,
        bytes_received=contact.bytes_received if contact is not None and hears else None,
        parcels=counts.parcels,
        unacked=counts.unacked,
        last_heard_s=heard if math.isfinite(heard) else None,
        rejected=counts.rejected + (contact.rejected if contact is not None and hears else 0),
        round=reached,
        behind=max(0, node.key.round - 1 - reached) if reached is not None else None,
        verdict=verdict(node, record, contact, direction, counts, now),
        parcel_bytes=counts.parcel_bytes,
    )


def _number(value: object, otherwise: float | None) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return otherwise
