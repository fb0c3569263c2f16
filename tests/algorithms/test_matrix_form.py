"""Message passing, through the codec and in any order, equals the matrix form round by round."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from algorithms.swarm import F64, Graph, Swarm, exponential, random_out, randoms, ring, skewed
from peer.algorithms.difference_push import Budget, DifferencePush
from peer.algorithms.push_sum import OFF, PushSum
from peer.algorithms.sgp import SGP
from peer.algorithms.sparse_push import Reference, SparsePush
from peer.compression.bodies import Body, Layout, Sparse
from peer.compression.compressor import compressor
from peer.compression.history import History, recalling
from peer.compression.sparsify import top_k
from peer.events import FINAL, TRAIN
from peer.grammar import Compression
from reference.difference_push import difference_push_round
from reference.sgp import sgp_round
from reference.sparse_push import deviation_round, scsp_round, sparse_push_round

LAYOUT = Layout((150, 40, 60))
ROUNDS = 12
INT8 = compressor(Compression(values="int8"), LAYOUT, F64)
GRAPHS = [
    pytest.param(5, ring(5), id="ring5"),
    pytest.param(5, ring(5, skewed(5)), id="ring5-skewed"),
    pytest.param(8, exponential(8), id="exp8"),
    pytest.param(8, exponential(8, skewed(8)), id="exp8-skewed"),
    pytest.param(7, random_out(7, 3, seed=2), id="random7-3out"),
]


def top_k_exactly(v: Tensor, turn: int = 0) -> Body:
    """Top-k with the values kept as they are, in float64."""
    indices = top_k(v, LAYOUT, 0.1)
    return Sparse(LAYOUT.d, indices, v[indices], F64)


def quantizer(v: Tensor, bits: float, history: History | None) -> Body:
    return recalling(LAYOUT, v, bits, history)


def replica_at(sender: DifferencePush, j: int) -> Tensor:
    h = sender.replicas.link_to(str(j)).h
    assert h is not None
    return h


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def updates(n: int, t: int) -> list[Tensor]:
    return [0.1 * u for u in randoms(n, LAYOUT.d, 1000 + t)]


def begun(nodes: Sequence[PushSum], graph: Graph) -> Swarm:
    return Swarm(list(nodes), LAYOUT, graph).begin(randoms(len(nodes), LAYOUT.d, 5)).links()


@pytest.mark.parametrize(("n", "graph"), GRAPHS)
@pytest.mark.parametrize("values", [None, "fp32", "fp16", "bf16", "int8", "int4"])
def test_sgp_equals_its_matrix_form(n: int, graph: Graph, values: str | None) -> None:
    Q = None if values is None else compressor(Compression(values=values), LAYOUT, F64)
    swarm = begun([SGP(LAYOUT, F64, Q, guard=OFF) for _ in range(n)], graph)
    X, w = swarm.X, swarm.w
    for t in range(ROUNDS):
        U = updates(n, t)
        X, w = sgp_round(X, w, torch.stack(U), graph(t), lambda v: v if Q is None else Q(v).dense())
        Z = swarm.exchange(U)
        close(swarm.X, X)
        close(swarm.w, w)
        close(torch.stack(Z), X / w[:, None])


@pytest.mark.parametrize(("n", "graph"), GRAPHS)
def test_sparse_push_equals_its_matrix_form(n: int, graph: Graph) -> None:
    gamma = 0.15
    nodes = [SparsePush(LAYOUT, F64, top_k_exactly, gamma, guard=OFF) for _ in range(n)]
    swarm = begun(nodes, graph)
    X, w, E = swarm.X, swarm.w, torch.zeros_like(swarm.X)
    for t in range(ROUNDS):
        U = updates(n, t)
        X, w, E = sparse_push_round(
            X, w, E, torch.stack(U), graph(t), gamma, lambda v: top_k_exactly(v).dense()
        )
        swarm.exchange(U)
        close(swarm.X, X)
        close(swarm.w, w)
        close(torch.stack([node.e for node in nodes]), E)


@pytest.mark.parametrize(("n", "graph"), GRAPHS)
def test_sparse_push_on_deviations_equals_its_matrix_form(n: int, graph: Graph) -> None:
    """As the command line makes it: top-k of what differs from the initial model."""
    gamma = 0.15
    nodes = [SparsePush(LAYOUT, F64, top_k_exactly, gamma, reference="initial", guard=OFF) for _ in range(n)]
    swarm = begun(nodes, graph)
    X, w, E = swarm.X, swarm.w, torch.zeros_like(swarm.X)
    x0 = X[0] / w[0]
    for t in range(ROUNDS):
        U = updates(n, t)
        X, w, E = deviation_round(
            X, w, E, torch.stack(U), graph(t), gamma, lambda v: top_k_exactly(v).dense(), x0
        )
        swarm.exchange(U)
        close(swarm.X, X)
        close(swarm.w, w)


@pytest.mark.parametrize(("n", "graph"), GRAPHS)
@pytest.mark.parametrize("reference", ["zero", "initial"])
def test_scsp_ends_with_push_sum_on_whole_models(n: int, graph: Graph, reference: Reference) -> None:
    nodes = [SparsePush(LAYOUT, F64, top_k_exactly, 0.15, reference=reference, guard=OFF) for _ in range(n)]
    swarm = begun(nodes, graph)
    for t in range(4):
        swarm.exchange(updates(n, t))
    X, w, owed = swarm.X, swarm.w, [node.e for node in nodes]
    nothing = [torch.zeros(LAYOUT.d, dtype=F64)] * n
    for t in range(4, 4 + ROUNDS):
        X, w = scsp_round(X, w, graph(t))
        Z = swarm.exchange(nothing, FINAL)
        close(swarm.X, X)
        close(swarm.w, w)
        close(torch.stack(Z), X / w[:, None])
    assert all(torch.equal(node.e, e) for node, e in zip(nodes, owed, strict=True))


@pytest.mark.parametrize(("n", "graph"), GRAPHS)
@pytest.mark.parametrize(("bits", "phase"), [(1.0, TRAIN), (2.0, FINAL), (0.5, TRAIN)])
def test_difference_push_equals_its_matrix_form(n: int, graph: Graph, bits: float, phase: int) -> None:
    budget = Budget(R=bits, final=bits)
    nodes = [DifferencePush(LAYOUT, F64, quantizer, INT8, budget, guard=OFF) for _ in range(n)]
    swarm = begun(nodes, graph)
    X, w = swarm.X, swarm.w
    H = X[0].expand(n, n, -1).clone()  # every link opens with the initial model as its base
    for t in range(ROUNDS):
        U = updates(n, t)
        X, w, H = difference_push_round(
            X, w, H, torch.stack(U), graph(t), lambda v: quantizer(v, bits, None).dense()
        )
        swarm.exchange(U, phase)
        close(swarm.X, X)
        close(swarm.w, w)
        for j, node in enumerate(nodes):
            for i, link in node.replicas.into.items():
                close(link.h, H[j, int(i)])
                assert torch.equal(link.h, replica_at(nodes[int(i)], j)), "both ends hold the same bits"
