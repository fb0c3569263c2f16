"""What a device with a budget may send, and when: no 60 s hold more, however slowly a parcel goes."""

from __future__ import annotations

import random

import pytest

from peer.events import (
    Ack,
    Acked,
    ForLearner,
    Key,
    LinkUp,
    Opened,
    Parcel,
    Send,
)
from peer.learner import portions
from peer.mesh import frame_bytes as frames
from peer.mesh.budget import WINDOW_S, Spending
from peer.mesh.frame_bytes import frame_bytes
from peer.mesh.links import Links


def spent_between(sent: list[tuple[float, float, int]], since: float, until: float) -> float:
    """Bytes of parcels (begun, over, size) that went in that time, at an even rate each."""
    total = 0.0
    for begun, over, size in sent:
        inside = min(over, until) - max(begun, since)
        total += size * max(0.0, inside) / (over - begun)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_no_minute_holds_more_than_the_budget_however_slow_the_line(seed: int) -> None:
    """Parcels of any size that fits, each on its way for up to two minutes, as many as are let."""
    rng = random.Random(seed)
    spending = Spending(100_000)
    sent: list[tuple[float, float, int]] = []
    ends: list[tuple[float, str]] = []
    now = 0.0
    for number in range(2000):
        now += rng.uniform(0.05, 1.0)
        for at, dst in sorted(ends):
            if at <= now:
                spending.advance(at)
                spending.end(dst)
                ends.remove((at, dst))
        spending.advance(now)
        if rng.random() < 0.3:
            spending.control(200)
        size = rng.randrange(1000, 60_000)
        if spending.lets(size):
            over = now + rng.choice([0.01, 1.0, 30.0, 120.0])
            spending.begin(f"p{number}", size)
            ends.append((over, f"p{number}"))
            sent.append((now, over, size))
    assert len(sent) > 100
    worst = max(spent_between(sent, over - WINDOW_S, over) for _, over, _ in sent)
    worst = max(worst, *(spent_between(sent, begun, begun + WINDOW_S) for begun, _, _ in sent))
    assert worst <= 100_000
    assert worst > 0.5 * 0.95 * 100_000


def test_control_counts_first() -> None:
    spending = Spending(100_000)
    spending.advance(0.0)
    assert spending.lets(95_000)
    spending.control(40_000)
    assert spending.free == 55_000
    assert spending.lets(55_000)
    spending.begin("b", 55_000)
    assert not spending.lets(1)
    spending.control(40_000)
    assert spending.free == 0, "control goes whenever it is due"
    assert spending.spent_last_min == 135_000
    assert spending.forecast_day == 135_000 * 1440
    spending.end("b")
    spending.advance(59.9)
    assert not spending.lets(1)
    spending.advance(60.0)
    assert (spending.free, spending.spent_last_min) == (95_000, 0)


def test_a_parcel_that_no_minute_has_room_for_goes_alone_and_counts_for_as_many_minutes() -> None:
    spending = Spending(100_000)
    spending.advance(0.0)
    spending.begin("b", 1_000)
    spending.end("b")
    spending.advance(30.0)
    assert not spending.lets(285_000)
    spending.advance(60.0)
    assert spending.lets(285_000)
    spending.begin("b", 285_000)
    assert not spending.lets(1_000)
    spending.advance(70.0)
    spending.end("b")
    for now in (131.0, 190.0, 249.9):
        spending.advance(now)
        assert not spending.lets(1_000), now
    spending.advance(250.0)
    assert spending.lets(95_000)


def test_a_large_parcel_waits_a_minute_for_control_to_pass_and_goes_alone_if_it_does_not() -> None:
    spending = Spending(100_000)
    spending.advance(0.0)
    spending.control(45_000)
    for now in range(60):
        spending.advance(float(now))
        assert not spending.lets(60_000), now
    spending.advance(60.0)
    assert spending.free == 95_000 and spending.lets(60_000), "it has passed"
    for now in range(60, 167):  # control comes again, and stays
        spending.advance(float(now))
        spending.control(750)
        assert spending.lets(60_000) == (now < 106 or now == 166), now
    spending.begin("b", 60_000)
    spending.end("b")
    spending.advance(166.5)
    assert not spending.lets(60_000)
    assert not spending.lets(40_000)


def opened(spending: Spending, seconds: float, rounds: int, cost: int = 0) -> list[int]:
    """The allowances of rounds that take so long; each sends what it may, or `cost` if that is less."""
    found = []
    for _ in range(rounds):
        spending.advance(max(spending.now, 0.0) + seconds)
        allowance = spending.open_round()
        assert allowance is not None
        found.append(allowance)
        size = min(allowance, cost or allowance)
        if size:
            spending.begin("b", size)
            spending.end("b")
        spending.close_round(0, 1)
    return found


def test_rounds_share_a_minute_evenly() -> None:
    found = opened(Spending(60_000), 1.0, 300)[-120:]
    assert sum(found) / len(found) == pytest.approx(0.84 * 1000, rel=0.1)
    assert min(found) > 500, "none is left without"


def test_rounds_that_cost_less_are_not_held_to_their_even_share() -> None:
    """Uneven rounds: short ones get more than the time since the last one is worth."""
    spending = Spending(60_000)
    for _ in range(60):
        assert min(opened(spending, 0.2, 1, cost=300)[0], opened(spending, 1.8, 1, cost=300)[0]) >= 300


def test_what_is_held_back_is_saved_up_for_a_minute_at_the_most() -> None:
    spending = Spending(60_000)
    opened(spending, 1.0, 120)
    grown = []
    for _ in range(90):
        spending.advance(spending.now + 1.0)
        grown.append(spending.open_round() or 0)
        spending.close_round(1, 0)
    assert grown[10] > 5 * grown[0]
    assert grown[-1] == grown[-2] <= 0.9 * 56_000
    assert spending.rounds_held_back == 90
    assert sum(spending.recent) == 0


def test_without_a_budget_nothing_is_counted() -> None:
    spending = Spending()
    spending.advance(1.0)
    spending.control(10**9)
    spending.begin("b", 10**9)
    assert spending.lets(10**12)
    assert spending.open_round() is None
    assert spending.spent_last_min == 0


def sending(spending: Spending) -> Links:
    """A link to b that is open."""
    spending.advance(0.0)
    links = Links("a", spending=spending)
    links.learner_started(7)
    links.want("b")
    links.stream_up("b", "out")
    effects = links.heard("b", "out", Opened(9, 1, 0), 0.0)
    assert ForLearner(LinkUp("b", "out", 1, (), True)) in effects
    return links


def parcels(effects: list[object]) -> list[Parcel]:
    return [e.frame for e in effects if isinstance(e, Send) and isinstance(e.frame, Parcel)]


def test_a_parcel_waits_until_the_minute_has_room() -> None:
    spending = Spending(100_000)
    links = sending(spending)
    [first] = parcels(links.push("b", 1, Key(0, 1), b"x" * 70_000, "mass", 0.0))
    assert links.moving("b")
    assert ForLearner(Acked("b", 1, 1)) in links.heard("b", "out", Ack(1, 1), 1.0)
    spending.advance(1.0)
    spending.end("b")
    assert parcels(links.push("b", 1, Key(0, 2), b"y" * 70_000, "mass", 1.0)) == []
    assert links.waiting() and not links.moving("b") and not links.clear("b")
    spending.advance(60.0)
    assert parcels(links.go_on()) == []
    spending.advance(61.0)
    [second] = parcels(links.go_on())
    assert (first.number, second.number) == (1, 2)
    assert links.go_on() == []


def test_what_a_broken_stream_did_not_bring_over_waits_for_room_again() -> None:
    spending = Spending(100_000)
    links = sending(spending)
    links.push("b", 1, Key(0, 1), b"x" * 70_000, "mass", 0.0)
    links.stream_down("b", "out")
    assert not links.moving("b")
    spending.end("b")
    links.stream_up("b", "out")
    assert parcels(links.heard("b", "out", Opened(9, 1, 0), 0.0)) == []
    spending.advance(60.0)
    [again] = parcels(links.go_on())
    assert (again.number, again.payload) == (1, b"x" * 70_000)


@pytest.mark.parametrize("size", [1, 1000, 256 * 1024, 5_000_000])
def test_frames_take_no_more_than_is_reckoned_with(size: int) -> None:
    parcel = Parcel(1 << 40, 1 << 40, Key((1 << 63) - 1, (1 << 32) - 1, 1), bytes(size))
    assert frame_bytes(parcel) <= portions.on_wire(size)
    assert portions.message_of(portions.on_wire(size)) <= size
    assert frames.FRAMES_BYTES == portions.FRAMES_BYTES
