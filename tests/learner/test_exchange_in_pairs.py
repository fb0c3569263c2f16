"""Exchanges of messages that answer each other: what a leaver, a last round and a new graph make of them."""

from __future__ import annotations

import pytest
import torch

from peer.algorithms import make
from peer.algorithms.pair_words import DONE
from peer.compression.bodies import Layout
from peer.events import (
    FINAL,
    Acked,
    Deadline,
    Deliver,
    Found,
    FromLearner,
    HandOver,
    Key,
    LinkUp,
    OpenRound,
    Push,
    Returned,
    TakeAll,
)
from peer.learner.exchange import Exchange

LAYOUT = Layout((4,))
NAMES = ("0", "1", "2")
F64 = torch.float64


def learner(algorithm: str) -> Exchange:
    made = Exchange(make(algorithm, {}, LAYOUT, F64), LAYOUT, torch.zeros(4, dtype=F64))
    made.handle(Found(False), 0.0)
    made.take()
    return made


def opened(name: str, key: Key) -> OpenRound:
    out = {other: 1 / 3 for other in NAMES if other != name}
    return OpenRound(key, out, tuple(out), 3, 1.0, graph="complete", place=NAMES.index(name))


class Three:
    """Of one algorithm, all linked; they take local steps until one has said DONE and nobody has heard it."""

    def __init__(self, algorithm: str) -> None:
        self.all = {name: learner(algorithm) for name in NAMES}
        self.given: dict[tuple[str, str], int] = {}
        for name, one in self.all.items():
            for other in NAMES:
                if other != name:
                    one.handle(LinkUp(other, "out", 1), 0.0)
                    one.handle(LinkUp(other, "in", 1), 0.0)

    def until_done(self) -> tuple[str, str]:
        """Who has said it to whom."""
        for round_ in range(1, 100):
            line: list[tuple[str, Push]] = []
            for name, one in self.all.items():
                now = round_ + 0.1 * NAMES.index(name)
                answers = [*one.handle(opened(name, Key(1, round_)), now)]
                answers += one.submit(torch.full((4,), float(name), dtype=F64), 0.1, now)
                line += pushes(name, answers)
                one.take()
            while line:
                src, push = line.pop(0)
                if self.all[src].unacknowledged()[push.dst].meaning == DONE:
                    return src, push.dst
                line += self.deliver(src, push, float(round_))
        raise AssertionError("nobody has met anybody")

    def deliver(self, src: str, push: Push, now: float) -> list[tuple[str, Push]]:
        number = self.given[src, push.dst] = self.given.get((src, push.dst), 0) + 1
        parcel = Deliver(src, push.epoch, number, push.key, push.payload, push.delivery)
        answers = pushes(push.dst, self.all[push.dst].handle(parcel, now))
        return answers + pushes(src, self.all[src].handle(Acked(push.dst, 1, number), now))


def pushes(name: str, answers: list[FromLearner] | object) -> list[tuple[str, Push]]:
    return [(name, one) for one in answers if isinstance(one, Push)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("algorithm", ["a2cid2", "ad-psgd"])
def test_who_has_given_its_model_away_undoes_nothing_any_more(algorithm: str) -> None:
    three = Three(algorithm)
    src, dst = three.until_done()
    leaver, heir = three.all[src], next(name for name in NAMES if name not in (src, dst))
    leaver.handle(TakeAll(), 100.0)
    assert leaver.handle(HandOver(heir), 100.0)
    leaver.handle(Returned(dst, 1, 1), 100.0)
    assert leaver.state == "left"
    assert leaver.algorithm.model is None


@pytest.mark.parametrize("algorithm", ["a2cid2", "ad-psgd"])
def test_what_the_last_round_has_averaged_no_late_word_changes(algorithm: str) -> None:
    three = Three(algorithm)
    src, dst = three.until_done()
    one, key = three.all[src], Key(1, 200, FINAL)
    one.handle(opened(src, key), 100.0)
    one.handle(Deadline(key), 101.0)
    one.handle(Deadline(key), 102.0)
    final = one.estimate().clone()
    one.handle(Returned(dst, 1, 1), 103.0)
    assert torch.equal(one.estimate(), final)


@pytest.mark.parametrize("algorithm", ["detag", "dsgt", "d2", "choco-sgd", "power-gossip", "a2cid2"])
def test_for_a_link_that_does_not_come_up_no_more_than_one_generation_waits(algorithm: str) -> None:
    one, sent = learner(algorithm), Key()
    for generation in range(1, 12):
        for round_ in (3 * generation, 3 * generation + 1):
            sent, now = Key(generation, round_), 30.0 * generation
            one.handle(OpenRound(sent, {"1": 0.5}, ("1",), 2, 1.0, graph="ring", place=0), now)
            if one.open:
                one.submit(torch.ones(4, dtype=F64), 0.1, now)
            one.handle(Deadline(sent), now + 1)
            one.take()
    waiting = one.outgoing.never_sent("1")
    assert all(message.key.generation == sent.generation for message in waiting)
    assert len(waiting) <= 2


def test_a_new_graph_begins_with_local_steps_though_a_round_without_any_is_held() -> None:
    one = learner("detag")
    one.handle(LinkUp("1", "out", 1), 0.0)
    one.handle(OpenRound(Key(1, 1), {"1": 0.5}, ("1",), 2, 1.0, graph="ring", place=0), 0.0)
    one.submit(torch.ones(4, dtype=F64), 0.1, 0.0)  # not acknowledged
    one.handle(Deadline(Key(1, 1)), 1.0)
    held = one.handle(OpenRound(Key(1, 2), {"1": 0.5}, ("1",), 2, 1.0, graph="ring", place=0), 2.0)
    assert [type(answer).__name__ for answer in held] == ["Held"]
    assert not one.open
    one.handle(OpenRound(Key(2, 3), {"1": 0.5}, ("1",), 2, 1.0, graph="ring", place=0), 3.0)
    assert one.open
    assert one.take() is not None, "the training thread is told to go on"
