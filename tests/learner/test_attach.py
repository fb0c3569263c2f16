"""A training script as a member: what its steps become, and what happens around them."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from learner.daemon_stand_in import StandIn, descriptor, signature_of
from peer import shared_buffer
from peer.algorithms.relay_sum import RelaySum
from peer.algorithms.sparse_push import SparsePush
from peer.compression import codec
from peer.compression.bodies import Dense, Layout
from peer.compression.codec import Message
from peer.errors import DataError, DivergedError, NoDaemonError, StateError, UsageError
from peer.events import (
    Closed,
    Deadline,
    Deliver,
    Found,
    HandOver,
    Holds,
    Key,
    LinkUp,
    OpenRound,
    Push,
    Pushed,
    Ready,
)
from peer.learner import attach, checkpoint, link, own_daemon
from peer.learner.attach import Pace, Swarm, Terms
from peer.learner.checkpoint import CheckpointFolder, CheckpointKeeper
from peer.learner.flat import FlatModel, signature_bytes
from peer.learner.projection import project, tag_of
from peer.learner.pulse import Pulse
from peer.placing import Placing
from peer.shared_buffer import WORTH_KEEPING, SharedBuffer
from peer.sketch import pack

opened: list[tuple[StandIn, Swarm]] = []


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    while opened:
        daemon, swarm = opened.pop()
        swarm.close()
        daemon.close()


class Script:
    """A user's training script: gradient 1 in every coordinate, learning rate 1/8."""

    def __init__(
        self,
        folder: Path,
        daemon: StandIn,
        pace: Pace = "lockstep",
        child: bool = False,
        local_steps: int | None = None,
        manners: bool = False,
    ) -> None:
        self.model = nn.Linear(3, 1)
        FlatModel(self.model).write(torch.zeros(4))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125)
        terms = Terms(Path("unused"), pace, local_steps or daemon.session.local_steps, child, manners)
        self.swarm = Swarm(daemon.attachment(folder), self.model, self.optimizer, terms)
        opened.append((daemon, self.swarm))

    @property
    def x(self) -> list[float]:
        return FlatModel(self.model).read().tolist()

    def step(self, gradient: float = 1.0) -> bool:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        self.optimizer.step()
        return self.swarm.step(1.0)

    def steps(self, n: int) -> list[bool]:
        return [self.step() for _ in range(n)]


def closed(daemon: StandIn) -> list[int]:
    return [event.key.round for event in daemon.events if isinstance(event, Closed)]


@pytest.mark.parametrize("pace", ["lockstep", "free", "overlap"])
def test_a_sketch_of_the_mixed_model_is_reported_with_its_round(tmp_path: Path, pace: Pace) -> None:
    daemon = StandIn(descriptor(local_steps=1))
    script = Script(tmp_path, daemon, pace)
    script.swarm.begin()
    while not script.step():
        daemon.wait_for(lambda: script.swarm._link.is_open() or script.swarm._link.has_mixed())
    daemon.wait_for(lambda: any("sketch" in frame for frame in daemon.reports()))
    report = next(frame for frame in daemon.reports() if "sketch" in frame)
    assert report["sketch_round"] == 0
    mixed = torch.tensor([-0.125] * 4)
    session, signature = daemon.session.id, signature_bytes(FlatModel(script.model).signature)
    assert report["sketch"] == pack(project(mixed, session))
    assert report["sketch_layout"] == tag_of(session, signature)


def test_one_exchange_every_local_steps(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(local_steps=3))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    assert script.steps(6) == [False, False, True, False, False, True]
    daemon.wait_for(lambda: closed(daemon) == [0, 1])
    assert script.swarm.round == 1
    assert script.swarm.steps == 6


def test_a_loss_is_told_before_the_round_is_over(tmp_path: Path) -> None:
    """Status shows that a newcomer trains, however long its first round takes."""
    daemon = StandIn(descriptor(local_steps=3))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    assert script.steps(1) == [False]
    daemon.wait_for(lambda: any(report.get("loss") == 1.0 for report in daemon.reports()))
    assert closed(daemon) == []


def test_in_a_session_with_an_end_exchanges_are_placed_by_its_learning_rate(tmp_path: Path) -> None:
    """Four steps a round in the mean, unless the script says how many it takes."""
    session = descriptor(local_steps=4, rounds=5, options={"warmup": "2"})
    script, placing = Script(tmp_path, StandIn(session)), Placing.of(session)
    script.swarm.begin()
    ends = [placing.first(r + 1) for r in range(4)]
    assert ends != [4, 8, 12, 16]
    assert [i + 1 for i, mixed in enumerate(script.steps(ends[-1])) if mixed] == ends
    assert script.swarm.steps == ends[-1]
    (tmp_path / "own").mkdir()
    own = Script(tmp_path / "own", StandIn(session), local_steps=3)
    own.swarm.begin()
    assert [i + 1 for i, mixed in enumerate(own.steps(9)) if mixed] == [3, 6, 9]


def test_checkpoints_are_written_while_it_trains_and_not_at_every_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, StandIn(descriptor(local_steps=1)))
    script.swarm.begin()
    script.steps(3)
    kept = CheckpointFolder(tmp_path).load()[0]
    assert kept is not None
    assert kept.round == 0, "the one of the beginning, a minute is not over"
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    script.steps(1)
    kept = CheckpointFolder(tmp_path).load()[0]
    assert kept is not None
    assert kept.round == 3
    assert torch.equal(kept.model, torch.full((4,), -0.5))


def test_alone_in_lockstep_training_is_plain_sgd(tmp_path: Path) -> None:
    script = Script(tmp_path, StandIn(descriptor(algorithm="sgp")))
    script.swarm.begin()
    script.steps(8)
    assert script.x == [-1.0] * 4


def test_a_child_uses_the_threads_it_is_told_to(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(local_steps=1))
    script = Script(tmp_path, daemon, child=True)
    script.swarm.begin()
    daemon.client.send({"op": "threads", "count": 3})
    while torch.get_num_threads() != 3:
        script.step()
    script.steps(3)
    assert torch.get_num_threads() == 3


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each local step, of 2 s, is followed by rest, none of which is taken."""
    asked: list[float] = []
    wait = link.Link.wait

    def waits(self: link.Link, until: Callable[[], bool], timeout_s: float | None = None) -> None:
        if timeout_s is None:
            wait(self, until)
        else:
            asked.append(timeout_s)

    monkeypatch.setattr(link.Link, "wait", waits)
    monkeypatch.setattr(Pulse, "step", lambda pulse, loss: 2.0)
    return asked


def told(daemon: StandIn, script: Script, share: float) -> None:
    """The daemon says for what share of the time local steps may be taken, and the learner has heard it."""
    daemon.client.send({"op": "share", "share": share})
    with script.swarm._link.met:
        assert script.swarm._link.met.wait_for(lambda: script.swarm._link.share == share, 60)


@pytest.mark.parametrize(("share", "steps", "rest_s"), [(0.5, 4, 2.0), (0.25, 2, 6.0), (1 / 16, 1, 30.0)])
def test_for_a_share_of_the_time_rounds_have_fewer_local_steps_and_take_as_long(
    tmp_path: Path, rests: list[float], share: float, steps: int, rest_s: float
) -> None:
    daemon = StandIn(descriptor(local_steps=8))
    script = Script(tmp_path, daemon, manners=True)
    script.swarm.begin()
    told(daemon, script, share)
    assert [i + 1 for i, mixed in enumerate(script.steps(8)) if mixed] == list(range(steps, 9, steps))
    assert rests == [rest_s] * 8
    assert steps * (2.0 + rest_s) == pytest.approx(max(8 * 2.0, 2.0 / share)), "of eight full steps, or one"
    told(daemon, script, 1.0)
    assert [i + 1 for i, mixed in enumerate(script.steps(8)) if mixed] == [8]
    assert len(rests) == 8


def test_a_round_of_one_local_step_takes_four_times_as_long_and_no_longer(
    tmp_path: Path, rests: list[float]
) -> None:
    """Others may have to wait for it, and some algorithms cannot go on without."""
    daemon = StandIn(descriptor(local_steps=1))
    script = Script(tmp_path, daemon, manners=True)
    script.swarm.begin()
    told(daemon, script, 1 / 16)
    assert script.steps(2) == [True, True]
    assert rests == [3 * 2.0] * 2


def test_a_script_that_has_not_asked_for_it_is_not_held(tmp_path: Path, rests: list[float]) -> None:
    daemon = StandIn(descriptor(local_steps=2))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    told(daemon, script, 0.25)
    assert script.steps(4) == [False, True, False, True]
    assert rests == []
    assert [report["manners"] for report in daemon.reports() if "manners" in report] == [False]


@pytest.mark.parametrize("word", [{"op": "share", "share": 1.0}, {"op": "stop"}])
def test_a_rest_ends_when_the_daemon_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: dict[str, object]
) -> None:
    daemon = StandIn(descriptor(local_steps=2))
    script = Script(tmp_path, daemon, manners=True)
    script.swarm.begin()
    told(daemon, script, 0.5)
    monkeypatch.setattr(Pulse, "step", lambda pulse, loss: 1e6)
    training = threading.Thread(target=script.step)
    training.start()
    daemon.client.send(word)
    training.join(60)
    assert not training.is_alive()


def test_what_a_daemon_that_is_gone_has_said_of_the_share_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REDIAL_S", (600.0, 600.0))
    daemon = StandIn(descriptor(local_steps=8))
    script = Script(tmp_path, daemon, manners=True)
    script.swarm.begin()
    told(daemon, script, 1 / 16)
    daemon.close()
    with script.swarm._link.met:
        script.swarm._link.wait(lambda: not script.swarm._link.connected, 60)
    assert not script.swarm._link.connected
    assert script.swarm._link.share == 1.0


def test_alone_in_the_free_pace_no_local_step_is_lost(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=1))
    script = Script(tmp_path, daemon, "free")
    script.swarm.begin()
    script.steps(16)
    assert script.x == [-2.0] * 4


def test_free_adds_what_the_others_did_to_what_was_done_meanwhile(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=1), keep_open=False)
    script = Script(tmp_path, daemon, "free")
    script.swarm.begin()
    script.steps(2)
    assert script.x == [-0.25] * 4
    daemon.open_round(Key())
    with script.swarm._link.met:
        script.swarm._link.wait(script.swarm._link.is_open, 60)
    script.step()  # hands over three steps
    with script.swarm._link.met:
        script.swarm._link.wait(script.swarm._link.has_mixed, 60)
        mixed, anew = script.swarm._link.take() or (torch.empty(0), True)
        assert mixed.tolist() == [-0.375] * 4
        script.swarm._link._mixed = mixed + 1  # as if the others had moved it
    assert not anew
    assert script.step()
    assert script.x == [0.5] * 4


def test_overlap_takes_the_next_local_steps_before_the_mixed_model_comes(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=2), keep_open=False)
    script = Script(tmp_path, daemon, "overlap")
    link = script.swarm._link

    def wait(until: Callable[[], bool]) -> None:
        with link.met:
            link.wait(until, 60)

    script.swarm.begin()
    daemon.open_round(Key())
    wait(link.is_open)
    assert script.steps(2) == [False, False]  # hands over two steps, and waits for nothing
    assert script.swarm.steps == 2
    wait(link.has_mixed)
    mixed, _ = link.take() or (torch.empty(0), True)
    assert mixed.tolist() == [-0.25] * 4
    assert not script.step()
    with link.met:
        link._mixed = mixed + 1  # as if the others had moved it
    daemon.open_round(Key(round=1))
    wait(link.is_open)
    assert script.step()
    assert script.x == [-0.5 + 1] * 4
    wait(link.has_mixed)
    mixed, _ = link.take() or (torch.empty(0), True)
    assert mixed.tolist() == [-0.5] * 4, "only what was done here was handed over"
    assert script.swarm.steps == 4


def test_overlap_is_one_round_ahead_and_no_more(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=1), keep_open=False)
    script = Script(tmp_path, daemon, "overlap")
    link = script.swarm._link
    script.swarm.begin()
    opener = threading.Thread(
        target=lambda: [daemon.open_round(Key(round=t)) or daemon.wait_for(lambda t=t: t in closed(daemon))
                        for t in range(3)]
    )  # fmt: skip
    opener.start()
    script.steps(3)
    opener.join(60)
    assert closed(daemon) == [0, 1, 2]
    assert link.round == 2


def test_attach_waits_for_a_model_and_loads_it_in_place(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp"))
    script = Script(tmp_path, daemon)
    weight = script.model.weight
    script.swarm.begin()
    assert script.model.weight is weight
    assert isinstance(daemon.events[0], Ready)
    daemon.wait_for(lambda: any(isinstance(event, Holds) for event in daemon.events))


def test_the_model_is_introduced_by_names_shapes_and_types(tmp_path: Path) -> None:
    daemon = StandIn(descriptor())
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    first = daemon.reports()[0]
    assert signature_of(first)
    assert first["signature_list"] == b'[["weight",[1,3],"float32"],["bias",[1],"float32"]]'
    assert first["parameters"] == 4


def test_a_checkpoint_is_there_from_the_first_model_on(tmp_path: Path) -> None:
    script = Script(tmp_path, StandIn(descriptor()))
    script.swarm.begin()
    found, problems = CheckpointFolder(tmp_path).load()
    assert found is not None
    assert (found.round, problems) == (0, [])


def test_the_last_checkpoint_holds_the_last_mixed_model_and_a_resume_begins_with_it(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp"))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(6)
    script.swarm.close()
    assert script.x == [-0.75] * 4

    after = StandIn(descriptor(algorithm="sgp"), resume=True)
    again = Script(tmp_path, after)
    again.swarm.begin()
    assert again.x == [-0.75] * 4
    assert after.events[0] == Ready(1, 2, after.events[0].bases)  # type: ignore[attr-defined]
    again.steps(2)
    after.wait_for(lambda: closed(after) == [3])


def error_of(script: Script) -> Tensor:
    algorithm = script.swarm._link._exchange.algorithm
    assert isinstance(algorithm, SparsePush)
    return algorithm.e


def test_error_feedback_is_taken_up_with_the_models_own_checkpoint_and_with_no_other(tmp_path: Path) -> None:
    session = descriptor(algorithm="sparse-push")
    script = Script(tmp_path, StandIn(session))
    script.swarm.begin()
    script.steps(2)
    error_of(script)[1] = 0.5  # what a parcel would have left
    script.swarm._checkpoint()
    resumed, joined = (Script(tmp_path, StandIn(session, resume=resume)) for resume in (True, False))
    resumed.swarm.begin()
    joined.swarm.begin()
    assert error_of(resumed).tolist() == [0, 0.5, 0, 0]
    assert error_of(joined).tolist() == [0, 0, 0, 0], "it begins with another model"


def test_the_end_of_a_bounded_session_is_the_averaged_model(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", rounds=3))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    taken = 0
    while not script.swarm.done:
        script.step()
        taken += 1
    assert script.swarm.finished
    assert not script.swarm.stopped
    assert script.x == [-0.75] * 4, "local steps begun when the final rounds opened are not part of it"
    assert taken >= 6


def test_leaving_hands_the_mass_over_before_the_socket_closes(tmp_path: Path) -> None:
    daemon = StandIn(descriptor())
    script = Script(tmp_path, daemon)
    with script.swarm as swarm:
        swarm.begin()
        script.steps(2)
    daemon.wait_for(lambda: daemon.events[-1] == Holds((), 0.0))


def test_a_script_stays_until_the_daemon_says_that_its_mass_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = StandIn(descriptor())
    daemon.confirms = False
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(2)
    confirmed: list[bool] = []
    monkeypatch.setattr(script.swarm, "_checkpoint", lambda: confirmed.append(script.swarm._link.dismissed))
    ending = threading.Thread(target=script.swarm.close)
    ending.start()
    daemon.wait_for(lambda: daemon.events[-1] == Holds((), 0.0))
    ending.join(0.2)
    daemon.client.send({"op": "stop"})
    ending.join()
    assert confirmed == [True]


def test_a_script_that_stops_itself_hands_its_mass_over_too(tmp_path: Path) -> None:
    daemon = StandIn(descriptor())
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(2)
    script.swarm.stop()
    script.swarm.close()
    daemon.wait_for(lambda: daemon.events[-1] == Holds((), 0.0))


def test_stop_ends_training_even_while_waiting_for_a_first_model(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(), keep_open=False)
    daemon._on_event = lambda event: daemon.client.send({"op": "stop"})  # type: ignore[method-assign]
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    assert script.swarm.stopped
    assert not list(tmp_path.iterdir()), "there was nothing to keep"


def test_an_export_is_answered_while_the_training_thread_computes(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp"))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(2)
    daemon.client.send({"op": "export"})
    daemon.wait_for(lambda: bool(daemon.exported))
    tensors = safetensors.torch.load(daemon.exported)
    assert tensors["weight"].tolist() == [[-0.25] * 3]


def test_a_sign_of_life_comes_while_the_training_thread_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BEAT_S", 0.01)
    daemon = StandIn(descriptor())
    Script(tmp_path, daemon)
    beats = {"op": "report", "beat_s": 0.01}
    daemon.wait_for(lambda: daemon.reports().count(beats) >= 3)
    assert not closed(daemon), "it has handed nothing over: nothing else was said"


def test_a_change_that_is_not_finite_is_never_handed_over(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=1))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.step()
    assert not script.step(float("nan"))
    assert script.x == [-0.125] * 4
    daemon.wait_for(lambda: closed(daemon) == [0])


def test_three_times_in_a_row_is_diverged(tmp_path: Path) -> None:
    script = Script(tmp_path, StandIn(descriptor(local_steps=1)))
    script.swarm.begin()
    script.step(float("inf"))
    script.step(float("inf"))
    with pytest.raises(DivergedError, match="3 times in a row; lower --lr"):
        script.step(float("inf"))


def test_a_child_is_over_when_its_daemon_is_gone(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(), keep_open=False)
    script = Script(tmp_path, daemon, child=True)
    script.swarm.begin()
    daemon.close()
    while not script.swarm.done:
        script.step()
    assert script.swarm.stopped


def test_a_script_goes_on_alone_and_rejoins_as_a_new_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = descriptor(algorithm="sgp")
    first, second = StandIn(session), StandIn(session, resume=True)
    answers = iter([second.attachment(tmp_path, life=2)])
    monkeypatch.setattr(attach, "dial", lambda *_, **__: next(answers))
    monkeypatch.setattr(link, "REDIAL_S", (0.0, 0.0))
    script = Script(tmp_path, first)
    script.swarm.begin()
    script.steps(4)
    with caplog.at_level(logging.WARNING):
        first.close()
        second.wait_for(lambda: any(isinstance(event, Holds) for event in second.events))
        while not script.step():
            pass
        script.steps(4)
    assert second.events[0] == Ready(2, 1, second.events[0].bases)  # type: ignore[attr-defined]
    second.wait_for(lambda: closed(second)[:1] == [2])
    assert "training goes on alone" in caplog.text
    script.swarm.close()
    second.close()


def test_a_script_alone_keeps_no_memory_for_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, free = StandIn(descriptor(algorithm="sgp")), threading.Event()

    def nobody(*_: object, **__: object) -> None:
        if not script.swarm._link._reserve.size:
            free.set()
        raise NoDaemonError("nobody answers")

    monkeypatch.setattr(attach, "dial", nobody)
    monkeypatch.setattr(link, "REDIAL_S", (0.01, 0.01))
    monkeypatch.setattr(shared_buffer, "KEEP_S", 0.02)
    script = Script(tmp_path, first)
    script.swarm.begin()
    script.steps(2)
    busy = script.swarm._link._reserve.make(WORTH_KEEPING)
    first.close()
    script.steps(2)
    assert not free.wait(0.2), "it is in use"
    busy.close()
    assert free.wait(30.0)
    script.swarm.close()


@pytest.mark.parametrize("owned", [True, False])
def test_a_scripts_daemon_that_is_gone_is_started_again_if_a_script_has_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owned: bool
) -> None:
    """And waited for, if its user has."""
    session = descriptor(algorithm="sgp")
    first, second = StandIn(session), StandIn(session, resume=True)
    said: list[str] = []

    class Own:
        def reach(self, ask: Callable[[], object]) -> object:
            said.append("reached")
            return ask()

        def close(self) -> None:
            said.append("closed")

    again = replace(second.attachment(tmp_path, life=2), owned=True)
    monkeypatch.setattr(attach, "dial", lambda *_, **__: again)
    monkeypatch.setattr(link, "REDIAL_S", (0.0, 0.0))
    script = Script(tmp_path, first)
    script.swarm.terms = replace(script.swarm.terms, daemon=Own())  # type: ignore[arg-type]
    script.swarm._owned = owned
    script.swarm.begin()
    script.steps(2)
    first.close()
    second.wait_for(lambda: any(isinstance(event, Holds) for event in second.events))
    assert said == ["reached"] * owned
    assert script.swarm._owned
    script.swarm.close()
    second.close()
    assert said == [*["reached"] * owned, "closed"]


def test_an_error_of_the_daemon_reaches_the_script(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(), keep_open=False)
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    daemon.client.send({"op": "error", "code": 65, "message": "model differs at 'weight'"})
    with pytest.raises(DataError, match="model differs at 'weight'"):
        script.steps(1_000_000)


def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = StandIn(descriptor())

    def full(*_: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(CheckpointFolder, "save", full)
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    assert script.steps(2)[1]
    daemon.wait_for(lambda: {"op": "log", "text": "the disk is full"} in daemon.frames)
    daemon.wait_for(lambda: daemon.reports()[-1].get("checkpoint_problem") == "the disk is full")


def test_a_round_opened_again_before_the_change_is_handed_over_is_used(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(algorithm="sgp", local_steps=1), keep_open=False)
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    for n in (2, 1):
        daemon.client.send_event(OpenRound(Key(), {}, (), n, 1.0))
    assert script.step()
    daemon.wait_for(lambda: closed(daemon) == [0])
    assert not any(isinstance(event, Found) for event in daemon.events)


def relay_sum(tmp_path: Path, **options: str) -> tuple[StandIn, Script]:
    """A session whose delay asks for twice the learning rate; two local steps a round. One round is over."""
    spelled = {f"algorithm.{key}": value for key, value in options.items()}
    daemon = StandIn(descriptor(algorithm="relay-sum", topology="chain", options=spelled))
    daemon.mean_delay = 1.0
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(2)
    return daemon, script


def test_the_learning_rate_is_scaled_while_the_optimizer_steps_and_at_no_other_time(tmp_path: Path) -> None:
    _, script = relay_sum(tmp_path)
    seen: list[float] = []
    group = script.optimizer.param_groups[0]
    script.optimizer.register_step_pre_hook(lambda *_: seen.append(group["lr"]))
    before = script.x[0]
    script.steps(2)
    assert script.x == [before - 2 * 2 * 0.125] * 4
    assert seen == [0.25, 0.25]
    assert group["lr"] == 0.125


def test_the_correction_is_off_if_the_session_says_so(tmp_path: Path) -> None:
    _, script = relay_sum(tmp_path, **{"lr-correction": "off"})
    script.steps(2)
    assert script.x == [-4 * 0.125] * 4


def test_a_scripts_own_schedule_and_groups_are_left_alone(tmp_path: Path) -> None:
    _, script = relay_sum(tmp_path)
    script.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": torch.tensor(0.5)})
    rate = script.optimizer.param_groups[1]["lr"]
    schedule = torch.optim.lr_scheduler.StepLR(script.optimizer, 1, 0.5)
    before, moved = script.x[0], 0.0
    for t in range(4):
        script.step()
        schedule.step()
        moved += 2 * 0.125 / 2**t
        assert script.optimizer.param_groups[0]["lr"] == 0.125 / 2 ** (t + 1)
    assert script.x == [before - moved] * 4
    assert isinstance(rate, torch.Tensor)
    assert torch.equal(script.optimizer.param_groups[1]["lr"], torch.tensor(0.5 / 16))


def test_a_step_that_fails_leaves_no_scaled_rate_behind(tmp_path: Path) -> None:
    _, script = relay_sum(tmp_path)

    def fails() -> float:
        raise ArithmeticError("the loss cannot be computed")

    for _ in range(3):
        with pytest.raises(ArithmeticError):
            script.optimizer.step(fails)
    before = script.x[0]
    script.steps(2)
    assert script.x == [before - 2 * 2 * 0.125] * 4
    assert script.optimizer.param_groups[0]["lr"] == 0.125


def test_after_the_swarm_the_optimizer_is_the_scripts_alone(tmp_path: Path) -> None:
    _, script = relay_sum(tmp_path)
    script.swarm.close()
    before = script.x[0]
    for parameter in script.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    script.optimizer.step()
    assert script.x == [before - 0.125] * 4


def test_alone_without_a_daemon_nothing_is_corrected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "REDIAL_S", (600.0, 600.0))
    daemon, script = relay_sum(tmp_path)
    daemon.close()
    with script.swarm._link.met:
        script.swarm._link.wait(lambda: not script.swarm._link.connected, 60)
    script.step()
    before = script.x[0]
    script.steps(2)
    assert script.x == [before - 2 * 0.125] * 4


def test_another_models_loss_is_looked_at_without_changing_this_one(tmp_path: Path) -> None:
    script = Script(tmp_path, StandIn(descriptor()))
    script.swarm.begin()
    FlatModel(script.model).write(torch.ones(4))
    seen: list[list[float]] = []

    def loss_now() -> float:
        seen.append(script.x)
        return 1.0 + 0.5 * (script.x[0] == 1.25)

    script.swarm.loss_now = loss_now
    assert not script.swarm._mixes_with(torch.full((4,), 1.5))
    assert sorted(x[0] for x in seen) == [1.0, 1.25, 1.5]
    assert script.x == [1.0] * 4


def test_the_checkpoint_of_one_that_left_holds_the_model_it_had(tmp_path: Path) -> None:
    daemon = StandIn(descriptor(local_steps=1))
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    script.steps(3)
    here = script.x
    with script.swarm._link.met:
        script.swarm._link._exchange.algorithm.hand_over(Key())  # to a neighbor: nothing is left here
    script.swarm.close()
    found = CheckpointKeeper(tmp_path, daemon.session.id, FlatModel(script.model).signature).found
    assert found is not None
    assert found.model.tolist() == here


WIDE = 1 << 18  # numbers: other tensors of this process are smaller


class Wide(Script):
    """As `Script`, with a model that stands out."""

    def __init__(self, folder: Path, daemon: StandIn) -> None:
        self.model = nn.ParameterList([torch.zeros(WIDE)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.125)
        self.swarm = Swarm(
            daemon.attachment(folder), self.model, self.optimizer, Terms(Path("unused"), "lockstep", 1)
        )
        opened.append((daemon, self.swarm))


def models() -> int:
    """Flat models that this process has."""
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    return len({tensor.data_ptr() for tensor in tensors if tensor.numel() == WIDE})


def test_a_script_that_averages_whole_models_has_one_besides_its_own(tmp_path: Path) -> None:
    """While a round waits that is the one sent, and afterwards the one that all steps are counted from."""
    daemon = StandIn(descriptor(algorithm="d-psgd", topology="complete", local_steps=1), keep_open=False)
    script = Wide(tmp_path, daemon)
    script.swarm.begin()
    assert models() == 2
    daemon.client.send_event(LinkUp("b", "out", 1))
    for t in range(2):
        key = Key(round=t)
        daemon.client.send_event(OpenRound(key, {"b": 0.5}, ("b",), 2, 1.0))
        seen: list[int] = []

        def look(seen: list[int] = seen, key: Key = key) -> None:
            daemon.wait_for(lambda: any(isinstance(e, Pushed) and e.key == key for e in daemon.events))
            seen.append(models())
            daemon.client.send_event(Deadline(key))

        looking = threading.Thread(target=look)
        looking.start()
        for parameter in script.model.parameters():
            parameter.data.sub_(0.125)
        assert script.swarm.step()
        looking.join()
        assert seen == [2]
        assert models() == 2
        assert script.model[0][:2].tolist() == [-0.125 * (t + 1)] * 2
    sent = [event.payload for event in daemon.events if isinstance(event, Push)]
    values = [
        codec.decode(one.view(), Layout((WIDE,))).body.dense()
        for one in sent
        if isinstance(one, SharedBuffer)
    ]
    assert [float(value[WIDE - 1]) for value in values] == [-0.125, -0.25]


def test_who_rejoins_without_the_initial_model_begins_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the founder, too, whose first round was not over: its node knows of no checkpoint."""
    session = descriptor(algorithm="d-psgd", topology="complete", local_steps=1)
    first, second = StandIn(session, keep_open=False), StandIn(session)
    answers = iter([second.attachment(tmp_path, life=2)])
    monkeypatch.setattr(attach, "dial", lambda *_, **__: next(answers))
    monkeypatch.setattr(link, "REDIAL_S", (0.0, 0.0))
    script = Script(tmp_path, first)
    FlatModel(script.model).write(torch.ones(4))
    script.swarm.begin()
    first.open_round(Key())
    with script.swarm._link.met:
        script.swarm._link.wait(script.swarm._link.is_open, 60)
    first.close()
    second.wait_for(lambda: any(isinstance(event, Holds) for event in second.events))
    assert second.events[0] == Ready(2, -1, ())
    while not script.step():
        pass
    assert script.x == [0.0] * 4, "where it began"
    script.step()
    assert script.x == [-0.125] * 4
    script.swarm.close()
    second.close()


def test_the_checkpoint_of_one_that_left_in_the_middle_of_a_round_has_its_local_steps(tmp_path: Path) -> None:
    session = descriptor(algorithm="d-psgd", topology="complete", local_steps=1)
    daemon = StandIn(session, keep_open=False)
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    daemon.client.send_event(LinkUp("b", "out", 1))
    daemon.client.send_event(OpenRound(Key(), {"b": 0.5}, ("b",), 2, 1.0))

    def leave() -> None:
        daemon.wait_for(lambda: any(isinstance(event, Pushed) for event in daemon.events))
        daemon.client.send_event(HandOver("b"))
        daemon.wait_for(lambda: daemon.events[-1] == Holds((), 0.0))
        daemon.client.send({"op": "stop"})

    leaving = threading.Thread(target=leave)
    leaving.start()
    assert not script.step()
    leaving.join()
    script.swarm.close()
    found = CheckpointKeeper(tmp_path, session.id, FlatModel(script.model).signature).found
    assert found is not None
    assert found.model.tolist() == [-0.125] * 4


def test_one_that_never_had_a_model_leaves_the_checkpoint_as_it_is(tmp_path: Path) -> None:
    trained = Script(tmp_path, StandIn(descriptor(local_steps=1)))
    trained.swarm.begin()
    trained.steps(3)
    here = trained.x
    trained.swarm.close()

    class Silent(StandIn):
        def _on_event(self, event: object) -> None:
            """Nobody seats it."""

    daemon = Silent(descriptor(local_steps=1))
    again = Script(tmp_path, daemon)
    again.swarm._checkpoint()
    found = CheckpointKeeper(tmp_path, daemon.session.id, FlatModel(again.model).signature).found
    assert found is not None
    assert found.model.tolist() == here


@pytest.mark.parametrize("algorithm", ["detag", "d2", "relay-sum-grad"])
def test_a_pace_that_the_algorithm_is_not_sound_in_is_refused(tmp_path: Path, algorithm: str) -> None:
    daemon = StandIn(descriptor(algorithm=algorithm))
    wrong: Pace = "free" if algorithm == "relay-sum-grad" else "overlap"
    with pytest.raises(UsageError, match=f"{algorithm} cannot run in the pace '{wrong}'; it can in lockstep"):
        Script(tmp_path, daemon, wrong)
    daemon.close()


@pytest.mark.parametrize(("algorithm", "pace"), [("detag", "lockstep"), ("sgp", "free")])
def test_a_script_that_names_no_pace_gets_one_that_its_sessions_algorithm_is_sound_in(
    tmp_path: Path, algorithm: str, pace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = StandIn(descriptor(algorithm=algorithm))
    monkeypatch.setattr(own_daemon, "dial", lambda path, session, child: daemon.attachment(tmp_path))
    model = nn.Linear(3, 1)
    swarm = attach.attach("home", model, torch.optim.SGD(model.parameters(), lr=0.1), socket=tmp_path)
    opened.append((daemon, swarm))
    assert swarm.terms.pace == pace


def test_steps_handed_over_while_a_new_graphs_rounds_without_any_begin_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model to go on from, once there is a round for local steps, whatever went by before: else the
    script would wait for ever."""
    daemon = StandIn(descriptor(algorithm="relay-sum", topology="chain", local_steps=1), keep_open=False)
    script = Script(tmp_path, daemon)
    script.swarm.begin()
    later: dict[str, Any] = {
        "out": {"b": 0.5},
        "expected": ("b",),
        "n": 2,
        "mean_weight": 1.0,
        "trees": (("b",),),
    }
    daemon.client.send_event(LinkUp("b", "out", 1))
    daemon.client.send_event(OpenRound(Key(1, 0), **later))
    met = script.swarm._link
    with met.met:
        met.wait(met.is_open, 60)
    answer = met._answer_training_thread

    def overtaken() -> None:
        if met.handing_over:
            monkeypatch.setattr(met, "_answer_training_thread", answer)
            met._handle(OpenRound(Key(2, 0), **later, aligning=2))
        answer()

    monkeypatch.setattr(met, "_answer_training_thread", overtaken)
    mixed: list[bool] = []
    stepping = threading.Thread(target=lambda: mixed.append(script.step()))
    stepping.start()
    daemon.wait_for(lambda: any(isinstance(e, Pushed) and e.key == Key(2, 0) for e in daemon.events))
    begun = Message(Key(2, 5), RelaySum.MEANING, Dense(torch.zeros(4)), base=b"\x01\x00", delivery="latest")
    with SharedBuffer.of(codec.encode(begun)) as parcel:  # b is past the rounds that this one was in
        daemon.client.send_event(Deliver("b", 1, 1, begun.key, parcel, "latest"))
    daemon.client.send_event(OpenRound(begun.key, **later, aligning=2))
    stepping.join(30)
    assert mixed == [True]
    assert script.x == [0.0] * 4
