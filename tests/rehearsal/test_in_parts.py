"""Sessions whose members average a model in parts: all are equal, and go on without whoever goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Rehearsal, Weather, quadratics

D, N = 20, 6
LAYOUT = Layout((16, 4))
MINIMISERS, _ = quadratics(N, D, seed=3)
X0 = torch.full((D,), -20.0, dtype=torch.float64)


def together(rounds: int = 0, weather: Weather | None = None, parts: str = "on") -> Rehearsal:
    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        algorithm = make("all-reduce", {"parts": parts}, LAYOUT, torch.float64)
        return Exchange(algorithm, LAYOUT, X0, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -0.05 * (z - MINIMISERS[int(peer[1:])])

    terms = Terms("complete", 0, rounds=rounds, graph="undirected")
    r = Rehearsal(terms, make_exchange, train, weather=weather)
    for i in range(N):
        r.add(f"p{i}", founder=True)
    r.run(20.0, until=lambda: are_one(r, N))
    assert are_one(r, N)
    return r


def are_one(r: Rehearsal, n: int) -> bool:
    found = {d.node.key.generation for d in r.alive()}
    views = [d.node.generations.current for d in r.alive() if d.node.generations is not None]
    return len(found) == 1 and 0 not in found and all(v is not None and len(v.view) == n for v in views)


def spread(r: Rehearsal) -> float:
    x = torch.stack([d.exchange.estimate() for d in r.alive()])
    return float((x - x.mean(0)).norm(dim=1).max())


def error(r: Rehearsal, places: list[int]) -> float:
    best = MINIMISERS[places].mean(0)
    return max(float((d.exchange.estimate() - best).norm()) for d in r.alive())


def without(r: Rehearsal, since: float = 0.0) -> list[str]:
    return [
        str(note.fields["peers"]) for at, _, note in r.notes if note.text == "closes without" and at > since
    ]


@pytest.mark.parametrize("bandwidth_bps", [0.0, 4000.0])
def test_a_bounded_session_hears_everybody_and_ends_with_one_model(bandwidth_bps: float) -> None:
    weather = Weather(latency_s=(0.03, 0.05), bandwidth_bps=bandwidth_bps) if bandwidth_bps else None
    r = together(rounds=60, weather=weather)
    since = r.now + 15.0
    r.run(300.0)
    devices = list(r.devices.values())
    assert {d.left for d in devices} == {"finished"}
    assert {d.node.rounds.alone_total for d in devices} == {0}
    assert not without(r, since)
    x = torch.stack([d.exchange.estimate() for d in devices])
    assert float((x - x[0]).norm(dim=1).max()) < 1e-12
    best = MINIMISERS.mean(0)  # to which each round takes a twentieth of the way
    assert float((x[0] - best).norm()) < 1.1 * 0.95**60 * float((X0 - best).norm())


def test_parts_bring_the_same_models_as_whole_ones() -> None:
    found = []
    for parts in ("on", "off"):
        r = together(rounds=30, parts=parts)
        r.run(200.0)
        found.append(next(iter(r.devices.values())).exchange.estimate())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("silent", [False, True])
def test_the_others_go_on_when_one_is_gone(silent: bool) -> None:
    r = together()
    r.run(30.0)
    before = {d.peer: d.node.key.round for d in r.alive()}
    r.crash("p2", silent=silent)
    r.run(60.0)
    assert are_one(r, N - 1)
    assert all(d.node.key.round > before[d.peer] + 25 for d in r.alive())
    r.run(120.0)
    assert error(r, [0, 1, 3, 4, 5]) < 1.0


def test_two_that_do_not_hear_each_other_train_on_with_the_others() -> None:
    r = together()
    r.block("p0", "p1")
    r.run(200.0)
    assert min(d.node.key.round for d in r.alive()) > 100
    assert spread(r) < 1.0
    assert error(r, list(range(N))) < 1.0


def test_one_that_stands_still_does_not_keep_the_others_from_their_rounds() -> None:
    r = together()
    r.run(30.0)
    before = {d.peer: d.node.key.round for d in r.alive()}
    r.pause("p2", 6.0)
    r.run(60.0)
    assert all(d.node.key.round > before[d.peer] + 30 for d in r.alive())
    r.run(60.0)
    assert are_one(r, N)
    assert error(r, list(range(N))) < 1.0


def test_lost_messages_are_made_up_for_by_the_next_round() -> None:
    r = together(weather=Weather(latency_s=(0.005, 0.2), loss=0.05, duplicate=0.1))
    r.run(240.0)
    assert error(r, list(range(N))) < 1.0
