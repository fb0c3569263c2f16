"""Records converge, only their owner rules them, and dead is a local verdict that heals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.config import MAX_MEMBERS
from peer.errors import RemoteError
from peer.events import MemberState, Record
from peer.mesh.membership import (
    KEPT_S,
    MAX_AHEAD,
    MAX_COUNTER,
    MAX_DRIVEN,
    Membership,
    check,
)
from peer.mesh.suspicion import INTERVAL_S, MAX_AWARENESS, Awareness, Suspicion, bounds, needed, timeout


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


RECORDS = st.builds(
    lambda peer, n, boot, state, instance: replace(record(peer, n, state, boot), instance=instance),
    st.sampled_from("abc"),
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from(["alive", "paused", "left"]),
    st.just(7),
)


@given(st.lists(RECORDS, max_size=8), st.data())
def test_merging_is_commutative_idempotent_and_lets_nobody_but_the_owner_change_a_record(
    records: list[Record], data: st.DataObject
) -> None:
    """Two members that hear the same in another order, in other portions, and twice, know the same."""
    others = [r for r in records if r.peer != "a"]
    first, second = Membership(record("a")), Membership(record("a"))
    shuffled = data.draw(st.permutations(others))
    first.merge(others, 0.0)
    for r in [*shuffled, *others]:
        second.merge([r], 0.0)
    assert first.digest() == second.digest()
    assert set(first.records()) <= {*others, first.me}
    assert first.me == record("a")


def test_a_verdict_is_nobody_elses_business() -> None:
    a, b = Membership(record("a")), Membership(record("b"))
    met(a, record("b"))
    b.merge(a.records(), 0.0)
    assert a.digest() == b.digest()
    assert lose(a, "b", 0.0) == ["b"]
    assert [r.state for r in a.members()] == ["alive", "dead"]
    assert a.digest() == b.digest()
    b.merge(a.members(), 1.0)
    assert (b.me.state, b.contested) == ("alive", 1)


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


# --- suspicion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "least", "most"),
    [(2, 8, 8), (3, 8, 8), (4, 8, 32), (8, 8, 32), (16, 9.6, 38.5), (64, 14.4, 57.8), (256, 19.3, 77.1)],
)
def test_a_suspicion_lasts_between_the_bounds_of_the_note(n: int, least: float, most: float) -> None:
    assert bounds(n) == pytest.approx((least, most), abs=0.1)


def test_a_suspicion_is_shortened_as_memberlist_shortens_it() -> None:
    """The table of its TestSuspicion_remainingSuspicionTime, with 2 s to 30 s and three confirmations."""
    waits = [timeout(n, 3, 2.0, 30.0) for n in range(4)]
    assert waits == pytest.approx([30.0, 16.0, 7.810, 2.0], abs=0.001)
    assert timeout(0, 0, 2.0, 30.0) == 2.0


def test_independent_confirmations_shorten_a_suspicion_and_each_counts_once() -> None:
    assert (needed(3), needed(4), needed(64)) == (0, 2, 2)
    suspicion = Suspicion(5, "b", 8, 100.0)
    assert suspicion.until(0) == 132.0
    assert [suspicion.confirm(by) for by in "bccd"] == [False, True, False, True]
    assert suspicion.until(0) == 108.0
    assert suspicion.confirm("e") is False  # enough


def test_confirmations_that_nobody_is_left_to_give_are_not_waited_for() -> None:
    suspicion = Suspicion(5, "me", 8, 0.0)
    assert [suspicion.until(0, able) for able in (6, 2, 1, 0)] == [32.0, 32.0, 32.0, 8.0]
    assert suspicion.confirm("the one other that is heard")
    assert suspicion.until(0, 2) == pytest.approx(16.9, abs=0.1)
    assert suspicion.until(0, 1) == 8.0


def test_who_does_not_trust_its_own_ears_waits_longer_but_not_for_ever() -> None:
    awareness = Awareness()
    for _ in range(2 * MAX_AWARENESS):
        awareness.worse()
    assert awareness.score == MAX_AWARENESS
    alone, agreed = Suspicion(5, "b", 8, 0.0), Suspicion(5, "b", 8, 0.0)
    assert agreed.confirm("c")
    assert agreed.confirm("d")
    assert agreed.until(awareness.score) == 16.0
    assert alone.until(awareness.score) == 32.0
    assert Suspicion(5, "b", 2, 0.0).until(awareness.score) == 16.0
    awareness.better()
    assert awareness.score == MAX_AWARENESS - 1


def suspected(members: Membership, peer: str, by: str, now: float) -> bool:
    known = members.record(peer)
    assert known is not None
    return members.suspect(peer, known.incarnation, by, now)


def lose(members: Membership, peer: str, now: float) -> list[str]:
    """Let a suspicion of it run out."""
    assert suspected(members, peer, members.me.peer, now)
    return members.silent(now + 2 * bounds(MAX_MEMBERS)[1])


def test_a_suspect_is_alive_until_nobody_has_refuted_it_and_any_sign_of_life_heals() -> None:
    members = Membership(record("a"))
    met(members, record("b"), record("c"), now=100.0)
    assert suspected(members, "b", "a", 104.0)
    assert suspected(members, "c", "a", 104.0)
    assert members.heard("b", 104.5) is False
    assert [(r.peer, r.state) for r in members.members()] == [
        ("a", "alive"), ("b", "alive"), ("c", "suspect"),
    ]  # fmt: skip
    assert members.view() == ["a", "b", "c"]
    assert members.silent(111.9) == []
    assert members.silent(112.0) == ["c"]
    assert members.silent(112.1) == []  # said once
    assert [(r.peer, r.state) for r in members.members()] == [("a", "alive"), ("b", "alive"), ("c", "dead")]
    assert [r.state for r in members.records()] == ["alive"] * 3  # not gossiped
    assert members.view() == ["a", "b"]
    assert members.heard("c", 113.0) is True
    assert members.view() == ["a", "b", "c"]
    assert lose(members, "b", 113.0) == ["b"]
    members.merge([record("b", 2)], 300.0)  # only b itself can have written that
    assert members.view() == ["a", "b", "c"]


def test_a_rumor_about_somebody_just_heard_or_about_an_older_word_starts_nothing() -> None:
    members = Membership(record("a"))
    met(members, record("b", 5), record("c"), now=0.0)
    assert suspected(members, "b", "c", INTERVAL_S - 0.1) is False
    assert members.suspect("b", record("b", 4).incarnation, "c", 9.0) is False
    assert members.suspect("b", record("b", 6).incarnation, "c", 9.0) is False
    assert members.suspect("nobody", 1, "c", 9.0) is False
    assert suspected(members, "b", "b", 9.0) is False
    assert members.suspects() == []
    assert suspected(members, "b", "c", 9.0) is True
    assert suspected(members, "b", "c", 9.0) is False
    assert members.suspects() == ["b"]


def test_who_is_suspected_says_so_with_a_higher_incarnation_and_doubts_itself() -> None:
    members, other = Membership(record("a")), Membership(record("b"))
    met(other, members.me)
    assert suspected(other, "a", "b", 9.0)
    assert members.refute(members.me.incarnation - 1, 9.0) is False
    assert members.refute(members.me.incarnation + 1, 9.0) is False
    assert members.refute(members.me.incarnation, 9.0) is True
    assert members.awareness.score == 1
    assert members.refute(members.me.incarnation, 9.1) is False  # a liar makes it no faster than this
    other.merge([members.me], 9.5)
    assert other.suspects() == []


def test_the_dead_are_kept_for_a_day_and_not_learned_from_others_again() -> None:
    members = Membership(record("a"))
    met(members, record("b"), now=0.0)
    members.merge([record("c")], 0.0)  # never heard
    assert lose(members, "b", 0.0) == ["b"]
    members.silent(KEPT_S)
    assert members.record("b") is not None
    members.silent(KEPT_S + 200.0)
    assert [r.peer for r in members.records()] == ["a"]
    assert members.merge([record("b"), record("c")], KEPT_S + 201.0) == []
    members.met("b")
    assert members.merge([record("b"), record("c", 2)], KEPT_S + 202.0) == [record("b"), record("c", 2)]


# --- two devices with one key --------------------------------------------------------------------------


def of_instance(instance: int, members: Membership | None = None, boot: int = 1) -> Membership:
    return Membership(replace(record("a", boot=boot), instance=instance))


def test_two_running_copies_name_each_other_and_the_one_that_started_later_yields() -> None:
    early, late, other = of_instance(50), of_instance(70), Membership(record("b"))
    said = []
    for _ in range(9):
        for copy in (early, late):
            other.merge([copy.me], 0.0)
            known = other.record("a")
            assert known is not None
            copy.merge([known], 0.0)
            said.append(known.incarnation)
    assert [sorted(r.instance for r in m.copies["a"]) for m in (early, late, other)] == [[50, 70]] * 3
    assert (early.yields, late.yields) == (False, True)
    known = other.record("a")
    assert known == early.me
    assert said[-1] == said[-2]  # they do not outbid each other for ever


@pytest.mark.parametrize("boots", [(1, 2), (2, 1)])
def test_a_restart_is_no_copy_even_where_it_began_with_an_old_boot(boots: tuple[int, int]) -> None:
    """Restored from a backup: what it said in a later boot is still about, but nobody says it anew."""
    past, now, other = of_instance(10, boot=boots[0]), of_instance(20 * boots[1], boot=boots[1]), record("b")
    members = Membership(other)
    for _ in range(3):
        members.merge([past.me], 0.0)
        now.merge(members.records(), 0.0)
        members.merge([now.me], 0.0)
    assert not members.copies
    assert not now.copies
    assert members.record("a") == now.me


def test_copies_are_forgotten_when_one_of_them_starts_anew() -> None:
    members = Membership(record("b"))
    for n, instance in enumerate((50, 70, 50, 70)):
        members.merge([replace(record("a", n + 1), instance=instance)], 0.0)
    assert [r.instance for r in members.copies["a"]] == [50, 70]
    members.merge([replace(record("a", 9), instance=90)], 0.0)
    assert not members.copies


def test_a_member_known_from_gossip_alone_is_alive_from_its_first_sign_of_life_on() -> None:
    members = Membership(record("a"))
    members.merge([record("b"), record("c")], 0.0)
    assert members.view() == ["a"]
    assert members.heard_at("b") == -math.inf
    assert members.suspect("b", record("b").incarnation, "a", 99.0) is False
    assert members.heard("b", 99.0) is True
    members.merge([record("c", 2)], 99.0)
    assert members.view() == ["a", "b", "c"]
    assert members.heard("nobody", 99.0) is False


def test_time_in_which_this_node_did_not_run_is_nobodys_silence() -> None:
    members = Membership(record("a"))
    met(members, record("b"), now=0.0)
    assert suspected(members, "b", "a", 4.0)
    members.stalled(60.0)
    assert members.heard_at("b") == 60.0
    assert members.silent(71.9) == []
    assert members.silent(72.0) == ["b"]


@pytest.mark.parametrize("state", ["left", "paused"])
def test_who_said_goodbye_is_gone_until_its_own_newer_record(state: MemberState) -> None:
    members = Membership(record("a"))
    met(members, record("b"))
    members.merge([record("b", 2, state)], 1.0)
    assert members.view() == ["a"]
    assert members.heard("b", 2.0) is False  # a late frame
    assert members.view() == ["a"]
    assert (members.others(), members.lost()) == ([], [])
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
