"""Error feedback of sparse-push: it is the node's, not a link's, and no mass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.algorithms.base import Links, Message
from peer.algorithms.sparse_push import SparsePush
from peer.compression.bodies import Layout
from peer.events import Key, LinkDown, LinkUp

LAYOUT = Layout((8, 2))
Z = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0, 0.5, 0.25, 0.0, 1.0, -1.5], dtype=torch.float64)


def begun(weight: float = 1.0) -> SparsePush:
    made = make("sparse-push", {"gamma": "0.5"}, LAYOUT, torch.float64, "topk=25%")
    assert isinstance(made, SparsePush)
    made.know(torch.zeros_like(Z))
    made.begin(Z, weight)
    return made


def pushed(one: SparsePush, round_: int, *dsts: str) -> dict[str, Message]:
    links = Links(Key(0, round_), dict.fromkeys(dsts, 0.25), frozenset(), 3, 1.0, clear=frozenset(dsts))
    messages = one.step(torch.zeros_like(Z), 0.1, links, 0.0)
    one.mix()
    return messages


def push(one: SparsePush, round_: int, *dsts: str) -> None:
    pushed(one, round_, *dsts)


def test_what_was_not_sent_is_owed() -> None:
    one = begun()
    push(one, 0, "p-a")
    assert one.e.tolist() == [0, 0, 3, -2, 1, 0.5, 0.25, 0, 1, 0]  # two of the eight are sent, one of the two


def test_it_outlives_links_that_go_and_neighbors_that_come() -> None:
    one = begun()
    push(one, 0, "p-a", "p-b")
    owed, mass = one.e.clone(), one.mass()
    one.on_links(LinkDown("p-a", "out"))
    one.on_links(LinkDown("p-b", "in"))
    one.on_links(LinkUp("p-c", "out", 1))
    assert torch.equal(one.e, owed)
    assert torch.equal(one.mass()[0], mass[0])
    before = one.e.clone()
    push(one, 1, "p-c")
    assert before[2] != 0 and one.e[2] == 0, "now p-c is sent what is owed"


def test_of_a_parcel_that_comes_back_all_is_owed_as_before_it_went() -> None:
    one = begun()
    push(one, 0, "p-a")
    before, mass = one.e.clone(), one.mass()
    sent = pushed(one, 1, "p-b")
    assert not torch.equal(one.e, before)
    one.returned("p-b", sent["p-b"])
    assert torch.allclose(one.e, before, rtol=0, atol=1e-12)
    assert torch.allclose(one.mass()[0], mass[0], rtol=0, atol=1e-12)
    one.returned("p-b", sent["p-b"])
    assert torch.allclose(one.e, before, rtol=0, atol=1e-12), "once"


def test_of_two_parcels_the_one_that_comes_back_is_half_of_what_went() -> None:
    one = begun()
    owed = one.e.clone()
    sent = pushed(one, 0, "p-a", "p-b")
    after = one.e.clone()
    one.settled("p-a", sent["p-a"])
    one.returned("p-b", sent["p-b"])
    y = Z - 0.125 * (Z + owed - after)  # what went to p-a is gone for good
    assert torch.allclose(one.e, after + (Z - after - y) / 2, rtol=0, atol=1e-12)
    now = one.e.clone()
    one.returned("p-a", sent["p-a"])
    assert torch.equal(one.e, now), "what was taken is no more than taken"


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_it_is_kept_per_unit_of_weight_as_the_model_is(weight: float) -> None:
    """A node that resumes begins with weight 1: what it owes is to be in proportion to its x as before."""
    one, again = begun(weight), begun()
    push(one, 0, "p-a")
    again.restore(one.own())
    assert one.e.any()
    assert torch.allclose(again.e / again.w, one.e / one.w)


def test_with_nothing_owed_there_is_nothing_to_keep() -> None:
    one = begun()
    assert one.own() == {}
    one.restore({})
    assert not one.e.any()


def test_other_algorithms_have_nothing_of_their_own() -> None:
    for name in ("sgp", "difference-push", "relay-sum", "d-psgd"):
        other = make(name, {}, LAYOUT, torch.float64)
        other.know(torch.zeros_like(Z))
        other.begin(Z, 1.0)
        before: Tensor = other.estimate()
        other.restore(other.own())
        assert other.own() == {} and torch.equal(other.estimate(), before)
