"""A whole model is laid over the one that its local steps began from, when nobody else has that."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learner.daemon_stand_in import StandIn, descriptor
from peer.algorithms.d_psgd import DPSGD
from peer.compression import codec
from peer.compression.bodies import Dense, Layout
from peer.compression.codec import Message
from peer.events import Closed, Deadline, Deliver, Key, LinkUp, OpenRound, Push, Pushed, Sponsor
from peer.learner.attach import Swarm, Terms
from peer.learner.checkpoint import CheckpointKeeper
from peer.shared_buffer import SharedBuffer

SESSION = descriptor(algorithm="d-psgd", topology="complete", local_steps=1)


class Device:
    """A script whose daemon has one neighbor, b, and is told every event by a test."""

    def __init__(self, folder: Path, numbers: int) -> None:
        self.daemon = StandIn(SESSION, keep_open=False)
        self.model = nn.ParameterList([torch.zeros(numbers)])
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125)
        self.swarm = Swarm(
            self.daemon.attachment(folder), self.model, optimizer, Terms(Path("unused"), "lockstep", 1)
        )
        self.swarm.begin()
        self.tell(LinkUp("b", "out", 1))

    def tell(self, event: object) -> None:
        self.daemon.client.send_event(event)  # type: ignore[arg-type]

    def events(self, kind: type) -> list[object]:
        return [event for event in self.daemon.events if isinstance(event, kind)]

    def round(self, t: int, theirs: float | None, steps: float = 1.0) -> None:
        """One local step of -steps, and the round, in which b sends `theirs` in every number, or nothing."""
        key, pushed = Key(round=t), len(self.events(Pushed))
        self.tell(OpenRound(key, {"b": 0.5}, ("b",), 2, 1.0))

        def answer() -> None:
            self.daemon.wait_for(lambda: len(self.events(Pushed)) > pushed)
            if theirs is None:
                self.tell(Deadline(key))
                return
            values = torch.full((self.model[0].numel(),), theirs)
            said = Message(key, DPSGD.MEANING, Dense(values), delivery="latest")
            with SharedBuffer.of(codec.encode(said)) as parcel:
                self.came = os.fstat(parcel.fileno()).st_ino
                self.tell(Deliver("b", 1, t + 1, key, parcel, "latest"))

        answering = threading.Thread(target=answer)
        answering.start()
        self.model[0].data.sub_(steps)
        assert self.swarm.step()
        answering.join()

    @property
    def x(self) -> float:
        values = self.model[0].detach()
        assert values.min() == values.max()
        return float(values[0])

    def sent(self, i: int = -1) -> tuple[int, float]:
        """Of a model that went out: in which memory it lies, and its value."""
        event = self.events(Push)[i]
        assert isinstance(event, Push) and isinstance(event.payload, SharedBuffer)
        values = codec.decode(event.payload.view(), Layout((self.model[0].numel(),))).body.dense()
        assert values.min() == values.max()
        return os.fstat(event.payload.fileno()).st_ino, float(values[0])


@pytest.fixture(params=[5, 1 << 19], ids=["mapped by each buffer", "mapped by the reserve"])
def device(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Device]:
    torch.set_num_threads(1)
    device = Device(tmp_path, request.param)
    yield device
    device.swarm.close()
    device.daemon.close()


def test_a_model_goes_out_in_the_memory_in_which_a_neighbors_came(device: Device) -> None:
    """The mean has taken that one's place, and the next local steps lead from there."""
    device.round(0, theirs=3.0)
    assert device.x == 1.0
    for t in (1, 2, 3):
        came, before = device.came, device.x
        device.round(t, theirs=float(t))
        assert device.sent() == (came, before - 1)
        assert device.x == (before - 1 + t) / 2
    assert device.sent(1)[1] == 0.0, "what went out earlier is as it was"


def test_where_nobody_answered_the_next_model_has_memory_of_its_own(device: Device) -> None:
    device.round(0, theirs=None)
    assert device.x == -1.0
    first, _ = device.sent()
    device.round(1, theirs=None)
    second, value = device.sent()
    assert (second != first, value, device.x) == (True, -2.0, -2.0)
    assert device.sent(0) == (first, -1.0)


def test_a_model_that_a_newcomer_was_given_is_left_as_it_is(device: Device) -> None:
    device.round(0, theirs=3.0)
    device.tell(LinkUp("c", "out", 1))
    device.tell(Sponsor("c"))
    device.daemon.wait_for(lambda: any(getattr(event, "dst", "") == "c" for event in device.events(Push)))
    given, value = device.sent()
    assert value == 1.0
    device.round(1, theirs=5.0)
    assert device.sent()[1] == 0.0
    assert device.sent(1) == (given, 1.0)


def test_local_steps_that_are_not_finite_go_back_to_the_mean(device: Device) -> None:
    """So that may be laid over once they are known to be finite, and no sooner."""
    device.round(0, theirs=3.0)
    device.tell(OpenRound(Key(round=1), {"b": 0.5}, ("b",), 2, 1.0))
    device.model[0].data[-1] = float("nan")
    assert not device.swarm.step()
    assert device.x == 1.0
    assert len(device.events(Push)) == 1


def test_a_script_that_is_told_to_stop_waits_until_its_model_is_laid_out(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on and change the model that is being laid out."""
    device.round(0, theirs=3.0)
    device.tell(OpenRound(Key(round=1), {"b": 0.5}, ("b",), 2, 1.0))
    link, order = device.swarm._link, list[str]()
    with link.met:
        link.wait(link.is_open, 60)
    answer, lay = link._answer_training_thread, device.swarm._lay

    def late() -> None:
        if link.handing_over and not order:
            link.stop()
            with link.met:
                link.met.notify_all()
            order.append("stopped")
            threading.Event().wait(0.2)
        answer()

    def laying(over: torch.Tensor | None) -> torch.Tensor:
        order.append("laid")
        return lay(over)

    monkeypatch.setattr(link, "_answer_training_thread", late)
    monkeypatch.setattr(device.swarm, "_lay", laying)
    device.model[0].data.sub_(1.0)
    assert not device.swarm.step()
    order.append("back")
    device.model[0].data.fill_(7.0)
    device.daemon.wait_for(lambda: len(device.events(Pushed)) == 2)
    assert order == ["stopped", "laid", "back"]
    assert device.sent()[1] == 0.0
    assert not any(getattr(event, "key", None) == Key(round=1) for event in device.events(Closed))


def ready_for(device: Device, t: int) -> None:
    """Round t is open, and its local step done."""
    device.tell(OpenRound(Key(round=t), {"b": 0.5}, ("b",), 2, 1.0))
    link = device.swarm._link
    with link.met:
        link.wait(link.is_open, 60)
    device.model[0].data.sub_(1.0)


def test_a_daemon_that_goes_while_a_model_is_looked_at_is_not_waited_for(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    link, flat = device.swarm._link, device.swarm._flat
    bound = flat.bound

    def late() -> float:
        device.daemon.close()
        with link.met:
            link.wait(lambda: not link.connected, 60)
        return bound()

    monkeypatch.setattr(flat, "bound", late)
    assert not device.swarm.step()
    assert not link.handing_over
    device.model[0].data.sub_(1.0)
    assert not device.swarm.step()
    assert device.x == -1.0, "trained alone since"


def test_a_handler_that_raises_takes_back_what_is_handed_over(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    link = device.swarm._link
    hand_over, nudge = link.hand_over, link._nudge

    def interrupted(*given: Any) -> None:
        monkeypatch.setattr(link, "_nudge", lambda: None)  # the link thread has something else to do
        hand_over(*given)
        assert link.handing_over
        raise KeyboardInterrupt

    monkeypatch.setattr(link, "hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.swarm.step()
    assert not link.handing_over
    device.model[0].data.fill_(7.0)
    monkeypatch.setattr(link, "_nudge", nudge)
    link.post({"op": "report", "beat_s": 1.0})
    device.daemon.wait_for(lambda: device.daemon.reports()[-1] == {"op": "report", "beat_s": 1.0})
    assert len(device.events(Pushed)) == 1


def test_a_model_that_is_half_laid_over_another_is_kept_nowhere(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device.round(0, theirs=3.0)
    device.swarm._checkpoint()
    ready_for(device, 1)

    def broken() -> Iterator[torch.Tensor]:
        yield torch.full((2,), 9.0)
        raise OSError("no memory")

    monkeypatch.setattr(device.swarm._flat, "pieces", broken)
    with pytest.raises(OSError, match="no memory"):
        device.swarm.step()
    device.swarm.close()
    found = CheckpointKeeper(tmp_path, SESSION.id, device.swarm._flat.signature).found
    assert found is not None
    assert (found.model.min(), found.model.max()) == (1.0, 1.0)
