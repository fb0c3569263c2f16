"""A device that blocks another: neither waits for the other, and nobody else has anything of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import Block, OpenRound, ToLearner
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Witness, quadratics

D = 16


def home(algorithm: str, topology: str, n: int) -> Rehearsal:
    layout, initial = Layout((D,)), torch.zeros(D, dtype=torch.float64)
    minimisers, _ = quadratics(n, D, seed=2)

    def make_exchange(peer: str, resume: object) -> Exchange:
        return Exchange(make(algorithm, {}, layout, torch.float64, ""), layout, initial)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -0.05 * (z - minimisers[int(peer[1:])])

    graph = catalogue.algorithm(algorithm).graph
    r = Rehearsal(Terms(topology, 0, graph=graph), make_exchange, train)
    for i in range(n):
        r.add(f"p{i}", founder=i == 0)
        r.run(0.3)
    r.run(60.0, until=lambda: all(len(d.node.members.view()) == n for d in r.alive()))
    r.run(15.0)
    return r


class Opened(Witness):
    """The rounds that one device's learner is given."""

    def __init__(self, peer: str) -> None:
        self.peer, self.rounds = peer, list[OpenRound]()

    def told(self, device: Device, command: ToLearner) -> None:
        if device.peer == self.peer and isinstance(command, OpenRound):
            self.rounds.append(command)

    @classmethod
    def of(cls, r: Rehearsal, peer: str, seconds: float) -> list[OpenRound]:
        r._witness = seen = cls(peer)
        r.run(seconds)
        return seen.rounds


def block(r: Rehearsal, peer: str, other: str) -> None:
    """As a daemon does: nothing goes either way any more, and the node is told."""
    r.network.block(peer, other, both=True)
    r.feed(peer, Block(frozenset({other})))


def unblock(r: Rehearsal, peer: str) -> None:
    r.heal()
    r.feed(peer, Block(frozenset()))


def rates(r: Rehearsal, seconds: float) -> dict[str, float]:
    before = {d.peer: d.rounds for d in r.alive()}
    r.run(seconds)
    return {d.peer: (d.rounds - before[d.peer]) / seconds for d in r.alive()}


@pytest.mark.parametrize("topology", ["exponential", "ring"])
def test_on_a_directed_graph_it_is_no_neighbor_and_all_go_on(topology: str) -> None:
    r = home("sgp", topology, 5)
    before = rates(r, 20.0)
    _, weight = r.mass()
    block(r, "p1", "p2")
    r.run(15.0)
    during = rates(r, 30.0)
    for peer in ("p1", "p2"):
        assert during[peer] > 0.8 * before[peer], (before, during)
    for device in r.alive():
        assert len(device.node.rounds.view) == 5, "both are alive, others vouch for them"
        assert device.node.members.suspects() == []
    opened = Opened.of(r, "p1", 10.0)
    assert opened
    assert not any("p2" in round_.out or "p2" in round_.expected for round_ in opened)
    assert all(round_.out for round_ in opened), "whoever comes after it is sent what it would be sent"
    assert r.mass()[1] == pytest.approx(weight, rel=1e-9), "what was on its way there is still in the ledger"
    unblock(r, "p1")
    r.run(15.0)
    assert all(len(d.node.rounds.view) == 5 and not d.node.reunions.estranged for d in r.alive())
    assert {d.lives for d in r.alive()} == {1}, "nobody starts over"
    r.run(10.0)
    assert r.mass()[1] == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize(
    ("algorithm", "topology"),
    [("relay-sum", "binary-tree"), ("relay-sum", "spanning-tree")],
)
def test_on_an_agreed_graph_rounds_do_not_wait_and_nobody_fights_over_the_graph(
    algorithm: str, topology: str
) -> None:
    r = home(algorithm, topology, 5)
    before = rates(r, 20.0)
    node = r.devices["p1"].node
    assert node.generations is not None
    assert node.generations.current is not None
    place = node.generations.place()
    assert place is not None
    other = min(place.out)
    epoch = node.generations.current.epoch
    block(r, "p1", other)
    r.run(60.0)
    during = rates(r, 30.0)
    assert min(during.values()) > 0.7 * min(before.values()), (before, during)
    assert node.generations.current.epoch - epoch <= 2, "no war of proposals"
    assert all(len(d.node.members.view()) == 5 for d in r.alive())
    place = node.generations.place()
    assert place is not None
    if topology == "spanning-tree":
        assert other not in place.out, "the tree goes around the pair"


def test_a_blocked_member_is_neither_heir_nor_sponsor_nor_vouched_for() -> None:
    r = home("sgp", "complete", 3)
    block(r, "p1", "p2")
    r.run(5.0)
    r.leave("p1")
    r.run(15.0)
    assert r.devices["p1"].left == "left"
    assert r.devices["p0"].node.weight + r.devices["p2"].node.weight > 0.6, "its mass went to the other one"
