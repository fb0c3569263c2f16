"""A whole model is laid over the one that its local steps began from, when nobody else has that."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
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
from peer.errors import NoDaemonError
from peer.event_frames import end_frame
from peer.events import (
    Closed,
    Deadline,
    Deliver,
    Key,
    LinkUp,
    OpenRound,
    Push,
    Pushed,
    Rejected,
    Sponsor,
    Taken,
)
from peer.learner import link, outbox
from peer.learner.attach import Swarm, Terms
from peer.learner.checkpoint import CheckpointKeeper
from peer.shared_buffer import SharedBuffer

SESSION = descriptor(algorithm="d-psgd", topology="complete", local_steps=1)


class Device:
    """A script whose daemon has one neighbor, b, and is told every event by a test."""

    def __init__(self, folder: Path, numbers: int, *, early: bool) -> None:
        self.early = early  # b's model is told of while it comes
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
                self.deliver(Deliver("b", 1, t + 1, key, parcel, "latest"), parcel)

        answering = threading.Thread(target=answer)
        answering.start()
        self.model[0].data.sub_(steps)
        assert self.swarm.step()
        answering.join()

    def deliver(self, command: Deliver, parcel: SharedBuffer) -> None:
        if self.early:
            self.daemon.client.begin_event(command, parcel)
            for quarter in (1, 2, 3):
                self.daemon.client.progress(parcel, quarter * len(parcel) // 4)
        self.tell(command)

    @property
    def x(self) -> float:
        values = self.model[0].detach()
        assert values.min() == values.max()
        return float(values[0])

    def sent(self, i: int = -1) -> tuple[int, float]:
        """Of a model that went out: in which memory it lies, and its value."""
        event = self.events(Push)[i]
        assert isinstance(event, Push)
        payload = event.payload
        assert isinstance(payload, SharedBuffer)
        self.daemon.wait_for(lambda: payload.growth is None)
        values = codec.decode(payload.view(), Layout((self.model[0].numel(),))).body.dense()
        assert values.min() == values.max()
        return payload.memory, float(values[0])


@pytest.fixture(
    params=[(5, False), (1 << 19, False), (1 << 19, True)],
    ids=["mapped by each buffer", "mapped by the reserve", "handed over before they are whole"],
)
def device(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Device]:
    torch.set_num_threads(1)
    numbers, early = request.param
    if early:
        monkeypatch.setattr(link, "LONG", 1 << 18)
        monkeypatch.setattr(link, "overlaps", lambda: True)
        monkeypatch.setattr(outbox, "STRETCH", 1 << 18)
    device = Device(tmp_path, numbers, early=early)
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
    meeting, order = device.swarm._link, list[str]()
    with meeting.met:
        meeting.wait(meeting.is_open, 60)
    answer, lay = meeting._answer_training_thread, device.swarm._lay

    def late() -> None:
        if meeting.handing_over and not order:
            meeting.stop()
            with meeting.met:
                meeting.met.notify_all()
            order.append("stopped")
            threading.Event().wait(0.2)
        answer()

    def laying(over: torch.Tensor | None) -> torch.Tensor:
        order.append("laid")
        return lay(over)

    monkeypatch.setattr(meeting, "_answer_training_thread", late)
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
    meeting = device.swarm._link
    with meeting.met:
        meeting.wait(meeting.is_open, 60)
    device.model[0].data.sub_(1.0)


def test_a_daemon_that_goes_while_a_model_is_looked_at_is_not_waited_for(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    meeting, flat = device.swarm._link, device.swarm._flat
    bound = flat.bound

    def late() -> float:
        device.daemon.close()
        with meeting.met:
            meeting.wait(lambda: not meeting.connected, 60)
        return bound()

    monkeypatch.setattr(flat, "bound", late)
    assert not device.swarm.step()
    assert not meeting.handing_over
    device.model[0].data.sub_(1.0)
    assert not device.swarm.step()
    assert device.x == -1.0, "trained alone since"


def test_a_handler_that_raises_takes_back_what_is_handed_over(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    meeting = device.swarm._link
    hand_over, nudge = meeting.hand_over, meeting._nudge

    def interrupted(*given: Any) -> None:
        monkeypatch.setattr(meeting, "_nudge", lambda: None)  # the link thread has something else to do
        hand_over(*given)
        assert meeting.handing_over
        raise KeyboardInterrupt

    monkeypatch.setattr(meeting, "hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.swarm.step()
    assert not meeting.handing_over
    device.model[0].data.fill_(7.0)
    monkeypatch.setattr(meeting, "_nudge", nudge)
    meeting.post({"op": "report", "beat_s": 1.0})
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


def held() -> set[int]:
    """Memory of messages that this process has, by descriptor or mapped."""
    found = set[int]()
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread has closed it
            if "peerd-payload" in os.readlink(file):
                found.add(os.stat(file).st_ino)
    maps = Path("/proc/self/maps").read_text().splitlines()
    return found | {int(line.split()[4]) for line in maps if "peerd-payload" in line}


def test_a_daemon_that_goes_while_a_model_is_laid_leaves_it_whole(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    client, meeting = device.swarm._link._attached.client, device.swarm._link

    def gone(*_: object) -> None:
        raise NoDaemonError("gone")

    monkeypatch.setattr(client, "progress", gone)
    monkeypatch.setattr(client, "send_event", gone)
    assert not device.swarm.step()
    assert not meeting.rooms.torn
    kept = meeting.kept()
    assert kept is not None
    assert (kept.model.min(), kept.model.max()) == (0.0, 0.0)


def early(device: Device, t: int, value: float, *, last: float | None = None) -> tuple[Deliver, SharedBuffer]:
    """Three quarters of b's model for round t have come. last: its last number, if another one."""
    values = torch.full((device.model[0].numel(),), value)
    values[-1] = value if last is None else last
    key = Key(round=t)
    head = codec.in_parts(Message(key, DPSGD.MEANING, Dense(values, peak=1.0), delivery="latest"))
    parcel = SharedBuffer.of(*head.parts)
    command = Deliver("b", 1, t + 1, key, parcel, "latest")
    device.daemon.client.begin_event(command, parcel)
    device.daemon.client.progress(parcel, 3 * len(parcel) // 4)
    return command, parcel


def stepped(device: Device) -> threading.Thread:
    """A step that waits for b."""
    stepping = threading.Thread(target=device.swarm.step)
    pushed = len(device.events(Pushed))
    stepping.start()
    device.daemon.wait_for(lambda: len(device.events(Pushed)) > pushed)
    return stepping


def waiting(device: Device) -> threading.Thread:
    """The step of round 1, which waits for b, with 0 in every number; b was heard in round 0."""
    device.round(0, theirs=3.0)
    ready_for(device, 1)
    return stepped(device)


def test_what_never_becomes_whole_counts_for_nothing(device: Device) -> None:
    """Three quarters of it have been mixed already, in its own memory."""
    stepping = waiting(device)
    _, parcel = early(device, 1, 8.0)
    memory = parcel.memory
    device.daemon.client.send(end_frame(memory))
    parcel.close()
    device.tell(Deadline(Key(round=1)))
    stepping.join()
    assert device.x == 0.0
    assert memory not in held()
    device.round(2, theirs=1.0)
    assert device.x == 0.0


def test_what_is_sent_again_is_mixed_as_it_comes(device: Device) -> None:
    stepping = waiting(device)
    for _ in range(2):
        _, parcel = early(device, 1, 8.0)
        memory = parcel.memory
        device.daemon.client.send(end_frame(memory))
        parcel.close()
    command, parcel = early(device, 1, 6.0)
    device.tell(command)
    stepping.join()
    assert memory not in held() - {parcel.memory}
    parcel.close()
    assert device.x == 3.0


def test_what_is_whole_after_its_round_counts_for_nothing(device: Device) -> None:
    stepping = waiting(device)
    command, parcel = early(device, 1, 8.0)
    device.tell(Deadline(Key(round=1)))
    stepping.join()
    device.tell(command)
    device.daemon.wait_for(lambda: len(device.events(Taken)) == 2)
    parcel.close()
    assert device.x == 0.0
    device.round(2, theirs=1.0)
    assert device.x == 0.0


@pytest.mark.parametrize(
    ("last", "why"), [(float("inf"), "found inf at "), (3e19, "values of at most 2e+19, not 3e+19")]
)
def test_what_is_wrong_at_its_end_is_refused_whole(device: Device, last: float, why: str) -> None:
    stepping = waiting(device)
    command, parcel = early(device, 1, 8.0, last=last)
    device.tell(command)
    device.daemon.wait_for(lambda: bool(device.events(Rejected)))
    (refused,) = device.events(Rejected)
    assert isinstance(refused, Rejected)
    assert why in refused.reason
    parcel.close()
    device.tell(Deadline(Key(round=1)))
    stepping.join()
    assert device.x == 0.0


def test_two_that_come_at_a_time_are_one_after_the_other(device: Device) -> None:
    """The next round's message is on its way before this one's has been delivered."""
    stepping = waiting(device)
    this, first = early(device, 1, 8.0)
    following, second = early(device, 2, 5.0)
    device.tell(this)
    stepping.join()
    assert device.x == 4.0
    ready_for(device, 2)
    stepping = stepped(device)
    device.tell(following)
    stepping.join()
    assert device.x == 4.0
    first.close()
    second.close()
