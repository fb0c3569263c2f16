"""What each link has room for beside the local steps, by what it has carried."""

import pytest

from peer.mesh.throughput import GROWTH, HIDDEN, RECENT, Throughput


def carried(link: Throughput, size: int, seconds: float, at: float = 0.0, dst: str = "b") -> None:
    link.began(dst, size, at)
    link.answered(dst, at + seconds)


def test_of_a_link_that_has_carried_nothing_nothing_is_said() -> None:
    link = Throughput()
    link.worked(1.0)
    assert link.hides(["b"]) == {}
    carried(link, 1000, 2.0)
    assert link.hides(["b", "c"]) == {"b": int(HIDDEN * 500)}


def test_nothing_is_said_before_the_local_steps_are_known() -> None:
    link = Throughput()
    carried(link, 1000, 2.0)
    assert link.hides(["b"]) == {}


def test_the_best_of_the_last_parcels_counts() -> None:
    """The others' acknowledgements were late because the neighbor was."""
    link = Throughput()
    link.worked(1.0)
    carried(link, 1000, 1.0)
    for at in range(1, RECENT):
        carried(link, 1000, 5.0, at * 10.0)
    assert link.hides(["b"]) == {"b": int(HIDDEN * 1000)}
    carried(link, 1000, 5.0, 1000.0)
    assert link.hides(["b"]) == {"b": int(HIDDEN * 200)}


def test_a_fast_link_is_trusted_with_more_step_by_step() -> None:
    link = Throughput()
    link.worked(10.0)
    carried(link, 100, 0.001)
    assert link.hides(["b"]) == {"b": int(GROWTH * 100)}


def test_a_parcel_that_begins_again_or_whose_stream_breaks_is_not_timed_from_its_first_beginning() -> None:
    link = Throughput()
    link.worked(1.0)
    link.began("b", 1000, 0.0)
    link.broke_off("b")
    link.answered("b", 50.0)
    assert link.hides(["b"]) == {}
    link.began("b", 1000, 50.0)
    link.began("b", 1000, 60.0)
    link.answered("b", 61.0)
    assert link.hides(["b"]) == {"b": int(HIDDEN * 1000)}


def test_the_time_of_local_steps_is_smoothed() -> None:
    link = Throughput()
    for seconds in (1.0, 9.0):
        link.worked(seconds)
    carried(link, 1000, 1.0)
    assert link.hides(["b"])["b"] == pytest.approx(HIDDEN * 2000)
