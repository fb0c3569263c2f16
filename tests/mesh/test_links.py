"""The rules of a directed link, one by one; test_links_faults plays them all against each other."""

from __future__ import annotations

import pytest
import torch

from peer.compression.bodies import Dense, Empty
from peer.compression.codec import MAX_BASE_BYTES, Message, encode
from peer.events import (
    Ack,
    Acked,
    Connect,
    Deliver,
    Delivery,
    Disconnect,
    Dispose,
    Effect,
    Farewell,
    ForLearner,
    Frame,
    Key,
    LinkDown,
    LinkUp,
    Note,
    Open,
    Opened,
    Parcel,
    Refuse,
    Returned,
    Send,
    ToLearner,
)
from peer.mesh.frame_bytes import WORD_BYTES, frame_bytes
from peer.mesh.links import Counts, Links


def frames(effects: list[Effect]) -> list[Frame]:
    return [e.frame for e in effects if isinstance(e, Send)]


def told(effects: list[Effect]) -> list[ToLearner]:
    return [e.command for e in effects if isinstance(e, ForLearner)]


def disposed(effects: list[Effect]) -> list[object]:
    return [e.payload for e in effects if isinstance(e, Dispose)]


def sender(opened: bool = True, life: int = 7) -> Links:
    """A link to "b", whose learner has life 3 and holds base B."""
    links = Links("a")
    links.learner_started(life)
    links.want("b")
    links.stream_up("b", "out")
    if opened:
        links.heard("b", "out", Opened(3, 1, 0, (b"B",)), 0.0)
    return links


def receiver(opened: bool = True) -> Links:
    """A link from "a", whose learner has life 7, to this one's with life 3."""
    links = Links("b")
    links.learner_started(3)
    links.stream_up("a", "in")
    if opened:
        links.heard("a", "in", Open(7, 1), 0.0)
    return links


def push(
    links: Links, payload: bytes = b"m", epoch: int = 1, delivery: Delivery = "mass", round_: int = 0
) -> list[Effect]:
    return links.push("b", epoch, Key(round=round_), payload, delivery, 5.0)


def parcel(number: int, payload: bytes = b"m", epoch: int = 1, delivery: Delivery = "mass") -> Parcel:
    return Parcel(epoch, number, Key(), payload, delivery)


# --- sender ------------------------------------------------------------------------------------------


def test_open_is_the_first_word_and_parcels_flow_after_opened() -> None:
    links = Links("a")
    assert links.want("b") == [Connect("b", "out")]  # wanted before there is a learner
    assert links.learner_started(7) == []
    assert frames(links.stream_up("b", "out")) == [Open(7, 1)]
    assert not links.clear("b")
    assert frames(push(links)) == []  # waits for Opened
    effects = links.heard("b", "out", Opened(3, 1, 0, (b"B",), replicas=False), 0.0)
    assert told(effects) == [LinkUp("b", "out", 1, (b"B",), replicas=False)]
    assert frames(effects) == [parcel(1)]
    assert not links.clear("b") and links.unacked("b")
    effects = links.heard("b", "out", Ack(1, 1), 0.0)
    assert told(effects) == [Acked("b", 1, 1)] and disposed(effects) == [b"m"]
    assert links.clear("b")
    assert links.counts("b", "out") == Counts(parcels=1)


def test_bytes_are_those_of_the_newest_parcel_with_values() -> None:
    """Word that nothing comes has none, nor what pairs say to each other, or a model given by its name."""
    words = [
        encode(Message(Key(1, 2), 40, Empty(10**9, torch.float32), 1.0, base, "latest"))
        for base in (b"", bytes(MAX_BASE_BYTES))
    ]
    long = encode(Message(Key(1, 2), 16, Dense(torch.ones(8)), 0.5))
    assert max(map(len, words)) <= WORD_BYTES < len(long)
    there, here = receiver(), sender()
    for number, payload in enumerate((words[0], long, words[1]), 1):
        push(here, payload)
        here.heard("b", "out", Ack(1, number), 0.0)
        there.heard("a", "in", parcel(number, payload), 0.0)
        there.taken("a", 1, number)
        size = 0 if number == 1 else frame_bytes(parcel(2, long))
        assert here.counts("b", "out") == Counts(parcels=number, parcel_bytes=size)
        assert there.counts("a", "in") == Counts(parcels=number, parcel_bytes=size)


def test_mass_that_cannot_go_comes_back_at_once() -> None:
    links = sender()
    push(links)
    second = push(links, b"second")
    assert told(second) == [Returned("b", 1, 0)] and disposed(second) == [b"second"]
    assert told(links.push("nobody", 1, Key(), b"x", "mass", 0.0)) == [Returned("nobody", 0, 0)]
    links.heard("b", "out", Ack(1, 1), 0.0)
    assert told(push(links, epoch=2)) == [Returned("b", 1, 0)]  # composed for another epoch
    assert [(u.number, u.payload) for u in links.ledger()] == []


def test_an_unacknowledged_parcel_is_sent_again_unless_applied() -> None:
    links = sender()
    push(links)
    for _ in range(2):
        links.stream_down("b", "out")
        assert not links.clear("b")
        assert frames(links.stream_up("b", "out")) == [Open(7, 1)]
        effects = links.heard("b", "out", Opened(3, 1, 0), 0.0)
        assert told(effects) == [] and frames(effects) == [parcel(1)]
    links.stream_down("b", "out")
    links.stream_up("b", "out")
    assert [(u.dst, u.epoch, u.number, u.payload, u.since) for u in links.ledger()] == [
        ("b", 1, 1, b"m", 5.0)
    ]
    assert told(links.heard("b", "out", Opened(3, 1, 1), 0.0)) == [Acked("b", 1, 1)]
    assert links.ledger() == []


def test_a_new_receiver_life_returns_the_parcel_and_starts_an_epoch() -> None:
    links = sender()
    push(links)
    links.stream_down("b", "out")
    links.stream_up("b", "out")
    effects = links.heard("b", "out", Opened(4, 1, 0), 0.0)
    assert told(effects) == [Returned("b", 1, 1), LinkDown("b", "out")]
    assert disposed(effects) == [b"m"] and frames(effects) == [Open(7, 2)]
    assert links.heard("b", "out", Opened(3, 2, 0), 0.0) == []  # the old life, late
    assert told(links.heard("b", "out", Opened(4, 2, 0), 0.0)) == [LinkUp("b", "out", 2)]


def test_a_link_to_a_life_that_is_known_to_be_gone_begins_anew_before_the_next_has_answered() -> None:
    """Else what is composed for it meanwhile is lost."""
    links = sender()
    assert links.lives({"b": 3, "c": 9}) == links.lives({"b": 0}) == [] and links.clear("b")
    links.stream_down("b", "out")
    assert told(links.lives({"b": 4})) == [LinkDown("b", "out")]
    assert links.lives({"b": 4}) == []
    assert frames(links.stream_up("b", "out")) == [Open(7, 2)]
    assert told(links.heard("b", "out", Opened(4, 2, 0), 0.0)) == [LinkUp("b", "out", 2)]


@pytest.mark.parametrize(("before", "settled"), [(None, Returned), (Farewell(3, 7, 1, 1), Acked)])
def test_what_is_out_to_a_life_that_is_gone_stays_out_until_the_next_says_whether_it_counts(
    before: Farewell | None, settled: type[ToLearner]
) -> None:
    links = sender()
    push(links)
    assert links.lives({"b": 4}) == [] and len(links.ledger()) == 1
    effects = links.heard("b", "out", Opened(4, 1, 0, before=before), 0.0)
    assert told(effects) == [settled("b", 1, 1), LinkDown("b", "out")] and frames(effects) == [Open(7, 2)]


@pytest.mark.parametrize(("number", "settled"), [(0, Returned), (1, Returned), (2, Acked)])
def test_refuse_names_the_first_number_that_is_not_applied(number: int, settled: type[ToLearner]) -> None:
    links = sender()
    push(links)
    effects = links.heard("b", "out", Refuse(1, number, "why"), 0.0)
    assert told(effects) == [settled("b", 1, 1), LinkDown("b", "out")]
    assert frames(effects) == [Open(7, 2)] and disposed(effects) == [b"m"]
    assert links.counts("b", "out").rejected == (number == 1)
    assert links.heard("b", "out", Refuse(1, number, "again"), 0.0) == []


@pytest.mark.parametrize(
    ("said", "settled"),
    [
        (Farewell(3, 7, 1, 0), [Returned("b", 1, 1), LinkDown("b", "out")]),
        (Farewell(3, 7, 1, 1), [Acked("b", 1, 1), LinkDown("b", "out")]),
    ]
    # of another life or epoch of the link; of a life of the receiver before the one that has answered
    + [(Farewell(*late), []) for late in [(3, 6, 1, 0), (3, 7, 0, 0), (3, 0, 0, 0), (2, 7, 1, 0)]],
)
def test_a_goodbye_settles_the_epoch_it_names(said: Farewell, settled: list[ToLearner]) -> None:
    links = sender()
    push(links)
    assert told(links.goodbye("b", said)) == settled
    assert len(links.ledger()) == (not settled)


def test_a_dead_receiver_refunds_nothing_until_it_is_written_off() -> None:
    links = sender()
    push(links)
    links.stream_down("b", "out")
    assert len(links.ledger()) == 1
    effects = links.write_off("b")
    assert told(effects) == [Acked("b", 1, 1), LinkDown("b", "out")]  # settled: nothing to un-apply
    assert disposed(effects) == [b"m"] and effects[-1] == Disconnect("b", "out")
    assert links.ledger() == []
    assert frames([*links.want("b"), *links.stream_up("b", "out")]) == [Open(7, 2)]


def test_a_restarted_learner_starts_all_links_anew_and_loses_what_was_out() -> None:
    links = sender()
    push(links)
    effects = links.learner_started(8)
    assert told(effects) == [] and disposed(effects) == [b"m"] and frames(effects) == [Open(8, 2)]
    assert links.ledger() == []
    assert links.heard("b", "out", Ack(1, 1), 0.0) == []


def test_a_link_no_longer_wanted_closes_when_what_was_sent_is_settled() -> None:
    links = sender()
    push(links)
    assert links.unwant("b") == [] and not links.clear("b")
    effects = links.heard("b", "out", Ack(1, 1), 0.0)
    assert told(effects) == [Acked("b", 1, 1), LinkDown("b", "out")] and effects[-1] == Disconnect("b", "out")
    unsent = sender(opened=False)
    push(unsent)
    assert unsent.unwant("b")[0] == ForLearner(Returned("b", 1, 0))


def test_a_new_epoch_on_request_waits_for_the_ack() -> None:
    links = sender()
    push(links)
    assert links.renew("b") == [] and not links.clear("b")
    assert disposed(push(links, b"late", delivery="latest")) == [b"late"]
    effects = links.heard("b", "out", Ack(1, 1), 0.0)
    assert told(effects) == [Acked("b", 1, 1), LinkDown("b", "out")] and frames(effects) == [Open(7, 2)]
    assert frames(links.renew("b")) == [Open(7, 3)]


def test_a_third_latest_replaces_the_first_unsent_or_lost_with_its_stream() -> None:
    links = sender()
    assert frames(push(links, b"1", delivery="latest")) == [parcel(1, b"1", delivery="latest")]
    assert push(links, b"2", delivery="latest") == []  # one in flight
    assert push(links, b"3", delivery="latest") == []  # in lockstep both are of use
    assert disposed(push(links, b"4", delivery="latest")) == [b"2"]
    links.stream_down("b", "out")
    links.stream_up("b", "out")
    effects = links.heard("b", "out", Opened(3, 1, 0), 0.0)
    assert disposed(effects) == [b"1"] and frames(effects) == [parcel(2, b"3", delivery="latest")]
    effects = links.heard("b", "out", Ack(1, 2), 0.0)
    assert told(effects) == [] and disposed(effects) == [b"3"]
    assert frames(effects) == [parcel(3, b"4", delivery="latest")]
    assert links.pending() and links.ledger() == []
    links.heard("b", "out", Ack(1, 3), 0.0)
    assert not links.pending()


def test_a_latest_lost_with_its_stream_is_sent_again_while_fewer_than_two_newer_wait() -> None:
    links = sender()
    push(links, b"1", delivery="latest")
    push(links, b"2", delivery="latest")
    links.stream_down("b", "out")
    links.stream_up("b", "out")
    effects = links.heard("b", "out", Opened(3, 1, 0), 0.0)
    assert frames(effects) == [parcel(1, b"1", delivery="latest")]
    assert frames(links.heard("b", "out", Ack(1, 1), 0.0)) == [parcel(2, b"2", delivery="latest")]


def test_mass_queued_behind_a_lost_latest_keeps_its_place_and_leaves_no_gap() -> None:
    links = sender()
    push(links, b"1", delivery="latest")
    push(links, b"mass")
    push(links, b"2", delivery="latest")
    links.stream_up("b", "out")  # a later stream, without a word about the end of the first
    assert not links.clear("b") and links.heard("b", "out", Ack(1, 1), 0.0) == []
    assert frames(links.heard("b", "out", Opened(3, 1, 0), 0.0)) == [parcel(1, b"1", delivery="latest")]
    assert frames(links.heard("b", "out", Ack(1, 1), 0.0)) == [parcel(2, b"mass")]
    assert frames(links.heard("b", "out", Ack(1, 2), 0.0)) == [parcel(3, b"2", delivery="latest")]


@pytest.mark.parametrize("frame", [Ack(1, 2), Opened(3, 1, 2)])
def test_acknowledging_what_was_never_sent_is_a_breach_and_changes_nothing(frame: Frame) -> None:
    links = sender()
    push(links)
    (effect,) = links.heard("b", "out", frame, 0.0)
    assert isinstance(effect, Note) and effect.level == "warning"
    assert len(links.ledger()) == 1


@pytest.mark.parametrize(
    ("before", "settled"),
    [
        (Farewell(3, 7, 1, 1), Acked),  # applied and handed on by the life that left
        (Farewell(3, 7, 1, 0), Returned),
        (Farewell(2, 7, 1, 1), Returned),  # of an earlier life than the one that answered
        (Farewell(3, 6, 1, 1), Returned),  # of an earlier life of this learner
        (Farewell(3, 7, 2, 1), Returned),  # of another epoch
        (None, Returned),
    ],
)
def test_a_new_life_repeats_what_the_goodbye_said(before: Farewell | None, settled: type[ToLearner]) -> None:
    links = sender()
    push(links)
    links.stream_down("b", "out")
    links.stream_up("b", "out")
    effects = links.heard("b", "out", Opened(4, 1, 0, before=before), 0.0)
    assert told(effects) == [settled("b", 1, 1), LinkDown("b", "out")]


# --- receiver ----------------------------------------------------------------------------------------


def test_open_waits_for_a_learner_and_tells_it_before_anything_comes() -> None:
    links = Links("b")
    links.stream_up("a", "in")
    assert links.heard("a", "in", Open(7, 1), 0.0) == []
    links.holds((b"B",), replicas=False)
    effects = links.learner_started(3)
    assert told(effects) == [LinkUp("a", "in", 1, (), replicas=False)]
    assert frames(effects) == [Opened(3, 1, 0, (b"B",), replicas=False)]


def test_a_parcel_is_delivered_once_and_acknowledged_when_taken() -> None:
    links = receiver()
    assert told(links.heard("a", "in", parcel(1, b"x"), 0.0)) == [Deliver("a", 1, 1, Key(), b"x")]
    assert links.in_hand() == {"a"}
    assert links.heard("a", "in", parcel(1, b"again"), 0.0) == [Dispose(b"again")]
    assert links.counts("a", "in") == Counts(unacked=1), "of what is taken alone"
    effects = links.taken("a", 1, 1)
    assert disposed(effects) == [b"x"] and frames(effects) == [Ack(1, 1)]
    assert links.counts("a", "in") == Counts(parcels=1)
    effects = links.heard("a", "in", parcel(1, b"again"), 0.0)
    assert told(effects) == [] and disposed(effects) == [b"again"] and frames(effects) == [Ack(1, 1)]
    assert links.taken("a", 1, 1) == [] and links.applied("a") == (7, 1, 1)


def test_a_gap_is_a_breach_for_mass_and_superseding_for_latest() -> None:
    links = receiver()
    assert told(links.heard("a", "in", parcel(3, delivery="latest"), 0.0)) == [
        Deliver("a", 1, 3, Key(), b"m", "latest")
    ]
    links.taken("a", 1, 3)
    effects = links.heard("a", "in", parcel(5), 0.0)
    assert told(effects) == [LinkDown("a", "in")]
    (refuse,) = frames(effects)
    assert isinstance(refuse, Refuse) and (refuse.epoch, refuse.number) == (1, 4)
    assert links.heard("a", "in", parcel(4), 0.0) == [Dispose(b"m")]
    assert told(links.heard("a", "in", Open(7, 2), 0.0)) == [LinkUp("a", "in", 2)]


def test_a_rejection_is_repeated_until_a_new_epoch() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1), 0.0)
    links.stream_down("a", "in")
    assert frames(links.rejected("a", 1, 1, "unknown base", False)) == []
    links.stream_up("a", "in")
    assert frames(links.heard("a", "in", Open(7, 1), 0.0)) == [Refuse(1, 1, "unknown base")]
    assert links.counts("a", "in").rejected == 0
    links.heard("a", "in", Open(7, 2), 0.0)
    links.heard("a", "in", parcel(1, epoch=2), 0.0)
    links.rejected("a", 2, 1, "NaN", True)
    assert links.counts("a", "in").rejected == 1


@pytest.mark.parametrize(("life", "epoch"), [(6, 9), (7, 0)])
def test_an_older_open_is_ignored(life: int, epoch: int) -> None:
    links = receiver()
    effects = links.heard("a", "in", Open(life, epoch), 0.0)
    assert not told(effects) and not frames(effects)
    assert links.applied("a") == (7, 1, 0)


def test_a_newer_open_starts_anew_and_what_is_in_hand_is_not_acknowledged() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1, b"old"), 0.0)
    effects = links.heard("a", "in", Open(8, 1), 0.0)
    assert told(effects) == [LinkDown("a", "in"), LinkUp("a", "in", 1)] and frames(effects) == [
        Opened(3, 1, 0)
    ]
    links.heard("a", "in", Open(8, 2), 0.0)
    assert links.heard("a", "in", parcel(1, b"new", epoch=2), 0.0) == []  # one at a time
    effects = links.taken("a", 1, 1)
    assert disposed(effects) == [b"old"] and frames(effects) == []
    assert told(effects) == [Deliver("a", 2, 1, Key(), b"new")]


def test_a_rebooted_sender_counts_from_one_again_and_gets_no_credit_for_its_last_life() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1, b"old"), 0.0)
    links.heard("a", "in", Open(9, 1), 0.0)  # the same epoch number, of another life
    assert links.heard("a", "in", parcel(1, b"new"), 0.0) == []
    effects = links.taken("a", 1, 1)
    assert frames(effects) == [] and links.applied("a") == (9, 1, 0)
    assert told(effects) == [Deliver("a", 1, 1, Key(), b"new")]
    assert frames(links.taken("a", 1, 1)) == [Ack(1, 1)]


def test_a_lost_life_sends_everything_unacknowledged_back_even_what_it_applied() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1), 0.0)
    links.taken("a", 1, 1)
    links.heard("a", "in", parcel(2, b"hand"), 0.0)
    effects = links.learner_gone()
    assert disposed(effects) == [b"hand"] and frames(effects) == [Refuse(1, 0, "its learner is gone")]
    assert links.learner_started(4) != []
    assert links.heard("a", "in", parcel(2), 0.0) == [Dispose(b"m")]
    assert links.taken("a", 1, 2) == []


def test_who_comes_back_after_leaving_politely_still_stands_for_what_it_had_applied() -> None:
    left = receiver()
    left.heard("a", "in", parcel(1), 0.0)
    left.taken("a", 1, 1)
    last = Farewell(by=3, life=7, epoch=1, applied=1)
    assert left.farewells(3) == {"a": last}
    back = Links("b", left.farewells(3))
    back.learner_started(4)
    back.stream_up("a", "in")
    assert frames(back.heard("a", "in", Open(7, 1), 0.0)) == [Opened(4, 1, 0, before=last)]
    assert back.farewells(4) == {"a": last}
    assert frames(back.learner_gone()) == [Refuse(1, 2, "its learner is gone")]  # 1 is still applied
    back.learner_started(5)
    assert frames(back.heard("a", "in", Open(7, 2), 0.0)) == [Opened(5, 2, 0, before=last)]
    back.heard("a", "in", parcel(1, epoch=2), 0.0)
    back.taken("a", 2, 1)
    assert back.farewells(5) == {"a": Farewell(5, 7, 2, 1)}


def test_a_written_off_sender_learns_what_was_applied_once_the_learner_has_decided() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1), 0.0)
    assert links.write_off("a") == [ForLearner(LinkDown("a", "in"))]
    assert frames(links.taken("a", 1, 1)) == [Refuse(1, 2, "written off")]


def test_leaving_applies_nothing_more_than_what_is_in_hand() -> None:
    links = receiver()
    links.heard("a", "in", parcel(1), 0.0)
    links.refuse_all()
    assert links.in_hand() == {"a"}
    assert frames(links.taken("a", 1, 1)) == [Ack(1, 1)]
    assert frames(links.heard("a", "in", parcel(2), 0.0)) == [Refuse(1, 2, "leaving")]
    assert links.heard("a", "in", Open(7, 2), 0.0) == []
    assert links.applied("a") == (7, 2, 0)


def test_after_a_goodbye_the_link_ends_with_its_stream() -> None:
    links = receiver()
    links.goodbye("a", Farewell(0, 0, 0, 0))
    assert told(links.heard("a", "in", parcel(1), 0.0)) == [Deliver("a", 1, 1, Key(), b"m")]
    assert told(links.stream_down("a", "in")) == [LinkDown("a", "in")]


@pytest.mark.parametrize(
    ("direction", "frame"),
    [("out", Open(1, 1)), ("out", parcel(1)), ("in", Ack(1, 1)), ("in", Opened(1, 1, 0))],
)
def test_a_frame_on_the_wrong_end_is_a_breach(direction: str, frame: Frame) -> None:
    links = Links("a")
    effects = links.heard("b", "out" if direction == "out" else "in", frame, 0.0)
    assert isinstance(effects[0], Note) and effects[0].level == "warning"
    assert len(disposed(effects)) == isinstance(frame, Parcel)


def test_the_stream_of_an_in_link_can_be_dialed_from_this_end() -> None:
    links = Links("b")
    assert links.dial_in("a") == [Connect("a", "in")] and links.drop_in("a") == [Disconnect("a", "in")]
    assert not links.has_stream("a", "in")
    links.stream_up("a", "in")
    assert links.has_stream("a", "in") and not links.has_stream("a", "out")
