"""PowerGossip in sessions of several devices, over networks that lose frames and devices that come and go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Rehearsal, Weather

LAYOUT = Layout((48, 6), (8, 1))
LOSSY = Weather(latency_s=(0.005, 0.1), loss=0.05, duplicate=0.1, reorder=0.2)
F64 = torch.float64


class Session(Rehearsal):
    """Each device pulls the model to a minimiser of its own; `steps` is the sum of all local steps."""

    def __init__(self, topology: str, *, rounds: int = 0, iterations: int = 1, weather: Weather) -> None:
        g = torch.Generator().manual_seed(1)
        self.minimisers = 3 + 0.2 * torch.randn(8, LAYOUT.d, generator=g, dtype=F64)
        self.steps, self.rate = torch.zeros(LAYOUT.d, dtype=F64), 0.05
        options, x0 = {"iterations": str(iterations)}, torch.zeros(LAYOUT.d, dtype=F64)

        def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
            made = Exchange(make("power-gossip", options, LAYOUT, F64), LAYOUT, x0, resume=resume)
            step = made.algorithm.step

            def counted(u: Tensor, *others: object) -> object:
                self.steps = self.steps + u
                return step(u, *others)  # type: ignore[arg-type]

            made.algorithm.step = counted  # type: ignore[method-assign, assignment]
            return made

        def train(peer: str, z: Tensor, round_: int) -> Tensor:
            return -self.rate * (z - self.minimisers[int(peer[1:])])

        terms = Terms(topology, 0, rounds=rounds, graph="undirected")
        super().__init__(terms, make_exchange, train, weather=weather)

    def begin(self, n: int) -> Session:
        for i in range(n):
            self.add(f"p{i}", founder=True)
        self.run(30.0, until=lambda: self.on_one_graph(n))
        assert self.on_one_graph(n)
        return self

    def on_one_graph(self, n: int) -> bool:
        current = [d.node.generations.current for d in self.alive() if d.node.generations is not None]
        return len(current) == n and all(one is not None and len(one.view) == n for one in current)

    def models(self) -> Tensor:
        return torch.stack([d.exchange.estimate() for d in self.alive()])

    def spread(self) -> float:
        x = self.models()
        return float((x - x.mean(0)).norm(dim=1).max())

    def sum(self) -> Tensor:
        """Of all models and the steps in hand, without halves of which the others have not heard."""
        total = torch.zeros(LAYOUT.d, dtype=F64)
        for device in self.alive():
            algorithm = copy.deepcopy(device.exchange.algorithm)
            outgoing = device.exchange.outgoing
            for dst, message in outgoing.unacknowledged.items():
                if not self.is_applied(device, dst):
                    algorithm.returned(dst, message)
            for dst, line in outgoing._waiting.items():
                for message in line:
                    algorithm.returned(dst, message)
            total += algorithm.mass()[0]
        return total

    def rounds(self) -> list[int]:
        return [d.node.key.round for d in self.alive()]


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("topology", ["ring", "exponential"])
def test_the_sum_of_models_changes_by_local_steps_alone(topology: str, iterations: int) -> None:
    """Frames are lost, devices stand still, and a cut makes two generations of one and one of two."""
    r = Session(topology, iterations=iterations, weather=LOSSY).begin(6)

    def check() -> None:
        torch.testing.assert_close(r.sum(), r.steps, rtol=0, atol=1e-9)

    for _ in range(20):
        r.run(1.0)
        check()
    r.pause("p2", 8.0)
    r.run(20.0)
    check()
    r.partition([{"p0", "p1", "p2"}, {"p3", "p4", "p5"}])
    r.run(25.0)
    check()
    assert r.on_one_graph(6) is False
    r.heal()
    r.run(90.0, until=lambda: r.on_one_graph(6))
    assert r.on_one_graph(6)
    assert {d.lives for d in r.alive()} == {1}
    check()
    before = r.rounds()
    r.rate = 0.0
    apart = r.spread()
    r.run(60.0)
    check()
    assert min(b - a for a, b in zip(before, r.rounds(), strict=True)) >= 30
    assert r.spread() < 0.2 * apart


@pytest.mark.parametrize("seed", [0, 1])
def test_it_trains_and_heals_where_one_crashes_and_returns(seed: int) -> None:
    r = Session("ring", weather=LOSSY)
    r._random.seed(seed)
    r.begin(5)
    r.run(30.0)
    r.crash("p2", silent=bool(seed))
    r.run(60.0, until=lambda: r.on_one_graph(4))
    assert r.on_one_graph(4)
    r.add("p2")
    r.run(90.0, until=lambda: r.on_one_graph(5))
    assert r.on_one_graph(5)
    before = r.rounds()
    r.run(100.0)
    assert min(b - a for a, b in zip(before, r.rounds(), strict=True)) >= 50
    away = (r.models() - r.minimisers[:5].mean(0)).norm(dim=1).max()
    assert float(away) < 0.5 * float(r.minimisers[:5].mean(0).norm())
    r.rate, apart = 0.0, r.spread()
    r.run(60.0)
    assert r.spread() < 0.2 * apart


def test_a_bounded_session_ends_with_the_exact_mean() -> None:
    r = Session("exponential", rounds=30, weather=Weather()).begin(5)
    r.run(100.0)
    devices = list(r.devices.values())
    assert {device.left for device in devices} == {"finished"}
    x = torch.stack([device.exchange.estimate() for device in devices])
    torch.testing.assert_close(x, (r.steps / 5).expand_as(x), rtol=0, atol=1e-12)
