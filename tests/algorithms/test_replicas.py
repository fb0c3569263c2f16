"""Links of difference-push: what they open with, how they start anew, and doing without replicas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from algorithms.swarm import F64, Graph, Swarm, exponential, randoms, ring
from peer.algorithms.base import Links, Message
from peer.algorithms.bases import USABLE_ROUNDS
from peer.algorithms.difference_push import DEVIATION, DIFFERENCE, REPLICA, Budget, DifferencePush, lost
from peer.algorithms.replicas import IDLE_ROUNDS
from peer.compression import codec
from peer.compression.bodies import Body, Empty, Layout
from peer.compression.compressor import compressor
from peer.compression.history import History, recalling
from peer.errors import UnknownBaseError
from peer.events import FINAL, TRAIN, Key, LinkDown, LinkUp
from peer.grammar import Compression

LAYOUT = Layout((300, 100))
INT8 = compressor(Compression(values="int8"), LAYOUT, F64)
ZEROS = torch.zeros(LAYOUT.d, dtype=F64)


def quantizer(v: Tensor, bits: float, history: History | None) -> Body:
    return recalling(LAYOUT, v, bits, history)


def node(*, replicas: bool = True, replica_mb: float = 1.0, budget: Budget | None = None) -> DifferencePush:
    return DifferencePush(
        LAYOUT, F64, quantizer, INT8, budget or Budget(), replicas=replicas, replica_mb=replica_mb
    )


def swarm_of(n: int, graph: Graph, *, replicas: bool = True) -> Swarm:
    swarm = Swarm([node(replicas=replicas) for _ in range(n)], LAYOUT, graph)
    return swarm.begin(randoms(n, LAYOUT.d, 3))


def begun(*, replica_mb: float = 1.0) -> DifferencePush:
    one = node(replica_mb=replica_mb)
    model = randoms(1, LAYOUT.d, 1)[0]
    one.know(model)
    one.begin(model, 1.0)
    return one


def parcel(one: DifferencePush, dst: str, round_: int, phase: int = TRAIN, u: Tensor = ZEROS) -> Message:
    links = Links(Key(0, round_, phase), {dst: 0.5}, frozenset(), 2, 1.0, frozenset({dst}))
    return one.step(u, 0.1, links, 0.0)[dst]


def moved(seed: int) -> Tensor:
    return 0.1 * randoms(1, LAYOUT.d, seed)[0]


def test_a_link_opens_with_the_initial_model_while_it_is_recent() -> None:
    sender, receiver = begun(), begun()
    sender.on_links(LinkUp("b", "out", 1, receiver.bases))
    message = parcel(sender, "b", 1, u=moved(1))
    assert (message.meaning, message.base) == (DIFFERENCE, sender.x0_digest)
    assert message.weight > 0
    assert parcel(sender, "b", 2, u=moved(2)).base == b"", "named once"

    late = begun()
    late.on_links(LinkUp("b", "out", 1, receiver.bases))
    message = parcel(late, "b", USABLE_ROUNDS + 1)
    assert (message.meaning, message.weight) == (REPLICA, 0.0)


def test_a_link_without_a_common_base_opens_with_a_dense_parcel_without_weight() -> None:
    sender, receiver = begun(), begun()
    sender.on_links(LinkUp("b", "out", 1))
    x, w = sender.mass()
    message = parcel(sender, "b", 1)
    assert (message.meaning, message.weight) == (REPLICA, 0.0)
    assert torch.equal(sender.mass()[0], x)
    receiver.receive("a", message, 0.0)
    assert receiver.mass()[1] == w
    assert torch.equal(receiver.replicas.into["a"].h, message.body.dense())
    second = parcel(sender, "b", 2, u=moved(1))
    receiver.receive("a", second, 0.0)
    h = sender.replicas.link_to("b").h
    assert h is not None
    assert torch.equal(receiver.replicas.into["a"].h, h)
    assert second.weight > 0


def test_links_between_sponsor_and_newcomer_open_with_the_snapshot() -> None:
    sponsor, newcomer = begun(), node()
    newcomer.know(sponsor.x0 if sponsor.x0 is not None else ZEROS)
    parcel(sponsor, "c", 500, u=moved(1))
    sponsor.on_links(LinkUp("b", "out", 1, newcomer.bases))
    snapshot = sponsor.sponsor("b", Key(0, 500), newcomer.bases)
    newcomer.receive("a", snapshot, 0.0)
    assert newcomer.bases == (snapshot.base,), "the initial model is long past"
    there = parcel(sponsor, "b", 501, u=moved(2))
    assert (there.meaning, there.base) == (DIFFERENCE, snapshot.base)
    newcomer.receive("a", there, 0.0)
    newcomer.on_links(LinkUp("a", "out", 1, sponsor.bases))
    back = parcel(newcomer, "a", 502, u=moved(3))
    assert (back.meaning, back.base) == (DIFFERENCE, snapshot.base)
    sponsor.receive("b", back, 0.0)


@pytest.mark.parametrize("meaning", [DIFFERENCE, DEVIATION])
def test_a_parcel_on_an_unknown_base_changes_nothing(meaning: int) -> None:
    receiver = begun()
    x, w = receiver.mass()
    with pytest.raises(UnknownBaseError):
        receiver.receive("a", Message(Key(), meaning, Empty(LAYOUT.d, F64), 0.5, b"\1" * 16), 0.0)
    with pytest.raises(UnknownBaseError):
        receiver.receive("a", Message(Key(), meaning, Empty(LAYOUT.d, F64), 0.5), 0.0)
    assert receiver.mass()[1] == w
    assert torch.equal(receiver.mass()[0], x)
    assert receiver.replicas.into == {}
    assert receiver.heard == frozenset()


def test_a_new_epoch_starts_replicas_anew_at_both_ends_together() -> None:
    swarm = swarm_of(3, ring(3)).links()
    for t in range(4):
        swarm.exchange(randoms(3, LAYOUT.d, t))
    swarm.link(0, 1, epoch=2)
    first, second = swarm.nodes[0], swarm.nodes[1]
    assert isinstance(first, DifferencePush)
    assert isinstance(second, DifferencePush)
    assert first.replicas.link_to("1").h is None
    assert "0" not in second.replicas.into
    x, w = swarm.mass()
    for _ in range(3):
        swarm.exchange([ZEROS] * 3)
        h = first.replicas.link_to("1").h
        assert h is not None
        assert torch.equal(h, second.replicas.into["0"].h)
    torch.testing.assert_close(swarm.mass()[0], x, rtol=1e-9, atol=1e-9)
    assert swarm.mass()[1] == pytest.approx(w, rel=1e-9)


@pytest.mark.parametrize("whose", ["session", "link"])
def test_without_replicas_nothing_is_kept_and_models_still_meet(whose: str) -> None:
    n = 4
    swarm = swarm_of(n, exponential(n), replicas=whose != "session")
    for i in range(n):
        for j in range(n):
            if i != j:
                swarm.link(i, j, swarm.nodes[j].bases, replicas=whose == "session")
    mean = swarm.X.mean(0)
    for _ in range(12):
        Z = torch.stack(swarm.exchange([ZEROS] * n))
    for one in swarm.nodes:
        assert isinstance(one, DifferencePush)
        assert one.replicas.into == {}
        assert all(link.h is None for link in one.replicas.out.values())
    apart = float((torch.stack(randoms(n, LAYOUT.d, 3)) - mean).norm())
    assert float((Z - mean).norm()) < 0.2 * apart


def test_links_over_the_byte_cap_do_without_a_replica() -> None:
    one = begun(replica_mb=2.5 * LAYOUT.d * 8 / 1e6)  # room for two
    for dst in "bcd":
        one.on_links(LinkUp(dst, "out", 1, one.bases))
    assert [parcel(one, dst, 1, u=moved(1)).meaning for dst in "bcd"] == [DIFFERENCE, DIFFERENCE, DEVIATION]
    assert one.replicas.evicted == []


def test_the_least_recently_used_idle_link_makes_room() -> None:
    one = begun(replica_mb=2.5 * LAYOUT.d * 8 / 1e6)
    for dst, round_ in (("b", 1), ("c", 2), ("c", 20)):
        parcel(one, dst, round_, u=moved(round_))
    message = parcel(one, "d", IDLE_ROUNDS + 2, u=moved(5))
    assert message.meaning == REPLICA
    assert one.replicas.evicted == ["b"]
    assert one.replicas.link_to("b").h is None
    one.on_links(LinkUp("b", "out", 2))
    assert one.replicas.evicted == []


def test_a_model_the_receiver_knows_already_costs_no_body_and_moves_a_full_share() -> None:
    one = begun()
    one.on_links(LinkUp("b", "out", 1, one.bases))
    message = parcel(one, "b", 0)
    assert isinstance(message.body, Empty)
    assert message.weight == 0.5


def test_the_share_never_exceeds_what_was_not_lost() -> None:
    one = begun()
    one.on_links(LinkUp("b", "out", 1, one.bases))
    one.budget = Budget(R=0.7)
    v = moved(1)
    message = parcel(one, "b", 1, u=v)
    assert message.weight == pytest.approx(1 - lost(v, message.body.dense()))
    assert message.weight < 0.5


def test_final_rounds_have_their_own_bits() -> None:
    asked: list[float] = []

    def asking(v: Tensor, bits: float, history: History | None) -> Body:
        asked.append(bits)
        return quantizer(v, bits, history)

    one = DifferencePush(LAYOUT, F64, asking, INT8)
    one.know(ZEROS)
    one.begin(ZEROS, 1.0)
    one.on_links(LinkUp("b", "out", 1, one.bases))
    parcel(one, "b", 1, u=moved(1))
    parcel(one, "b", 2, FINAL)
    one.on_links(LinkUp("b", "out", 2, one.bases, replicas=False))
    parcel(one, "b", 3, u=moved(2))
    assert asked == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("replicas", [True, False])
def test_no_message_takes_more_than_it_may_and_least_bytes_is_enough_for_all(replicas: bool) -> None:
    """The first parcel of a link without a common base, differences, and those of links without replicas."""
    one = node(replicas=replicas)
    model = randoms(1, LAYOUT.d, 1)[0]
    one.know(model)
    one.begin(model, 1.0)
    full = len(codec.encode(parcel(one, "full", 0, u=moved(2)), LAYOUT))
    for round_, most in enumerate([one.least_bytes, 200, 260, 340, 10_000]):
        links = Links(Key(0, round_), {"b": 0.5}, frozenset(), 2, 1.0, frozenset({"b"}), most_bytes=most)
        message = one.step(moved(round_), 0.1, links, 0.0)["b"]
        assert len(codec.encode(message, LAYOUT)) <= most
        assert message.meaning == (DEVIATION if not replicas else REPLICA if round_ == 0 else DIFFERENCE)
    assert one.least_bytes < full


def test_nothing_is_lost_of_nothing() -> None:
    assert lost(ZEROS, ZEROS) == 0
    assert lost(ZEROS + 1, ZEROS) == 1
    assert lost(ZEROS + 2, ZEROS + 1) == pytest.approx(math.sqrt(0.25))


def heard_from(receiver: DifferencePush, src: str, round_: int) -> None:
    """A parcel that opens the link from `src`, at this round."""
    receiver.open(Links(Key(0, round_), {}, frozenset()))
    receiver.receive(src, Message(Key(0, round_), REPLICA, INT8(moved(1))), 0.0)


def test_in_links_count_against_the_cap_and_one_too_many_is_an_honest_miss() -> None:
    one = begun(replica_mb=2.5 * LAYOUT.d * 8 / 1e6)  # room for two
    one.on_links(LinkUp("b", "out", 1, one.bases))
    assert parcel(one, "b", 1, u=moved(1)).meaning == DIFFERENCE
    assert one.room
    heard_from(one, "c", 1)
    assert not one.room
    with pytest.raises(UnknownBaseError, match="no room"):
        heard_from(one, "d", 1)
    assert set(one.replicas.into) == {"c"}
    heard_from(one, "c", 2)
    one.on_links(LinkDown("c", "in"))
    assert one.room
    heard_from(one, "d", 2)


def test_an_idle_out_link_makes_room_for_an_in_link_and_is_to_be_renewed_once() -> None:
    one = begun(replica_mb=1.5 * LAYOUT.d * 8 / 1e6)
    parcel(one, "b", 1)
    heard_from(one, "c", IDLE_ROUNDS + 2)
    assert one.replicas.link_to("b").h is None
    assert (one.evicted(), one.evicted()) == (("b",), ())


def test_an_idle_in_link_makes_room_and_its_sender_opens_it_anew() -> None:
    one = begun(replica_mb=1.5 * LAYOUT.d * 8 / 1e6)
    heard_from(one, "b", 1)
    heard_from(one, "c", IDLE_ROUNDS + 2)
    assert set(one.replicas.into) == {"c"}
    assert one.evicted() == ()
    with pytest.raises(UnknownBaseError, match="open the link anew"):
        one.receive("b", Message(Key(0, 40), DIFFERENCE, INT8(moved(2)), 0.5), 0.0)


def test_links_that_lack_memory_are_known_at_both_ends_until_they_are_over() -> None:
    short, other = begun(replica_mb=0.001), begun()
    message = parcel(short, "p-b", 0, u=moved(4))
    assert message.meaning == DEVIATION
    other.receive("p-a", message, 0.0)
    assert short.lacking == {("out", "p-b")} and other.lacking == {("in", "p-a")}
    other.on_links(LinkDown("p-a", "in"))
    short.on_links(LinkUp("p-b", "out", 2))
    assert short.lacking == other.lacking == frozenset()


def test_where_replicas_are_not_wanted_none_is_lacking() -> None:
    plain, other = node(replicas=False), node(replicas=False)
    for one in (plain, other):
        one.know(randoms(1, LAYOUT.d, 1)[0])
        one.begin(randoms(1, LAYOUT.d, 1)[0], 1.0)
    other.receive("p-a", parcel(plain, "p-b", 0, u=moved(4)), 0.0)
    assert plain.lacking == other.lacking == frozenset()
