"""The members of a session, and the others as `status` shows them: who is there, how far apart the models
are, and of each link in a word whether all is well with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peer.events import Direction, PeerId, Record
from peer.mesh.contacts import Contact
from peer.mesh.links import Counts
from peer.mesh.node import Node
from peer.mesh.sketches import Apart
from peer.mesh.transport import Transport
from peer.status import MemberState, MemberStatus


def shown_state(record: Record, contact: Contact | None) -> MemberState:
    """As this device sees it; what the user has decided comes first."""
    if contact is not None and contact.blocked:
        return "blocked"
    return "left" if record.state == "paused" else record.state


def verdict(
    node: Node,
    record: Record,
    contact: Contact | None,
    direction: Direction,
    counts: Counts,
    now: float,
) -> str:
    """What a person wants to know of this link, in a word or two; "ok" if nothing."""
    peer = record.peer
    state = shown_state(record, contact)
    if state != "alive":
        return record.state if state == "left" else state
    if peer in node.reunions.estranged:
        return "trained apart"
    if node.gossip.cut_off(peer, now):
        return "out of reach"
    rejected = counts.rejected + (contact.rejected if contact is not None else 0)
    if rejected:
        return f"{rejected} refused"
    if not node.links.has_stream(peer, direction):
        return "no stream"
    if direction == "in" and peer in node.rounds.missed:
        return "late"
    return "ok"


def everybody(node: Node | None) -> list[PeerId]:
    """Who is in the session, as far as is known here, or has seen it through; this device included."""
    if node is None:
        return []
    known = node.members
    through = (record.peer for record in known.records() if record.phase == "finished")
    return sorted({known.me.peer, *through, *(record.peer for record in known.alive())})


def trainers(node: Node) -> dict[PeerId, int]:
    """The lives of those whose models are mixed with this one's, itself left out."""
    none = {node.me, *node.members.blocked}
    alive = (record for record in node.members.alive() if record.peer not in none)
    return {record.peer: record.life for record in alive if record.phase == "training"}


def consensus(node: Node, now: float) -> dict[str, Any]:
    """Fields of a session: the consensus distance, estimated from sketches, and the mean weight."""
    found = node.gossip.sketches.consensus(trainers(node), now) if node.phase == "training" else None
    far, relative = found if found is not None else (None, None)
    return {
        "consensus_distance": far,
        "consensus_relative": relative,
        "mean_weight": node.members.mean_weight() if node.phase == "training" else None,
    }


def members(node: Node, transport: Transport, now: float) -> tuple[MemberStatus, ...]:
    """One row for each other member that is known, sorted by name."""
    apart = node.gossip.sketches.apart(trainers(node), now)
    rows = [
        _member(node, record, transport.contacts.get(record.peer), apart, now)
        for record in node.members.members()
        if record.peer != node.me
    ]
    return tuple(sorted(rows, key=lambda row: (row.device or "", row.peer)))


def _member(
    node: Node, record: Record, contact: Contact | None, apart: Mapping[PeerId, Apart], now: float
) -> MemberStatus:
    heard, far = now - node.members.heard_at(record.peer), apart.get(record.peer)
    return MemberStatus(
        peer=record.peer,
        device=record.device or None,
        state=shown_state(record, contact),
        phase=record.phase,
        address=contact.addresses[0] if contact is not None and contact.addresses else None,
        rtt_ms=1000 * contact.rtt_s if contact is not None and contact.rtt_s is not None else None,
        last_heard_s=heard if math.isfinite(heard) else None,
        weight=record.weight if record.phase == "training" else None,
        distance=far.distance if far is not None else None,
        distance_relative=far.relative if far is not None else None,
        distance_age_s=far.age_s if far is not None else None,
    )
