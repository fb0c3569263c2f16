"""Algorithms whose exchanges are whole or not at all, in sessions that lose frames and devices: they wait for
a new generation and no longer, train on, and come to the minimum that all share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peer.rehearsal.driver import Rehearsal, Weather, quadratics
from rehearsal.accountant import Accountant
from rehearsal.stories import Kind, apart, home, name, rounds, spread, still, together

N, DIM = 6, 4
ONE = name(2)
LOSSY = Weather(latency_s=(0.005, 0.05), loss=0.05, duplicate=0.1)
KINDS = [
    Kind(algorithm, compression, topologies=("ring",), conserves=False)
    for algorithm, compression in (("detag", ""), ("dsgt", ""), ("d2", ""), ("choco-sgd", "topk=50%"))
]
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.algorithm)
STOOD_S = 20.0  # until a member is taken for dead, the view has stood still, and the round has closed


def session(kind: Kind, seed: int, weather: Weather = LOSSY) -> tuple[Rehearsal, Accountant]:
    r, books = home(kind, "ring", DIM, weather=weather, seed=seed, rate=0.2)
    together(r, N)
    r.run(20.0)
    return r, books


def longest_stand(r: Rehearsal, seconds: float) -> float:
    """For how long a device has not got a mixed model, at the most. That rounds go by without time passing
    would be a hang of the rehearsal."""
    since = {d.peer: (d.rounds, r.now) for d in r.alive()}
    longest, end = 0.0, r.now + seconds
    while r.now < end:
        r.run(0.5)
        for d in r.alive():
            done, at = since.get(d.peer, (d.rounds, r.now))
            longest = max(longest, r.now - at)
            since[d.peer] = (done, at) if d.rounds == done else (d.rounds, r.now)
    return longest


def off_minimum(r: Rehearsal, kind: Kind, seed: int) -> float:
    """Of all models; of their mean, where each has a bias, as those of D-PSGD have."""
    minimisers, _ = quadratics(64, DIM, seed=seed)
    models = torch.stack([d.exchange.estimate() for d in r.alive()])
    models = models.mean(0, keepdim=True) if kind.algorithm == "choco-sgd" else models
    return float((models - minimisers[[int(d.peer[1:]) for d in r.alive()]].mean(0)).norm(dim=1).max())


def settles(r: Rehearsal, kind: Kind, seed: int) -> None:
    r.run(60.0, until=lambda: not apart(r))
    assert not apart(r), apart(r)
    r.weather = Weather()
    before = rounds(r)
    r.run(70.0)
    assert min(after - before[peer] for peer, after in rounds(r).items()) >= 60
    assert off_minimum(r, kind, seed) < 0.01
    assert spread(r) < 1.5


@EACH
def test_who_is_killed_holds_the_others_up_until_a_new_generation_and_no_longer(kind: Kind) -> None:
    r, books = session(kind, seed=1)
    r.crash(ONE, silent=True)
    assert longest_stand(r, 40.0) < STOOD_S
    assert {len(d.node.members.view()) for d in r.alive()} == {N - 1}
    r.add(ONE)
    assert longest_stand(r, 20.0) < STOOD_S
    settles(r, kind, seed=1)
    books.check()


@EACH
def test_halves_train_on_and_come_together_again(kind: Kind) -> None:
    r, books = session(kind, seed=2)
    r.partition([{name(i) for i in range(3)}, {name(i) for i in range(3, N)}])
    assert longest_stand(r, 50.0) < 1.5 * STOOD_S
    r.heal()
    assert longest_stand(r, 30.0) < STOOD_S
    settles(r, kind, seed=2)
    books.check()


@pytest.mark.parametrize("kind", KINDS[:1], ids=lambda kind: kind.algorithm)
def test_who_leaves_or_stands_still_is_waited_for_no_longer_than_it_takes(kind: Kind) -> None:
    r, books = session(kind, seed=3)
    earlier = rounds(r)
    r.pause(ONE, 5.0)
    assert longest_stand(r, 10.0) < 10.0, "in the same generation: nobody is taken for dead"
    r.leave(name(4))
    assert longest_stand(r, 30.0) < STOOD_S
    assert r.devices[name(4)].left == "left"
    assert min(after - earlier[peer] for peer, after in rounds(r).items()) > 15
    settles(r, kind, seed=3)
    books.check()


def test_a_bounded_session_ends_with_one_model_though_one_is_killed_on_the_way() -> None:
    kind = KINDS[0]
    r, _ = home(kind, "ring", DIM, weather=LOSSY, seed=4, rate=0.2)
    r.terms = replace(r.terms, rounds=50)
    together(r, N)
    r.run(30.0)
    r.crash(ONE, silent=True)
    r.run(200.0)
    ended = [d for d in r.devices.values() if d.peer != ONE]
    assert {d.left for d in ended} == {"finished"}
    x = torch.stack([d.exchange.estimate() for d in ended])
    assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-12


@pytest.mark.parametrize(("kind", "moves"), [(KINDS[0], 1e-12), (KINDS[1], 0.03)], ids=["detag", "dsgt"])
def test_gossip_alone_brings_models_together_and_keeps_their_mean(kind: Kind, moves: float) -> None:
    """But for what a tracker still holds of the last gradients, which DSGT goes on to take steps by."""
    r, _ = session(kind, seed=5)
    r._train = still
    r.run(3.0)
    before = mean(r)
    r.run(30.0)
    assert spread(r) < 1e-3
    assert float((mean(r) - before).norm()) < moves


def mean(r: Rehearsal) -> Tensor:
    return torch.stack([d.exchange.estimate() for d in r.alive()]).mean(0)
