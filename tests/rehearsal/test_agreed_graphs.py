"""Whole-model algorithms in sessions of many devices: one graph, one generation, exact means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import FINAL, Generation, Told
from peer.learner.exchange import Exchange
from peer.mesh.generations import AGAIN_S
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Weather, quadratics
from rehearsal import stories

D = 6
LAYOUT = Layout((4, 2))
MINIMISERS, _ = quadratics(16, D, seed=3)
X0 = torch.full((D,), -20.0, dtype=torch.float64)  # far off: a model that moves towards it shows
RELAYS = [("relay-sum", tree) for tree in catalogue.TREES]


def home(
    algorithm: str = "relay-sum",
    topology: str = "binary-tree",
    *,
    rounds: int = 0,
    weather: Weather | None = None,
    step_s: float = 1.0,
) -> Rehearsal:
    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        return Exchange(make(algorithm, {}, LAYOUT, torch.float64), LAYOUT, X0, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        scale = r.devices[peer].exchange.algorithm.lr_scale
        return -0.05 * scale * (z - MINIMISERS[int(peer[1:])])

    graph = catalogue.algorithm(algorithm).graph
    terms = Terms(topology, 0, rounds=rounds, graph=graph)
    r = Rehearsal(terms, make_exchange, train, weather=weather, step_s=lambda _: step_s)
    return r


def name(i: int) -> str:
    return f"p{i:02d}"


def together(r: Rehearsal, n: int) -> Rehearsal:
    """All begin at once, with the initial model."""
    for i in range(n):
        r.add(name(i), founder=True)
    r.run(20.0, until=lambda: one_generation(r, n))
    assert one_generation(r, n)
    return r


def generations(r: Rehearsal) -> set[int]:
    return {d.node.key.generation for d in r.alive()}


def one_generation(r: Rehearsal, n: int) -> bool:
    if len(generations(r)) > 1 or 0 in generations(r):
        return False
    return all(len(d.node.generations.current.view) == n for d in r.alive())


def models(r: Rehearsal) -> Tensor:
    return torch.stack([d.exchange.estimate() for d in r.alive()])


def spread(r: Rehearsal) -> float:
    x = models(r)
    return float((x - x.mean(0)).norm(dim=1).max())


def error(r: Rehearsal, n: int) -> float:
    return max(float((x - MINIMISERS[:n].mean(0)).norm()) for x in models(r))


@pytest.mark.parametrize(("algorithm", "topology"), [*RELAYS, ("relay-sum-grad", "binary-tree")])
def test_a_bounded_session_ends_with_the_same_model_everywhere_and_hears_every_message(
    algorithm: str, topology: str
) -> None:
    r = together(home(algorithm, topology, rounds=40), 7)
    r.run(120.0)
    ended = list(r.devices.values())
    assert {d.left for d in ended} == {"finished"}
    assert {d.node.rounds.alone_total for d in ended} == {0}
    x = torch.stack([d.exchange.estimate() for d in ended])
    assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-12


def test_gossip_ends_in_one_exact_round_with_everybody() -> None:
    r = together(home("d-psgd", "ring", rounds=30), 7)
    r.run(100.0)
    x = torch.stack([d.exchange.estimate() for d in r.devices.values()])
    assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-12


@pytest.mark.parametrize(("algorithm", "topology"), RELAYS)
def test_relayed_models_come_to_the_common_minimum(algorithm: str, topology: str) -> None:
    r = together(home(algorithm, topology), 8)
    r.run(240.0)
    assert error(r, 8) < 0.01


def test_gossip_stays_away_from_the_common_minimum() -> None:
    gossip = together(home("d-psgd", "ring"), 8)
    gossip.run(240.0)
    assert error(gossip, 8) > 0.2


@pytest.mark.parametrize(
    ("algorithm", "topology", "bps"),
    [
        ("d-psgd", "complete", 4000.0),
        ("all-reduce", "complete", 4000.0),
        ("relay-sum", "binary-tree", 1600.0),
    ],
)
def test_messages_that_take_forty_times_as_long_as_local_steps_are_heard(
    algorithm: str, topology: str, bps: float
) -> None:
    r = home(algorithm, topology, step_s=0.05, weather=Weather(latency_s=(0.03, 0.03), bandwidth_bps=bps))
    together(r, 8)
    r.run(100.0)
    alone = [device.node.rounds.alone_total for device in r.alive()]
    rounds = [device.node.key.round for device in r.alive()]
    assert max(alone) <= 2, f"{alone} of {rounds} rounds were closed with nobody heard"
    assert min(rounds) > 20
    without = [note for at, _, note in r.notes if note.text == "closes without" and at > 30]
    assert not without, without[:3]


def test_lost_messages_are_made_up_for_by_the_next_round() -> None:
    r = together(home(weather=Weather(latency_s=(0.005, 0.2), loss=0.05, duplicate=0.1)), 8)
    r.run(240.0)
    r.weather = Weather()
    r.run(100.0)
    assert len(generations(r)) == 1
    assert error(r, 8) < 0.05


@pytest.mark.parametrize("tree", catalogue.TREES)
def test_all_nodes_change_n_in_the_same_generation_and_a_change_moves_no_model_towards_x0(tree: str) -> None:
    """Tree rebuilt again and again: row 24 of the reliability note's test plan."""
    r = together(home(topology=tree), 8)
    r.run(150.0)
    far = float((models(r).mean(0) - X0).norm())
    joined = 8
    for story in range(4):
        before, wide = models(r).mean(0), spread(r)
        n_by_generation: dict[int, set[int]] = {}
        if story % 2 == 0:
            r.add(name(joined))
            joined += 1
        else:
            r.leave(name(story))
        n = len(r.alive()) - story % 2
        for _ in range(400):
            r.run(0.1)
            for d in (d for d in r.alive() if d.node.generations.current is not None):
                links = d.exchange.algorithm.links
                n_by_generation.setdefault(links.key.generation, set()).add(links.n)
            if one_generation(r, n):
                break
        assert one_generation(r, n)
        assert all(len(ns) == 1 for ns in n_by_generation.values()), n_by_generation
        assert len(n_by_generation) >= 2
        assert [n_by_generation[generation] for generation in generations(r)] == [{n}]
        moved = models(r).mean(0) - before
        assert (
            float((models(r).mean(0) - X0).norm()) > far - 0.5
        )  # the targets' mean is elsewhere now, x0 is not
        assert float(moved.norm()) < 1.0 + wide
        r.run(20.0)


def test_a_late_joiner_has_a_seat_within_the_rate_limit_and_starts_from_the_others_model() -> None:
    r = together(home(), 8)
    r.run(100.0)
    mean = models(r).mean(0)
    r.add(name(8))
    r.run(6.0, until=lambda: r.devices[name(8)].node.phase == "training")
    assert float((r.devices[name(8)].exchange.estimate() - mean).norm()) < 0.2
    r.run(25.0, until=lambda: one_generation(r, 9))
    assert one_generation(r, 9)
    r.run(150.0)
    assert error(r, 9) < 0.05


def test_a_crash_and_a_quick_return_keep_the_tree_and_begin_the_next_generation() -> None:
    r = together(home(), 8)
    r.run(60.0)
    before = r.devices[name(3)].node.generations.current
    r.crash(name(3))
    r.run(2.0)
    r.add(name(3))
    r.run(15.0, until=lambda: one_generation(r, 8) and generations(r) != {0})
    r.run(5.0)
    after = r.devices[name(3)].node.generations.current
    assert one_generation(r, 8)
    assert after.view == before.view and after.epoch > before.epoch


def test_one_that_crashes_again_and_again_ends_at_a_leaf_and_does_not_hold_up_the_others() -> None:
    r = together(home(step_s=0.3), 8)
    r.run(60.0)
    first, began, noted = r.devices[name(0)], r.now, len(r.notes)
    rounds = first.rounds
    for _ in range(20):
        r.crash(name(3))
        r.run(1.0)
        r.add(name(3))
        r.run(5.0)
    taken_up = [n for _, p, n in r.notes[noted:] if p == name(0) and n.text == "takes up a generation"]
    assert len(taken_up) <= (r.now - began) / AGAIN_S
    assert first.node.generations.current.view[-1] == name(3)
    assert first.rounds - rounds > 300, "304 with a generation for each crash; 340 without crashes"
    r.run(20.0, until=lambda: one_generation(r, 8))
    assert one_generation(r, 8)


def test_a_device_that_stays_away_is_taken_off_the_tree_and_has_its_old_seat_when_it_is_back() -> None:
    r = together(home(), 8)
    r.run(60.0)
    view = r.devices[name(0)].node.generations.current.view
    r.crash(name(5), silent=True)
    r.run(60.0, until=lambda: one_generation(r, 7))
    assert one_generation(r, 7)
    rounds = r.devices[name(0)].node.key.round
    r.run(30.0)
    assert r.devices[name(0)].node.key.round > rounds + 20
    r.add(name(5))
    r.run(15.0, until=lambda: one_generation(r, 8))
    assert one_generation(r, 8)
    assert r.devices[name(5)].node.generations.current.view == view


def test_both_halves_of_a_partition_train_on_and_are_one_generation_soon_after_it_is_healed() -> None:
    r = together(home(), 8)
    r.run(60.0)
    here, there = {name(i) for i in range(4)}, {name(i) for i in range(4, 8)}
    r.network.partition([here, there])
    r.run(60.0)
    assert len(generations(r)) == 2
    assert all(len(d.node.generations.current.view) == 4 for d in r.alive())
    rounds = {d.peer: d.node.key.round for d in r.alive()}
    r.run(30.0)
    assert all(d.node.key.round >= rounds[d.peer] + 20 for d in r.alive())
    r.network.heal()
    r.run(20.0, until=lambda: one_generation(r, 8))
    assert one_generation(r, 8)
    r.run(150.0)
    assert error(r, 8) < 0.05


def test_the_whole_homes_power_cut() -> None:
    r = together(home(), 6)
    r.run(100.0)
    mean = models(r).mean(0)
    for i in range(6):
        r.crash(name(i), silent=True)
    r.run(5.0)
    for i in (4, 1, 5, 0, 3, 2):
        r.add(name(i))
        r.run(0.7)
    r.run(60.0, until=lambda: one_generation(r, 6))
    assert one_generation(r, 6)
    assert float((models(r).mean(0) - mean).norm()) < 1.0
    assert min(d.node.key.round for d in r.alive()) > 50


def test_one_device_alone_goes_on_in_a_tree_of_its_own_at_its_full_rate() -> None:
    r = together(home(), 2)
    r.run(60.0)
    r.crash(name(1), silent=True)
    r.run(120.0)
    alone = r.devices[name(0)]
    assert alone.node.generations.current.view == (name(0),)
    assert float((alone.exchange.estimate() - MINIMISERS[0]).norm()) < 0.3
    assert alone.node.rounds.alone > 3


TREES = [
    ("relay-sum", "binary-tree"),
    ("relay-sum-grad", "chain"),
    ("relay-sum", "double-tree"),
    ("relay-sum", "chain"),
]


@pytest.mark.parametrize(("algorithm", "topology"), TREES if stories.SOAK else TREES[:2])  # 12 s each
def test_trees_rebuilt_every_twenty_seconds_keep_the_mean_model(algorithm: str, topology: str) -> None:
    """Row 24 of the reliability note's test plan. Without local steps nothing else moves it. Before each new
    tree the models are set apart, and what they are at its beginning is what counts: changes that are still
    being relayed then go with the old tree."""
    r = together(home(algorithm, topology), 8)
    r.run(60.0)
    dice = torch.Generator().manual_seed(5)
    for rebuild in range(30):
        steps = {d.peer: torch.randn(D, generator=dice, dtype=torch.float64) for d in r.alive()}
        r._train = lambda peer, z, round_, steps=steps: steps.pop(peer, torch.zeros_like(z))
        r.run(1.5 + 0.05 * rebuild)
        assert not steps
        r._train = lambda peer, z, round_: torch.zeros_like(z)
        current = r.devices[name(0)].node.generations.current
        view = dict.fromkeys([current.view[-1 - rebuild % 3], *reversed(current.view)])
        anew = Generation(current.epoch + 1, name(0), tuple(view))
        for device in r.alive():
            r.feed(device.peer, Told(name(0), anew))
        begun: dict[str, Tensor] = {}
        while len(begun) < 8:
            r.run(0.05)
            for device in r.alive():
                alignment = device.exchange.algorithm.alignment
                if alignment is not None and device.node.generations.current == anew:
                    begun.setdefault(device.peer, alignment.model)
        start = torch.stack(list(begun.values()))
        mean = start.mean(0)
        wide = float((start - mean).norm(dim=1).max())
        r.run(20.0)
        assert {d.node.generations.current for d in r.alive()} == {anew}
        assert wide > 0.1 or algorithm == "relay-sum-grad", "the models are apart"
        off = [float((x - mean).norm()) for x in models(r)]
        assert max(off) < 1e-9 + 1e-3 * wide, f"{rebuild=} {wide=}"


def test_nobody_waits_for_a_neighbor_that_is_in_the_next_generation_already() -> None:
    for tenth in range(10):
        r = together(home("d-psgd", "ring", weather=Weather(latency_s=(0.05, 0.4))), 5)
        r.run(20.0 + tenth / 10)
        current, noted = r.devices[name(0)].node.generations.current, len(r.notes)
        anew = Generation(current.epoch + 1, name(0), tuple(reversed(current.view)))
        r.feed(name(0), Told(name(1), anew))
        r.run(12.0)
        assert {d.node.generations.current for d in r.alive()} == {anew}
        assert not [note for _, _, note in r.notes[noted:] if note.text == "closes without"], f"{tenth=}"


@pytest.mark.parametrize(
    ("algorithm", "topology"), [("relay-sum", "binary-tree"), ("relay-sum", "chain"), ("d-psgd", "ring")]
)
def test_whoever_joins_before_the_end_ends_with_the_model_of_all(algorithm: str, topology: str) -> None:
    """In a generation with the others if there is time for one; else it is given what they have come to."""
    late = 0
    for at in range(30):
        weather = Weather(local_s=0.05 * (at % 2))
        r = together(home(algorithm, topology, rounds=30, weather=weather), 5)
        r.run(100.0, until=lambda at=at, r=r: r.devices[name(0)].node.key.round >= at)
        r.run(0.1 * (at % 5))
        r.add(name(5))
        r.run(0.3)
        r.add(name(6))
        r.run(600.0, until=lambda r=r: not r.alive())
        assert {d.left for d in r.devices.values()} == {"finished"}, at
        x = torch.stack([d.exchange.estimate() for d in r.devices.values()])
        assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-9, at
        late += sum(note.text.startswith("came too late") for _, _, note in r.notes)
    assert 4 <= late <= 12


def test_whoever_joins_at_the_end_and_cannot_be_dialed_fetches_the_final_model() -> None:
    """From one that has finished and trains with nobody any more."""
    r = together(home(rounds=30), 5)
    r.network.undialable.add(name(5))
    r.run(100.0, until=lambda: r.devices[name(0)].node.phase == "finished")
    r.add(name(5))
    r.run(60.0, until=lambda: not r.alive())
    assert {d.left for d in r.devices.values()} == {"finished"}
    x = torch.stack([d.exchange.estimate() for d in r.devices.values()])
    assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-9


@pytest.mark.parametrize(
    ("algorithm", "topology", "n"),
    [("relay-sum", "binary-tree", 7), ("relay-sum", "chain", 5), ("d-psgd", "ring", 6)],
)
@pytest.mark.parametrize("fault", ["crash", "leave", "crash when finished"])
def test_whoever_goes_at_the_end_leaves_the_others_with_one_model(
    algorithm: str, topology: str, n: int, fault: str
) -> None:
    """The mean of those who stay, or of all, if that is what somebody has come to."""
    for at in range(8):
        local_s = 0.05 * (at % 2)
        r = together(home(algorithm, topology, rounds=30, weather=Weather(local_s=local_s)), n)
        goes = r.devices[name(at % n)]
        r.run(100.0, until=lambda at=at, r=r: r.devices[name(0)].node.key.round >= 28 + at // 2)
        r.run((0.05 if at >= 4 else 0.2) * (at % 5))
        if fault == "leave":
            r.leave(goes.peer)
        else:
            if fault != "crash":
                r.run(100.0, until=lambda goes=goes: goes.node.phase == "finished")
            r.crash(goes.peer, silent=True)
        r.run(120.0, until=lambda r=r: not r.alive())
        stayed = [d for d in r.devices.values() if d is not goes]
        assert {d.left for d in stayed} == {"finished"}, at
        x = torch.stack([d.exchange.estimate() for d in stayed])
        assert float((x - x.mean(0)).norm(dim=1).max()) < 1e-9, at


def test_the_only_one_left_in_the_final_rounds_finishes_alone() -> None:
    r = together(home(rounds=30), 5)
    r.run(100.0, until=lambda: r.devices[name(0)].node.key.phase == FINAL)
    for i in range(1, 5):
        r.crash(name(i), silent=True)
    r.run(120.0, until=lambda: not r.alive())
    assert r.devices[name(0)].left == "finished"
    assert any(n.text == "finishes alone: the others have gone" for _, _, n in r.notes)


def test_who_is_seated_in_the_final_rounds_comes_to_an_end_too() -> None:
    r = together(home(rounds=30), 5)
    r.run(100.0, until=lambda: r.devices[name(0)].node.key.round >= 29)
    r.crash(name(4), silent=True)
    r.run(3.0)
    r.add(name(5))
    r.run(600.0, until=lambda: not r.alive())
    assert {d.left for d in r.devices.values() if d.peer != name(4)} == {"finished"}


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("n", [4, 12])
def test_a_measured_tree_leaves_a_link_that_is_broken_for_one_that_is_not(n: int, both: bool) -> None:
    """Nobody dies: others hear both its ends. Else the parts of the tree train each by itself."""
    r = together(home(topology="spanning-tree"), n)
    r.run(60.0)
    one = r.devices[name(n - 1)]
    other = neighbors(one)[0]
    r.network.block(one.peer, other, both=both)
    r.run(90.0, until=lambda: other not in neighbors(one) and one_generation(r, n))
    assert other not in neighbors(one)
    before = generations(r)
    r.run(120.0)
    assert generations(r) == before, "one change, and no other"
    assert one_generation(r, n)
    assert error(r, n) < 0.2
    assert not any(note.text == "is silent: taken for dead" for _, _, note in r.notes)


def neighbors(device: Device) -> list[str]:
    place = device.node.generations.place()
    return list(place.out)
