"""Every algorithm with every compression it can work with."""

from __future__ import annotations

import pytest
import torch

from algorithms.quadratics import D, Quadratics, error, spread, start, train
from algorithms.swarm import F64, Swarm, exponential, randoms, ring
from algorithms.trees import Grove, double_tree, heap
from compression.specs import WORDS
from peer import catalogue
from peer.algorithms import make
from peer.algorithms.base import Links
from peer.algorithms.push_sum import PushSum
from peer.algorithms.sparse_push import SparsePush
from peer.algorithms.whole_model import WholeModel
from peer.compression.bodies import Dense, Layout, LowRank, Quantized, Sparse, Strided
from peer.compression.compressor import compressor
from peer.compression.sparsify import group_of
from peer.errors import UsageError
from peer.events import FINAL, TRAIN, Key, LinkUp

LAYOUT = Layout((60, 7, 33), (6, 1, 3))
DIRECTED = ["sgp", "sparse-push", "difference-push"]
WHOLE = ["relay-sum", "relay-sum-grad", "d-psgd"]


def pairs(names: list[str]) -> list[tuple[str, str]]:
    return [(name, text) for name in names for text in WORDS if can(name, text)]


def can(name: str, text: str) -> bool:
    try:
        catalogue.compression_of(name, text)
    except UsageError:
        return False
    return True


def swarm_of(name: str, text: str, n: int, *, late: float = 0.0, dtype: torch.dtype = F64) -> Swarm:
    nodes = [make(name, {"min-weight": "0", "overshoot": "1e9"}, LAYOUT, dtype, text) for _ in range(n)]
    swarm = Swarm([one for one in nodes if isinstance(one, PushSum)], LAYOUT, exponential(n), 1, late)
    return swarm.begin([model.to(dtype) for model in randoms(n, LAYOUT.d, 3)]).links()


def test_each_algorithm_has_what_it_is_said_to_have() -> None:
    found = {name: {text for text in WORDS if can(name, text)} for name in catalogue.ALGORITHMS}
    dense = {"none", "fp32", "fp16", "bf16", "int8", "int4", "auto"}
    for name in ("sgp", *WHOLE):
        assert found[name] == dense
    assert found["a2cid2"] == found["ad-psgd"] == dense - {"auto"}
    assert found["difference-push"] == set(WORDS) - {"none"}
    assert found["sparse-push"] == set(WORDS) - dense - {"bits=1"}


@pytest.mark.parametrize(("name", "text"), pairs(DIRECTED))
def test_the_sums_change_by_local_updates_alone(name: str, text: str) -> None:
    swarm = swarm_of(name, text, 4, late=0.3)
    x, w = swarm.mass()
    for t in range(4):
        U = [0.1 * u for u in randoms(4, LAYOUT.d, t)]
        swarm.exchange(U)
        x = x + sum(U)
        found, weight = swarm.mass()
        assert weight == pytest.approx(w, rel=1e-9)
        torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("text", [text for _, text in pairs(["sparse-push"])])
def test_what_is_sent_and_what_is_owed_are_what_was_to_be_sent(text: str, dtype: torch.dtype) -> None:
    """Error feedback: with s = x + e, e becomes s - q, and q is what debit and credit are made of."""
    swarm = swarm_of("sparse-push", text, 2, dtype=dtype)
    swarm.graph = ring(2)
    zero, one, other = torch.zeros(LAYOUT.d, dtype=dtype), swarm.nodes[0], swarm.nodes[1]
    assert isinstance(one, SparsePush)
    eps = 64 * torch.finfo(dtype).eps
    for _ in range(4):
        s, before, there = one.x + one.e, one.x.clone(), other.x.clone()
        swarm.exchange([zero, zero])
        q = s - one.e
        sent = compressor(catalogue.compression_of("sparse-push", text), LAYOUT, dtype)(
            one.gamma * 0.5 * s, swarm.round - 1
        ).dense()
        torch.testing.assert_close(sent, one.gamma * 0.5 * q, rtol=eps, atol=eps)
        torch.testing.assert_close(before + there, one.x + other.x, rtol=eps, atol=eps)
        assert bool(sent.any())


@pytest.mark.parametrize(("name", "text"), pairs(WHOLE))
def test_whole_models_travel_in_every_dense_type(name: str, text: str) -> None:
    n = 7
    graphs = double_tree(n) if name == "relay-sum" else [heap(n)]
    nodes = [make(name, {}, LAYOUT, F64, text) for _ in range(n)]
    swarm = Grove([one for one in nodes if isinstance(one, WholeModel)], LAYOUT, graphs)
    models = randoms(n, LAYOUT.d, 5) if name != "relay-sum-grad" else [torch.ones(LAYOUT.d, dtype=F64)] * n
    swarm.begin(models)
    zero = torch.zeros(LAYOUT.d, dtype=F64)
    X = swarm.run(4, lambda i, x, t: zero)[-1]
    assert bool(torch.isfinite(X).all())
    assert float((X.mean(0) - torch.stack(models).mean(0)).abs().max()) < 1.5


CONVERGING = {
    "sparse-push": [
        *("topk=20%,int4", "globaltopk=20%", "randomk=20%,bf16", "grouped=4,sign", "sign"),
        *("lowrank=1", "lowrank=1,int4"),
    ],
    "difference-push": ["int4", "sign", "topk=20%", "randomk=20%,int8", "grouped=4", "lowrank=1"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in CONVERGING for text in CONVERGING[name]])
def test_training_with_the_default_consensus_step_comes_near_the_minimum(name: str, text: str) -> None:
    n, layout = 5, Layout((D,), (4,))
    problem = Quadratics.draw(n)
    nodes = [make(name, {}, layout, F64, text) for _ in range(n)]
    swarm = Swarm([one for one in nodes if isinstance(one, PushSum)], layout, ring(n))
    Z = train(swarm.begin([start()] * n).links(), problem, 100)
    assert error(Z, problem) < 0.5, f"{error(start()[None], problem)} at the start"
    assert spread(Z) < 2.5


@pytest.mark.parametrize(
    ("text", "kind"),
    [("topk=20%,int4", Sparse), ("grouped=4", Strided), ("sign", Dense), ("lowrank=1", LowRank)],
)
def test_final_rounds_and_links_without_replicas_keep_the_quantizer(text: str, kind: type) -> None:
    model, zero = randoms(1, LAYOUT.d, 1)[0], torch.zeros(LAYOUT.d, dtype=F64)
    for replicas, phase, found in (("on", TRAIN, kind), ("on", FINAL, Quantized), ("off", TRAIN, Quantized)):
        one = make("difference-push", {"replicas": replicas}, LAYOUT, F64, text)
        one.know(zero)
        one.begin(model, 1.0)
        one.on_links(LinkUp("b", "out", 1, one.bases))
        links = Links(Key(0, 1, phase), {"b": 0.5}, frozenset(), 2, 1.0, frozenset({"b"}))
        message = one.step(zero, 0.1, links, 0.0)["b"]
        assert type(message.body) is found
        if text == "grouped=4" and found is Strided:
            assert isinstance(message.body, Strided) and message.body.start == group_of(1, 4)
