"""A newcomer that asks is given one model, over a link that the life it has asked in has answered."""

from __future__ import annotations

from peer.events import (
    Effect,
    ForLearner,
    FrameHeard,
    Holds,
    Key,
    LinkUp,
    Met,
    Opened,
    Push,
    Ready,
    Record,
    Refuse,
    Returned,
    Sponsor,
    SponsorMe,
    StreamUp,
    Told,
)
from peer.mesh.node import Node, NodeEvent
from peer.mesh.terms import Terms

FIRST, SECOND = 9, 10  # lives


def record(incarnation: int, phase: str, life: int) -> Record:
    return Record("b", 1, incarnation, phase=phase, life=life, weight=1.0)  # type: ignore[arg-type]


def trains(life: int = FIRST) -> Node:
    """It trains with "b", which is in that life, and the link there is open."""
    node = Node(Record("a", 1, 1), Terms("complete", 0, founder=True))
    node.handle(Ready(3), 0.0)
    node.handle(Holds((), 1.0), 0.0)
    node.handle(Met(record(1, "training", life)), 0.0)
    node.handle(StreamUp("b", "out"), 0.0)
    node.handle(opened(life, epoch=1), 0.0)
    assert node.links.clear("b")
    return node


def opened(life: int, epoch: int) -> FrameHeard:
    return FrameHeard("b", "out", Opened(life, epoch, 0))


def gone(epoch: int) -> FrameHeard:
    return FrameHeard("b", "out", Refuse(epoch, 0, "its learner is gone"))


def given(node: Node, *events: NodeEvent) -> int:
    """How often its learner is told to give "b" a model, and that over a link that it knows to be up."""
    effects: list[Effect] = [effect for event in events for effect in node.handle(event, 1.0)]
    commands = [effect.command for effect in effects if isinstance(effect, ForLearner)]
    return commands.count(Sponsor("b"))


def test_one_that_asks_while_the_link_to_its_last_life_is_open_is_given_the_model_when_it_opens_anew() -> (
    None
):
    node = trains()
    assert given(node, Told("b", SponsorMe(SECOND))) == 0
    assert given(node, gone(epoch=1)) == 0
    effects = node.handle(opened(SECOND, epoch=2), 1.0)
    commands = [effect.command for effect in effects if isinstance(effect, ForLearner)]
    up = LinkUp("b", "out", 2, (), True)
    assert [c for c in commands if c in (up, Sponsor("b"))] == [up, Sponsor("b")]
    assert given(node, opened(SECOND, epoch=2), StreamUp("b", "out"), opened(SECOND, epoch=2)) == 0


def test_one_whose_last_life_has_only_just_answered_is_given_it_by_the_next() -> None:
    """The answer was on its way while it asked."""
    node = trains()
    node.handle(gone(epoch=1), 1.0)
    assert given(node, Told("b", SponsorMe(SECOND)), opened(FIRST, epoch=2), gone(epoch=2)) == 0
    assert given(node, opened(SECOND, epoch=3)) == 1


def test_who_asks_over_a_link_that_this_life_has_answered_is_given_it_at_once() -> None:
    node = trains()
    assert given(node, gone(epoch=1), opened(SECOND, epoch=2)) == 0
    assert given(node, Told("b", SponsorMe(SECOND))) == 1


def test_what_an_earlier_life_has_asked_for_is_not_given_to_the_next_unasked() -> None:
    """A word that was overtaken does not take the place of the newer one either."""
    node = trains()
    assert given(node, Told("b", SponsorMe(SECOND)), gone(epoch=1), opened(SECOND + 1, epoch=2)) == 0
    node = trains()
    assert given(node, Told("b", SponsorMe(SECOND)), Told("b", SponsorMe(FIRST - 1)), gone(epoch=1)) == 0
    assert given(node, opened(SECOND, epoch=2)) == 1


def test_who_has_asked_twice_is_given_one_model_however_often_the_link_begins_anew() -> None:
    node = trains()
    node.handle(Met(record(2, "seeking", SECOND)), 1.0)
    assert given(node, gone(epoch=1), opened(SECOND, epoch=2), Told("b", SponsorMe(SECOND))) == 1
    node.handle(Push("b", 2, Key(), b"model", "mass"), 1.0)
    assert given(node, Told("b", SponsorMe(SECOND))) == 0, "the first is on its way"
    node.handle(Met(record(3, "training", SECOND)), 1.0)
    assert given(node, FrameHeard("b", "out", Refuse(2, 2, "forced"))) == 0
    assert given(node, opened(SECOND, epoch=3)) == 0


def test_a_model_that_was_refused_has_come_back_before_it_is_given_again() -> None:
    node = trains()
    assert given(node, gone(epoch=1), opened(SECOND, epoch=2), Told("b", SponsorMe(SECOND))) == 1
    node.handle(Push("b", 2, Key(), b"model", "mass"), 1.0)
    effects = node.handle(FrameHeard("b", "out", Refuse(2, 1, "asked for long ago")), 1.0)
    assert ForLearner(Returned("b", 2, 1)) in effects
    assert given(node, Told("b", SponsorMe(SECOND)), opened(SECOND, epoch=3)) == 1
