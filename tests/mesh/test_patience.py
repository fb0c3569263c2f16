"""How long a round waits for whom: learnt per link."""

from __future__ import annotations

import pytest

from peer.mesh.patience import (
    CAP_S,
    FIRST_S,
    FLOOR_S,
    LEAST,
    LONG_S,
    MOST,
    NEW_S,
    PROGRESS_S,
    STALL_S,
    Patience,
)


def test_before_anything_is_learnt_it_waits_a_first_while() -> None:
    assert Patience().until("a", 100.0) == 100.0 + FIRST_S


@pytest.mark.parametrize(("worked_s", "wait_s"), [(0.05, None), (2.0, LEAST * 2.0), (9.0, FIRST_S)])
@pytest.mark.parametrize(("late_is_lost", "least_s"), [(False, NEW_S), (True, LONG_S)])
def test_a_new_link_is_waited_for_long_however_short_own_rounds_are(
    worked_s: float, wait_s: float | None, late_is_lost: bool, least_s: float
) -> None:
    """The first local steps of a process take many times as long as later ones."""
    patience = Patience(late_is_lost=late_is_lost)
    patience.worked(worked_s)
    assert patience.until("a", 0.0) == (wait_s or least_s)


def test_one_that_is_later_than_usual_is_waited_for_briefly_unless_its_message_is_on_its_way() -> None:
    patience = Patience()
    patience.worked(1.0)
    assert patience.until("a", 10.0, brief=True) == 10.0 + max(NEW_S, LEAST * 1.0), (
        "what is usual is not known"
    )
    patience.came("a", 0.0)
    assert patience.until("a", 10.0) == 10.0 + LEAST * 1.0
    assert patience.until("a", 10.0, brief=True) == patience.late("a", 10.0) == 10.0 + STALL_S
    patience.moving("a", 10.1)
    assert patience.until("a", 10.0, brief=True) == 10.1 + PROGRESS_S


def test_where_late_is_lost_one_may_be_waited_for_many_times_as_long_as_own_rounds() -> None:
    late, lost = Patience(), Patience(late_is_lost=True)
    short = Patience(late_is_lost=True)
    for patience, worked_s in ((late, 1.0), (lost, 1.0), (short, 0.05)):
        patience.worked(worked_s)
        for _ in range(50):
            patience.came("a", 9.0)
    assert late.until("a", 0.0) == MOST * 1.0
    assert lost.until("a", 0.0) == pytest.approx(9.0, abs=0.1)
    assert short.until("a", 0.0) == LONG_S


def test_lateness_is_learnt_link_by_link() -> None:
    patience = Patience()
    for _ in range(50):
        patience.came("slow", 3.0)
        patience.came("quick", 0.0)
    assert 3.0 < patience.until("slow", 0.0) < 4.0
    assert patience.until("quick", 0.0) == FLOOR_S


def test_jitter_widens_the_wait_past_the_latest_seen() -> None:
    patience = Patience()
    for i in range(100):
        patience.came("a", 1.0 if i % 2 else 2.0)
    assert patience.until("a", 0.0) > 3.0


def test_it_waits_at_least_two_of_its_own_rounds() -> None:
    patience = Patience()
    patience.worked(4.0)
    patience.came("a", 0.0)
    assert patience.until("a", 0.0) == 8.0


def test_one_that_hangs_costs_a_vanishing_share_until_it_is_heard_again() -> None:
    patience = Patience()
    for _ in range(20):
        patience.came("a", 2.0)
    full = patience.until("a", 0.0)
    for _ in range(6):
        patience.missed("a")
    assert patience.until("a", 0.0) == full / 64
    patience.early("a")
    assert patience.until("a", 0.0) == full


def test_bytes_on_their_way_count_as_life() -> None:
    patience = Patience()
    patience.came("a", 0.0)
    patience.moving("a", 50.0)
    assert patience.until("a", 10.0) == 50.0 + PROGRESS_S


def test_what_has_arrived_is_on_its_way_no_more() -> None:
    for arrived in (lambda p: p.came("a", 0.0), lambda p: p.early("a")):
        patience = Patience()
        patience.came("a", 0.0)
        patience.moving("a", 50.0)
        arrived(patience)
        assert patience.until("a", 50.0) == 50.0 + FLOOR_S


def test_one_that_comes_after_is_waited_for_from_message_to_message_until_it_is_here() -> None:
    patience = Patience()
    patience.came("a", 0.0)
    for _ in range(10):
        patience.missed("a")
    patience.follows("a", 100.0, every_s=20.0)
    assert patience.until("a", 100.0) == 100.0 + PROGRESS_S + LEAST * 20.0
    patience.came("a", 0.0)
    assert patience.until("a", 130.0) == 130.0 + FLOOR_S, "no longer than usual"


def test_one_that_comes_after_and_falls_silent_is_not_waited_for_again_and_again() -> None:
    patience = Patience()
    patience.follows("a", 100.0, every_s=70.0)
    assert patience.until("a", 100.0) == 100.0 + CAP_S
    for _ in range(6):
        patience.missed("a")
    assert patience.until("a", 1000.0) == 1000.0 + FIRST_S / 64


def test_one_that_comes_after_more_slowly_than_one_ever_waits_is_not_waited_for() -> None:
    patience = Patience()
    patience.worked(1.0)
    for _ in range(10):
        patience.missed("a")
    usual = patience.until("a", 100.0)
    patience.follows("a", 100.0, every_s=4.1)
    assert patience.until("a", 100.0) == usual
    patience.follows("a", 100.0, every_s=4.0)
    assert patience.until("a", 100.0) == 100.0 + PROGRESS_S + LEAST * 4.0


def test_nothing_is_waited_for_longer_than_the_cap() -> None:
    patience = Patience()
    patience.came("a", 1e6)
    assert patience.until("a", 0.0) == CAP_S


def test_later_than_usual_is_later_than_it_has_been_and_than_a_stall_of_the_network() -> None:
    patience = Patience()
    assert patience.late("a", 10.0) == 10.0 + STALL_S
    for _ in range(50):
        patience.came("a", 2.0)
    assert 12.0 < patience.late("a", 10.0) < patience.until("a", 10.0) + 0.1
    patience.worked(3.0)
    assert patience.quiet_s() == 3.0


def test_a_wait_is_cut_short_only_for_a_known_neighbor_and_rounds_longer_than_a_stall() -> None:
    quick, slow = Patience(), Patience()
    quick.worked(STALL_S / 2)
    slow.worked(STALL_S)
    assert not slow.is_brief("a")
    for patience in (quick, slow):
        patience.came("a", 0.1)
    assert slow.is_brief("a") and not quick.is_brief("a")
