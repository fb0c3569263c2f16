"""Random stories of faults, each told by its seed alone, and what must be true when quiet has come again."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Weather, quadratics
from rehearsal.accountant import Accountant

QUIET_S = 60.0
MEASURED_S = 30.0
WAY_S = 5.0  # what is mixed, or given to a newcomer, is not older: after a longer silence it is refused
LONG_S = 300.0  # for those that mix in small portions
MIXED_S = 60.0  # a ring of ten, one of them with rounds of 2 s, halves its slowest mode in 28 s at the best
CALM = Weather()
FAR = -20.0  # an initial model so far off that one that moves towards it shows
ROUNDING = 1e-9
NEARER = 0.9  # of a distance from the initial model: local steps swing about a minimiser
DRIFTED = 0.85  # of the largest so far: each device's minimiser is a twentieth of it away from others'
BEGINS = "nobody has mass: this device has the best checkpoint and begins"


@dataclass(frozen=True)
class Kind:
    """An algorithm in a story. conserves: its mass is in the books; topologies: those it runs on; repairs:
    what sets models apart is made up for on the same graph."""

    algorithm: str
    compression: str = ""
    options: dict[str, str] = field(default_factory=dict)
    topologies: tuple[str, ...] = ("exponential", "ring", "random-2", "complete")
    conserves: bool = True
    repairs: bool = True
    rest: float = 0.0  # spread that compression leaves
    start: float = 0.0  # every coordinate of the initial model
    mixed_s: float = MIXED_S  # in which models come together without local steps

    @property
    def is_exact(self) -> bool:
        """Without local steps and losses, does the mean stay where it is, whoever comes and goes?"""
        return self.conserves or not self.repairs


SOAK = "PEERD_FAULT_SEEDS" in os.environ  # `make soak`: what takes long is tried with every algorithm
KINDS = [Kind("sgp"), Kind("sparse-push", "topk=50%", rest=1.1), Kind("difference-push", rest=0.3)]
WHOLE = [  # of these nothing is conserved; RelaySum/Grad repairs nothing either
    Kind("relay-sum", topologies=catalogue.TREES, conserves=False, start=FAR),
    Kind("d-psgd", topologies=("ring", "grid", "complete", "binary-tree"), conserves=False, start=FAR),
    Kind("relay-sum-grad", topologies=catalogue.TREES, conserves=False, repairs=False, rest=math.inf),
]
PAIRS = [  # nor of these, whose rounds wait for nobody
    Kind(
        name,
        topologies=("ring", "exponential", "grid", "complete", "binary-tree"),
        conserves=False,
        start=FAR,
    )
    for name in ("a2cid2", "ad-psgd")
]
UNDIRECTED = ("ring", "grid", "complete", "binary-tree")
OTHERS = [  # nor of these; with all of QG's momentum, models swing about a minimiser for longer than a story
    Kind(name, options=options, topologies=topologies, conserves=False, start=FAR, mixed_s=mixed_s)
    for name, options, topologies, mixed_s in (
        ("d2", {}, UNDIRECTED, LONG_S),  # when local steps cease, what it remembers of them sets models apart
        ("dsgt", {}, UNDIRECTED, MIXED_S),
        ("detag", {}, UNDIRECTED, MIXED_S),
        ("choco-sgd", {}, UNDIRECTED, LONG_S),
        ("qg-d-psgd", {"beta": "0.3"}, UNDIRECTED, MIXED_S),
        ("power-gossip", {}, UNDIRECTED, LONG_S),
        ("all-reduce", {"parts": "on"}, ("complete",), MIXED_S),
    )
]
# of 27 stories 12 have books of mass, and 4 are of RelaySum, which an agreed tree carries
STORIED = [*KINDS, *WHOLE, *PAIRS, *KINDS, WHOLE[0], *OTHERS, *KINDS, WHOLE[0], *KINDS, WHOLE[0]]
EVERY = pytest.mark.parametrize("kind", [*KINDS, *WHOLE, PAIRS[0]], ids=lambda kind: kind.algorithm)


def name(i: int) -> str:
    return f"p{i}"


def home(
    kind: Kind, topology: str, dim: int, *, weather: Weather = CALM, seed: int = 0, rate: float = 0.05
) -> tuple[Rehearsal, Accountant]:
    """A session without devices yet, where each pulls the model to a minimiser of its own."""
    layout, initial = Layout((dim - 1, 1)), torch.full((dim,), kind.start, dtype=torch.float64)
    minimisers, _ = quadratics(64, dim, seed=seed)

    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        learner = make(kind.algorithm, kind.options, layout, torch.float64, kind.compression)
        return Exchange(learner, layout, initial, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -rate * (z - minimisers[int(peer[1:])])

    r = Rehearsal(
        Terms(topology, seed, graph=catalogue.algorithm(kind.algorithm).graph),
        make_exchange,
        train,
        weather=weather,
        seed=seed,
        keep_checkpoints=64,
    )
    return r, Accountant(r, dim, conserves=kind.conserves)


def together(r: Rehearsal, n: int) -> None:
    """One create and n - 1 joins."""
    r.add(name(0), founder=True)
    for i in range(1, n):
        r.run(0.3)
        r.add(name(i))
    r.run(120.0, until=lambda: all(len(d.node.members.view()) == n for d in r.alive()))
    assert all(len(d.node.members.view()) == n for d in r.alive()), views(r)


def views(r: Rehearsal) -> str:
    return "; ".join(f"{d.peer} {d.node.phase}: {','.join(d.node.members.view())}" for d in r.alive())


def known(device: Device) -> tuple[object, ...]:
    """What a device holds of all members; a round and a weight may be on their way."""
    return tuple((m.peer, m.boot, m.life, m.state, m.phase) for m in device.node.members.members())


def mean(r: Rehearsal) -> Tensor:
    """Of all mass, also on its way; whole models weigh 1 each."""
    x, w = r.mass()
    return x / w


def rounds(r: Rehearsal) -> dict[str, int]:
    return {d.peer: d.node.key.round for d in r.alive()}


def still(peer: str, z: Tensor, round_: int) -> Tensor:
    """No local steps."""
    return torch.zeros_like(z)


def spread(r: Rehearsal) -> float:
    """The largest distance of a model from their mean."""
    models = torch.stack([d.exchange.estimate() for d in r.alive()])
    return float((models - models.mean(0)).norm(dim=1).max())


def apart(r: Rehearsal) -> str:
    """What keeps the devices from being one session; "" when they are."""
    devices = r.alive()
    alive = sorted(d.peer for d in devices)
    if any(d.node.phase != "training" or sorted(d.node.members.view()) != alive for d in devices):
        return views(r)
    for reunions in (d.node.reunions for d in devices):
        if reunions.estranged:
            return f"{reunions.me} does not train with {sorted(reunions.estranged)} yet"
    if len({known(d) for d in devices}) > 1:
        return "\n".join(map(str, map(known, devices)))
    for generations in (d.node.generations for d in devices if d.node.generations is not None):
        if generations.current is None or sorted(generations.current.view) != alive:
            return f"{generations.me} is on {generations.current}"
    return "" if len({d.node.key.generation for d in devices}) == 1 else "several generations"


def nearest_mix(points: Tensor) -> float:
    """Distance from the origin to the convex hull of points [n, d], to a thousandth, by pairwise Frank-Wolfe
    (Lacoste-Julien and Jaggi 2015, algorithm 2): it moves weight from the worst point to the best."""
    weights = torch.full((len(points),), 1 / len(points), dtype=points.dtype)
    for _ in range(1000):
        mix = weights @ points
        along = points @ mix
        best = int(along.argmin())
        if mix @ mix - along[best] <= 1e-3 * (mix @ mix):
            break
        worst = int(along.masked_fill(weights == 0, -math.inf).argmax())
        way = points[best] - points[worst]
        step = min(float(weights[worst]), float(-(mix @ way) / (way @ way)))
        weights[worst] -= step
        weights[best] += step
    return float((weights @ points).norm())


def mean_way(ways: Iterable[Tensor]) -> float:
    """How far their mean is from the initial model."""
    return float(torch.stack(list(ways)).mean(0).norm())


class Looked(NamedTuple):
    """How far from the initial model the nearest mix of all models is, and their mean, at one moment."""

    when: float
    ways: dict[tuple[str, int], Tensor]
    mix: float
    mean: float

    def mean_of(self, lives: Collection[tuple[str, int]]) -> float:
        return mean_way([self.ways[life] for life in lives])


class Story:
    """What happens in one seed's session."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.kind, self.seed = kind, seed
        self.n = dice.choice([3, 4, 4, 5, 5, 6, 7, 8])
        weather = Weather(
            latency_s=(0.005, dice.choice([0.02, 0.05, 0.2])),
            local_s=dice.choice([0.0, 0.0, 0.05]),
            loss=dice.choice([0.0, 0.05, 0.2] if kind.conserves else [0.0, 0.0, 0.0, 0.05, 0.2]),
            duplicate=0.1,
            reorder=dice.choice([0.0, 0.2]),
            bandwidth_bps=dice.choice([0.0, 0.0, 4000.0]),
        )
        topology = dice.choice(kind.topologies)
        self.r, self.books = home(kind, topology, dice.randint(3, 8), weather=weather, seed=seed)
        self.told: list[str] = []
        self.paused_until = 0.0
        self.stood: dict[str, tuple[float, float]] = {}  # who stood still last: from when to when
        self.begun = 0  # elections so far
        self.far: list[Looked] = []
        self.is_slow = weather.bandwidth_bps > 0
        self.loses = weather.loss > 0 or self.is_slow  # late is lost, too
        if dice.random() < 0.5:
            self.r.network.undialable.add(name(dice.randrange(self.n)))
        pace = {name(i): dice.choice([1.0, 1.0, dice.uniform(0.5, 2.0)]) for i in range(64)}
        self.r._step_s = lambda peer: pace[peer]

    def __str__(self) -> str:
        terms, shut = self.r.terms, sorted(self.r.network.undialable)
        return "\n".join(
            [
                f"{self.kind.algorithm} on {terms.topology}, {self.n} devices, {self.r.weather}, {shut=}",
                *self.told,
            ]
        )

    def play(self) -> None:
        """Everything, up to the end of quiet."""
        together(self.r, self.n)
        end = self.r.now + self.dice.uniform(40.0, 70.0)
        while self.r.now < end:
            self.pass_time(self.dice.uniform(1.0, 8.0))
            self.happen()
        self.settle()
        self.quiet()

    def happen(self) -> None:
        acts: list[tuple[float, Callable[[], None]]] = [
            (3, self.crash), (3, self.restart), (1, self.join), (2, self.leave), (2, self.pause),
            (1.5, self.partition), (1, self.heal), (0.7, self.block), (0.3, self.power_cut), (1, self.move),
        ]  # fmt: skip
        act = self.dice.choices([act for _, act in acts], [weight for weight, _ in acts])[0]
        act()

    def pass_time(self, seconds: float) -> None:
        self.r.run(seconds)
        self.books.check()
        if self.kind.start:
            self.check_start()

    def check_start(self) -> None:
        """No change of tree or members moves anybody back towards the initial model: every model is at
        least as far from it as the nearest mix of those before (the mean of unlike models may be nearer than
        each), and, where no message is lost, their mean as their mean was. Only who begins from an old
        checkpoint, since nobody else has a model, is nearer. What comes over a slow line, and a newcomer's
        model over any, is as old as its way; older by as long as it has waited for a sleeper.
        """
        begun = sum(note.text == BEGINS for _, _, note in self.r.notes)
        ways = {
            (d.peer, d.node.life): d.exchange.estimate() - self.kind.start
            for d in self.r.alive()
            if d.node.phase == "training"
        }
        if begun != self.begun or not ways:
            self.far.clear()
        self.begun = begun
        if not ways:
            return
        points = torch.stack(list(ways.values()))
        looked = Looked(self.r.now, ways, self.nearest_mix(points), mean_way(points))
        last = self.far[-1] if self.far else Looked(0.0, {}, 0.0, 0.0)
        for life, way in ways.items():
            since = self.mail_since(life[0])
            old = [far.mix for far in self.far if far.when <= since]
            recent = life in last.ways and not self.is_slow
            away, mix = float(way.norm()), last.mix if recent else old[-1] if old else 0.0
            assert away >= NEARER * mix - ROUNDING, f"{life}: {away} away, the nearest mix was {mix}"
        stay = looked.ways.keys() & last.ways.keys()
        if stay and not self.loses:
            was, now = min(last.mean, last.mean_of(stay)), looked.mean_of(stay)
            assert now >= NEARER * was, f"mean model: from {was} away to {now}"
            peak = max((far.mix for far in self.far if far.when <= self.r.now - WAY_S), default=0.0)
            assert looked.mean >= DRIFTED * peak, f"mean model: all once {peak} away, now {looked.mean}"
        self.far.append(looked)

    def mail_since(self, peer: str) -> float:
        """From when on what it mixes now may have been sent."""
        began, ended = self.stood.get(peer, (math.inf, -math.inf))
        awake = ended < self.r.now - WAY_S
        return (self.r.now if awake else began) - WAY_S

    def nearest_mix(self, ways: Tensor) -> float:
        """How far from the initial model the nearest mix of all models is. Two trees mix half of the
        coordinates each."""
        trees = 2 if self.r.terms.topology == "double-tree" else 1
        return math.hypot(*(nearest_mix(ways[:, k::trees]) for k in range(trees)))

    def settle(self) -> None:
        """The end of trouble: what is off comes back, most of it."""
        self.heal()
        for peer in self.off():
            if self.dice.random() < 0.7 or len(self.on()) < 2:
                self.restart_one(peer)
        self.say("calm")
        self.r.weather = CALM
        self.pass_time(max(0.0, self.paused_until - self.r.now))

    def quiet(self) -> None:
        """One view, everybody trains, rounds go on, and without local steps the models come together."""
        end = self.r.now + QUIET_S
        while self.r.now < end and apart(self.r):
            self.pass_time(1.0)
        assert not apart(self.r), apart(self.r)
        devices = self.r.alive()
        earlier = {device: device.rounds for device in devices}
        self.pass_time(MEASURED_S)
        done = {device.peer: device.rounds - before for device, before in earlier.items()}
        assert min(done.values()) >= 4, f"rounds in {MEASURED_S} s: {done}"
        assert all(bool(d.exchange.estimate().isfinite().all()) for d in devices)
        before = spread(self.r)
        self.r._train = still
        end, half = self.r.now + self.kind.mixed_s, max(0.5 * before, self.kind.rest, 1e-9)
        while self.r.now < end and spread(self.r) > half:
            self.pass_time(5.0)
        assert spread(self.r) <= half, f"{before} -> {spread(self.r)}"

    # --- what may happen -------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self.told.append(f"{self.r.now:.1f} {text}")

    def on(self) -> list[str]:
        return [d.peer for d in self.r.alive() if d.node.phase != "leaving"]

    def off(self) -> list[str]:
        return [peer for peer, d in self.r.devices.items() if not d.alive]

    def some(self) -> Device:
        return self.r.devices[self.dice.choice(self.on())]

    def crash(self) -> None:
        if len(self.on()) > 2:
            peer, silent = self.some().peer, self.dice.random() < 0.5
            self.say(f"crash {peer} {silent=}")
            self.r.crash(peer, silent=silent)

    def restart(self) -> None:
        if self.off():
            self.restart_one(self.dice.choice(self.off()))

    def restart_one(self, peer: str) -> None:
        age = self.dice.choice([0, 0, 5, 50])
        self.say(f"restart {peer} {age=}")
        self.r.add(peer, checkpoint_age=age)

    def join(self) -> None:
        if len(self.r.devices) < 10:
            peer = name(len(self.r.devices))
            self.say(f"join {peer}")
            self.r.add(peer)

    def leave(self) -> None:
        if len(self.on()) > 2:
            peer, pause = self.some().peer, self.dice.random() < 0.5
            self.say(f"leave {peer} {pause=}")
            self.r.leave(peer, pause=pause)

    def pause(self) -> None:
        peer, seconds = self.some().peer, self.dice.uniform(1.0, 15.0)
        self.say(f"stop {peer} for {seconds:.1f} s")
        self.stood[peer] = self.r.now, self.r.now + seconds
        self.r.pause(peer, seconds)
        self.paused_until = max(self.paused_until, self.r.now + seconds)

    def partition(self) -> None:
        peers = sorted(self.r.devices)
        self.dice.shuffle(peers)
        sides = self.dice.choice([2, 2, 3])
        groups = [set(peers[side::sides]) for side in range(sides)]
        self.say(f"partition {groups}")
        self.r.partition(groups)
        self.pass_time(self.dice.uniform(10.0, 30.0))

    def block(self) -> None:
        a, b = self.some().peer, self.some().peer
        self.say(f"block {a} to {b}")
        self.r.block(a, b)

    def heal(self) -> None:
        self.say("heal")
        self.r.heal()

    def power_cut(self) -> None:
        self.say("power cut")
        peers = self.on()
        for peer in peers:
            self.r.crash(peer, silent=True)
        self.pass_time(self.dice.uniform(1.0, 20.0))
        self.dice.shuffle(peers)
        for peer in peers:
            self.restart_one(peer)
            self.pass_time(self.dice.uniform(0.0, 3.0))

    def move(self) -> None:
        peer = self.some().peer
        self.say(f"move {peer}")
        self.r.move(peer)
