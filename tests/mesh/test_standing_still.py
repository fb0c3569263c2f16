"""A node whose device was stopped or suspended: nobody else was silent then, and what it knows may be old."""

from __future__ import annotations

import pytest

from peer.events import Effect, Met, Note, Probe, Progress, Record, Resumed, Tell, Tick, Told
from peer.mesh.node import STALL_S, Node, NodeEvent
from peer.mesh.terms import Terms

OTHERS = [f"p{i}" for i in range(6)]


def record(peer: str) -> Record:
    return Record(peer, 1, (1 << 20) + 1, phase="training", life=9, weight=1.0)


def settled() -> Node:
    """It has met six others and ticks."""
    node = Node(record("me"), Terms("complete", 0))
    for peer in OTHERS:
        node.handle(Met(record(peer)), 0.0)
    for quarter in range(1, 5):
        node.handle(Tick(), quarter / 4)
        for peer in OTHERS:
            node.handle(Progress(peer, "out"), quarter / 4)
    return node


def refetches(effects: list[Effect]) -> bool:
    """Does it begin with asking some others for all they know, with all that it knows?"""
    first = effects[:3]
    return all(
        isinstance(e, Tell)
        and isinstance(e.message, Probe)
        and e.message.pull
        and len(e.message.records) == 1 + len(OTHERS)
        for e in first
    )


@pytest.mark.parametrize("first", [Tick(), Told("p3", Probe(b"")), Progress("p3", "in")])
def test_after_a_gap_it_asks_what_has_happened_before_anything_else(first: NodeEvent) -> None:
    node = settled()
    before = node.members.me.incarnation
    effects = node.handle(first, 301.0)
    assert refetches(effects)
    assert node.members.me.incarnation == before + 1
    assert node.members.awareness.score >= 1
    assert [e.fields["seconds"] for e in effects if isinstance(e, Note) and "stood still" in e.text] == [
        300.0
    ]
    for quarter in range(4):
        node.handle(Tick(), 301.25 + quarter / 4)
    assert {r.state for r in node.members.members()} == {"alive"}


def test_probes_that_were_out_when_it_stopped_blame_nobody() -> None:
    node = settled()
    for quarter in range(5, 17):  # silent for 3 s: the first has been probed, and helpers were asked
        node.handle(Tick(), quarter / 4)
    node.handle(Tick(), 300.0)
    node.handle(Tick(), 300.25)
    assert {r.state for r in node.members.members()} == {"alive"}


def test_a_suspend_that_the_clock_did_not_count_is_told_by_the_driver() -> None:
    node = settled()
    before, heard = node.members.me.incarnation, node.members.heard_at("p2")
    assert refetches(node.handle(Resumed(7200.0), 1.1))
    assert node.members.me.incarnation == before + 1
    assert node.members.heard_at("p2") == heard
    node.handle(Tick(), 1.25)
    assert {r.state for r in node.members.members()} == {"alive"}
    assert node.rounds.at_learner_s(1.25) <= 1.25


def test_a_hiccup_is_no_gap() -> None:
    node = settled()
    before = node.members.me.incarnation
    node.handle(Tick(), 1.0 + STALL_S)
    assert node.members.me.incarnation == before
    assert node.members.awareness.score == 0
