"""The model of another half of the session is shown to a learner: it says whether the two may be mixed, by
their distance and by the loss half way between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.daemon_stand_in import StandIn, descriptor
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.config import Descriptor
from peer.events import Closed, Deliver, Found, LinkUp, Looked, Push, Sponsor, Taken
from peer.learner.attach import Swarm, Terms
from peer.learner.exchange import Exchange, Resume
from peer.learner.flat import FlatModel
from peer.learner.loop import train
from peer.learner.task import Settings, seeded_model
from peer.tasks.quadratic import Quadratic

ME, OTHER, THEIR_ROUND = "p-a", "p-b", 7
SGP = descriptor(algorithm="sgp", local_steps=1, rounds=6, options={"warmup": "0"})
D = 4


def shown(model: Tensor) -> Push:
    """What a member sends that holds this model and is asked to show it."""
    layout = Layout((model.numel(),), (1,))
    learner = make("sgp", {}, layout, model.dtype)
    other = Exchange(learner, layout, model, resume=Resume(model, THEIR_ROUND))
    other.handle(Found(resume=True), 0.0)
    other.handle(LinkUp(ME, "out", 1), 0.0)
    [push] = [event for event in other.handle(Sponsor(ME, show=True), 0.0) if isinstance(event, Push)]
    return push


class Shows(StandIn):
    """A member's model has come when the learner has closed its first round."""

    def __init__(self, session: Descriptor, theirs: Tensor) -> None:
        self.parcel = shown(theirs)
        super().__init__(session)

    def _on_event(self, event: object) -> None:
        if isinstance(event, Closed) and event.key.round == 0:
            push = self.parcel
            self.client.send_event(LinkUp(OTHER, "in", 1))
            self.client.send_event(Deliver(OTHER, 1, 1, push.key, push.payload, push.delivery))
        super()._on_event(event)

    def looked(self) -> list[Looked]:
        return [event for event in self.events if isinstance(event, Looked)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def member(
    daemon: StandIn, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[Swarm]:
    terms = Terms(Path("unused"), "lockstep", 1, child=True)
    try:
        with Swarm(daemon.attachment(folder), model, optimizer, terms) as swarm:
            yield swarm
    finally:
        daemon.close()


def steps(swarm: Swarm, n: int) -> None:
    for _ in range(n):
        swarm.step(1.0)


@pytest.mark.parametrize(
    ("times", "half_way", "near"),
    [
        (1.25, None, True),
        (3.0, None, False),
        (1.25, 2.3, True),  # by the loss of the worse one, which is 2
        (1.25, 2.5, False),
        (1.25, math.nan, False),
        (3.0, 0.1, False),
    ],
)
def test_a_learner_says_of_the_model_it_is_shown_whether_it_may_be_mixed_and_keeps_its_own(
    times: float, half_way: float | None, near: bool, tmp_path: Path
) -> None:
    mine = torch.ones(D)
    daemon = Shows(SGP, times * mine)
    model = nn.ParameterList([mine.clone()])
    with member(daemon, tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1)) as swarm:
        losses = {1.0: 1.0, times: 2.0, (1 + times) / 2: half_way}
        if half_way is not None:
            swarm.loss_now = lambda: float(losses[model[0].tolist()[0]])  # type: ignore[arg-type]
        swarm.begin()
        steps(swarm, 3)
        assert torch.equal(model[0].detach(), mine)
        daemon.wait_for(lambda: bool(daemon.looked()))
        assert Taken(OTHER, 1, 1) in daemon.events
        assert daemon.looked() == [Looked(OTHER, THEIR_ROUND, near)]


def test_a_loss_that_cannot_be_had_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    daemon = Shows(SGP, 1.25 * torch.ones(D))
    model = nn.ParameterList([torch.ones(D)])
    with member(daemon, tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1)) as swarm:

        def fails() -> float:
            if model[0].tolist() != [1.0] * D:
                raise ArithmeticError("no loss of this one")
            return 1.0

        swarm.loss_now = fails
        swarm.begin()
        with pytest.raises(ArithmeticError):
            steps(swarm, 3)
        assert torch.equal(model[0].detach(), torch.ones(D))


class Hill(Quadratic):
    """Between two valleys, with a hill so high half way. Its steps are so small that a model stays where it
    is."""

    def __init__(self, height: float) -> None:
        super().__init__(Settings(options={"task.dim": str(D)}))
        self.height, self.top = height, torch.zeros(D)
        self.looks: list[Tensor] = []

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(D)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-9)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        (x,) = model.parameters()
        if not torch.is_grad_enabled():
            self.looks.append(x.detach().clone())
        return 1.0 + self.height * torch.exp(-100.0 * (x - self.top).square().sum())


@pytest.mark.parametrize("height", [0.0, 3.0])
def test_the_built_in_loop_judges_by_the_tasks_loss(height: float, tmp_path: Path) -> None:
    task = Hill(height)
    model = seeded_model(task, 0)
    mine = FlatModel(model).read().clone()
    theirs = mine.clone()
    theirs[0] += 0.3 * float(mine.norm())
    task.top = (mine + theirs) / 2
    daemon, optimizer = Shows(SGP, theirs), task.optimizer(model.parameters())
    with member(daemon, tmp_path, model, optimizer) as swarm:
        swarm.begin()
        train(swarm, task, model, optimizer, task.batches(None, torch.device("cpu")))
    assert daemon.looked() == [Looked(OTHER, THEIR_ROUND, near=height == 0.0)]
    looks = torch.stack(task.looks)
    expected = torch.stack([task.top, mine, theirs])
    torch.testing.assert_close(looks, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(FlatModel(model).read(), mine, rtol=0, atol=1e-6)
