"""Records converge, only their owner rules them, and dead is a local verdict that heals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from peer.errors import RemoteError
from peer.events import MemberState, Record
from peer.mesh.membership import (
    DEAD_AFTER_S,
    MAX_AHEAD,
    MAX_COUNTER,
    MAX_DRIVEN,
    MAX_MEMBERS,
    Membership,
    check,
)


def record(
    peer: str,
    n: int = 1,
    state: MemberState = "alive",
    boot: int = 1,
    phase: str = "training",
    weight: float = 1.0,
) -> Record:
    assert phase in ("idle", "seeking", "training")
    made = Record(peer, boot, (boot << 20) + n, state, weight=weight)
    return replace(made, phase=phase)


def met(members: Membership, *records: Record, now: float = 0.0) -> None:
    members.merge(records, now)
    for r in records:
        members.heard(r.peer, now)


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        (record("b", 1), record("b", 2), 1),
        (record("b", 2), record("b", 1), 0),
        (record("b", 9, boot=1), record("b", 1, boot=2), 1),  # a restart outranks its own past
        (record("b", 1, boot=2), record("b", 9, boot=1), 0),
        (record("b", 1, "alive"), record("b", 1, "paused"), 1),
        (record("b", 1, "paused"), record("b", 1, "left"), 1),
        (record("b", 1, "left"), record("b", 1, "paused"), 0),
        (record("b", 1, "left"), record("b", 2, "alive"), 1),  # it came back
        (record("b", 1), record("b", 1, weight=5.0), 0),  # the same incarnation says the same
        (record("b", 1), record("b", 5, "dead"), 0),  # a verdict is not the owner's word
    ],
)
def test_the_higher_incarnation_wins_then_the_later_state(first: Record, second: Record, winner: int) -> None:
    members = Membership(record("a"))
    assert members.merge([first], 0.0) == [first]
    assert members.merge([second], 0.0) == ([second] if winner else [])
    assert members.records()[1] == (first, second)[winner]
    assert members.merge([first, second], 0.0) == []


def test_any_order_of_merging_ends_in_the_same_digest() -> None:
    records = [record("b", 1), record("b", 2), record("b", 2, "left"), record("c"), record("c", 3, boot=2)]
    digests = set()
    for order in itertools.permutations(records):
        members = Membership(record("a"))
        for r in order:
            members.merge([r], 0.0)
        digests.add(members.digest())
    assert len(digests) == 1
    assert len(digests.pop()) == 8


def test_equal_digests_need_no_records_and_different_ones_get_all() -> None:
    a, b = Membership(record("a")), Membership(record("b"))
    met(a, record("b"))
    assert b.records_for(a.digest()) == (record("b"),)
    b.merge(a.records_for(b.digest()), 0.0)
    assert a.digest() == b.digest()
    assert a.records_for(b.digest()) == ()
    a.silent(99.0)  # a verdict changes no digest
    assert a.digest() == b.digest()


@pytest.mark.parametrize(
    "rumor",
    [
        record("a", 1, "left"),
        record("a", 1, "dead"),
        record("a", 7),
        record("a", 3, "paused"),
        record("a", 1, boot=4),
    ],
)
def test_whatever_others_say_about_me_is_outranked(rumor: Record) -> None:
    members, other = Membership(record("a")), Membership(record("b"))
    other.merge([replace(rumor, state="left")], 0.0)
    assert members.merge([rumor], 0.0) == []
    assert members.me.state == "alive"
    assert members.contested == 1
    assert other.merge([members.me], 0.0) == [members.me]


@pytest.mark.parametrize(
    "forged",
    [
        Record("a", 1, MAX_COUNTER - 3, "left"),
        Record("a", 1, (1 << 20) + MAX_AHEAD + 2, "left"),
        Record("a", MAX_COUNTER - 1, MAX_COUNTER - 1, "left"),
        Record("a", (MAX_AHEAD >> 20) + 2, 1, "left"),
    ],
)
def test_a_record_of_me_that_is_too_far_ahead_to_be_mine_mutes_me_nowhere(forged: Record) -> None:
    members, other = Membership(record("a")), Membership(record("b"))
    met(other, members.me)
    before = members.me
    members.merge([forged], 0.0)
    assert members.me == before
    assert members.contested == 1
    assert other.merge([forged], 0.0) == []
    for life in range(5):
        members.update_me(life=life + 1)
        assert other.merge([members.me], 0.0) == [members.me]


def test_what_others_say_of_me_never_uses_my_counter_up() -> None:
    members = Membership(Record("a", 1, MAX_DRIVEN - 5))
    for _ in range(20):
        members.merge([replace(members.me, incarnation=members.me.incarnation + MAX_AHEAD)], 0.0)
    assert members.contested == 20
    assert members.me.incarnation <= MAX_DRIVEN + 1
    members.update_me(life=1)
    check(members.me)


@pytest.mark.parametrize("rumor", [record("a", 1), record("a", 0, "left"), record("a", 9, "left", boot=0)])
def test_old_news_about_me_is_ignored(rumor: Record) -> None:
    members = Membership(record("a"))
    before = members.me
    members.merge([rumor], 0.0)
    assert members.me == before
    assert members.contested == 0


def test_silence_makes_dead_and_any_sign_of_life_heals() -> None:
    members = Membership(record("a"))
    met(members, record("b"), record("c"), now=100.0)
    assert members.heard("b", 104.0) is False
    assert members.silent(100.0 + DEAD_AFTER_S) == []
    assert members.silent(100.1 + DEAD_AFTER_S) == ["c"]
    assert members.silent(100.2 + DEAD_AFTER_S) == []  # said once
    assert [(r.peer, r.state) for r in members.members()] == [("a", "alive"), ("b", "alive"), ("c", "dead")]
    assert [r.state for r in members.records()] == ["alive"] * 3  # not gossiped
    assert members.view() == ["a", "b"]
    assert members.heard("c", 109.0) is True
    assert members.view() == ["a", "b", "c"]
    assert members.silent(112.5) == ["b"]
    members.merge([record("b", 2)], 113.0)  # only b itself can have written that
    assert members.view() == ["a", "b", "c"]


def test_a_member_known_from_gossip_alone_is_alive_from_its_first_sign_of_life_on() -> None:
    members = Membership(record("a"))
    members.merge([record("b"), record("c")], 0.0)
    assert members.view() == ["a"]
    assert members.heard_at("b") == -math.inf
    assert members.silent(99.0) == []
    assert members.heard("b", 99.0) is True
    members.merge([record("c", 2)], 99.0)
    assert members.view() == ["a", "b", "c"]
    assert members.heard("nobody", 99.0) is False


def test_time_in_which_this_node_did_not_run_is_nobodys_silence() -> None:
    members = Membership(record("a"))
    met(members, record("b"), now=0.0)
    members.stalled(60.0)
    assert members.silent(65.0) == []
    assert members.silent(69.0) == ["b"]


@pytest.mark.parametrize("state", ["left", "paused"])
def test_who_said_goodbye_is_gone_until_its_own_newer_record(state: MemberState) -> None:
    members = Membership(record("a"))
    met(members, record("b"))
    members.merge([record("b", 2, state)], 1.0)
    assert members.view() == ["a"]
    assert members.heard("b", 2.0) is False  # a late frame
    assert members.view() == ["a"]
    assert members.probe_targets(3.0) == []
    members.merge([record("b", 1, boot=2)], 4.0)
    assert members.view() == ["a", "b"]


def test_the_view_is_the_living_that_train_and_mean_weight_is_theirs() -> None:
    members = Membership(record("b", phase="seeking", weight=0.0))
    assert (members.view(), members.mean_weight()) == ([], 1.0)
    met(members, record("c", weight=0.5), record("a", weight=1.5), record("d", phase="idle", weight=9.0))
    assert (members.view(), members.mean_weight()) == (["a", "c"], 1.0)
    assert [r.peer for r in members.alive()] == ["a", "b", "c", "d"]
    members.update_me(phase="training", weight=1.0)
    assert members.update_me(weight=1.03) is False
    assert members.view() == ["a", "b", "c"]
    assert members.mean_weight() == pytest.approx((1.5 + 1.03 + 0.5) / 3)  # its own exact, though not told
    assert members.me.weight == 1.0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, False),
        ({"weight": 1.0}, False),
        ({"weight": 1.19}, False),
        ({"weight": 0.81}, False),
        ({"weight": 1.21}, True),
        ({"weight": 0.79}, True),
        ({"phase": "training"}, False),
        ({"phase": "leaving", "weight": 1.01}, True),
        ({"addresses": ("10.0.0.2:4000",)}, True),
        ({"life": 3}, True),
        ({"round": 4}, True),
    ],
)
def test_the_incarnation_rises_when_the_others_should_know(fields: dict[str, object], told: bool) -> None:
    members = Membership(record("a"))
    before = members.me.incarnation
    assert members.update_me(**fields) is told
    assert members.me.incarnation == before + told
    if told:
        assert all(getattr(members.me, name) == value for name, value in fields.items())


def test_small_weight_changes_add_up_until_they_are_told() -> None:
    members = Membership(record("a"))
    assert [members.update_me(weight=w) for w in (1.1, 1.19, 1.21, 1.3, 1.4, 1.46)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


def test_a_fresh_boot_starts_above_everything_the_last_boot_said() -> None:
    assert Membership(Record("a", 3, 0)).me.incarnation == (3 << 20) + 1
    old, new = Membership(Record("a", 2, 0)), Membership(Record("a", 3, 0))
    for life in range(100):
        old.update_me(life=life + 1)
    other = Membership(record("b"))
    other.merge([old.me], 0.0)
    assert other.merge([new.me], 0.0) == [new.me]


def test_probes_go_round_by_who_was_heard_longest_ago() -> None:
    members = Membership(record("a"))
    for at, peer in enumerate(("e", "d", "c", "b")):
        met(members, record(peer), now=float(at))
    assert members.probe_targets(4.0) == ["e", "d", "c"]
    assert members.probe_targets(4.5) == ["b"]  # the others were asked just now
    members.heard("d", 5.0)
    assert members.probe_targets(6.0, k=2) == ["c", "e"]
    assert members.probe_targets(6.0, k=2) == ["b", "d"]


def test_the_dead_are_probed_too_but_do_not_crowd_out_the_living() -> None:
    members = Membership(record("a"))
    dead = [record(f"x{i}") for i in range(9)]
    met(members, *dead, now=0.0)
    for at in range(3):
        members.probe_targets(2.0 + 2 * at)
    met(members, record("b"), record("c"), record("d"), now=20.0)
    assert len(members.silent(20.0)) == 9
    asked = [members.probe_targets(20.0 + 1.5 * i) for i in range(9)]
    assert all(sum(p.startswith("x") for p in targets) == 1 for targets in asked[:4])
    assert all(set("bcd") <= set(asked[i] + asked[i + 1] + asked[i + 2]) for i in range(7))
    assert {p for targets in asked for p in targets} >= {r.peer for r in dead}


def test_members_are_bounded_and_the_gone_make_room() -> None:
    members = Membership(record("a"))
    met(members, *[record(f"m{i:03d}") for i in range(MAX_MEMBERS - 1)])
    assert members.merge([record("new")], 0.0) == []
    members.merge([record("m007", 2, "paused"), record("m100", 2, "left")], 1.0)
    assert [r.peer for r in members.merge([record("new")], 0.0)] == ["new"]
    known = {r.peer for r in members.records()}
    assert len(known) == MAX_MEMBERS and "m100" not in known and "m007" in known and "a" in known


@pytest.mark.parametrize(
    "change",
    [
        {"peer": ""},
        {"peer": "x" * 65},
        {"device": "x" * 65},
        {"addresses": ("x",) * 17},
        {"addresses": ("x" * 300,)},
        {"task_digest": b"x" * 65},
        {"boot": -1},
        {"incarnation": 1 << 63},
        {"life": -1},
        {"round": -2},
        {"weight": math.nan},
        {"weight": math.inf},
        {"weight": -1.0},
    ],
)
def test_a_record_out_of_bounds_is_refused_and_nothing_with_it_is_taken(change: dict[str, object]) -> None:
    bad = Record(**{"peer": "b", "boot": 1, "incarnation": 1, **change})
    members = Membership(record("a"))
    with pytest.raises(RemoteError, match="out of bounds"):
        members.merge([record("c"), bad], 0.0)
    assert members.records() == [record("a")]
    check(record("b"))
