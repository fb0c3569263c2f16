"""Who is estranged, who looks, what the verdict is, and that nobody waits for ever."""

import pytest

from peer.events import Reunion
from peer.mesh.reunion import (
    AGAIN_S,
    ALONE_S,
    APART_S,
    FAR_ROUNDS,
    OBEY_S,
    REUNION_S,
    SECOND_S,
    SETTLE_S,
    TOGETHER_S,
    Reunions,
)

ALL = dict.fromkeys("abcdefgh", 1)
HERE, THERE = dict.fromkeys("abcd", 1), dict.fromkeys("efgh", 1)


def parted(me="a", own=HERE, apart_s=APART_S):
    node = Reunions(me)
    node.watch(ALL, 0.0)
    node.watch(own, 10.0)
    node.watch(ALL, 10.0 + apart_s)
    return node, 10.0 + apart_s


def there(peer):
    return True


def test_members_back_after_a_short_absence_are_not_estranged():
    node, _ = parted(apart_s=APART_S - 0.1)
    assert not node.estranged


def test_members_that_trained_apart_for_long_are_estranged_until_it_is_settled():
    node, now = parted()
    assert node.estranged == set("efgh")
    node.settle(now)
    assert not node.estranged


@pytest.mark.parametrize(
    ("gone_at", "back_at", "estranged"),
    [
        (10.0, 20.5 + REUNION_S, set()),
        (10.0, 20.6 + REUNION_S, {"g"}),
        (21.0, 21.0 + APART_S, {"g"}),
    ],
    ids=["of that half", "long after", "gone since"],
)
def test_another_of_a_half_that_comes_back_after_the_verdict_is_not_estranged_anew(
    gone_at: float, back_at: float, estranged: set[str]
):
    """It was about that one too; nobody would look at it until that is overdue."""
    here = {peer: 1 for peer in ALL if peer not in "fg"}
    early = {"g"} if gone_at < 20.0 else set()
    node = Reunions("a")
    node.watch(ALL, 0.0)
    node.watch({peer: 1 for peer in ALL if peer not in {"f"} | early}, 10.0)
    node.watch({peer: 1 for peer in ALL if peer not in early}, 20.0)
    assert node.estranged == {"f"}
    node.settle(20.5)
    node.watch(here | {"f": 1}, 21.0)
    node.watch(ALL, back_at)
    assert node.estranged == estranged


def test_a_member_back_in_a_new_life_has_nothing_to_be_looked_at():
    node = Reunions("a")
    node.watch(ALL, 0.0)
    node.watch(HERE, 10.0)
    node.watch({**ALL, "e": 2}, 40.0)
    assert node.estranged == set("fgh")


def test_one_that_starts_over_or_dies_again_is_estranged_no_more():
    node, now = parted()
    node.watch({**ALL, "e": 2}, now + 1)
    assert node.estranged == set("fgh")
    node.watch({**HERE, "g": 1, "h": 1}, now + 2)
    assert node.estranged == set("gh")


def test_the_leader_of_the_half_with_the_lowest_id_looks_first_and_once():
    node, now = parted()
    assert node.due("abcd", there, now + SETTLE_S - 0.1) is None
    assert node.due("abcd", there, now + SETTLE_S) == "e"
    assert node.due("abcd", there, now + SETTLE_S + 1) is None


def test_the_other_leader_looks_later_and_nobody_else_ever():
    node, now = parted("e", THERE)
    assert node.due("efgh", there, now + SETTLE_S) is None
    assert node.due("efgh", there, now + SETTLE_S + SECOND_S) == "a"
    follower, now = parted("b")
    assert follower.due("abcd", there, now + 100) is None


def test_near_models_mix_and_nobody_yields():
    node, _ = parted()
    assert node.judge(True, "abcd", 100, 5) == Reunion(())


def test_of_near_models_fewer_that_came_much_further_yield_where_they_would_wait():
    node, _ = parted()
    many, yields = "abcdijk", tuple("efgh")
    assert node.judge(True, "ab", 100, 50, waits=True) == Reunion(("a", "b"))
    assert node.judge(True, many, 50, 100, waits=True) == Reunion(yields)
    assert node.judge(True, many, 50, 51 + FAR_ROUNDS, waits=True) == Reunion(yields)
    for own, mine, theirs in (
        (many, 50, 50 + FAR_ROUNDS),
        (many, 100, 50),
        ("ab", 50, 100),
        ("abcd", 100, 50),
        ("abcd", 50, 100),
    ):
        assert node.judge(True, own, mine, theirs, waits=True) == Reunion(())
    assert node.judge(True, "ab", 100, 50, waits=False) == Reunion(())


def test_the_half_with_less_work_yields():
    node, _ = parted()
    assert node.judge(False, "abcd", 100, 50) == Reunion(tuple("efgh"))
    assert node.judge(False, "abcd", 50, 100) == Reunion(tuple("abcd"))


def test_both_leaders_name_the_same_half_when_the_works_are_about_equal():
    a, _ = parted()
    e, _ = parted("e", THERE)
    assert a.judge(False, "abcd", 100, 104) == Reunion(tuple("efgh"))
    assert e.judge(False, "efgh", 106, 101) == Reunion(tuple("efgh"))


def test_without_a_verdict_they_mix_in_the_end():
    node, now = parted()
    assert not node.overdue(now + REUNION_S - 0.1)
    assert node.overdue(now + REUNION_S)


def test_nobody_is_told_to_start_over_again_and_again():
    node, now = parted("e", THERE)
    verdict = Reunion(tuple("efgh"))
    assert node.obeys(verdict, now)
    assert not node.obeys(verdict, now + OBEY_S - 1)
    assert node.obeys(verdict, now + OBEY_S)
    assert not node.obeys(Reunion(tuple("abcd")), now + 200)


def test_a_model_that_does_not_come_is_asked_for_again():
    node, now = parted()
    assert node.due("abcd", there, now + SETTLE_S) == "e"
    assert node.due("abcd", there, now + SETTLE_S + AGAIN_S - 0.1) is None
    assert node.due("abcd", there, now + SETTLE_S + AGAIN_S) == "e"


def lost_besides(gone_for_s, told=None):
    """A node that "b" comes back to, while "c" is gone since so long before "b" was lost."""
    node, now = Reunions("a"), 1000.0
    node.watch(dict.fromkeys("abc", 1), 0.0)
    node.watch(dict.fromkeys("ab", 1), now - gone_for_s)
    node.ended(told or {})
    node.watch({"a": 1}, now)
    node.watch(dict.fromkeys("ab", 1), now + 60.0)
    assert node.estranged == {"b"}
    return node, now + 60.0


def test_one_that_was_lost_alone_is_looked_at_soon_though_another_has_been_gone_for_long():
    node, now = lost_besides(TOGETHER_S + 1.0)
    assert node.due("a", there, now + ALONE_S) == "b"
    node, now = lost_besides(TOGETHER_S)
    assert node.due("a", there, now + SETTLE_S - 0.1) is None, "the other may be of its half"
    assert node.due("a", there, now + SETTLE_S) == "b"


def test_one_whose_life_has_ended_is_not_waited_for_as_of_the_others_half():
    node, now = lost_besides(5.0, told={"a": 1, "b": 1, "c": 0})
    assert node.due("a", there, now + ALONE_S) == "b"
    node.watch(dict.fromkeys("abc", 1), now + 60.0)
    assert "c" not in node.estranged


def test_one_that_was_gone_for_days_is_looked_at_all_the_same():
    node, now = lost_besides(TOGETHER_S + 1.0)
    node.settle(now)
    node.watch(dict.fromkeys("abc", 1), now + 3 * 24 * 3600.0)
    assert node.estranged == {"c"}


def test_where_no_link_comes_about_another_one_is_asked():
    """Two that cannot be dialed never have one."""
    node, now = parted()
    asked = [node.due("abcd", lambda peer: peer == "g", now + SETTLE_S + i * AGAIN_S) for i in range(5)]
    assert asked == list("efggg")
    assert node.refuses("e") and not node.refuses("g")
    nobody, now = parted()
    asked = [nobody.due("abcd", lambda peer: False, now + SETTLE_S + i * AGAIN_S) for i in range(5)]
    assert asked == list("efghe")


def test_one_that_stood_still_for_long_has_missed_nobody_and_obeys_too():
    node = Reunions("e")
    node.watch(ALL, 0.0)
    node.stood(APART_S - 0.1, 50.0)
    assert not node.obeys(Reunion(("e",)), 55.0)
    node.stood(APART_S, 60.0)
    assert not node.obeys(Reunion(("f",)), 65.0)
    assert node.obeys(Reunion(("e",)), 65.0)


def test_after_the_verdict_only_those_that_it_leaves_out_are_unsettled():
    node, now = parted()
    assert node.unsettled == set("efgh")
    node.yields(Reunion(tuple("abcefg")))
    assert node.unsettled == set("h") and node.estranged == set("efgh")
    node.watch({**ALL, "h": 2, "e": 2}, now + 1)
    assert node.unsettled == set() and node.estranged == set("fg")


def test_one_that_the_other_half_did_not_miss_for_long_obeys_with_its_own_half():
    """Its verdict was an early one, theirs was late: they named its half without it."""
    node, now = parted("f", THERE)
    assert not node.obeys(Reunion(tuple("abc")), now + SETTLE_S), "that is the other half"
    assert not node.obeys(Reunion(()), now + SETTLE_S)
    assert node.obeys(Reunion(tuple("egh")), now + SETTLE_S)
    together = Reunions("f")
    together.watch(ALL, 0.0)
    assert not together.obeys(Reunion(tuple("egh")), 5.0)


def test_one_that_missed_the_others_for_a_moment_only_obeys_too_and_one_that_missed_nobody_does_not():
    """A half that was missed for long may itself have noticed late."""
    node, now = parted("e", THERE, apart_s=1.0)
    assert not node.estranged
    assert node.obeys(Reunion(("e",)), now + SETTLE_S)
    node, now = parted("e", THERE, apart_s=1.0)
    assert not node.obeys(Reunion(("e",)), now + REUNION_S + 0.1)
    alone = Reunions("e")
    alone.watch(ALL, 0.0)
    assert not alone.obeys(Reunion(("e",)), 5.0)
