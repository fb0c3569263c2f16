"""What `peerd status --json` prints, as frozen records of the same names. Standard library only.

None is "not known yet". Byte counts are gRPC message bytes, headers of our own included. bytes_dense: one
full fp32 model per local step over the same links; bytes_dense_exchanges: one per exchange; reduction:
bytes_dense / bytes_sent.
The names are a contract with programs that read them: add, do not rename.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from peer.errors import PeerdError

SessionState = Literal["waiting", "training", "alone", "paused", "stopped", "failed"]
LinkState = Literal["alive", "suspect", "dead", "left", "blocked"]
MemberState = LinkState


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One directed link, seen from this device: "out" carries what it sends. round: the newest that a message
    of it has come of. behind: how many rounds that is before this device's own. verdict: "ok", or in a word
    what is not. parcel_bytes: of the newest parcel with values, its frames included, as the algorithm, `auto`
    or a budget has made it; bits_per_parameter: of it, for each of the model, of which it may be a part."""

    peer: str
    device: str | None = None
    direction: Literal["out", "in"] = "out"
    state: LinkState = "alive"
    address: str | None = None
    rtt_ms: float | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    parcels: int | None = None
    unacked: int | None = None
    last_heard_s: float | None = None
    rejected: int | None = None
    round: int | None = None
    behind: int | None = None
    verdict: str | None = None
    parcel_bytes: int | None = None
    bits_per_parameter: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return _as_dict(self)

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_known(cls, source, ("peer",)))


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """Another member of a session, linked or not. distance: about how far its model is from this device's, by
    sketches (standard error 9 %); distance_relative: to the norm of this device's; distance_age_s: of the
    sketch that it is known by."""

    peer: str
    device: str | None = None
    state: MemberState = "alive"
    phase: str | None = None
    address: str | None = None
    rtt_ms: float | None = None
    last_heard_s: float | None = None
    weight: float | None = None
    distance: float | None = None
    distance_relative: float | None = None
    distance_age_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return _as_dict(self)

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_known(cls, source, ("peer",)))


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """What a device that sends so many bytes per minute at the most has sent, and would in a day that goes on
    like its last minute. rounds_held_back: that sent on fewer links than they had."""

    bytes_per_min: int
    spent_last_min: int = 0
    forecast_day: int = 0
    rounds_held_back: int = 0

    def to_dict(self) -> dict[str, Any]:
        return _as_dict(self)

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        return cls(**_known(cls, source, (), ("bytes_per_min",)))


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One session of this device. members: how many are alive, this device included. links_without_replica:
    for want of memory at one of their ends; replica_mb: what this device has for them. Both None where the
    algorithm needs none. computes_on: the learner's GPU by its name, or "CPU". budget: None is without one.
    rounds_closed, of which rounds_alone without a neighbor, and learner_restarts: since this daemon takes
    part. pace_share: of the time in which this device may train, 0.0 where manners or quiet hours pause it;
    pace_reason: why not all of it; pace_until: "07:00", local time, where it is known when that ends.
    consensus_distance: root mean square, over the members that train, of the distance from the mean of
    their models, estimated by sketches (standard error at the most 9 %); consensus_relative: to the norm
    of this device's model. mean_weight: of the push-sum weights. peers: the other members. graph: a mark
    of the generation's members and their edges: devices that show the same two are on one graph; parts of
    a network that was cut may come to the same generation."""

    name: str
    id: str | None = None
    algorithm: str | None = None
    topology: str | None = None
    task: str | None = None
    state: SessionState = "waiting"
    round: int | None = None
    local_steps: int | None = None
    generation: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    members: int | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None
    message_bytes_sent: int | None = None
    bytes_dense: int | None = None
    bytes_dense_exchanges: int | None = None
    reduction: float | None = None
    weight: float | None = None
    consensus_distance: float | None = None
    rounds_alone: int | None = None
    step_s: float | None = None
    round_s: float | None = None
    checkpoint_age_s: float | None = None
    links: tuple[LinkStatus, ...] = ()
    links_without_replica: int | None = None
    replica_mb: float | None = None
    budget: BudgetStatus | None = None
    rounds_closed: int | None = None
    learner_restarts: int | None = None
    pace_share: float | None = None
    pace_reason: str | None = None
    pace_until: str | None = None
    consensus_relative: float | None = None
    mean_weight: float | None = None
    graph: str | None = None
    peers: tuple[MemberStatus, ...] = ()
    computes_on: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **_as_dict(self),
            "metrics": dict(self.metrics),
            "links": [link.to_dict() for link in self.links],
            "budget": self.budget.to_dict() if self.budget is not None else None,
            "peers": [member.to_dict() for member in self.peers],
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        fields = _known(cls, source, ("name",))
        fields["metrics"] = dict(fields.get("metrics") or {})
        fields["links"] = tuple(LinkStatus.from_dict(link) for link in fields.get("links") or ())
        fields["peers"] = tuple(MemberStatus.from_dict(member) for member in fields.get("peers") or ())
        budget = fields.get("budget")
        fields["budget"] = BudgetStatus.from_dict(budget) if budget is not None else None
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """The whole of `peerd status --json`. health: empty if all is well, else what is wrong and what to do.
    state_free_mb: on the disk of the state folder. clock_set: false if it shows a time before this program
    was written."""

    peer: str
    device: str | None = None
    version: str | None = None
    pid: int | None = None
    uptime_s: float | None = None
    rss_mb: float | None = None
    health: tuple[str, ...] = ()
    sessions: tuple[SessionStatus, ...] = ()
    state_free_mb: float | None = None
    clock_set: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **_as_dict(self),
            "health": list(self.health),
            "sessions": [session.to_dict() for session in self.sessions],
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        fields = _known(cls, source, ("peer",))
        fields["health"] = tuple(str(sentence) for sentence in fields.get("health") or ())
        fields["sessions"] = tuple(
            SessionStatus.from_dict(session) for session in fields.get("sessions") or ()
        )
        return cls(**fields)


def _as_dict(record: Any) -> dict[str, Any]:
    return {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}


def _known(
    cls: type[Any], source: Any, required: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields this version knows; a newer daemon may say more. required: texts that must be there. Raises
    PeerdError if one is missing."""
    wanted = dict.fromkeys(required, str) | dict.fromkeys(numbers, int)
    if not isinstance(source, Mapping) or any(not isinstance(source.get(n), k) for n, k in wanted.items()):
        raise PeerdError(f"the daemon's status is not one: {cls.__name__} lacks {' or '.join(wanted)}")
    names = {item.name for item in dataclasses.fields(cls)}
    return {key: value for key, value in source.items() if key in names}
