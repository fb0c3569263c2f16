"""Parcels in shared buffers, as the link thread hands them over: the same models as with bytes, and how many
buffers live at a time."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.test_exchange import LAYOUT, ZEROS, Home
from peer.algorithms import make
from peer.algorithms.base import SHARE
from peer.compression import codec
from peer.compression.bodies import Dense
from peer.compression.codec import Encoded, Message, encode
from peer.events import Deliver, Found, Key, LinkUp, OpenRound, Taken, ToLearner
from peer.learner.exchange import Exchange
from peer.learner.outbox import Outbox, Rooms
from peer.shared_buffer import Reserve, SharedBuffer


def buffers() -> int:
    """Shared buffers that this process holds, mapped or by descriptor."""
    gc.collect()  # those of earlier tests
    files = Path("/proc/self/fd").iterdir()
    named = {os.stat(f).st_ino for f in files if f.is_symlink() and "peerd-payload" in os.readlink(f)}
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(named | {int(line.split()[4]) for line in maps if "peerd-payload" in line})


class Shared(Home):
    """As `Home`, and every parcel lies in a buffer that is closed when it has been handled."""

    def __init__(self, n: int, algorithm: str) -> None:
        super().__init__(n, algorithm)
        self.most = 0
        for device in self.devices:
            device.outgoing.encode = codec.in_parts

    def tell(self, i: int, *commands: ToLearner) -> None:
        for command in commands:
            if not isinstance(command, Deliver):
                super().tell(i, command)
                continue
            assert isinstance(command.payload, Encoded)
            with Outbox(Rooms(Reserve())) as outbox:
                sent = outbox.put(command.payload)
                came = SharedBuffer.from_fd(os.dup(sent.fileno()), len(sent))
            with came:
                super().tell(i, replace(command, payload=came))
                self.most = max(self.most, buffers())


@pytest.mark.parametrize("algorithm", ["d-psgd", "relay-sum"])
def test_models_are_the_same_bits_and_live_no_longer_than_their_message(algorithm: str) -> None:
    n, before = 3, buffers()
    plain, shared = Home(n, algorithm), Shared(n, algorithm)
    generator = torch.Generator().manual_seed(5)
    assert len(plain.taken()) == len(shared.taken()) == n
    for t in range(5):
        U = [torch.randn(LAYOUT.d, generator=generator, dtype=torch.float64) for _ in range(n)]
        for one, other in zip(plain.round(t, U), shared.round(t, U), strict=True):
            assert torch.equal(one, other)
    links = 2 * (n - 1)
    assert (
        before < shared.most <= before + 2 * links
    )  # of the open round, and what relay-sum keeps of the last
    del shared, other
    assert buffers() == before


def test_a_parcel_that_is_put_off_outlives_its_buffer() -> None:
    before = buffers()
    device = Exchange(make("sgp", {}, LAYOUT, torch.float64, lockstep=True), LAYOUT, ZEROS)
    device.handle(Found(resume=False), 0.0)
    device.handle(LinkUp("1", "in", 1), 0.0)
    answers = []
    for number in (1, 2):
        key = Key(0, number)
        share = Message(key, SHARE, Dense(torch.full_like(ZEROS, float(number))), 0.5)
        with SharedBuffer.of(encode(share, LAYOUT)) as buffer:
            answers += device.handle(Deliver("1", 1, number, key, buffer), 0.0)
    assert [a.number for a in answers if isinstance(a, Taken)] == [1]
    assert buffers() == before + 2, "what waits to be mixed is not copied either"
    for round_ in (1, 2):
        answers += device.handle(OpenRound(Key(0, round_), {}, ("1",), 2, 1.0), 0.0)
        answers += device.submit(ZEROS.clone(), 0.1, 0.0)
    assert [a.number for a in answers if isinstance(a, Taken)] == [1, 2]
    x, w = device.algorithm.mass()
    assert (x.tolist(), w) == ([3.0] * LAYOUT.d, 2.0)
    assert buffers() == before
