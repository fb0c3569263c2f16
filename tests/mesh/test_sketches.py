"""Sketches among members: who is told, what counts, and that nothing else moves for their sake."""

from __future__ import annotations

import math
import struct

import pytest

from peer.errors import RemoteError
from peer.events import Met, Probe, Record, Sketch, Sketched, Tell, Tick, Told
from peer.mesh.frame_bytes import SKETCH_BYTES
from peer.mesh.frames import control_from_wire, control_to_wire
from peer.mesh.gossip import Gossip
from peer.mesh.identity import SessionIdentity
from peer.mesh.node import Node
from peer.mesh.sketches import KEPT, PACE_S, STALE_S, Sketches
from peer.mesh.terms import Terms
from peer.sketch import BODY_BYTES, COUNT, TAG_BYTES, pack
from peer.wire import peer_pb2 as pb

LAYOUT = b"L" * TAG_BYTES


def body(value: float) -> bytes:
    made = pack([value] * COUNT)
    assert made is not None
    return made


def sketch(value: float = 1.0, round_: int = 0, life: int = 1, layout: bytes = LAYOUT) -> Sketch:
    return Sketch(life, round_, layout, body(value))


def test_the_distance_is_that_of_the_newest_round_both_have() -> None:
    mine = Sketches("p-me")
    for round_ in (8, 16, 24):
        mine.took(sketch(1.0 + round_, round_), 0.0)
    for value, round_ in ((9.5, 8), (17.5, 16), (99.0, 20)):
        assert mine.hear("p-a", 1, sketch(value, round_), 5.0)
    apart = mine.apart({"p-a": 1}, 7.0)["p-a"]
    assert apart.round == 16
    assert apart.distance == pytest.approx(0.5 * math.sqrt(COUNT), rel=1e-3)
    assert apart.relative == pytest.approx(0.5 / 17, rel=1e-3)
    assert apart.age_s == 2.0


def test_the_consensus_distance_is_from_the_mean_of_all() -> None:
    mine = Sketches("p-me")
    assert mine.consensus({}, 0.0) is None
    mine.took(sketch(1.0, 8), 0.0)
    assert mine.consensus({"p-a": 1}, 0.0) is None
    mine.hear("p-a", 1, sketch(3.0, 8), 0.0)
    found = mine.consensus({"p-a": 1}, 0.0)
    assert found is not None
    assert found == pytest.approx((math.sqrt(COUNT), 1.0), rel=1e-3)


def test_newest_wins_and_another_life_layout_or_age_counts_for_nothing() -> None:
    mine = Sketches("p-me")
    mine.took(sketch(1.0, 8), 0.0)
    assert mine.hear("p-a", 2, sketch(2.0, 8, life=2), 0.0)
    assert not mine.hear("p-a", 2, sketch(5.0, 8, life=2), 0.0)
    assert not mine.hear("p-a", 2, sketch(5.0, 7, life=2), 0.0)
    assert not mine.hear("p-a", 2, sketch(5.0, 9, life=1), 0.0)
    assert not mine.hear("p-a", 2, sketch(5.0, 9, life=2, layout=b"M" * TAG_BYTES), 0.0)
    assert mine.apart({"p-a": 2}, 1.0)["p-a"].distance == pytest.approx(math.sqrt(COUNT), rel=1e-3)
    assert mine.apart({"p-a": 3}, 1.0) == {}
    assert mine.apart({"p-a": 2}, STALE_S) == {}
    mine.took(sketch(1.0, 16, layout=b"N" * TAG_BYTES), 1.0)
    assert mine.apart({"p-a": 2}, 1.0) == {}, "of this device's model there is another layout now"
    mine.watch({})
    mine.took(sketch(1.0, 24), 1.0)
    assert mine.apart({"p-a": 2}, 1.0) == {}, "it does not train any more"


def test_what_is_kept_of_a_member_is_bounded() -> None:
    mine = Sketches("p-me")
    for round_ in range(1000):
        assert mine.hear("p-a", 1, sketch(1.0, round_), 0.0)
    assert len(mine._theirs["p-a"]) == KEPT
    assert not mine.hear("p-b", 1, sketch(life=7), 0.0)
    assert "p-b" not in mine._theirs


def test_each_member_is_told_once_and_one_at_a_time() -> None:
    mine, others = Sketches("p-me"), [f"p-{i}" for i in range(255)]
    assert mine.due(others, 0.5) is None, "there is none yet"
    mine.took(sketch(), 0.0)
    told, at = [], 0.0
    while len(told) < len(others):
        at += 0.25
        if (peer := mine.due(others, at)) is not None:
            assert mine.news_for(peer, at) is not None
            assert mine.news_for("p-x", at) is None, "not even as an answer"
            told.append(peer)
    assert sorted(told) == sorted(others)
    assert at == pytest.approx(255 * PACE_S, rel=0.05)
    assert told != others, "in an order of its own, or all members would call the same one"
    assert mine.due(others, at + 1) is None


def test_a_budget_slows_them_down() -> None:
    mine = Sketches("p-me")
    mine.limit(100_000)
    assert 60 / mine.pace_s * SKETCH_BYTES <= 0.02 * 100_000 + 1
    mine.limit(None)
    assert mine.pace_s == PACE_S


# --- among nodes ---------------------------------------------------------------------------------------


def member(peer: str, life: int) -> Record:
    return Record(peer, 1, 1 << 20, phase="training", life=life, weight=1.0)


def trainer(peer: str, life: int) -> Node:
    node = Node(member(peer, life), Terms("complete", 0))
    node.life = life
    return node


def sketches_told(node: Node, until_s: float, since_s: float = 0.0) -> list[tuple[str, Sketch]]:
    found = []
    for quarter in range(int(4 * since_s), int(4 * until_s)):
        for effect in node.handle(Tick(), quarter / 4):
            match effect:
                case Tell(peer, Probe(sketch=Sketch() as made)):
                    found.append((peer, made))
    return found


def test_a_node_tells_its_learners_sketch_and_no_record_changes() -> None:
    a, b = trainer("p-a", 1), trainer("p-b", 2)
    a.handle(Met(b.members.me), 0.0)
    b.handle(Met(a.members.me), 0.0)
    incarnation, view = a.members.me.incarnation, a.members.digest()
    b.handle(Sketched(8, LAYOUT, body(3.0)), 0.0)
    a.handle(Sketched(8, LAYOUT, body(1.0)), 0.0)
    [(to, told)] = sketches_told(a, 1.5)
    assert (to, told) == ("p-b", Sketch(1, 8, LAYOUT, body(1.0)))
    assert (a.members.me.incarnation, a.members.digest()) == (incarnation, view)
    answers = b.handle(Told("p-a", Probe(b"", sketch=told)), 1.5)
    assert not any(isinstance(e, Tell) and e.message.records for e in answers if isinstance(e.message, Probe))  # type: ignore[union-attr]
    assert b.gossip.sketches.apart({"p-a": 1}, 2.0)["p-a"].relative == pytest.approx(2 / 3, rel=1e-3)


def test_a_probe_without_a_view_starts_no_comparing_of_views() -> None:
    gossip = Gossip(member("p-a", 1))
    gossip.met(member("p-b", 2), 0.0)
    for second in range(60):
        effects = gossip.told("p-b", Probe(b"", sketch=sketch(round_=second, life=2)), float(second))
        assert [e for e in effects if isinstance(e, Tell)] == []


def test_a_life_of_the_learner_that_ends_takes_its_sketches_along() -> None:
    from peer.events import LearnerGone

    node = trainer("p-a", 1)
    node.handle(Met(member("p-b", 2)), 0.0)
    node.handle(Sketched(8, LAYOUT, body(1.0)), 0.0)
    node.handle(LearnerGone("killed"), 0.0)
    assert sketches_told(node, 5.0) == []


# --- on the wire ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> SessionIdentity:
    from cryptography.hazmat.primitives.asymmetric import ec

    from peer.mesh.identity import Device

    return SessionIdentity(b"k" * 16, Device(ec.derive_private_key(1, ec.SECP256R1())))


def test_a_sketch_survives_the_wire_and_is_as_small_as_it_says(identity: SessionIdentity) -> None:
    most = Sketch((1 << 63) - 1, (1 << 32) - 1, LAYOUT, body(2.0))
    message = control_to_wire(Probe(b"", sketch=most), identity.seal)
    assert len(message.probe.SerializeToString()) <= SKETCH_BYTES
    assert control_from_wire(message, identity.peer_id, identity.seal) == Probe(b"", sketch=most)


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": b""},
        {"body": b"x" * (BODY_BYTES + 1)},
        {"body": struct.pack("<f", math.nan) + b"\0" * (BODY_BYTES - 4)},
        {"body": struct.pack("<f", math.inf) + b"\0" * (BODY_BYTES - 4)},
        {"body": struct.pack("<f", -1.0) + b"\0" * (BODY_BYTES - 4)},
        {"layout": b""},
        {"layout": b"L" * 64},
        {"round": 1 << 32},
        {"life": 1 << 63},
    ],
)
def test_what_is_no_sketch_is_refused_whole(identity: SessionIdentity, wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {"life": 1, "round": 1, "layout": LAYOUT, "body": body(1.0)} | wrong
    message = pb.ControlMessage(probe=pb.Probe(sketch=pb.Sketch(**fields)))  # type: ignore[arg-type]
    with pytest.raises(RemoteError):
        control_from_wire(message, identity.peer_id, identity.seal)
