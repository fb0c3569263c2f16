"""A model that is averaged in parts is laid out, sent and mixed where it lies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from learner.daemon_stand_in import StandIn, descriptor
from peer.algorithms.all_reduce import AllReduce
from peer.compression import codec
from peer.compression.bodies import Layout, Portion
from peer.compression.codec import Message
from peer.events import Deadline, Deliver, Key, LinkDown, LinkUp, OpenRound, Push, Pushed
from peer.learner.attach import Swarm, Terms
from peer.shared_buffer import SharedBuffer

SESSION = descriptor(algorithm="all-reduce", topology="complete", local_steps=1)
PART = 1 << 17  # numbers; three make more than 1 MB


class Device:
    """The first of three; its neighbors b and c are a test's."""

    def __init__(self, folder: Path) -> None:
        self.daemon = StandIn(SESSION, keep_open=False)
        self.model = nn.ParameterList([torch.zeros(3 * PART)])
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125)
        terms = Terms(Path("unused"), "lockstep", 1)
        self.swarm = Swarm(self.daemon.attachment(folder), self.model, optimizer, terms)
        self.swarm.begin()
        self.number = 0
        for neighbor in "bc":
            self.tell(LinkUp(neighbor, "out", 1))

    def tell(self, event: object) -> None:
        self.daemon.client.send_event(event)  # type: ignore[arg-type]

    def events(self, kind: type) -> list[object]:
        return [event for event in self.daemon.events if isinstance(event, kind)]

    def send(self, src: str, key: Key, meaning: int, value: float) -> None:
        self.number += 1
        body = Portion(3 * PART, torch.full((PART,), value))
        with SharedBuffer.of(codec.encode(Message(key, meaning, body, delivery="latest"))) as parcel:
            self.tell(Deliver(src, 1, self.number, key, parcel, "latest"))

    def round(self, t: int, part: float, mean: float | None) -> None:
        """One local step of -1, and the round, in which b and c send these; a mean of None does not come."""
        key, pushed = Key(round=t), len(self.events(Pushed))
        out = {"b": 1 / 3, "c": 1 / 3}
        self.tell(OpenRound(key, out, ("b", "c"), 3, 1.0, graph="complete", place=0))

        def answer() -> None:
            self.daemon.wait_for(lambda: len(self.events(Pushed)) > pushed)
            for src in "bc":
                self.send(src, key, AllReduce.PART, part)
            self.daemon.wait_for(lambda: len(self.events(Pushed)) > pushed + 1)
            for src in "bc" if mean is not None else "":
                self.send(src, key, AllReduce.MEAN, mean or 0.0)
            if mean is None:
                self.tell(Deadline(key, half=True))

        answering = threading.Thread(target=answer)
        answering.start()
        self.model[0].data.sub_(1.0)
        assert self.swarm.step()
        answering.join()

    def parts(self) -> list[float]:
        """Of the model; each has one number many times."""
        return [self._only(part) for part in self.model[0].detach().split(PART)]

    def sent(self, dst: str, t: int) -> list[tuple[int, float]]:
        """What went to this neighbor in that round: meaning and value."""
        pushes = [event for event in self.events(Push) if isinstance(event, Push)]
        found = []
        for push in pushes:
            if (push.dst, push.key.round) == (dst, t):
                payload = push.payload
                assert isinstance(payload, SharedBuffer)
                message = codec.decode(payload.view(), Layout((3 * PART,)))
                assert isinstance(message.body, Portion)
                found.append((message.meaning, self._only(message.body.numbers())))
        return found

    @staticmethod
    def _only(values: Tensor) -> float:
        assert values.min() == values.max()
        return float(values[0])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    torch.set_num_threads(1)
    made = Device(tmp_path)
    yield made
    made.daemon.close()
    made.swarm.close()


def test_parts_and_means_go_out_and_come_in(device: Device) -> None:
    device.round(0, part=2.0, mean=5.0)
    assert device.parts() == [1.0, 5.0, 5.0]  # its own of -1, 2 and 2
    assert device.sent("b", 0) == device.sent("c", 0) == [(AllReduce.PART, -1.0), (AllReduce.MEAN, 1.0)]
    device.round(1, part=1.0, mean=3.0)  # now it owns the second
    assert device.parts() == [3.0, 2.0, 3.0]
    assert device.sent("b", 1) == [(AllReduce.PART, 4.0), (AllReduce.MEAN, 2.0)]
    assert device.sent("c", 1) == [(AllReduce.PART, 0.0), (AllReduce.MEAN, 2.0)]


@pytest.mark.parametrize("mean", [9.0, None])
def test_a_part_that_waits_for_its_link_is_of_this_rounds_model(device: Device, mean: float | None) -> None:
    """The model is laid over the one before when its parts are made, and mixed before the link is there."""
    device.round(0, part=2.0, mean=5.0)
    device.tell(LinkDown("c", "out"))
    device.round(1, part=1.0, mean=mean)
    assert device.sent("c", 1) == []
    device.tell(LinkUp("c", "out", 2))
    device.daemon.wait_for(lambda: len(device.sent("c", 1)) == 2)
    assert device.sent("c", 1) == [(AllReduce.PART, 0.0), (AllReduce.MEAN, 2.0)]
