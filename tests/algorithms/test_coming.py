"""D-PSGD mixes the last message of a round as it comes: to the bits that it would come to at once."""

from __future__ import annotations

import pytest
import torch

from peer.algorithms.base import Links
from peer.algorithms.d_psgd import BLOCK, DPSGD, Mean
from peer.compression.bodies import Dense, Layout
from peer.compression.codec import Message
from peer.events import Key

D = 2 * BLOCK + 1237
W = {"b": 0.2, "c": 0.3, "d": 0.25}


def vector(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def said(seed: int, key: Key, dtype: torch.dtype = torch.float32, meaning: int = DPSGD.MEANING) -> Message:
    return Message(key, meaning, Dense(vector(seed, dtype), came=True), delivery="latest")


def pushed(dtype: torch.dtype = torch.float32, *, lockstep: bool = True) -> DPSGD:
    """Round 0 of a node with three neighbors is pushed."""
    node = DPSGD(Layout((D,)), dtype, lockstep=lockstep)
    node.begin(torch.zeros(D, dtype=dtype), 1.0)
    node.step(vector(0, dtype), 0.1, Links(Key(), W, frozenset(W), 4, clear=frozenset(W)), 0.0)
    return node


def hear_b_and_c(*nodes: DPSGD) -> None:
    for node in nodes:
        for seed, src in enumerate("bc", 1):
            node.receive(src, said(seed, node.key, node.dtype), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stops", [(D,), (1, 63, 64, 65, 1000, BLOCK, BLOCK + 7, 2 * BLOCK + 1), (0, D - 1)])
def test_by_parts_the_mean_has_the_same_bits(dtype: torch.dtype, stops: tuple[int, ...]) -> None:
    at_once, by_parts = pushed(dtype), pushed(dtype)
    hear_b_and_c(at_once, by_parts)
    last = said(3, Key(), dtype)
    folding = by_parts.coming("d", last)
    assert folding is not None
    for stop in stops:
        folding.to(stop)
    by_parts.receive("d", last, 0.0)
    at_once.receive("d", said(3, Key(), dtype), 0.0)
    assert by_parts.ready()
    mixed = by_parts.mix()
    assert mixed.data_ptr() == last.body.dense().data_ptr(), "it takes the place of what came last"
    assert torch.equal(mixed, at_once.mix())


def test_it_is_begun_for_the_last_message_of_the_open_round_alone() -> None:
    node = pushed()
    assert node.coming("d", said(3, Key())) is None, "b and c are still to come"
    node.receive("b", said(1, Key()), 0.0)
    node.receive("c", node.nothing(Key()), 0.0)  # type: ignore[arg-type]  # this algorithm has a word for it
    assert node.coming("e", said(3, Key())) is None, "no neighbor"
    assert node.coming("d", said(3, Key(round=1))) is None, "of the next round"
    assert node.coming("d", said(3, Key(), meaning=2)) is None, "something else"
    assert node.coming("b", said(1, Key())) is None, "b's has come"
    folding = node.coming("d", said(3, Key()))
    assert folding is not None
    assert node.coming("d", said(3, Key())) is None, "one at a time"
    free = pushed(lockstep=False)
    for src in "bc":
        free.receive(src, said(1, Key()), 0.0)
    assert free.coming("d", said(3, Key())) is None, "its last message counts until the next one comes"


def test_who_says_that_nothing_comes_is_left_out() -> None:
    node, plain = pushed(), pushed()
    for one in (node, plain):
        one.receive("b", said(1, Key()), 0.0)
        one.receive("c", one.nothing(Key()), 0.0)  # type: ignore[arg-type]  # as above
    last = said(3, Key())
    folding = node.coming("d", last)
    assert folding is not None
    folding.to(D // 2)
    node.receive("d", last, 0.0)
    plain.receive("d", said(3, Key()), 0.0)
    assert torch.equal(node.mix(), plain.mix())


def test_what_does_not_become_whole_in_time_is_as_if_it_had_not_come() -> None:
    node, without = pushed(), pushed()
    hear_b_and_c(node, without)
    folding = node.coming("d", said(3, Key()))
    assert folding is not None
    folding.to(D // 2)
    mixed = node.mix()
    assert isinstance(folding, Mean) and folding.void
    assert folding.y.untyped_storage().nbytes() == 0, "else it would keep the model of a round that is over"
    folding.to(D)  # it goes on coming
    assert torch.equal(mixed, without.mix())
    assert torch.equal(node.estimate(), mixed)


def test_what_is_given_up_makes_room_for_what_is_sent_again() -> None:
    node, plain = pushed(), pushed()
    hear_b_and_c(node, plain)
    broken = node.coming("d", said(3, Key()))
    assert broken is not None
    broken.to(D // 2)
    broken.give_up()
    again = said(3, Key())
    folding = node.coming("d", again)
    assert folding is not None
    folding.to(D // 2)
    node.receive("d", again, 0.0)
    plain.receive("d", said(3, Key()), 0.0)
    assert torch.equal(node.mix(), plain.mix())
