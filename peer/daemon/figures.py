"""What `status` shows of one session, gathered from the node, the transport and the learner's reports."""

from __future__ import annotations

import math
from typing import Any

from peer.config import Descriptor
from peer.events import TRAIN, Closed, Direction, Key, Push, Record
from peer.local import Frame
from peer.mesh.contacts import Contact
from peer.mesh.node import Node
from peer.mesh.transport import Transport
from peer.status import LinkState, LinkStatus

FLOAT32_BYTES = 4
SUSPECT_S = 4.0  # a member silent for longer is shown as suspect: half of what makes it dead (membership.py)
ROUND_GAIN = 0.2  # of the newest round's time (guess)
DIRECTIONS: tuple[Direction, Direction] = ("out", "in")


class Figures:
    """Running numbers of one session on this device. Times are of the event loop's clock."""

    def __init__(self) -> None:
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.step_s: float | None = None
        self.round_s: float | None = None
        self.round: int | None = None
        self.parameters: int | None = None
        self.consensus_distance: float | None = None
        self.checkpoint_at: float | None = None
        self.checkpoint_problem = ""
        self.bytes_dense = 0
        self.bytes_dense_exchanges = 0
        self._checkpoint_round: int | None = None
        self._out: dict[Key, int] = {}
        self._closed_at: float | None = None

    def report(self, frame: Frame, now: float) -> None:
        """A learner's report; what is no number is left out."""
        self.loss = _number(frame.get("loss"), self.loss)
        self.step_s = _number(frame.get("step_s"), self.step_s)
        self.consensus_distance = _number(frame.get("consensus_distance"), self.consensus_distance)
        parameters = frame.get("parameters")
        if isinstance(parameters, int) and parameters > 0:
            self.parameters = parameters
        metrics = frame.get("metrics")
        if isinstance(metrics, dict) and metrics:
            found = {str(name): _number(value, None) for name, value in metrics.items()}
            self.metrics = {name: value for name, value in found.items() if value is not None}
        saved = frame.get("checkpoint_round")
        if isinstance(saved, int) and saved >= 0 and saved != self._checkpoint_round:
            self._checkpoint_round, self.checkpoint_at = saved, now
        if "checkpoint_problem" in frame:
            self.checkpoint_problem = str(frame["checkpoint_problem"] or "")

    def pushed(self, event: Push) -> None:
        """Only links that carry something count: nothing is saved where nothing is sent."""
        self._out[event.key] = self._out.get(event.key, 0) + 1

    def closed(self, event: Closed, local_steps: int, now: float) -> None:
        """A round is mixed: count what sending the whole model in fp32 would have taken."""
        self.round = event.key.round
        links, self._out = self._out.get(event.key, 0), {}
        model = FLOAT32_BYTES * (self.parameters or 0)
        self.bytes_dense_exchanges += model * links
        self.bytes_dense += model * links * (local_steps if event.key.phase == TRAIN else 1)
        if self._closed_at is not None:
            took = now - self._closed_at
            self.round_s = took if self.round_s is None else self.round_s + ROUND_GAIN * (took - self.round_s)
        self._closed_at = now

    def status(
        self, now: float, descriptor: Descriptor | None, node: Node | None, transport: Transport
    ) -> dict[str, Any]:
        """The fields of peer.status.SessionStatus that come from here."""
        sent = sum(contact.bytes_sent for contact in transport.contacts)
        age = None if self.checkpoint_at is None else now - self.checkpoint_at
        fields: dict[str, Any] = {
            "loss": self.loss,
            "metrics": self.metrics,
            "step_s": self.step_s,
            "round_s": self.round_s,
            "round": self.round,
            "consensus_distance": self.consensus_distance,
            "bytes_sent": sent,
            "bytes_received": sum(contact.bytes_received for contact in transport.contacts),
            "bytes_dense": self.bytes_dense,
            "bytes_dense_exchanges": self.bytes_dense_exchanges,
            "reduction": self.bytes_dense / sent if sent and self.bytes_dense else None,
            "checkpoint_age_s": age,
        }
        if descriptor is not None:
            task = descriptor.task
            fields |= {"algorithm": descriptor.algorithm, "topology": descriptor.topology, "task": task}
            fields["local_steps"] = descriptor.local_steps
        if node is not None:
            fields |= {
                "generation": node.key.generation,
                "members": len(node.members.alive()),
                "weight": node.weight,
                "rounds_alone": node.rounds_alone_total,
                "links": links(node, transport, now),
            }
        return fields


def links(node: Node, transport: Transport, now: float) -> tuple[LinkStatus, ...]:
    """One row per directed link that is open or has carried anything."""
    rows = []
    for record in node.members.members():
        if record.peer == node.me:
            continue
        contact = transport.contacts.get(record.peer)
        used = [d for d in DIRECTIONS if _is_used(node, record, d)]
        rows += [_link(node, record, contact, d, used, now) for d in used]
    return tuple(rows)


def _is_used(node: Node, record: Record, direction: Direction) -> bool:
    counts = node.links.counts(record.peer, direction)
    return node.links.has_stream(record.peer, direction) or bool(counts.parcels or counts.unacked)


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
    # bytes are counted per peer: what was sent is shown on its out-link, what came on its in-link
    sends, hears = direction == "out" or len(used) == 1, direction == "in" or len(used) == 1
    return LinkStatus(
        peer=record.peer,
        device=record.device or None,
        direction=direction,
        state=_link_state(record, heard),
        address=contact.addresses[0] if contact is not None and contact.addresses else None,
        rtt_ms=1000 * contact.rtt_s if contact is not None and contact.rtt_s is not None else None,
        bytes_sent=contact.bytes_sent if contact is not None and sends else None,
        bytes_received=contact.bytes_received if contact is not None and hears else None,
        parcels=counts.parcels,
        unacked=counts.unacked,
        last_heard_s=heard if math.isfinite(heard) else None,
        rejected=counts.rejected + (contact.rejected if contact is not None and hears else 0),
    )


def _link_state(record: Record, silent_s: float) -> LinkState:
    if record.state == "alive":
        return "suspect" if silent_s > SUSPECT_S else "alive"
    return "dead" if record.state == "dead" else "left"


def _number(value: object, otherwise: float | None) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return otherwise
