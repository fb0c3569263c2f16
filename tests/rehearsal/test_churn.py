"""One device joins, leaves, stands still, crashes, or is at another address, or the power is cut: the others
go on, and so does it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peer.rehearsal.driver import Device, Rehearsal
from rehearsal.accountant import Accountant
from rehearsal.stories import EVERY, WHOLE, Kind, apart, home, mean, name, rounds, spread, still, together

N = 5
ONE = name(2)  # on the tree one of its neighbors has no other


def session(kind: Kind, seed: int, topology: str = "") -> tuple[Rehearsal, Accountant]:
    r, books = home(kind, topology or kind.topologies[0], 4, seed=seed)
    together(r, N)
    r.run(20.0)
    return r, books


def epochs(r: Rehearsal) -> set[int]:
    """Of the graph all agree on, where there is one."""
    known = [d.node.generations for d in r.alive() if d.node.generations is not None]
    return {generations.current.epoch for generations in known if generations.current is not None}


@EVERY
@pytest.mark.parametrize("pause", [False, True], ids=["for good", "paused"])
def test_who_leaves_politely_holds_nobody_up_and_is_welcome_again(kind: Kind, pause: bool) -> None:
    """At any point of a round. The mean of whole models is without the leaver's, which moves it by a part of
    the spread."""
    for quarter in range(4):
        r, books = session(kind, seed=quarter)
        r._train = still
        r.run(3.0 + quarter / 4)
        before, earlier = mean(r), rounds(r)
        most = 1e-9 if kind.is_exact else 0.75 * spread(r)
        r.leave(ONE, pause=pause)
        r.run(20.0)
        assert r.devices[ONE].left == ("paused" if pause else "left")
        assert not apart(r), apart(r)
        done = {peer: after - earlier[peer] for peer, after in rounds(r).items()}
        assert min(done.values()) >= 17, f"rounds of a second, in 20 s: {done}"
        assert float((mean(r) - before).norm()) < most
        books.check()
        assert books.left_unconfirmed == 0
        r.add(ONE)
        r.run(30.0)
        assert not apart(r), apart(r)
        assert float((mean(r) - before).norm()) < most
        books.check()


@EVERY
@pytest.mark.parametrize("seconds", [10.0, 40.0], ids=["for a while", "until it is taken for dead"])
def test_who_stood_still_goes_on_at_the_others_round_in_the_same_life_or_with_their_model(
    kind: Kind, seconds: float
) -> None:
    """With theirs after a long time, if the models are too far from each other to be mixed."""
    for seed in range(3):
        r, books = session(kind, seed)
        earlier, epoch = rounds(r), epochs(r)
        r.pause(ONE, seconds)
        r.run(seconds - 0.1)
        others = [d for d in r.alive() if d.peer != ONE]
        assert {ONE in d.node.members.view() for d in others} == {seconds < 30.0}
        assert min(d.node.key.round - earlier[d.peer] for d in others) >= 0.3 * seconds
        books.check()
        r.run(20.0)
        assert not apart(r), apart(r)
        r.run(20.0)
        books.check()
        assert not apart(r), apart(r)
        now = rounds(r)
        assert max(now.values()) - min(now.values()) <= 1, now
        anew = {d.peer for d in r.alive() if d.lives > 1}
        assert anew == {peer for _, peer, note in r.notes if note.text.startswith("starts over")}
        assert anew <= ({ONE} if seconds > 30.0 else set())
        assert (epochs(r) == epoch) == (seconds < 30.0 or kind.conserves)


@EVERY
def test_who_is_at_another_address_is_found_there_and_trained_with_on_the_same_graph(kind: Kind) -> None:
    """Out of reach for three seconds at the most, and its streams have ended at one end only."""
    for seed in range(3):
        r, books = session(kind, seed)
        earlier, epoch = rounds(r), epochs(r)
        r.move(ONE)
        for _ in range(40):
            r.run(1.0)
            books.check()
        assert not apart(r), apart(r)
        records = [d.node.members.record(ONE) for d in r.alive()]
        assert {record.addresses for record in records if record is not None} == {(f"{ONE}:2",)}
        done = {peer: after - earlier[peer] for peer, after in rounds(r).items()}
        assert min(done.values()) >= 30, f"rounds of a second, in 40 s: {done}"
        assert {d.node.rounds.missed for d in r.alive()} == {frozenset()}
        assert epochs(r) == epoch


@EVERY
def test_a_late_joiner_begins_with_the_others_model_and_its_data_counts(kind: Kind) -> None:
    for seed, topology in enumerate(kind.topologies[:2]):
        r, books = session(kind, seed, topology)
        train, r._train = r._train, still
        r.run(10.0)
        before, wide, earlier, at = mean(r), spread(r) + 1e-9, rounds(r), r.now
        newcomer = r.add(name(N))
        r.run(5.0, until=lambda newcomer=newcomer: newcomer.node.phase == "training")  # type: ignore[misc]
        assert newcomer.node.phase == "training"
        assert off(newcomer, before) <= 2 * wide
        r.run(20.0)
        assert not apart(r), apart(r)
        done = {peer: after - earlier[peer] for peer, after in rounds(r).items() if peer in earlier}
        assert min(done.values()) >= 0.9 * (r.now - at), f"rounds of a second, in {r.now - at} s: {done}"
        assert off(newcomer, before) <= 2 * wide
        assert float((mean(r) - before).norm()) <= (1e-9 if kind.is_exact else wide)
        books.check()
        r._train = train
        far = distance(r)
        r.run(40.0)
        assert distance(r) < 0.5 * far, "from the minimum of all six"
        books.check()


@EVERY
@pytest.mark.parametrize("away_s", [1.0, 60.0], ids=["before it is missed", "after it was taken for dead"])
def test_who_crashes_holds_nobody_up_for_long_and_is_one_of_them_again(kind: Kind, away_s: float) -> None:
    for seed, topology in enumerate(kind.topologies[:2]):
        r, books = session(kind, seed, topology)
        earlier, at = rounds(r), r.now
        r.crash(ONE, silent=True)
        r.run(away_s)
        assert {ONE in d.node.members.view() for d in r.alive()} == {away_s < 10.0}
        books.check()
        device = r.add(ONE)
        r.run(5.0, until=lambda device=device: device.node.phase == "training")  # type: ignore[misc]
        assert device.node.phase == "training"
        r.run(25.0)
        books.check()
        assert not apart(r), apart(r)
        now = rounds(r)
        assert max(now.values()) - min(now.values()) <= 1, now
        done = {peer: now[peer] - before for peer, before in earlier.items()}
        assert min(done.values()) >= 0.85 * (r.now - at), f"rounds of a second, in {r.now - at} s: {done}"
        r._train, wide = still, spread(r)
        r.run(30.0)
        books.check()
        left = kind.rest if kind.compression else 0.05 * wide if kind.repairs else 0.0
        assert spread(r) <= left + 1e-9


@EVERY
def test_after_a_power_cut_all_go_on_from_the_best_checkpoint(kind: Kind) -> None:
    """Without local steps they stay there: nobody brings a model or mass of its own. What error feedback has
    kept back since comes in yet."""
    for seed, topology in enumerate(kind.topologies[:2]):
        r, books = session(kind, seed, topology)
        for peer in list(r.devices):
            r.crash(peer, silent=True)
        r._train = still
        r.run(5.0)
        for place, i in enumerate((3, 1, 4, 0, 2)):
            r.add(name(i), checkpoint_age=7 * (place % 2))
            r.run(0.7)
        kept = {d.peer: d.checkpoint for d in r.alive() if d.checkpoint is not None}
        assert set(kept) == set(r.devices)
        best = kept[max(kept, key=lambda peer: (kept[peer].round, peer))]
        r.run(40.0)
        assert not apart(r), apart(r)
        assert max(off(d, best.model) for d in r.alive()) <= (kind.rest if kind.compression else 1e-9)
        assert r.mass()[1] == pytest.approx(1.0 if kind.conserves else N, rel=1e-9)
        assert min(rounds(r).values()) >= best.round + 20
        books.check()


def test_what_relay_sum_grad_has_lost_keeps_models_apart_until_the_next_tree_makes_them_equal() -> None:
    """Its only repair is the exact mean that a tree begins with."""
    (kind,) = [kind for kind in WHOLE if not kind.repairs]
    for seed, topology in enumerate(kind.topologies):
        r, _ = session(kind, seed, topology)
        epoch = epochs(r)
        r.pause(ONE, 10.0)
        r.run(20.0)
        r._train = still
        r.run(10.0)  # what was under way
        wide, middle = spread(r), mean(r)
        assert wide > 0.05
        r.run(20.0)
        assert epochs(r) == epoch
        assert spread(r) == wide and torch.equal(mean(r), middle)
        r.leave(ONE)
        models = [d.exchange.estimate() for d in r.alive() if d.peer != ONE]
        r.run(30.0)
        assert not apart(r), apart(r)
        assert spread(r) < 1e-9
        assert float((mean(r) - torch.stack(models).mean(0)).norm()) < 1e-9


def off(device: Device, model: Tensor) -> float:
    return float((device.exchange.estimate() - model).norm())


def distance(r: Rehearsal) -> float:
    """From the minimum of all, as their gradients at the mean model say."""
    gradients = [r._train(d.peer, mean(r), 0) for d in r.alive()]
    return float(torch.stack([g for g in gradients if isinstance(g, Tensor)]).sum(0).norm())
