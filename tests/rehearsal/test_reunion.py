"""Partition and heal: both halves train on, and merge by what they see of each other's models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import Generation, Reunion, Told
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Rehearsal
from rehearsal import stories
from rehearsal.stories import KINDS

LAYOUT = Layout((6,))
PEERS = [f"p{i}" for i in range(8)]
HERE, THERE = set(PEERS[:4]), set(PEERS[4:])


def home(pulls: dict[str, float], algorithm: str = "sgp", topology: str = "exponential") -> Rehearsal:
    """Devices whose models are pulled towards (pull, pull, …); all begin at 1."""
    initial = torch.ones(6, dtype=torch.float64)

    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        return Exchange(make(algorithm, {}, LAYOUT, torch.float64), LAYOUT, initial, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -0.1 * r.devices[peer].exchange.algorithm.lr_scale * (z - pulls[peer])

    terms = Terms(topology, 0, graph=catalogue.algorithm(algorithm).graph)
    r = Rehearsal(terms, make_exchange, train)
    r.add("p0", founder=True)
    for peer in PEERS[1:]:
        r.run(0.3)
        r.add(peer)
    r.run(30.0)
    assert all(len(d.node.members.view()) == 8 for d in r.alive())
    return r


def part(r: Rehearsal, seconds: float, here: set[str] = HERE) -> None:
    there = set(PEERS) - here
    r.network.partition([here, there])
    r.run(seconds)
    r.network.heal()
    assert all(set(r.devices[p].node.members.view()) == here for p in here)
    assert all(set(r.devices[p].node.members.view()) == there for p in there)


def said(r: Rehearsal, text: str) -> set[str]:
    return {peer for _, peer, note in r.notes if note.text == text}


STARTS_OVER, TOGETHER = (
    "starts over with the model of the other half",
    "trains with those again that it was parted from",
)


@pytest.mark.parametrize("algorithm", ["sgp", "difference-push"])
def test_halves_whose_models_are_near_mix_and_no_mass_is_lost(algorithm: str) -> None:
    r = home(dict.fromkeys(HERE, 1.0) | dict.fromkeys(THERE, 1.3), algorithm)
    part(r, 60.0)
    rounds = {p: r.devices[p].node.key.round for p in PEERS}
    r.run(60.0)
    assert said(r, TOGETHER) == set(PEERS) and said(r, STARTS_OVER) == set()
    assert all(r.devices[p].node.key.round > rounds[p] + 20 for p in PEERS)
    assert r.mass()[1] == pytest.approx(1.0, rel=1e-9)
    models = torch.stack([d.exchange.estimate() for d in r.alive()])
    assert float(models.min()) > 1.05 and float(models.max()) < 1.25


@pytest.mark.parametrize("topology", ["exponential", "complete", "ring"])
def test_one_that_came_much_further_by_itself_starts_over_though_its_model_is_near(topology: str) -> None:
    """It would wait for the others for as long as they were apart."""
    r = home(dict.fromkeys(PEERS, 1.0), topology=topology)
    r._step_s = lambda peer: 0.3 if peer == "p7" else 1.0
    part(r, 60.0, {"p7"})
    behind, ahead = r.devices["p0"].node.key.round, r.devices["p7"].node.key.round
    assert ahead > behind + 100
    r.run(25.0)
    assert said(r, STARTS_OVER) == {"p7"}
    assert {d.node.rounds.view for d in r.alive()} == {tuple(PEERS)}, (
        "those too that were back after the verdict"
    )
    alone = r.devices["p7"].node.rounds.alone_total
    r.run(20.0)
    now = {d.peer: d.node.key.round for d in r.alive()}
    assert r.devices["p7"].node.rounds.alone_total == alone
    assert max(now.values()) - min(now.values()) <= 2
    assert behind + 30 < max(now.values()) < ahead, "nobody has skipped rounds"


@pytest.mark.parametrize("ahead", [3, 5])
def test_only_fewer_that_came_further_start_over(ahead: int) -> None:
    """More of them are where the others go."""
    r = home(dict.fromkeys(PEERS, 1.0))
    fast = set(PEERS[-ahead:])
    r._step_s = lambda peer: 0.3 if peer in fast else 1.0
    part(r, 60.0, fast)
    r.run(30.0)
    assert said(r, STARTS_OVER) == (fast if ahead < 4 else set())


def test_a_half_whose_model_does_not_mix_takes_the_other_ones_and_injects_nothing() -> None:
    r = home(dict.fromkeys(HERE, 1.0) | dict.fromkeys(THERE, 30.0))
    r.run(20.0)
    part(r, 90.0)
    theirs = float(r.devices["p5"].exchange.estimate().mean())
    kept = sum(r.devices[p].exchange.algorithm.weight for p in HERE)
    assert theirs > 25
    r.run(25.0, until=lambda: said(r, STARTS_OVER) == THERE)
    assert said(r, STARTS_OVER) == THERE  # works are about equal: the half with the lowest id has more
    r.run(1.5)
    assert all(float(r.devices[p].exchange.estimate().max()) < 20 for p in PEERS)
    r.run(60.0)
    assert all(d.node.phase == "training" and len(d.node.members.view()) == 8 for d in r.alive())
    assert 0 < r.mass()[1] <= kept + 0.5


AGREED = [("relay-sum", "double-tree", 4), ("relay-sum", "binary-tree", 2), ("d-psgd", "ring", 3)]


def generations(r: Rehearsal, peers: set[str]) -> set[Generation | None]:
    known = [r.devices[peer].node.generations for peer in peers]
    return {generations.current for generations in known if generations is not None}


@pytest.mark.parametrize(("algorithm", "topology", "first"), AGREED)
def test_on_an_agreed_graph_a_half_whose_model_does_not_mix_has_the_others_and_nothing_of_its_own(
    algorithm: str, topology: str, first: int
) -> None:
    """The half of fewer devices has done less work; of equal halves it is that without the lowest id."""
    here, there = set(PEERS[:first]), set(PEERS[first:])
    yields, stays = (here, there) if first < 4 else (there, here)
    r = home(dict.fromkeys(stays, 1.0) | dict.fromkeys(yields, 30.0), algorithm, topology)
    part(r, 60.0, here)
    assert min(float(r.devices[p].exchange.estimate().min()) for p in yields) > 25
    kept = torch.stack([r.devices[p].exchange.estimate() for p in sorted(stays)])
    r._train = stories.still
    parted = generations(r, here), generations(r, there)
    assert [len(half) for half in parted] == [1, 1] and parted[0] != parted[1]
    r.run(25.0, until=lambda: bool(said(r, STARTS_OVER)))
    assert (generations(r, here), generations(r, there)) == parted, "nobody mixes before the verdict"
    r.run(40.0)
    assert said(r, STARTS_OVER) == yields
    assert {p: r.devices[p].lives for p in PEERS} == dict.fromkeys(stays, 1) | dict.fromkeys(yields, 2)
    assert not said(r, TOGETHER)
    [agreed] = generations(r, set(PEERS))
    assert agreed is not None and set(agreed.view) == set(PEERS)
    models = torch.stack([d.exchange.estimate() for d in r.alive()])
    assert float((models - kept.mean(0)).abs().max()) <= float((kept - kept.mean(0)).abs().max()) + 1e-9


@pytest.mark.parametrize(("algorithm", "topology", "first"), AGREED)
def test_on_an_agreed_graph_halves_whose_models_are_near_mix_and_nobody_starts_over(
    algorithm: str, topology: str, first: int
) -> None:
    here, there = set(PEERS[:first]), set(PEERS[first:])
    r = home(dict.fromkeys(here, 1.0) | dict.fromkeys(there, 1.3), algorithm, topology)
    part(r, 60.0, here)
    kept = torch.stack([r.devices[p].exchange.estimate() for p in PEERS])
    assert float(kept[first:].min() - kept[:first].max()) > 0.2
    r._train = stories.still
    r.run(60.0)
    assert said(r, TOGETHER) == set(PEERS) and said(r, STARTS_OVER) == set()
    assert {d.lives for d in r.alive()} == {1}
    [agreed] = generations(r, set(PEERS))
    assert agreed is not None and set(agreed.view) == set(PEERS)
    models = torch.stack([d.exchange.estimate() for d in r.alive()])
    torch.testing.assert_close(models, kept.mean(0).expand(8, -1), rtol=0, atol=0.01)


def test_who_only_slept_is_trained_with_at_once() -> None:
    r = home(dict.fromkeys(PEERS, 1.0))
    r.pause("p3", 12.0)
    r.run(40.0)
    assert said(r, "looks at the model of one it was parted from") == set()
    assert all(len(d.node.members.view()) == 8 for d in r.alive())


def test_a_half_that_was_to_start_over_goes_on_with_its_own_model_if_the_other_is_gone_again() -> None:
    r = home(dict.fromkeys(HERE, 1.0) | dict.fromkeys(THERE, 30.0))
    r.run(20.0)
    part(r, 90.0)
    r.run(25.0, until=lambda: said(r, STARTS_OVER) == THERE)
    r.network.partition([HERE, THERE])
    for peer in HERE:
        r.crash(peer, silent=True)
    r.run(120.0)
    assert all(r.devices[p].node.phase == "training" for p in THERE)
    assert all(float(r.devices[p].exchange.estimate().mean()) > 15 for p in THERE)


def test_three_islands_are_settled_one_after_the_other() -> None:
    islands = [set(PEERS[:2]), set(PEERS[2:5]), set(PEERS[5:])]
    pulls = (
        dict.fromkeys(islands[0], -30.0) | dict.fromkeys(islands[1], 1.0) | dict.fromkeys(islands[2], 30.0)
    )
    r = home(pulls)
    r.network.partition(islands)
    r.run(100.0)
    r.network.heal()
    r.run(60.0)
    assert all(d.node.phase == "training" and len(d.node.members.view()) == 8 for d in r.alive())
    assert all(not d.node.reunions.estranged for d in r.alive())
    assert len(said(r, STARTS_OVER)) >= 4  # two of the three islands


def test_nobody_starts_over_on_anybodys_word_who_was_not_parted() -> None:
    r = home(dict.fromkeys(PEERS, 1.0))
    for peer in PEERS[1:]:
        r.feed(peer, Told("p0", Reunion(tuple(PEERS))))
    r.run(10.0)
    assert said(r, STARTS_OVER) == set()


@pytest.mark.parametrize("seed", range(4))
def test_after_a_cut_of_half_a_minute_one_verdict_settles_it_for_everybody(seed: int) -> None:
    """Also for those who took each other for dead at different times; and nobody is slowed down for long."""
    r, _ = stories.home(KINDS[2], "exponential", 6, seed=seed)
    r._step_s = lambda peer: 0.35
    stories.together(r, 8)
    r.run(75.0)
    began = {d.peer: d.rounds for d in r.alive()}
    r.network.partition([HERE, THERE])
    r.run(30.0)
    r.network.heal()
    r.run(15.0)
    assert not any(d.node.reunions.estranged for d in r.alive())
    assert {len(d.node.members.view()) for d in r.alive()} == {8}
    done = [d.rounds - began[d.peer] for d in r.alive()]
    assert sum(done) > 0.8 * 8 * 45.0 / 0.38, f"rounds in 45 s of .35 s and a way each: {done}"


@pytest.mark.parametrize("seconds", [60.0, 300.0])
def test_who_stood_still_for_long_begins_anew_as_soon_as_somebody_has_looked(seconds: float) -> None:
    """It has missed nobody, and does not wait until the others give up."""
    pulls = dict.fromkeys(PEERS, 1.0)
    r = home(pulls, topology="complete")
    r.pause("p2", seconds)
    pulls |= dict.fromkeys(PEERS, 30.0)
    r.run(seconds + 4.0)
    assert said(r, STARTS_OVER) == {"p2"}
    assert {d.node.rounds.view for d in r.alive()} == {tuple(PEERS)}
    assert not any(d.node.reunions.estranged for d in r.alive())
    assert min(float(d.exchange.estimate().min()) for d in r.alive()) > 25.0


def test_that_somebody_has_left_before_makes_nobody_wait_for_a_half_of_the_sleepers() -> None:
    r, _ = stories.home(KINDS[2], "complete", 6, seed=4)
    r._step_s = lambda peer: 0.35
    stories.together(r, 5)
    r.run(10.0)
    r.leave("p4")
    r.run(5.0)
    r.pause("p2", 60.0)
    r.run(60.0 + 4.0)
    assert said(r, STARTS_OVER) == {"p2"}


@pytest.mark.parametrize("seed", [6, 8, 12])
def test_who_starts_over_has_a_model_at_once_whomever_it_asks(seed: int) -> None:
    """It asks while links to the life that it has given up are still open."""
    r, books = stories.home(KINDS[2], "complete", 6, seed=seed)
    r._step_s = lambda peer: 0.35
    stories.together(r, 4)
    r.run(10.0)
    r.pause("p2", 60.0)
    r.run(60.0)
    back = r.devices["p2"]
    r.run(10.0, until=lambda: back.lives == 2)
    assert back.lives == 2
    r.run(1.0, until=lambda: back.node.phase == "training")
    assert back.node.phase == "training"
    books.check()


def test_a_leader_that_cannot_be_dialed_looks_too() -> None:
    """It fetches the model, whose sender is not in its view yet."""
    r, _ = stories.home(KINDS[2], "complete", 6, seed=4)
    r.network.undialable.add("p0")
    r._step_s = lambda peer: 0.35
    stories.together(r, 4)
    r.run(10.0)
    r.pause("p2", 60.0)
    r.run(60.0 + 12.0)
    assert said(r, STARTS_OVER) == {"p2"}
    assert {d.node.rounds.view for d in r.alive()} == {("p0", "p1", "p2", "p3")}
    assert not any(d.node.reunions.estranged for d in r.alive())


def test_leaders_that_neither_of_them_can_dial_look_at_somebody_else() -> None:
    r = home(dict.fromkeys(HERE, 1.0) | dict.fromkeys(THERE, 30.0))
    r.network.undialable |= {"p0", "p4"}
    r.run(20.0)
    part(r, 60.0)
    r.run(25.0)
    assert said(r, STARTS_OVER) == THERE
    assert not any(d.node.reunions.estranged for d in r.alive())
