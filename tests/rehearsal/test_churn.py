"""One device leaves, stands still, or is at another address: the others go on, and so does it."""

from __future__ import annotations

import pytest

from peer.rehearsal.driver import Rehearsal
from rehearsal.accountant import Accountant
from rehearsal.stories import EVERY, Kind, apart, home, mean, name, rounds, spread, still, together

N = 5
ONE = name(2)  # on the tree one of its neighbors has no other


def session(kind: Kind, seed: int) -> tuple[Rehearsal, Accountant]:
    r, books = home(kind, kind.topologies[0], 4, seed=seed)
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
        most = 1e-9 if kind.conserves else 0.75 * spread(r)
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
