"""Trajectories of an independent numpy program, which follows the authors' own code to 2e-14.

power_gossip.json holds models of five nodes on a ring after some calls: two matrices each, at rank 1 or 2
(factored there whatever their size), s iterations a call, warm or cold; and with local steps of quadratics.
Its random numbers are replayed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.edges import F64, Edges
from peer.algorithms import factors
from peer.algorithms.factors import Doubles, Draws
from peer.algorithms.power_gossip import PowerGossip
from peer.compression.bodies import Layout
from reference.power_gossip import Edge, round_of

FOUND: dict[str, Any] = json.loads(Path(__file__).with_name("power_gossip.json").read_text())


def splitmix(seed: int, count: int) -> Doubles:
    """Numbers from -1 to 1 (Steele, Lea, Flood 2014), one stream."""
    x = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1


@dataclass(frozen=True)
class Replayed(Draws):
    """All P, all Q, and with a cold start what each iteration from `first` on begins with, of one stream."""

    shapes: tuple[tuple[int, int], ...] = ()
    rank: int = 1
    first: int = 1

    def factor(self, it: int, which: int, length: int, rank: int) -> Doubles:
        P, Q = ([min(m, k, self.rank) * (m, k)[side] for m, k in self.shapes] for side in (0, 1))
        sizes = [P, Q] + [Q if one % 2 else P for one in range(self.first, it + 1) if not self.warm]
        chosen = it % 2 if self.warm else len(sizes) - 1
        begins = sum(map(sum, sizes[:chosen])) + sum(sizes[chosen][:which])
        seed = FOUND["edge_seed"] * 1000003 + self.lo * 1009 + self.hi
        return splitmix(seed, begins + length * rank)[begins:].reshape(length, rank)


class Replaying(PowerGossip):
    shapes: tuple[tuple[int, int], ...]
    rank: int

    def _draws(self, lo: int, hi: int, number: int) -> Draws:
        return Replayed(self.salt, lo, hi, number, self.warm, self.shapes, self.rank, self.s)


def edges_of(shapes: list[list[int]], words: str, seed: int = 0) -> Edges:
    """words: as in "r1 s2 g1.2 cold"."""
    rank, s, g, start = words.split()
    layout = Layout(tuple(m * k for m, k in shapes), tuple(m for m, _ in shapes))
    nodes = []
    for _ in range(5):
        node = Replaying(
            layout,
            F64,
            rank=int(rank[1:]),
            iterations=int(s[1:]),
            diffusion=float(g[1:]),
            warm=start == "warm",
        )
        node.shapes, node.rank = tuple((m, k) for m, k in shapes), int(rank[1:])
        nodes.append(node)
    return Edges(list(nodes), layout, seed=seed)


@pytest.fixture(autouse=True)
def _all_matrices_are_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "factored", lambda shape, rank: True)


@pytest.mark.parametrize(("words", "seed"), [*((words, 0) for words in FOUND["runs"]), ("r1 s3 g1 warm", 1)])
def test_models_are_those_of_the_oracle(words: str, seed: int) -> None:
    found = FOUND["runs"][words]
    x0 = torch.tensor(FOUND["x0"], dtype=F64)
    models = edges_of(FOUND["shapes"], words, seed).begin(list(x0)).run(40)
    torch.testing.assert_close(models[0], x0, rtol=0, atol=0)
    for call, expected in found["models"].items():
        torch.testing.assert_close(
            models[int(call) - 1], torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10
        )
    spread = [float(((x - x.mean(0)) ** 2).sum() / 5) for x in models[:8]]
    assert spread == pytest.approx(found["spread"][1:9], rel=1e-9)


@pytest.mark.parametrize("words", list(FOUND["runs"]))
def test_as_many_numbers_travel_as_the_oracle_counts(words: str) -> None:
    swarm = edges_of(FOUND["shapes"], words).begin(list(torch.tensor(FOUND["x0"], dtype=F64)))
    swarm.run(5)
    sent = [message for i, j, message in swarm.sent if (i, j) == (0, 1)]
    assert (
        sum(getattr(one.body, "values", torch.empty(0)).numel() for one in sent)
        == (FOUND["runs"][words]["floats_after_5"])
    )


def test_training_is_that_of_the_oracle() -> None:
    """The gradient is taken at the model before the gossip, and added after it."""
    found = FOUND["training"]
    B = torch.tensor(found["minimisers"], dtype=F64)
    swarm = edges_of(found["shapes"], "r1 s2 g1 warm").begin([torch.zeros(12, dtype=F64)] * 5)
    models = swarm.run(5, lambda i, x, t: -found["lr"] * (x - B[i]))
    for call, expected in found["models"].items():
        torch.testing.assert_close(
            models[int(call) - 1], torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("words", list(FOUND["runs"]))
def test_messages_come_to_what_the_matrix_form_does(words: str) -> None:
    x0 = torch.tensor(FOUND["x0"], dtype=F64)
    swarm = edges_of(FOUND["shapes"], words).begin(list(x0))
    models, node = swarm.run(12), swarm.nodes[0]
    assert isinstance(node, Replaying)
    W = torch.tensor(
        [[1 / 3 if (i - j) % 5 in (0, 1, 4) else 0.0 for j in range(5)] for i in range(5)], dtype=F64
    )
    edges = [Edge(lo, hi, node._draws(lo, hi, 0)) for lo, hi in ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4))]
    X = x0.split(12, dim=1)
    X = [one.view(5, m, k) for one, (m, k) in zip(X, node.shapes, strict=True)]
    for t, expected in enumerate(models):
        X = round_of(X, edges, W, t, node.s, node.rank, node.g, warm=node.warm)
        torch.testing.assert_close(
            torch.cat([one.flatten(1) for one in X], dim=1), expected, rtol=0, atol=1e-10
        )
