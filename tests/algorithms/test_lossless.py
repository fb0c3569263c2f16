"""Exchanges that are whole or not at all: late, returned and repeated messages, new generations, the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms.meeting import F64, Meeting, metropolis_of, still
from peer.algorithms.base import Message
from peer.algorithms.lossless import Lossless
from peer.compression.bodies import Body, Dense, Layout, Pair
from peer.errors import RemoteError, UnknownBaseError
from peer.events import FINAL, Key, PeerId
from reference.d_psgd import d_psgd_round

LAYOUT = Layout((4, 2))
D = LAYOUT.d


class Plain(Lossless):
    """D-PSGD, without its losses."""

    name = "plain"
    EXCHANGE = 99

    def compose(self, u: Tensor, lr: float) -> Body:
        self.y = self.estimate() + u
        return Dense(self.y)

    def finish(self, heard: Mapping[PeerId, Body]) -> Tensor:
        return self.gossip(self.y, {j: body.dense() for j, body in heard.items()})


def models(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return list(torch.randn(n, D, generator=g, dtype=F64))


def meeting(n: int, spec: str = "ring", *, seed: int = 0, late: float = 0.0) -> Meeting:
    nodes: dict[int, Lossless] = {i: Plain(LAYOUT, F64) for i in range(n)}
    swarm = Meeting(nodes, LAYOUT, spec, seed=seed, late=late)
    swarm.begin(models(n))
    return swarm


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def drift(i: int, x: Tensor, t: int) -> Tensor:
    return 0.1 * (i + 1 - x) / (t + 1)


@pytest.mark.parametrize(
    ("n", "spec", "late"),
    [(1, "ring", 0.0), (2, "ring", 0.3), (6, "ring", 0.0), (6, "ring", 0.4), (7, "grid", 0.3),
     (8, "exponential", 0.3), (5, "complete", 0.3), (9, "binary-tree", 0.3)],
)  # fmt: skip
def test_exchanges_are_those_of_the_matrix_form_however_late_messages_are(
    n: int, spec: str, late: float
) -> None:
    for seed in range(3):
        swarm = meeting(n, spec, seed=seed, late=late)
        X, W = swarm.X, metropolis_of(spec, n)
        found = swarm.run(12, drift)
        assert len(found) == 12
        for t, after in enumerate(found):
            X = d_psgd_round(X, torch.stack([drift(i, x, t) for i, x in enumerate(X)]), W)
            same(after, X)


def test_a_round_that_is_closed_without_a_message_finishes_nothing_and_the_next_takes_no_local_steps() -> (
    None
):
    swarm = meeting(3)
    one, x = swarm.nodes[0], swarm.X[0]
    sent = swarm.push(0, drift)
    assert set(sent) == {"1", "2"} and not one.ready()
    same(one.mix(), x)
    assert one.still
    swarm.round[0] += 1
    assert swarm.push(0, drift) == {}, "what is sent is sent once"
    swarm.push(1, drift)
    swarm.push(2, drift)
    for _ in range(2):
        swarm.take(0)
    assert one.heard == {"1", "2"} and one.ready()
    expected = (x + drift(0, x, 0) + sum(m + drift(i + 1, m, 0) for i, m in enumerate(swarm.X[1:]))) / 3
    same(one.mix(), expected)
    assert not one.still


def test_nobody_goes_on_without_a_message_and_when_it_comes_the_mean_is_what_it_was() -> None:
    swarm = meeting(6, late=0.5)
    before = swarm.X.mean(0)
    swarm.broken.add((0, 1))
    assert len(swarm.run(4, still)) == 0, "1 waits, and those beside it for 1"
    assert swarm.done[1] == 0 and max(swarm.done.values()) <= 3, swarm.done
    swarm.broken.clear()
    ahead = max(swarm.done.values())
    while min(swarm.done.values()) < ahead:
        behind = min(swarm.done, key=swarm.done.__getitem__)
        swarm.take(behind) or swarm.act(behind, True, still)
        for i in swarm.nodes:
            swarm.take(i)
            if swarm.done[i] < ahead:
                swarm.act(i, True, still)
    same(swarm.X.mean(0), before)


def test_what_comes_back_goes_again_even_if_its_exchange_is_finished_here() -> None:
    swarm = meeting(3)
    start = swarm.X
    for i in range(3):
        swarm.push(i, still)
    swarm.take(0), swarm.take(0), swarm.take(2), swarm.take(2)
    swarm.act(0, True, still)
    swarm.act(2, True, still)
    assert swarm.done == {0: 1, 1: 0, 2: 1}, "0 is done with what 1 has not got yet"
    swarm.push(0, still)
    swarm.give_back(0, 1)
    swarm.nodes[0].mix()
    swarm.round[0] += 1
    (again,) = swarm.push(0, still).values()
    assert (again.key.round, again.base) == (2, b"\0\0\0\0"), "first what was first"
    swarm.nodes[0].mix()
    swarm.round[0] += 1
    (after,) = swarm.push(0, still).values()
    assert after.base == b"\1\0\0\0"
    swarm.run(1, still)
    assert swarm.done[1] == 1
    same(swarm.X[1], start.mean(0))


def test_what_has_come_twice_counts_once() -> None:
    swarm, twin = meeting(5), meeting(5)
    for _ in range(4):
        for (i, j), line in list(swarm.flight.items()):
            for message in list(line):
                swarm.nodes[j].receive(str(i), message, 0.0)
        same(swarm.run(1, drift)[0], twin.run(1, drift)[0])


def test_a_new_generation_drops_what_is_not_whole_and_finishes_what_is() -> None:
    swarm = meeting(4)
    x = swarm.X
    for i in range(4):
        swarm.push(i, still)
    for _ in range(2):
        swarm.take(0)
    swarm.take(1)
    old = swarm.flight[0, 1][0] if swarm.flight[0, 1] else swarm.flight[2, 1][0]
    swarm.new_generation()
    same(swarm.nodes[0].estimate(), (metropolis_of("ring", 4) @ x)[0])
    same(swarm.X[1:], x[1:])
    assert not any(node.still for node in swarm.nodes.values())
    swarm.nodes[1].receive("0", old, 0.0)
    before = swarm.X
    same(swarm.run(3, still)[-1], metropolis_of("ring", 4).matrix_power(3) @ before)


def test_a_message_of_the_next_generation_waits_for_it() -> None:
    swarm, early = meeting(3), meeting(3)
    early.generation = 2
    for i in (1, 2):
        for dst, message in early.push(i, still).items():
            if dst == "0":
                swarm.nodes[0].receive(str(i), message, 0.0)
    assert swarm.nodes[0].heard == frozenset()
    swarm.generation = 2
    swarm.push(0, still)
    assert swarm.nodes[0].ready()
    same(swarm.nodes[0].mix(), swarm.X[1:].sum(0) / 3 + models(3)[0] / 3)


def test_the_final_round_is_the_exact_mean_of_what_each_has_finished() -> None:
    swarm = meeting(5)
    swarm.run(2, drift)
    for i in (0, 1, 2):
        swarm.push(i, drift)
    mean = swarm.X.mean(0)
    same(swarm.average(), mean.expand(5, D))
    assert not any(node.still for node in swarm.nodes.values())


def test_who_leaves_hands_over_what_it_has_finished() -> None:
    swarm = meeting(3)
    swarm.run(1, drift)
    x = swarm.X[0]
    swarm.push(0, drift)
    estate = swarm.nodes[0].hand_over(swarm.links(0).key)
    same(estate.body.dense(), x)
    assert swarm.nodes[0].model is None
    swarm.give_back(0, 1)


def message(**changes: object) -> Message:
    plain = Message(Key(1, 0), 99, Dense(torch.ones(D, dtype=F64)), base=b"\0\0\0\0")
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (message(delivery="latest"), "as if it could be lost"),
        (message(base=b""), "has a number"),
        (message(base=b"\0" * 5), "has a number"),
        (message(key=Key(1, 0, FINAL)), "no exchange is part of a final round"),
        (message(body=Pair(Dense(torch.ones(D)), Dense(torch.ones(D)))), "plain sends one vector"),
        (message(meaning=98), "plain knows no meaning 98"),
        (message(body=Dense(torch.full((D,), 1e300, dtype=F64))), "values of at most"),
    ],
)
def test_what_is_no_part_of_an_exchange_is_refused(wrong: Message, says: str) -> None:
    swarm = meeting(3)
    swarm.push(0, still)
    with pytest.raises(RemoteError, match=says):
        swarm.nodes[0].receive("1", wrong, 0.0)
    assert swarm.nodes[0].heard == frozenset()
    swarm.nodes[0].receive("1", message(), 0.0)
    assert swarm.nodes[0].heard == {"1"}


def test_no_neighbor_fills_the_memory() -> None:
    swarm = meeting(3)
    swarm.push(0, still)
    for number in range(4):
        swarm.nodes[0].receive("1", message(base=bytes((number, 0, 0, 0))), 0.0)
    with pytest.raises(RemoteError, match="4 are still to be used"):
        swarm.nodes[0].receive("1", message(base=b"\4\0\0\0"), 0.0)


def test_who_has_no_model_takes_no_part() -> None:
    with pytest.raises(UnknownBaseError, match="no model here yet"):
        Plain(LAYOUT, F64).receive("1", message(), 0.0)
