"""Two neighbors average at a time, in sessions: nobody waits for anybody, and no exchange is applied at one
end alone while both ends live."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peer.algorithms.a2cid2 import A2CiD2
from peer.events import Renew
from peer.rehearsal.driver import Device, Rehearsal, Weather
from rehearsal.stories import (
    FAR,
    PAIRS,
    Kind,
    Story,
    apart,
    home,
    name,
    rounds,
    spread,
    still,
    together,
)

EACH = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.algorithm)
D = 5
ROUGH = Weather(latency_s=(0.005, 0.2), loss=0.05, duplicate=0.1, reorder=0.2)


def algorithm(device: Device) -> A2CiD2:
    found = device.exchange.algorithm
    assert isinstance(found, A2CiD2)
    return found


def total(r: Rehearsal) -> Tensor:
    """Sum of x + x~. What one end has applied, and the other is in doubt about, counts at both."""
    nodes = {device.peer: algorithm(device) for device in r.alive()}
    found = torch.zeros(D, dtype=torch.float64)
    for node in nodes.values():
        x = node.estimate()
        found += x + (x if node.x_tilde is None else node.x_tilde)
    for peer, node in nodes.items():
        for asker, number in node.rendezvous._applied:
            doubt = nodes[asker].rendezvous.doubt.get(peer)
            if doubt is not None and doubt.number == number:
                found -= (0.5 + doubt.alpha) * doubt.m
    return found


def session(kind: Kind, topology: str, n: int, *, rounds: int = 0, seed: int = 0) -> Rehearsal:
    r, _ = home(kind, topology, D, seed=seed)
    r.terms = replace(r.terms, rounds=rounds)
    together(r, n)
    return r


def met(r: Rehearsal) -> int:
    return sum(algorithm(device).rendezvous.tally.met for device in r.alive())


@EACH
@pytest.mark.parametrize("topology", ["ring", "exponential"])
def test_with_loss_a_crash_and_a_return_all_end_with_one_model(kind: Kind, topology: str) -> None:
    for seed in range(2):
        r = session(kind, topology, 6, rounds=100, seed=seed)
        r.weather = ROUGH
        r.run(20.0)
        r.crash(name(2), silent=bool(seed % 2))
        r.run(10.0 + seed)
        r.add(name(2))
        r.run(20.0)
        r.run(400.0, until=lambda r=r: not r.alive())
        assert {d.left for d in r.devices.values()} == {"finished"}, seed
        x = torch.stack([d.exchange.estimate() for d in r.devices.values()])
        assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-9, seed
        assert float((x.mean(0) - FAR).norm()) > 30, "it has come away from the initial model"


@EACH
def test_no_exchange_is_applied_at_one_end_alone_while_both_live(kind: Kind) -> None:
    """Without local steps sum(x + x~) stands still, whatever becomes of links."""
    exchanges = 0
    for seed in range(3):
        r = session(kind, ("ring", "complete", "exponential")[seed], 6, seed=seed)
        r.run(20.0)
        r._train, r.weather = still, replace(ROUGH, loss=0.15, local_s=0.05 * (seed % 2))
        r.run(1.0)
        before, earlier = total(r), met(r)
        for turn in range(60):
            r.feed(name(turn % 6), Renew(name((turn + 1 + seed) % 6)))  # that link begins anew
            if turn % 10 == 3:
                r.move(name(turn % 6))
            elif turn % 10 == 5:
                r.pause(name((turn + 1) % 6), 2.0)
            elif turn % 10 == 7:
                r.partition([{name(i) for i in range(3)}, {name(i) for i in range(3, 6)}])
            elif turn % 10 == 0:
                r.heal()
            r.run(1.0)
            torch.testing.assert_close(total(r), before, rtol=1e-9, atol=1e-7)
        exchanges += met(r) - earlier
        assert {device.lives for device in r.alive()} == {1}
    assert exchanges > 40


@EACH
@pytest.mark.parametrize("overlap", [False, True], ids=["lockstep", "overlap"])
def test_a_slow_device_holds_nobody_up_and_is_at_the_others_round(kind: Kind, overlap: bool) -> None:
    r = session(kind, "ring", 6)
    r._overlap = overlap
    r._step_s = lambda peer: 3.0 if peer == name(5) else 1.0
    r.run(10.0)
    earlier, trained = rounds(r), {d.peer: d.rounds for d in r.alive()}
    r.run(60.0)
    done = {peer: after - earlier[peer] for peer, after in rounds(r).items()}
    assert min(done[name(i)] for i in range(5)) >= 59, done
    assert max(rounds(r).values()) - rounds(r)[name(5)] <= 8
    assert 18 <= r.devices[name(5)].rounds - trained[name(5)] <= 22
    rate = [algorithm(device).rate.own for device in r.alive()]
    assert min(rate) > 0.5 and rate[5] > 1.2, "in its own, longer steps it meets others more often"


@EACH
def test_in_calm_weather_what_is_asked_for_comes_about(kind: Kind) -> None:
    r = session(kind, "exponential", 6)
    r.run(20.0)
    earlier = met(r)
    r.run(200.0)
    assert (met(r) - earlier) / 1200 == pytest.approx(1.0, abs=0.1)
    tallies = [algorithm(device).rendezvous.tally for device in r.alive()]
    assert sum(one.accepted for one in tallies) > 0.6 * sum(one.offered for one in tallies)
    assert {device.node.rounds.alone for device in r.alive()} == {0}


def test_momentum_brings_models_nearer_to_each_other_on_a_ring() -> None:
    """While they train on unlike data."""
    apart_by = {}
    for kind in PAIRS:
        r = session(kind, "ring", 16)
        r.run(40.0)
        found = []
        for _ in range(30):
            r.run(2.0)
            found.append(spread(r))
        apart_by[kind.algorithm] = sum(found) / len(found)
    assert apart_by["a2cid2"] < 0.8 * apart_by["ad-psgd"], apart_by


@EACH
def test_two_halves_that_were_parted_come_together(kind: Kind) -> None:
    r = session(kind, "ring", 6)
    r.run(20.0)
    r.partition([{name(i) for i in range(3)}, {name(i) for i in range(3, 6)}])
    r.run(60.0)
    earlier = rounds(r)
    r.run(20.0)
    assert min(after - earlier[peer] for peer, after in rounds(r).items()) >= 19
    r.heal()
    r.run(60.0)
    assert not apart(r), apart(r)
    r._train = still
    r.run(100.0)
    assert spread(r) < 1e-3


@pytest.mark.parametrize("seed", range(1000, 1008))
def test_after_any_faults_they_come_together(seed: int) -> None:
    story = Story(PAIRS[seed % 2], seed)
    try:
        story.play()
    except Exception as error:
        error.add_note(str(story))
        raise
