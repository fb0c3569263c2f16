"""Replicas of difference-push under a cap of a few: links beyond do without, the longest idle makes room."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.algorithms.difference_push import DifferencePush
from peer.algorithms.replicas import IDLE_ROUNDS
from peer.compression.bodies import Layout
from peer.compression.history import History
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Weather, quadratics

D = 24
LAYOUT = Layout((16, 8))
REPLICA_BYTES = D * (8 + History.BYTES)
INITIAL = torch.zeros(D, dtype=torch.float64)
MINIMISERS, _ = quadratics(8, D, seed=1)


def home(topology: str, replicas: int, weather: Weather | None = None) -> Rehearsal:
    """A session whose devices have room for so many replicas each."""
    room = {"replica-mb": f"{(replicas + 0.5) * REPLICA_BYTES / 1e6:.6f}"}

    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        learner = make("difference-push", room, LAYOUT, torch.float64)
        return Exchange(learner, LAYOUT, INITIAL, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -0.1 / (1 + round_ / 30) * (z - MINIMISERS[int(peer[1:])])

    return Rehearsal(Terms(topology, 0), make_exchange, train, weather=weather)


def algorithm(device: Device) -> DifferencePush:
    found = device.exchange.algorithm
    assert isinstance(found, DifferencePush)
    return found


def kept(device: Device) -> int:
    replicas = algorithm(device).replicas
    return len(replicas.into) + sum(link.h is not None for link in replicas.out.values())


def refusals(r: Rehearsal) -> int:
    return sum(note.text == "link refused" for _, _, note in r.notes)


@pytest.mark.parametrize("replicas", [0, 2])
def test_no_device_keeps_more_than_the_cap_and_all_still_come_together(replicas: int) -> None:
    """Eight devices have three in-links and three out-links each."""
    r = home("exponential", replicas, Weather(latency_s=(0.005, 0.2), loss=0.01))
    most: list[int] = []
    r.add("p0", founder=True)
    for i in range(1, 8):
        r.run(0.3)
        r.add(f"p{i}")
    for _ in range(150):
        r.run(1.0)
        most.append(max(kept(d) for d in r.alive()))
    assert max(most) == replicas
    assert all(d.node.faults == {} for d in r.alive()), "to have no room is nobody's fault"
    assert r.mass()[1] == pytest.approx(1.0, rel=1e-9)
    errors = [float((d.exchange.estimate() - MINIMISERS.mean(0)).norm()) for d in r.alive()]
    assert max(errors) < 0.6  # alone, the nearest device stays 3.5 away


def test_a_link_refused_for_want_of_room_does_without_from_then_on() -> None:
    r = home("exponential", 1)
    r.add("p0", founder=True)
    for i in range(1, 6):
        r.run(0.3)
        r.add(f"p{i}")
    r.run(IDLE_ROUNDS * 1.0)
    settled = refusals(r)
    assert settled > 0
    r.run(300.0)
    assert refusals(r) == settled


def test_the_link_idle_longest_makes_room_with_a_new_epoch_at_both_ends() -> None:
    """On a ring, p0 sends to p2 until p1 joins between them."""
    r = home("ring", 2)
    r.add("p0", founder=True)
    for peer in ("p2", "p4"):
        r.run(0.3)
        r.add(peer)
    r.run(20.0)
    first, second = r.devices["p0"], r.devices["p2"]
    assert algorithm(first).replicas.link_to("p2").h is not None
    assert "p0" in algorithm(second).replicas.into
    r.add("p1")
    r.run(20.0)
    assert algorithm(first).replicas.link_to("p1").h is None, "there is no room for it yet"
    _, before, _ = second.node.links.applied("p0")
    r.run(25.0)
    assert algorithm(first).replicas.link_to("p1").h is not None
    assert algorithm(first).replicas.link_to("p2").h is None
    assert "p0" not in algorithm(second).replicas.into
    _, after, _ = second.node.links.applied("p0")
    assert after == before + 1
    assert r.mass()[1] == pytest.approx(1.0, rel=1e-9)
