"""Devices with a budget of bytes per minute: no 60 s take more of it, the others go on, and models still come
together. Virtual time; each send is weighed."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import Control, Frame, FromLearner, Parcel, Pushed
from peer.learner.exchange import Exchange
from peer.mesh.frame_bytes import control_bytes, frame_bytes
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Witness, quadratics

D = 4096
LAYOUT = Layout((4000, 96))
MINIMISERS, _ = quadratics(16, D, seed=1)
INITIAL = torch.zeros(D, dtype=torch.float64)
RATE = 0.1


class Scales(Witness):
    """Weighs what one device sends. most: in any 60 s; over: parcels that were begun beyond the limit, when
    and with how much; held_back: rounds that left somebody out."""

    def __init__(self, peer: str) -> None:
        self.peer, self.r = peer, None
        self.most = self.control = self.total = self.rounds = self.held_back = 0
        self.over: list[tuple[float, int]] = []
        self.limit = 1 << 60
        self._log: deque[tuple[float, int]] = deque()
        self.sizes: list[int] = []

    def sent(self, device: Device, frame: Frame) -> None:
        if isinstance(frame, Parcel) and device.peer == self.peer:
            self.sizes.append(len(frame.payload))
        self._weigh(device, frame_bytes(frame), isinstance(frame, Parcel))

    def called(self, device: Device, message: Control) -> None:
        self.control += control_bytes(message) if device.peer == self.peer else 0
        self._weigh(device, control_bytes(message), False)

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        for event in events:
            if isinstance(event, Pushed) and device.peer == self.peer:
                self.rounds += 1
                self.held_back += bool(event.held_back)

    def _weigh(self, device: Device, size: int, parcel: bool) -> None:
        if device.peer != self.peer:
            return
        now = self.r.now  # type: ignore[attr-defined]
        self._log.append((now, size))
        self.total += size
        while self._log[0][0] <= now - 60.0:
            self._log.popleft()
        spent = sum(size for _, size in self._log)
        self.most = max(self.most, spent)
        if spent > self.limit and parcel:
            self.over.append((now, spent))


def home(
    algorithm: str = "difference-push",
    topology: str = "exponential",
    *,
    watched: str = "p1",
    compression: str = "",
    rounds: int = 0,
    lockstep: bool = True,
    rate: float = RATE,
    seed: int = 0,
) -> tuple[Rehearsal, Scales]:
    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        learner = make(algorithm, {}, LAYOUT, torch.float64, compression, lockstep=lockstep)
        return Exchange(learner, LAYOUT, INITIAL, lockstep=lockstep, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -rate / (1 + round_ / 30) * (z - MINIMISERS[int(peer[1:])])

    terms = Terms(topology, seed, lockstep, rounds, graph=catalogue.algorithm(algorithm).graph)
    scales = Scales(watched)
    r = Rehearsal(terms, make_exchange, train, step_s=lambda _: 2.0, seed=seed, witness=scales)
    scales.r = r  # type: ignore[assignment]
    return r, scales


def together(r: Rehearsal, n: int, bytes_per_min: int | None, who: str = "p1") -> None:
    """One create and n - 1 joins; one of them has a budget."""
    for i in range(n):
        r.add(f"p{i}", founder=i == 0, bytes_per_min=bytes_per_min if f"p{i}" == who else None)
        r.run(0.3)
    r.run(20.0, until=lambda: all(len(d.node.members.view()) == n for d in r.alive()))


def distances(r: Rehearsal, n: int) -> dict[str, float]:
    """Of each model from where all together are drawn."""
    goal = MINIMISERS[:n].mean(0)
    return {d.peer: float((d.exchange.estimate() - goal).norm()) for d in r.alive()}


ALONE = min(float((m - MINIMISERS[:3].mean(0)).norm()) for m in MINIMISERS[:3])  # where one goes by itself


@pytest.mark.parametrize(
    ("algorithm", "topology", "compression", "budget", "share"),
    [
        ("difference-push", "exponential", "", 30_000, 0.5),
        ("difference-push", "random-2", "", 60_000, 0.4),
        ("sgp", "exponential", "", 300_000, 0.4),
        ("sgp", "exponential", "int8", 60_000, 0.5),
        ("sparse-push", "exponential", "topk=10%,fp16", 40_000, 1.1),
        ("d-psgd", "ring", "", 300_000, 0.6),
        ("relay-sum", "chain", "int8", 60_000, 0.6),
        ("sgp", "exponential", "auto", 60_000, 0.5),
        ("d-psgd", "ring", "auto", 60_000, 0.6),
        ("relay-sum", "chain", "auto", 60_000, 0.6),
        ("a2cid2", "ring", "", 700_000, 0.6),
    ],
)
def test_no_minute_takes_more_than_the_budget_and_models_come_together(
    algorithm: str, topology: str, compression: str, budget: int, share: float
) -> None:
    """Less than it would send. share: of the distance that a device would end at alone."""
    r, scales = home(algorithm, topology, compression=compression)
    scales.limit = budget
    together(r, 3, budget)
    for _ in range(6):
        r.run(30.0)
        if catalogue.algorithm(algorithm).graph == "directed":
            assert r.mass()[1] == pytest.approx(1.0, rel=1e-9)
    assert scales.over == []
    assert 0.6 * budget < scales.most <= budget
    assert scales.held_back > 0 or algorithm == "difference-push"
    assert max(distances(r, 3).values()) < share * ALONE
    assert min(d.node.key.round for d in r.alive()) > 80, "the others go on"


@pytest.mark.parametrize("algorithm", ["difference-push", "sgp"])
def test_in_the_pace_that_never_waits_a_budget_holds_as_well(algorithm: str) -> None:
    compression = "int8" if algorithm == "sgp" else ""
    r, scales = home(algorithm, compression=compression, lockstep=False)
    scales.limit = 40_000
    together(r, 3, 40_000)
    r.run(150.0)
    assert r.mass()[1] == pytest.approx(1.0, rel=1e-9)
    assert scales.over == []
    assert 32 not in {size for size in scales.sizes if size < 40}, "nobody waits for a word"
    assert max(distances(r, 3).values()) < 0.7 * ALONE


def test_with_a_budget_that_is_ample_nothing_changes() -> None:
    found = []
    for budget in (None, 10**9):
        r, scales = home("difference-push", "random-2")
        together(r, 3, budget)
        r.run(60.0)
        found.append((r, scales))
    (without, _), (ample, scales) = found
    assert scales.held_back == 0
    for device in without.alive():
        other = ample.devices[device.peer]
        assert torch.equal(device.exchange.estimate(), other.exchange.estimate())
        assert device.node.key == other.node.key


def test_with_a_tiny_one_a_device_takes_part_now_and_then_and_holds_nobody_up() -> None:
    r, scales = home("sgp", compression="int8")
    scales.limit = 30_000
    together(r, 3, 30_000)
    r.run(300.0)
    assert scales.over == []
    sending = scales.rounds - scales.held_back
    assert 4 <= sending < 0.1 * scales.rounds
    assert min(d.node.key.round for d in r.alive()) > 100, "word that nothing comes keeps rounds short"
    spending = r.devices["p1"].spending
    assert spending.rounds_held_back == scales.held_back
    assert sum(spending.recent) < 0.5 * len(spending.recent)


def test_difference_push_lowers_its_bits_before_it_holds_rounds_back() -> None:
    r, scales = home()
    together(r, 3, 34_000)
    r.run(200.0)
    usual = D // 8  # bytes at 1 bit
    late = [size for size in scales.sizes[-60:] if size > 100]
    assert len(late) > 40
    assert 0.5 * usual < sum(late) / len(late) < 0.95 * usual


@pytest.mark.parametrize(
    ("algorithm", "topology"),
    [("sgp", "exponential"), ("d-psgd", "ring"), ("relay-sum", "chain"), ("relay-sum", "double-tree")],
)
def test_auto_rounds_whole_models_to_what_a_budget_has_room_for_before_rounds_are_held_back(
    algorithm: str, topology: str
) -> None:
    """As it is, a model takes 32 kB, and 8 as fp16, which is what there is room for with each message. The
    network has room for all of it."""
    found = {}
    for compression, budget in (("none", 700_000), ("auto", 700_000), ("auto", None)):
        r, scales = home(algorithm, topology, compression=compression)
        scales.limit = budget or scales.limit
        together(r, 3, budget)
        r.run(60.0)
        held_back, scales.sizes = scales.held_back, []
        r.run(60.0)
        assert scales.over == []
        found[compression, budget] = scales.held_back - held_back, max(scales.sizes)
    (held_none, size_none), (held_auto, size_auto), (_, size_ample) = found.values()
    assert min(size_none, size_ample) > 8 * D and held_none > 5
    assert 2 * D < size_auto < 3 * D and held_auto == 0


def test_a_links_first_parcel_is_not_dense_where_the_budget_has_no_room_for_that() -> None:
    """No model is known at both ends of a link between two that were given theirs by a third."""
    r, scales = home(topology="complete", watched="p2")
    together(r, 2, None)
    r.run(100.0)  # the initial model is too old to be named by now
    r.add("p2", bytes_per_min=30_000)
    r.run(120.0)
    scales.sizes.sort()
    assert scales.sizes[-1] < D, "a dense one takes a byte for each parameter"
    assert distances(r, 3)["p2"] < 0.5 * ALONE


def left_alone(budget: int) -> tuple[Rehearsal, Scales]:
    """p0 alone has a model, and it is not the initial one."""
    r, scales = home(watched="p0")
    together(r, 2, None)
    r.run(20.0)
    r.leave("p1")
    r.run(20.0)
    assert [d.peer for d in r.alive()] == ["p0"]
    r.devices["p0"].spending.limit(budget)
    r.run(61.0)
    return r, scales


def test_a_lone_sponsor_gives_a_model_that_no_minute_has_room_for_and_pays_for_it() -> None:
    budget = 15_000
    r, _ = left_alone(budget)
    r.add("p2")
    r.run(90.0, until=lambda: r.devices["p2"].node.phase == "training")
    assert r.devices["p2"].node.phase == "training"
    spending, begun = r.devices["p0"].spending, r.now
    assert spending.spent_last_min > 8 * D, "all of it at once"
    r.run(61.0)
    assert spending.free == 0
    minutes = 8 * D / (budget - 4000)
    r.run(60.0 * minutes - 70.0)
    assert spending.free == 0
    r.run(20.0)
    assert spending.free > 0
    assert r.now - begun < 60.0 * minutes + 30.0


def test_a_sponsor_without_room_lets_another_give_the_model() -> None:
    r, scales = home(watched="p0")
    together(r, 2, None)
    r.run(30.0)
    r.devices["p0"].spending.limit(20_000)
    r.run(10.0)
    waited: set[str] = set()
    r.add("p2")

    def seated() -> bool:
        waited.update(r.devices["p0"].node.giving.short_for)
        return r.devices["p2"].node.phase == "training"

    r.run(20.0, until=seated)
    assert seated()
    assert waited == {"p2"}
    assert "p1" in {peer for _, peer, note in r.notes if note.text == "sponsors a newcomer"}
    r.run(5.0)
    assert r.devices["p0"].node.giving.short_for == ()
    assert max(scales.sizes[-10:]) < 1000


def test_a_newcomer_that_asks_and_is_gone_does_not_keep_a_device_silent() -> None:
    r, _ = home(watched="p0")
    together(r, 2, None)
    r.run(30.0)
    for peer in ("p0", "p1"):
        r.devices[peer].spending.limit(40_000)
    r.run(10.0)
    r.add("p2")
    r.run(30.0, until=lambda: "p2" in r.devices["p0"].node.giving.short_for)
    assert r.devices["p0"].node.giving.short_for == ("p2",)
    r.crash("p2", silent=True)
    r.run(60.0)
    device = r.devices["p0"]
    assert device.node.giving.short_for == ()
    held_back = device.spending.rounds_held_back
    device.spending.recent.clear()
    r.run(120.0)
    assert any(device.spending.recent), f"{device.spending.rounds_held_back - held_back} rounds sent nothing"


@pytest.mark.parametrize(
    ("algorithm", "topology", "budget"),
    [("d-psgd", "ring", 200_000), ("relay-sum", "chain", 200_000), ("sgp", "exponential", 300_000)],
)
@pytest.mark.parametrize("compression", ["none", "auto"])
def test_final_rounds_keep_to_the_budget_and_whole_models_end_as_one(
    algorithm: str, topology: str, budget: int, compression: str
) -> None:
    """Of push-sum's shares what has no room stays home."""
    r, scales = home(algorithm, topology, rounds=20, compression=compression)
    scales.limit = budget
    together(r, 3, budget)
    r.run(300.0, until=lambda: not r.alive())
    assert [d.left for d in r.devices.values()] == ["finished"] * 3
    assert scales.over == []
    models = torch.stack([d.exchange.estimate() for d in r.devices.values()])
    spread = float((models - models[0]).norm(dim=1).max())
    assert spread < (1e-9 if algorithm != "sgp" else 0.3 * ALONE)
