"""CHOCO-SGD: replicas that nobody has to hold, compressed differences, and the mean that they keep."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms.meeting import F64, Meeting, metropolis_of, still
from peer import catalogue
from peer.algorithms import make
from peer.algorithms.choco import ChocoSGD
from peer.algorithms.lossless import Lossless
from peer.compression.bodies import Dense, Layout, Portion, numbers_in
from peer.compression.compressor import compressor
from peer.errors import RemoteError
from reference.choco_sgd import choco_round
from reference.d_psgd import d_psgd_round

LAYOUT = Layout((24, 6, 10), (6, 1, 2))
TEXTS = ("topk=20%", "globaltopk=10%,int8", "randomk=20%", "grouped=4", "sign", "lowrank=1", "int8", "fp16")


def models(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return list(torch.randn(n, LAYOUT.d, generator=g, dtype=F64))


def meeting(n: int, text: str, spec: str = "ring", *, gamma: str = "auto", seed: int = 0) -> Meeting:
    nodes: dict[int, Lossless] = {}
    for i in range(n):
        node = make("choco-sgd", {"gamma": gamma}, LAYOUT, F64, text)
        assert isinstance(node, ChocoSGD)
        nodes[i] = node
    return Meeting(nodes, LAYOUT, spec, seed=seed, late=0.2).begin(models(n))


def drift(i: int, x: Tensor, t: int) -> Tensor:
    return 0.05 * (i + 1 - x)


def chocos(swarm: Meeting) -> list[ChocoSGD]:
    return [node for node in swarm.nodes.values() if isinstance(node, ChocoSGD)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("spec", "n"), [("ring", 5), ("grid", 6)])
def test_models_are_those_of_the_matrix_form_with_a_replica_of_every_model(
    spec: str, n: int, text: str
) -> None:
    """The first message of a generation is exact; replicas of whom one hears once, in any order."""
    swarm, W = meeting(n, text, spec), metropolis_of(spec, n)
    gamma, spoken = chocos(swarm)[0].gamma, compressor(
        catalogue.compression_of("choco-sgd", text), LAYOUT, F64
    )  # fmt: skip
    X, known = swarm.X, torch.zeros(n, LAYOUT.d, dtype=F64)
    for t, found in enumerate(swarm.run(8, drift)):
        U = torch.stack([drift(i, x, t) for i, x in enumerate(X)])

        def C(V: Tensor, t: int = t) -> Tensor:
            return torch.stack([spoken(v, t).dense() for v in V]) if t else V

        X, known = choco_round(X, U, known, W, gamma, C)
        torch.testing.assert_close(found, X, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.stack([node.x_hat for node in chocos(swarm)]), known)
    torch.testing.assert_close(torch.stack([node.s for node in chocos(swarm)]), W @ known)


@pytest.mark.parametrize("text", TEXTS)
def test_the_mean_is_kept_and_the_models_come_together(text: str) -> None:
    swarm = meeting(5, text, "complete")
    mean, spread = swarm.X.mean(0), float((swarm.X - swarm.X.mean(0)).norm())
    X = swarm.run(40, still)[-1]
    torch.testing.assert_close(X.mean(0), mean, rtol=1e-10, atol=1e-10)
    assert float((X - mean).norm()) < 0.5 * spread


def test_with_nothing_left_out_and_a_full_step_it_is_d_psgd() -> None:
    swarm, W = meeting(5, "fp32", gamma="1"), metropolis_of("ring", 5)
    X = swarm.X
    for t, found in enumerate(swarm.run(6, drift)):
        X = d_psgd_round(X, torch.stack([drift(i, x, t) for i, x in enumerate(X)]), W)
        torch.testing.assert_close(found, X, rtol=1e-10, atol=1e-10)


def test_a_new_graph_begins_with_whole_models_and_replicas_of_nobody() -> None:
    swarm = meeting(6, "topk=10%")
    swarm.run(5, drift)
    assert numbers_in(swarm.sent[-1][2].body)[0].count_nonzero() < LAYOUT.d / 5
    swarm.push(0, still)
    del swarm.nodes[3]
    mean = swarm.X.mean(0)
    swarm.new_generation()
    sent = len(swarm.sent)
    found = swarm.run(3, still)
    torch.testing.assert_close(found[-1].mean(0), mean, rtol=1e-10, atol=1e-10)
    first = [message for _, _, message in swarm.sent[sent:] if message.base == b"\0\0\0\0"]
    assert len(first) == 10 and all(isinstance(message.body, Dense) for message in first)


def test_what_is_no_vector_is_refused() -> None:
    swarm = meeting(3, "sign")
    swarm.push(1, still)
    portion = Portion(LAYOUT.d, torch.ones(3, dtype=F64), F64)
    with pytest.raises(RemoteError, match="choco-sgd sends one vector"):
        swarm.nodes[0].receive("1", replace(swarm.sent[-1][2], body=portion), 0.0)
