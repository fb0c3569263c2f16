"""The figures of `peerd status --json` as Prometheus metrics. Loaded only where they are served: it brings
prometheus-client along, 6 MiB of resident memory (with `http.server` and `ssl`).

Names follow prometheus.io/docs/practices/naming: base units, `_total` for what only grows, one meaning per
name. Labels are session, peer and direction ("out": what this device sends), and their values are bounded:
at most MAX_PEERS neighbors per session, and MAX_NAMES values that a task evaluates. What is not known yet has
no sample. Texts that change (health sentences) are counted, and no label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from itertools import islice
from typing import Any, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from peer.status import DeviceStatus, LinkStatus, SessionState, SessionStatus

MAX_PEERS = 256  # members of a session, architecture
MAX_NAMES = 32  # guess: the built-in tasks evaluate one
MB = 1e6  # as peer.status has it

Value = float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a record. A name that ends in _total is a counter's, any other a gauge's."""

    name: str
    help: str
    of: Callable[[Any], Value]


DEVICE = (
    Figure("peerd_uptime_seconds", "How long this daemon runs.", lambda d: d.uptime_s),
    Figure(
        "peerd_health_sentences",
        "What is wrong on this device: 'peerd status' says it.",
        lambda d: len(d.health),
    ),
    Figure(
        "peerd_state_free_bytes",
        "Free on the disk of the state folder.",
        lambda d: _times(d.state_free_mb, MB),
    ),
    Figure(
        "peerd_clock_unset",
        "1 if the clock shows a time before this peerd was written.",
        lambda d: _opposite(d.clock_set),
    ),
)

SESSION = (
    Figure("peerd_session_round", "Number of the newest round that was closed.", lambda s: s.round),
    Figure(
        "peerd_session_rounds_total", "Rounds closed since this daemon started.", lambda s: s.rounds_closed
    ),
    Figure("peerd_session_rounds_alone_total", "Of these, without a neighbor.", lambda s: s.rounds_alone),
    Figure("peerd_session_local_steps", "Optimizer steps per round.", lambda s: s.local_steps),
    Figure("peerd_session_generation", "Epoch of the agreed graph.", lambda s: s.generation),
    Figure("peerd_session_loss", "Training loss of late.", lambda s: s.loss),
    Figure("peerd_session_members", "Members alive, this device included.", lambda s: s.members),
    Figure("peerd_session_weight", "Push-sum weight of this device's model.", lambda s: s.weight),
    Figure("peerd_session_mean_weight", "Mean of the members' push-sum weights.", lambda s: s.mean_weight),
    Figure(
        "peerd_session_consensus_distance",
        "Root mean square distance of the members' models from their mean.",
        lambda s: s.consensus_distance,
    ),
    Figure(
        "peerd_session_consensus_ratio",
        "Consensus distance as a share of the norm of this device's model.",
        lambda s: s.consensus_relative,
    ),
    Figure("peerd_session_step_seconds", "An optimizer step, as of late.", lambda s: s.step_s),
    Figure("peerd_session_round_seconds", "From round to round, as of late.", lambda s: s.round_s),
    Figure(
        "peerd_session_checkpoint_age_seconds", "Since the newest checkpoint.", lambda s: s.checkpoint_age_s
    ),
    Figure(
        "peerd_session_learner_restarts_total",
        "Times the learner died and was started again.",
        lambda s: s.learner_restarts,
    ),
    Figure(
        "peerd_session_pace_ratio",
        "Share of the time in which manners let it train; 0 while they pause it.",
        lambda s: s.pace_share,
    ),
    Figure(
        "peerd_session_message_bytes_total",
        "Sent to carry models; the rest is control.",
        lambda s: s.message_bytes_sent,
    ),
    Figure(
        "peerd_session_dense_bytes_total",
        "What one whole fp32 model per optimizer step would have taken over the same links.",
        lambda s: s.bytes_dense,
    ),
    Figure(
        "peerd_session_dense_exchanges_bytes_total",
        "What one whole fp32 model per round would have taken over the same links.",
        lambda s: s.bytes_dense_exchanges,
    ),
    Figure(
        "peerd_session_links_without_replica",
        "Links that send more, for want of memory at one of their ends.",
        lambda s: s.links_without_replica,
    ),
    Figure(
        "peerd_session_replica_bytes",
        "Memory for what the ends of links remember of each other.",
        lambda s: _times(s.replica_mb, MB),
    ),
    Figure(
        "peerd_session_budget_bytes",
        "Most that this device may send in any minute.",
        lambda s: s.budget and s.budget.bytes_per_min,
    ),
    Figure(
        "peerd_session_budget_spent_bytes",
        "Sent in the last minute.",
        lambda s: s.budget and s.budget.spent_last_min,
    ),
    Figure(
        "peerd_session_rounds_held_back_total",
        "Rounds that sent on fewer links than they had, for the budget.",
        lambda s: s.budget and s.budget.rounds_held_back,
    ),
)

LINK = (
    Figure("peerd_link_parcels_total", "Parcels that were applied.", lambda link: link.parcels),
    Figure("peerd_link_unacked", "Parcels that wait for an acknowledgement.", lambda link: link.unacked),
)

PEER = (
    Figure("peerd_peer_alive", "1 if this neighbor is alive.", lambda link: link.state == "alive"),
    Figure(
        "peerd_peer_rtt_seconds",
        "Round trip to this neighbor, as of late.",
        lambda l_: _times(l_.rtt_ms, 1e-3),
    ),
    Figure(
        "peerd_peer_last_heard_seconds", "Since a sign of life of this neighbor.", lambda l_: l_.last_heard_s
    ),
)


def headers(lines: bytes) -> Message:
    """Those of a request; a line that is none ends them."""
    return BytesHeaderParser().parsebytes(lines)


def text(status: DeviceStatus, accept: str) -> tuple[bytes, str]:
    """A scrape, and its content type, in the format that `accept` (that header of HTTP) asks for."""
    registry = CollectorRegistry()
    registry.register(Snapshot(status))
    ProcessCollector(registry=registry)
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it compares a version that is no number with numbers
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


class Snapshot:
    """A collector of what one device's status says. It asks nobody, so it may be used on any thread."""

    def __init__(self, status: DeviceStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every family, those without a sample too: what a name means is known before there is a session."""
        status = self._status
        sessions = [((session.name,), session) for session in status.sessions]
        yield _info(
            "peerd", "This device.", ("peer", "device", "version"),
            [(status.peer, status.device, status.version)],
        )  # fmt: skip
        yield from _families(DEVICE, (), [((), status)])
        yield from _families(SESSION, ("session",), sessions)
        yield from self._sessions()
        yield from self._links()

    def _sessions(self) -> Iterator[Metric]:
        sessions = self._status.sessions
        yield _info(
            "peerd_session", "What trains here.", ("session", "algorithm", "topology", "task"),
            [(s.name, s.algorithm, s.topology, s.task) for s in sessions],
        )  # fmt: skip
        states = GaugeMetricFamily(
            "peerd_session_state", "1 for the state the session is in.", labels=("session", "state")
        )
        moved = CounterMetricFamily(
            "peerd_session_bytes", "Sent and received as gRPC messages.", labels=("session", "direction")
        )
        evaluated = GaugeMetricFamily(
            "peerd_session_evaluation", "What the task's evaluation found.", labels=("session", "name")
        )
        for session in sessions:
            for state in get_args(SessionState):
                states.add_metric((session.name, state), session.state == state)
            _add(moved, (session.name, "out"), session.bytes_sent)
            _add(moved, (session.name, "in"), session.bytes_received)
            for name, value in islice(session.metrics.items(), MAX_NAMES):
                _add(evaluated, (session.name, name), value)
        yield from (states, moved, evaluated)

    def _links(self) -> Iterator[Metric]:
        rows = [(session.name, row) for session in self._status.sessions for row in _bounded(session)]
        each = {(name, row.peer): row for name, row in rows}
        yield from _families(
            LINK, ("session", "peer", "direction"), [((name, r.peer, r.direction), r) for name, r in rows]
        )
        yield from _families(PEER, ("session", "peer"), each.items())
        yield _info(
            "peerd_peer", "The neighbor's name for people.", ("session", "peer", "device"),
            [(name, peer, row.device) for (name, peer), row in each.items()],
        )  # fmt: skip
        moved = CounterMetricFamily(
            "peerd_link_bytes",
            "Sent to and received from this neighbor as gRPC messages.",
            labels=("session", "peer", "direction"),
        )
        rejected = CounterMetricFamily(
            "peerd_peer_rejected", "Messages of this neighbor that broke a rule.", labels=("session", "peer")
        )
        sums = dict.fromkeys(each, 0)  # the status counts those of no link on either of a neighbor's rows
        for name, row in rows:
            _add(moved, (name, row.peer, "out"), row.bytes_sent)
            _add(moved, (name, row.peer, "in"), row.bytes_received)
            sums[name, row.peer] += row.rejected or 0
        for labels, count in sums.items():
            rejected.add_metric(labels, count)
        yield from (moved, rejected)


def _bounded(session: SessionStatus) -> list[LinkStatus]:
    """The rows of at most MAX_PEERS neighbors, the living first."""
    living_first = sorted(session.links, key=lambda link: (link.state != "alive", link.peer))
    chosen = set(islice(dict.fromkeys(link.peer for link in living_first), MAX_PEERS))
    return [link for link in session.links if link.peer in chosen]


def _families(
    figures: Iterable[Figure], labels: Sequence[str], records: Iterable[tuple[Sequence[str], object]]
) -> Iterator[Metric]:
    for figure in figures:
        kind = CounterMetricFamily if figure.name.endswith("_total") else GaugeMetricFamily
        family = kind(figure.name, figure.help, labels=labels)
        for values, record in records:
            _add(family, values, figure.of(record))
        yield family


def _add(family: CounterMetricFamily | GaugeMetricFamily, labels: Sequence[str], value: Value) -> None:
    if value is not None:
        family.add_metric(labels, float(value))


def _info(
    name: str, help_: str, labels: Sequence[str], rows: Iterable[Sequence[str | None]]
) -> InfoMetricFamily:
    family = InfoMetricFamily(name, help_, labels=())
    for row in rows:
        family.add_metric((), {label: value or "" for label, value in zip(labels, row, strict=True)})
    return family


def _times(value: Value, unit: float) -> Value:
    return None if value is None else value * unit


def _opposite(value: bool | None) -> Value:
    return None if value is None else not value
