"""The consensus distance by sketches, as devices know it, against the exact one that a rehearsal sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import Closed, FromLearner, PeerId
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Witness, quadratics
from peer.sketch import STANDARD_ERROR

D, EVERY, PEERS = 2048, 4, 6


class Models(Witness):
    """Every device's mixed model by round."""

    def __init__(self) -> None:
        self.at: dict[int, dict[PeerId, Tensor]] = {}

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        for event in events:
            if isinstance(event, Closed) and device.model is not None:
                self.at.setdefault(event.key.round, {})[device.peer] = device.model.clone()


@pytest.mark.parametrize(("algorithm", "topology"), [("sgp", "ring"), ("d-psgd", "ring")])
def test_every_device_knows_how_far_apart_the_models_are(algorithm: str, topology: str) -> None:
    layout, initial = Layout((D,)), torch.ones(D, dtype=torch.float64)
    minimisers, _ = quadratics(PEERS, D, seed=5)
    models = Models()

    def make_exchange(peer: str, resume: object) -> Exchange:
        return Exchange(make(algorithm, {}, layout, torch.float64, ""), layout, initial)

    r = Rehearsal(
        Terms(topology, 0, graph=catalogue.algorithm(algorithm).graph),
        make_exchange,
        lambda peer, z, round_: -0.05 * (z - minimisers[int(peer[1:])]),
        witness=models,
        sketch_every=EVERY,
    )
    for i in range(PEERS):
        r.add(f"p{i}", founder=i == 0)
        r.run(0.3)
    r.run(60.0)
    incarnations = [d.node.members.me.incarnation & 0xFFFFF for d in r.alive()]
    assert max(incarnations) < 60, "records do not change for the sake of sketches"
    for device in r.alive():
        lives = {m.peer: m.life for m in device.node.members.alive() if m.peer != device.peer}
        apart = device.node.gossip.sketches.apart(lives, r.now)
        assert apart.keys() == lives.keys()
        for peer, found in apart.items():
            exact = float((models.at[found.round][peer] - models.at[found.round][device.peer]).norm())
            assert found.round % EVERY == 0
            assert found.distance == pytest.approx(exact, rel=4 * STANDARD_ERROR)
            assert found.age_s < 15.0
    # of the newest round that it has of all: the models stand nearly still by now
    sketches, lives = (
        r.devices["p0"].node.gossip.sketches,
        {f"p{i}": r.devices[f"p{i}"].node.life for i in range(1, PEERS)},
    )
    estimate = sketches.consensus(lives, r.now)
    assert estimate is not None
    exacts = []
    for round_ in sorted(models.at):
        if round_ % EVERY == 0 and len(models.at[round_]) == PEERS:
            stacked = torch.stack(list(models.at[round_].values()))
            exacts.append(float((stacked - stacked.mean(0)).square().sum(1).mean().sqrt()))
    assert estimate[0] == pytest.approx(exacts[-2], rel=3 * STANDARD_ERROR)
    assert estimate[1] == pytest.approx(
        exacts[-2] / float(r.devices["p0"].exchange.estimate().norm()), rel=0.4
    )
