"""What an algorithm holds is seen whole, whichever it is: a change of any of it is noticed."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from badinput.algorithms import ALGORITHMS, Receiving
from badinput.holding import Original, held
from peer.compression.bodies import Layout


class Open:
    def __init__(self, one: object) -> None:
        self.one, self.twice = one, lambda: one


@dataclass(frozen=True, slots=True)
class Slotted:
    one: object
    other: int = 1


class Further(Slotted):  # has both
    def __init__(self, one: object) -> None:
        super().__init__(0)
        vars(self)["added"] = one


WAYS = [
    lambda one: one, lambda one: [0, one], lambda one: (one,), lambda one: deque([one]), lambda one: {1: one},
    lambda one: MappingProxyType({1: one}), Open, Slotted, Further, lambda one: Open([Slotted({2: one})]),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2), (None, 0), ("a", "b"), (b"a", b"b"), (int, float), (0.5, 0.25),
        (torch.tensor([0.0]), torch.tensor([-0.0])), (torch.zeros(1), torch.zeros(1, dtype=torch.float64)),
        (torch.ones(2, dtype=torch.bfloat16), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)),
        (np.array([1, 2]), np.array([1, 3])), ({1, 2}, {1, 3}), (frozenset("a"), frozenset()), ([1], [1, 1]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_differs_is_told_apart_wherever_it_lies(one: object, other: object, way: Any) -> None:
    assert held(way(one)) == held(way(one))
    assert held(way(one)) != held(way(other))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_whatever_number_changes_in_an_algorithm_is_noticed(name: str) -> None:
    for node in Receiving(*ALGORITHMS[name]).fresh:
        before, found = held(node), list(numbers(node))
        assert any(len(one) for one in found)
        for one in found:
            for at in {0, len(one) - 1} if len(one) else ():
                one[at] ^= 1
                assert held(node) != before
                one[at] ^= 1
        assert held(node) == before


def numbers(of: object) -> Iterator[Any]:
    """The bytes of all tensors and arrays that the garbage collector finds in an object of ours. What is
    called, or is the same in all of them, is no part of it."""
    seen, left = set[int](), [of]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type | Layout) or callable(value):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value.reshape(-1).view(torch.uint8).numpy()
        elif isinstance(value, np.ndarray):
            yield value.reshape(-1).view(np.uint8)
        elif type(value).__module__.startswith("peer.") or isinstance(value, dict | list | tuple | deque):
            left += gc.get_referents(value)


def test_copies_are_alike_and_have_memory_of_their_own() -> None:
    links = {"a": 0.5}
    value = Slotted([torch.ones(3), links, {"b": torch.zeros(2)}])
    original = Original(value, links)
    first, second = original.copy(), original.copy()
    assert held(first) == held(second) == held(value)
    assert first.one[1] is links
    first.one[0][1] = 5
    first.one[2]["c"] = 1
    assert held(first) != held(second) == held(value)


def test_what_shares_memory_is_not_copied_apart() -> None:
    both = torch.ones(3)
    with pytest.raises(AssertionError, match="in the same memory"):
        Original([both, both[1:]])
