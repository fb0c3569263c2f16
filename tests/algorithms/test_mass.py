"""The sums of x and w over nodes and parcels in flight change by local updates alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.swarm import F64, Graph, Swarm, exponential, random_out, randoms, ring, skewed
from peer.algorithms import make
from peer.algorithms.base import Links, Message
from peer.algorithms.push_sum import PushSum
from peer.compression.bodies import Layout
from peer.events import FINAL, Key

LAYOUT = Layout((30, 4, 6), (5, 1, 1))
KINDS: dict[str, tuple[str, dict[str, str], str]] = {
    "sgp": ("sgp", {}, ""),
    "sgp-int8": ("sgp", {}, "int8"),
    "sparse-push": ("sparse-push", {"reference": "zero"}, ""),
    "sparse-push-deviations": ("sparse-push", {"gamma": "0.3"}, "topk=10%,int8"),
    "difference-push": ("difference-push", {"bits": "0.5"}, ""),
    "sparse-push-turns": ("sparse-push", {}, "grouped=3,int4"),
    "sparse-push-signs": ("sparse-push", {}, "sign"),
    "difference-push-drawn": ("difference-push", {}, "randomk=30%,bf16"),
    "difference-push-factors": ("difference-push", {}, "lowrank=1"),
    "difference-push-no-replicas": ("difference-push", {"replicas": "off"}, ""),
}
PAPER = {"min-weight": "0", "overshoot": "1e9"}  # no guard: x += w̄ u and u = p w to the letter
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def node(kind: str, *, lockstep: bool = True, dtype: torch.dtype = F64) -> PushSum:
    name, options, compression = KINDS[kind]
    built = make(name, {**PAPER, **options}, LAYOUT, dtype, compression, lockstep=lockstep)
    assert isinstance(built, PushSum)
    return built


def swarm_of(
    kind: str, n: int, graph: Graph, *, lockstep: bool = True, late: float = 0.0, seed: int = 0
) -> Swarm:
    swarm = Swarm([node(kind, lockstep=lockstep) for _ in range(n)], LAYOUT, graph, seed, late)
    return swarm.begin(randoms(n, LAYOUT.d, 3)).links()


def assert_mass(swarm: Swarm, x: Tensor, w: float) -> None:
    found_x, found_w = swarm.mass()
    assert found_w == pytest.approx(w, rel=1e-9)
    torch.testing.assert_close(found_x, x, rtol=1e-9, atol=1e-9)


GRAPHS: list[Callable[[int], Graph]] = [
    ring,
    exponential,
    lambda n: ring(n, skewed(n)),
    lambda n: random_out(n, 2, seed=1),
]


@every_kind
@given(
    n=st.integers(3, 6),
    graph=st.sampled_from(GRAPHS),
    late=st.sampled_from([0.0, 0.3, 0.8]),
    lockstep=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=max(8, settings.default.max_examples // 100))
def test_sums_change_by_local_updates_alone(
    kind: str, n: int, graph: Callable[[int], Graph], late: float, lockstep: bool, seed: int
) -> None:
    swarm = swarm_of(kind, n, graph(n), lockstep=lockstep, late=late, seed=seed)
    x, w = swarm.mass()
    for t in range(10):
        U = [0.1 * u for u in randoms(n, LAYOUT.d, t)]
        swarm.exchange(U)
        x = x + sum(U)
        assert_mass(swarm, x, w)
    swarm.late = 0.0
    swarm.deliver(1.0)
    assert not swarm.flight
    assert_mass(swarm, x, w)


@every_kind
def test_float32_mass_is_kept_to_rounding(kind: str) -> None:
    swarm = Swarm([node(kind, dtype=torch.float32) for _ in range(5)], LAYOUT, ring(5), late=0.2)
    swarm.begin([model.float() for model in randoms(5, LAYOUT.d, 3)]).links()
    x, w = swarm.mass()
    for t in range(100):
        U = [0.01 * u.float() for u in randoms(5, LAYOUT.d, t)]
        swarm.exchange(U)
        x = x + sum(U)
    found, weight = swarm.mass()
    assert weight == pytest.approx(w, rel=1e-9)
    assert float((found - x).norm() / x.norm()) < 1e-5


@every_kind
def test_a_returned_parcel_restores_what_it_took(kind: str) -> None:
    swarm = swarm_of(kind, 4, exponential(4))
    for t in range(3):
        swarm.exchange(randoms(4, LAYOUT.d, t))
    first = swarm.nodes[0]
    x, w = first.mass()
    links = Links(Key(0, 3), {"1": 0.5}, frozenset(), 4, 1.0, frozenset({"1"}))
    (message,) = first.step(torch.zeros(LAYOUT.d, dtype=F64), 0.1, links, 0.0).values()
    assert first.w < w
    swarm.link(
        0, 1, swarm.nodes[1].bases, epoch=2
    )  # its receiver has a new life: news of that may come first
    first.returned("1", message)
    assert first.w == pytest.approx(w, rel=1e-12)
    torch.testing.assert_close(first.mass()[0], x, rtol=1e-12, atol=1e-12)
    swarm.exchange(randoms(4, LAYOUT.d, 9))  # and the link works on


@every_kind
def test_a_share_stays_home_while_its_link_is_not_clear(kind: str) -> None:
    one = node(kind)
    model = randoms(1, LAYOUT.d, 1)[0]
    one.know(model)
    one.begin(model, 1.0)
    u = torch.ones(LAYOUT.d, dtype=F64)
    assert one.step(u, 0.1, Links(Key(0, 1), {"1": 0.5}, frozenset(), 2, 1.0), 0.0) == {}
    assert one.w == 1.0
    assert torch.equal(one.x, model + u)


@every_kind
def test_local_updates_enter_times_the_mean_weight(kind: str) -> None:
    one = node(kind)
    one.know(torch.zeros(LAYOUT.d, dtype=F64))
    one.begin(torch.zeros(LAYOUT.d, dtype=F64), 0.25)
    u = randoms(1, LAYOUT.d, 4)[0]
    one.step(u, 0.1, Links(Key(0, 1), {}, frozenset(), 4, 0.25), 0.0)
    torch.testing.assert_close(one.mix(), u)


@every_kind
def test_handover_gives_everything_and_leaves_nothing(kind: str) -> None:
    swarm = swarm_of(kind, 3, ring(3), late=0.3)
    for t in range(4):
        swarm.exchange(randoms(3, LAYOUT.d, t))
    swarm.late = 0.0
    swarm.deliver(1.0)
    x, w = swarm.mass()
    leaver = swarm.nodes[2]
    mine, weight = leaver.mass()
    share = leaver.hand_over(leaver.key)
    assert (leaver.w, leaver.model) == (0.0, None)
    assert torch.equal(leaver.x, torch.zeros_like(leaver.x))
    assert share.weight == weight
    assert torch.equal(share.body.dense(), mine)
    swarm.take(2, 0, share)
    assert_mass(swarm, x, w)


@every_kind
def test_a_returned_handover_restores_the_node(kind: str) -> None:
    swarm = swarm_of(kind, 3, ring(3))
    swarm.exchange(randoms(3, LAYOUT.d, 0))
    leaver = swarm.nodes[2]
    x, w = leaver.mass()
    leaver.returned("0", leaver.hand_over(leaver.key))
    assert leaver.w == w
    assert torch.equal(leaver.x, x)


@every_kind
@pytest.mark.parametrize("phase", [0, FINAL])
def test_column_sums_stay_one(kind: str, phase: int) -> None:
    swarm = swarm_of(kind, 5, random_out(5, 3, seed=4))
    for _ in range(6):
        swarm.exchange([torch.zeros(LAYOUT.d, dtype=F64)] * 5, phase)
        assert float(swarm.w.sum()) == pytest.approx(5, rel=1e-12)
        assert float(swarm.w.min()) > 0


def test_what_went_out_and_came_in_is_not_changed_in_place() -> None:
    one = node("sgp")
    model = randoms(1, LAYOUT.d, 1)[0]
    kept = model.clone()
    one.begin(model, 1.0)
    z = one.estimate()
    share: Message = one.hand_over(Key())
    one.returned("1", share)
    one.step(torch.ones(LAYOUT.d, dtype=F64), 0.1, Links(Key(0, 1), {}, frozenset()), 0.0)
    assert torch.equal(model, kept)
    assert torch.equal(z, kept)
    assert torch.equal(share.body.dense(), kept)
