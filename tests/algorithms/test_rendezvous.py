"""Two devices average at a moment of their own: both apply an exchange, or neither does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algorithms.pairs import F64, Calm, Storm, consensus, nodes_of, total
from peer.algorithms.a2cid2 import A2CiD2
from peer.algorithms.base import Message
from peer.algorithms.pair_words import (
    ABORTED,
    ACCEPT,
    BUSY,
    COMMIT,
    DONE,
    OFFER,
    WITHDRAWN,
    Word,
    read,
)
from peer.algorithms.rendezvous import Offered, Paired
from peer.algorithms.tempo import MOST_S, Patience
from peer.compression.bodies import Dense, Layout
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, Key, LinkDown, LinkUp

D = 3
LAYOUT = Layout((D,))
ACTS = st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=300)


def models(n: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(D, generator=g, dtype=F64) for _ in range(n)]


def calm(n: int = 3, name: str = "a2cid2", compression: str = "", spec: str = "complete") -> Calm:
    return Calm(nodes_of(name, models(n), compression=compression), spec, LAYOUT)


def all_of(nodes: list[A2CiD2]) -> list[Tensor]:
    return [node.estimate().clone() for node in nodes]


def commit(pair: Calm, i: int, j: int, t: float = 0.0) -> Message:
    """i asks, j accepts; the COMMIT, which is not delivered."""
    accept = pair.deliver(i, j, pair.begin(i, j, t), t)
    assert accept is not None
    found = pair.deliver(j, i, accept, t)
    assert found is not None
    return found


@given(ACTS)
def test_in_whatever_order_things_come_both_ends_apply_an_exchange_or_neither(
    acts: list[tuple[int, int, int]],
) -> None:
    """Else sum(x + x~) would change by more than the local steps."""
    nodes = nodes_of("a2cid2", models(4), rate=4.0, common=False)
    before = total(nodes)
    storm = Storm(nodes, "complete", LAYOUT)
    for act in acts:
        storm.act(*act)
    storm.settle()
    torch.testing.assert_close(total(nodes), before + storm.given, rtol=1e-9, atol=1e-9)
    for node in nodes:
        assert node.rendezvous.slot is None and not node.rendezvous.doubt
        assert not node.rendezvous._applied and not node.rendezvous._unsettled


@pytest.mark.parametrize("name", ["a2cid2", "ad-psgd"])
def test_in_long_storms_exchanges_come_about_and_are_undone_and_nothing_is_lost(name: str) -> None:
    met = undone = aborted = late = 0
    for seed in range(6):
        dice = random.Random(seed)
        nodes = nodes_of(name, models(4, seed), rate=4.0, common=False)
        storm, before = Storm(nodes, "ring", LAYOUT), total(nodes)
        for _ in range(4000):
            storm.act(*(dice.randrange(256) for _ in range(3)))
        storm.settle()
        torch.testing.assert_close(total(nodes), before + storm.given, rtol=1e-9, atol=1e-8)
        tallies = [node.rendezvous.tally for node in nodes]
        met, undone = met + sum(one.met for one in tallies), undone + sum(one.undone for one in tallies)
        aborted, late = aborted + sum(one.aborted for one in tallies), late + sum(one.late for one in tallies)
        assert sum(one.met for one in tallies) % 2 == 0
    assert met > 500 and min(undone, aborted, late) > 0, (met, undone, aborted, late)


def test_of_offers_that_cross_the_one_from_the_lower_place_lives() -> None:
    pair = calm()
    first, second = pair.begin(0, 1, 0.0), pair.begin(1, 0, 0.0)
    busy = pair.deliver(1, 0, second, 0.0)
    assert busy is not None and busy.meaning == BUSY
    accept = pair.deliver(0, 1, first, 0.0)
    assert accept is not None and accept.meaning == ACCEPT
    assert isinstance(pair.nodes[0].rendezvous.slot, Offered)
    assert isinstance(pair.nodes[1].rendezvous.slot, Paired)
    assert pair.deliver(0, 1, busy, 0.0) is None, "it has dropped its own already"
    done = pair.deliver(0, 1, pair.deliver(1, 0, accept, 0.0), 0.0)  # type: ignore[arg-type]
    assert done is not None and done.meaning == DONE
    pair.deliver(1, 0, done, 0.0)
    assert torch.equal(pair.nodes[0].estimate(), pair.nodes[1].estimate())


def test_who_is_paired_or_in_doubt_with_the_asker_is_busy_and_nobody_waits() -> None:
    pair = calm()
    pair.deliver(0, 1, pair.begin(0, 1, 0.0), 0.0)
    before = all_of(pair.nodes)
    answer = pair.deliver(2, 1, pair.begin(2, 1, 0.0), 0.0)
    assert answer is not None and answer.meaning == BUSY
    pair.deliver(1, 2, answer, 0.0)
    assert pair.nodes[2].rendezvous.slot is None and pair.nodes[2].rendezvous.due == 1
    doubtful = calm()
    commit(doubtful, 0, 1)
    assert doubtful.nodes[0].rendezvous.slot is None, "who has sent COMMIT is free"
    doubtful.nodes[1].rendezvous.drop()
    answer = doubtful.deliver(1, 0, doubtful.begin(1, 0, 0.0), 0.0)
    assert answer is not None and answer.meaning == BUSY
    assert all(map(torch.equal, all_of(pair.nodes), before))


def test_a_late_accept_is_withdrawn_and_a_late_commit_aborted() -> None:
    pair = calm()
    before = all_of(pair.nodes)
    accept = pair.deliver(0, 1, pair.begin(0, 1, 0.0), 0.0)
    assert accept is not None
    assert pair.nodes[0].rendezvous.give_up(MOST_S) == "1"
    assert pair.nodes[0].rendezvous.slot is None, "it has given up"
    withdrawn = pair.deliver(1, 0, accept, MOST_S)
    assert withdrawn is not None and withdrawn.meaning == WITHDRAWN
    pair.deliver(0, 1, withdrawn, MOST_S)
    assert pair.nodes[1].rendezvous.slot is None
    late = commit(pair, 0, 2, MOST_S)
    assert pair.nodes[2].rendezvous.give_up(2 * MOST_S) is None
    aborted = pair.deliver(0, 2, late, 2 * MOST_S)
    assert aborted is not None and aborted.meaning == ABORTED
    pair.deliver(2, 0, aborted, 2 * MOST_S)
    assert not pair.nodes[0].rendezvous.doubt
    assert all(map(torch.equal, all_of(pair.nodes), before))


def test_patience_is_learnt_also_from_what_comes_too_late_and_doubles_twice_at_the_most() -> None:
    pair = calm()
    for turn in range(60):
        t = float(turn)
        accept = pair.deliver(0, 1, pair.begin(0, 1, t), t)
        assert accept is not None
        committed = pair.deliver(1, 0, accept, t + 0.5)
        assert committed is not None
        done = pair.deliver(0, 1, committed, t + 0.5)
        assert done is not None
        pair.deliver(1, 0, done, t + 0.5)
    asking = pair.nodes[0].rendezvous.asking
    assert asking.wait_s == pytest.approx(2.0, rel=1e-2), "four times half a second"
    for factor in (2, 4, 4):
        offer = pair.begin(0, 2, 100.0)
        pair.nodes[0].rendezvous.give_up(100.0 + 1e-3)
        assert pair.nodes[0].rendezvous.slot is not None
        pair.nodes[0].rendezvous.give_up(100.0 + MOST_S)
        assert asking.wait_s == pytest.approx(2.0 * factor, rel=1e-2)
        accept = pair.nodes[2].receive("0", offer, 0.0)["0"]
        pair.nodes[0].settled("2", offer)
        pair.nodes[2].rendezvous.drop()
    pair.nodes[0].receive("2", accept, 110.0)
    assert asking.wait_s == pytest.approx(4 * (0.875 * 0.5 + 0.125 * 10.0), rel=1e-2)
    fresh = Patience()
    for _ in range(20):
        fresh.missed()
    assert fresh.wait_s == MOST_S


def test_an_old_snapshot_does_not_count_even_for_one_that_stood_still() -> None:
    """Nobody gave up meanwhile: what it differs from a new one by would set models apart."""
    for asleep in (0, 1):
        pair = calm()
        before = all_of(pair.nodes)
        accept = pair.deliver(0, 1, pair.begin(0, 1, 0.0), 0.0)
        assert accept is not None
        answer = pair.deliver(1, 0, accept, 60.0 * (1 - asleep))
        assert answer is not None
        if asleep:
            answer = pair.deliver(0, 1, answer, 60.0)
            assert answer is not None
        assert answer.meaning == (ABORTED if asleep else WITHDRAWN)
        assert pair.nodes[asleep].rendezvous.slot is None
        assert all(map(torch.equal, all_of(pair.nodes), before))


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_crash_alone_leaves_an_exchange_at_one_end_and_it_is_counted(acknowledged: bool) -> None:
    pair = calm()
    message = commit(pair, 0, 1)
    if acknowledged:
        assert pair.deliver(0, 1, message, 0.0) is not None  # DONE, which dies with its sender
    pair.nodes[0].on_links(LinkDown("1", "in"))
    pair.nodes[0].on_links(LinkUp("1", "in", 1))
    if not acknowledged:
        pair.nodes[0].returned("1", message)
    assert not pair.nodes[0].rendezvous.doubt
    assert pair.nodes[0].rendezvous.tally.unresolved == acknowledged
    assert (consensus(pair.nodes[:2]) > 0) and pair.nodes[0].rendezvous.tally.met == 0


def test_what_comes_back_is_dropped_or_undone() -> None:
    for upto in range(4):
        pair = calm()
        before = all_of(pair.nodes)
        src, dst, message = 0, 1, pair.begin(0, 1, 0.0)
        for _ in range(upto):
            answer = pair.deliver(src, dst, message, 0.0)
            assert answer is not None
            src, dst, message = dst, src, answer
        assert message.meaning == (OFFER, ACCEPT, COMMIT, DONE)[upto]
        pair.nodes[src].returned(str(dst), message)
        assert pair.nodes[src].rendezvous.slot is None and not pair.nodes[src].rendezvous.doubt
        torch.testing.assert_close(pair.nodes[src].estimate(), before[src], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pair.nodes[src].x_tilde, before[src], rtol=1e-12, atol=1e-12)


def test_who_has_read_another_snapshot_than_was_sent_is_refused_with_nothing_changed() -> None:
    for at, spoil in ((COMMIT, "digest"), (DONE, "digest"), (COMMIT, "body")):
        pair = calm()
        src, dst, message = 0, 1, commit(pair, 0, 1)
        if at == DONE:
            done = pair.deliver(0, 1, message, 0.0)
            assert done is not None
            src, dst, message = 1, 0, done
        assert message.meaning == at
        if spoil == "digest":
            message = replace(message, base=message.base[:8] + bytes(16))
        else:
            message = replace(message, body=Dense(message.body.dense() + 1))
        before = all_of(pair.nodes)
        with pytest.raises(RemoteError, match="another snapshot"):
            pair.nodes[dst].receive(str(src), message, 0.0)
        assert all(map(torch.equal, all_of(pair.nodes), before))


def test_both_ends_use_the_smaller_alpha_tilde() -> None:
    """The code of the authors has one for all; here constants are each device's own."""
    pair = calm(6, spec="ring")
    pair.nodes[1]._at_rate_1 = replace(pair.nodes[1]._at_rate_1, alpha=0.6)
    before = total(pair.nodes[:2])
    for i, j in ((0, 1), (1, 0)):
        accept = pair.deliver(i, j, pair.begin(i, j, 0.0), 0.0)
        assert accept is not None
        assert read(str(j), accept).alpha == 0.6
        message: Message | None = accept
        while message is not None:
            i, j = j, i
            message = pair.deliver(i, j, message, 0.0)
    torch.testing.assert_close(total(pair.nodes[:2]), before, rtol=1e-12, atol=1e-12)
    higher = pair.deliver(0, 1, pair.begin(0, 1, 0.0), 0.0)
    assert higher is not None
    raised = replace(read("1", higher), alpha=3.0)
    with pytest.raises(RemoteError, match=r"alpha~ of 3, where 0\.77"):
        pair.nodes[0].receive("1", pair.nodes[1]._message(raised), 0.0)


def test_a_stranger_gets_no_answer_and_one_of_another_generation_or_at_its_end_is_told() -> None:
    pair = calm(4, spec="chain")
    offer = pair.begin(0, 1, 0.0)
    assert pair.nodes[3].receive("0", offer, 0.0) == {}
    other = replace(offer, key=Key(2, 1))
    assert pair.nodes[1].receive("0", other, 0.0)["0"].meaning == BUSY
    last = calm(2)
    node = last.nodes[0]
    node.step(torch.zeros(D, dtype=F64), 0.0, replace(node.links, key=Key(1, 9, FINAL)), 0.0)
    assert node.receive("1", last.begin(1, 0, 0.0), 0.0)["1"].meaning == BUSY


def test_a_device_without_a_model_or_before_its_first_round_gives_an_offer_back() -> None:
    pair, fresh = calm(2), nodes_of("a2cid2", models(1))[0]
    offer = pair.begin(0, 1, 0.0)
    with pytest.raises(UnknownBaseError, match="or no round"):
        fresh.receive("0", offer, 0.0)
    pair.nodes[1].x = None
    with pytest.raises(UnknownBaseError, match="no model here"):
        pair.nodes[1].receive("0", offer, 0.0)


def test_one_that_acknowledges_nothing_fills_no_memory() -> None:
    pair = calm(3)
    node, offer = pair.nodes[1], pair.begin(0, 1, 0.0)
    answers = [node.receive("0", offer, 0.0) for _ in range(20)]
    assert sum(map(len, answers)) <= 3
    late = pair.nodes[0]._message(Word(COMMIT, 99, body=Dense(torch.zeros(D, dtype=F64))))
    for _ in range(5):
        node.receive("0", late, 0.0)
    with pytest.raises(RemoteError, match="acknowledges nothing"):
        node.receive("0", late, 0.0)


def test_words_that_nobody_says_are_refused() -> None:
    pair = calm(2)
    offer = pair.begin(0, 1, 0.0)
    accept = pair.nodes[1].receive("0", offer, 0.0)["0"]
    wrong = [
        replace(offer, base=offer.base[:-1]),
        replace(offer, delivery="latest"),
        replace(offer, body=accept.body),
        replace(accept, body=offer.body),
        pair.nodes[0]._message(Word(OFFER, 1, alpha=5.0)),
        pair.nodes[0]._message(Word(OFFER, 1, alpha=float("nan"))),
        pair.nodes[0]._message(Word(OFFER, 1, rate=float("inf"))),
    ]
    for message in wrong:
        with pytest.raises(RemoteError):
            pair.nodes[1].receive("0", message, 0.0)
