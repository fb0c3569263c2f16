import dataclasses
import json
import re
from pathlib import Path

import pytest

from peer.errors import PeerdError
from peer.status import BudgetStatus, DeviceStatus, LinkStatus, MemberStatus, SessionStatus

# The names of the contract, in its order.
DEVICE = [
    "peer",
    "device",
    "version",
    "pid",
    "uptime_s",
    "rss_mb",
    "health",
    "sessions",
    "state_free_mb",
    "clock_set",
]
SESSION = [
    "name",
    "id",
    "algorithm",
    "topology",
    "task",
    "state",
    "round",
    "local_steps",
    "generation",
    "loss",
    "metrics",
    "members",
    "bytes_sent",
    "bytes_received",
    "message_bytes_sent",
    "bytes_dense",
    "bytes_dense_exchanges",
    "reduction",
    "weight",
    "consensus_distance",
    "rounds_alone",
    "step_s",
    "round_s",
    "checkpoint_age_s",
    "links",
    "links_without_replica",
    "replica_mb",
    "budget",
    "rounds_closed",
    "learner_restarts",
    "pace_share",
    "pace_reason",
    "pace_until",
    "consensus_relative",
    "mean_weight",
    "graph",
    "peers",
    "computes_on",
]
MEMBER = [
    "peer",
    "device",
    "state",
    "phase",
    "address",
    "rtt_ms",
    "last_heard_s",
    "weight",
    "distance",
    "distance_relative",
    "distance_age_s",
]
BUDGET = ["bytes_per_min", "spent_last_min", "forecast_day", "rounds_held_back"]
LINK = [
    "peer",
    "device",
    "direction",
    "state",
    "address",
    "rtt_ms",
    "bytes_sent",
    "bytes_received",
    "parcels",
    "unacked",
    "last_heard_s",
    "rejected",
    "round",
    "behind",
    "verdict",
    "parcel_bytes",
    "bits_per_parameter",
]

FULL = DeviceStatus(
    peer="p-a",
    health=("eth0 is down",),
    sessions=(
        SessionStatus(
            "home",
            "i",
            metrics={"accuracy": 0.9},
            links=(LinkStatus("p-b", parcels=3),),
            budget=BudgetStatus(200_000, 12_000, 17_280_000),
            peers=(MemberStatus("p-b", "pi-2", distance=0.5),),
        ),
    ),
)


def test_the_names_are_the_contracts() -> None:
    status = FULL.to_dict()
    assert list(status) == DEVICE
    assert list(status["sessions"][0]) == SESSION
    assert list(status["sessions"][0]["links"][0]) == LINK
    assert list(status["sessions"][0]["budget"]) == BUDGET
    assert list(status["sessions"][0]["peers"][0]) == MEMBER


def test_what_is_not_known_yet_is_null() -> None:
    session = SessionStatus("home").to_dict()
    known = {"name": "home", "state": "waiting", "metrics": {}, "links": [], "peers": []}
    assert session == {**dict.fromkeys(SESSION), **known}


def test_a_status_survives_json() -> None:
    nobody_met = dataclasses.replace(FULL, sessions=(SessionStatus("home"),))
    for status in (FULL, nobody_met):
        assert DeviceStatus.from_dict(json.loads(json.dumps(status.to_dict()))) == status


def test_a_newer_daemon_may_say_more() -> None:
    status = FULL.to_dict() | {"weather": "fine"}
    assert DeviceStatus.from_dict(status) == FULL


def test_something_else_is_refused() -> None:
    for wrong in ({}, {"peer": 3}, {"peer": "p", "sessions": [{}]}, {"peer": "p", "sessions": [3]}):
        with pytest.raises(PeerdError, match="status"):
            DeviceStatus.from_dict(wrong)


def test_the_leaf_needs_the_standard_library_alone() -> None:
    text = Path(__file__).parents[1].joinpath("peer", "status.py").read_text()
    imported = set(re.findall(r"^(?:from|import) ([a-z_]+)", text, re.MULTILINE))
    assert imported <= {"__future__", "collections", "dataclasses", "typing", "peer"}
