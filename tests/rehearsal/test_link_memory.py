"""Sessions of models large enough for links to remember what they have carried (compression/history.py)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.algorithms.difference_push import DIFFERENCE, DifferencePush
from peer.compression.bodies import Layout, Recalled
from peer.compression.codec import decode
from peer.compression.history import SMALLEST_MODEL
from peer.events import Frame, Parcel, PeerId
from peer.learner.exchange import Exchange
from peer.mesh.terms import Terms
from peer.rehearsal.driver import Device, Rehearsal, Weather, Witness, quadratics
from rehearsal.accountant import Accountant

LAYOUT = Layout((64 * 64, 64, 1000), (64, 1, 10))
MINIMISERS, _ = quadratics(8, LAYOUT.d, seed=1)
INITIAL = torch.zeros(LAYOUT.d, dtype=torch.float64)


class Kinds(Witness):
    """Counts differences by whether they were coded from memory."""

    def __init__(self) -> None:
        self.seen: Counter[bool] = Counter()

    def sent(self, device: Device, frame: Frame) -> None:
        if isinstance(frame, Parcel) and isinstance(frame.payload, bytes):
            message = decode(frame.payload, LAYOUT, torch.float64)
            if message.meaning == DIFFERENCE:
                self.seen[isinstance(message.body, Recalled)] += 1


def home(weather: Weather, witness: Witness | None = None) -> Rehearsal:
    def make_exchange(peer: PeerId, resume: tuple[Tensor, int] | None) -> Exchange:
        return Exchange(make("difference-push", {}, LAYOUT, torch.float64), LAYOUT, INITIAL, resume=resume)

    def train(peer: PeerId, z: Tensor, round_: int) -> Tensor:
        return -0.05 * (z - MINIMISERS[int(peer[1:])])

    return Rehearsal(Terms("exponential", 0), make_exchange, train, weather=weather, witness=witness)


def begin(r: Rehearsal, n: int) -> None:
    r.add("p0", founder=True)
    for i in range(1, n):
        r.run(0.3)
        r.add(f"p{i}")


def algorithm(device: Device) -> DifferencePush:
    found = device.exchange.algorithm
    assert isinstance(found, DifferencePush)
    return found


def remembered_alike(r: Rehearsal) -> int:
    """Of links with nothing out, both ends remember the same. How many there are."""
    count = 0
    for sender in r.alive():
        for dst, link in algorithm(sender).replicas.out.items():
            receiver = r.devices[dst]
            there = algorithm(receiver).replicas.into.get(sender.peer) if receiver.alive else None
            if link.h is None or link.history is None or there is None or sender.node.links.unacked(dst):
                continue
            assert torch.equal(link.h, there.h)
            assert link.history.count == there.history.count
            assert np.array_equal(link.history.a, there.history.a)
            assert np.array_equal(link.history.e, there.history.e)
            count += 1
    return count


def test_all_but_a_links_first_difference_are_coded_from_memory_and_none_is_refused() -> None:
    assert LAYOUT.d >= SMALLEST_MODEL
    kinds = Kinds()
    r = home(Weather(latency_s=(0.005, 0.05)), kinds)
    begin(r, 5)
    r.run(60.0)
    assert kinds.seen[True] > 8 * kinds.seen[False] > 0
    assert not any(note.text == "link refused" for _, _, note in r.notes)
    assert remembered_alike(r) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_memory_starts_anew_with_its_link_and_no_mass_is_lost_through_crashes_cuts_and_moves(
    seed: int,
) -> None:
    r = home(Weather(latency_s=(0.005, 0.2), loss=0.02, duplicate=0.1, reorder=0.1))
    books = Accountant(r, LAYOUT.d)
    begin(r, 5)
    r.run(20.0)
    for act in (
        lambda: r.crash("p1", silent=bool(seed % 2)),
        lambda: r.move("p2"),
        lambda: r.add("p1"),
        lambda: r.partition([{"p0", "p1"}, {"p2", "p3", "p4"}]),
        r.heal,
        lambda: r.pause("p3", 4.0),
        lambda: r.leave("p4", pause=True),
    ):
        act()
        r.run(6.0 + seed)
        books.check()
    r.weather = Weather()
    r.run(60.0)
    books.check()
    assert all(device.node.faults == {} for device in r.alive()), (
        "nobody is to blame for what is not remembered"
    )
    assert all(device.node.phase == "training" for device in r.alive())
    assert remembered_alike(r) >= 4
