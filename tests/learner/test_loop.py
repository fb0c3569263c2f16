"""The built-in loop, on attach: schedule, roll-back, evaluation, the end."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.daemon_stand_in import StandIn, descriptor
from peer.config import Descriptor
from peer.errors import DataError, DivergedError
from peer.learner.attach import Pace, Swarm, Terms
from peer.learner.flat import FlatModel
from peer.learner.loop import endless, train
from peer.learner.task import Settings, load_task, seeded_model
from peer.tasks.quadratic import Quadratic


class Sometimes(Quadratic):
    """The quadratic task, whose loss in step n is `replaced[n]`."""

    def __init__(self, replaced: dict[int, float]) -> None:
        super().__init__(Settings(options={"task.dim": "4"}))
        self.replaced, self.n_losses = replaced, 0
        self.rates: list[float] = []
        self.made: torch.optim.Optimizer | None = None

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        self.made = super().optimizer(parameters)
        return self.made

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert self.made is not None
        self.rates.append(self.made.param_groups[0]["lr"])
        self.n_losses += 1
        return super().loss(model, batch) * self.replaced.get(self.n_losses - 1, 1.0)


class Once(Quadratic):
    """Batches that end."""

    def __init__(self, batches: int) -> None:
        super().__init__(Settings(options={"task.dim": "4"}))
        self.left = batches

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Tensor]:
        endless = super().batches(shard, device)
        for _ in range(self.left):
            yield next(endless)


class Told(Quadratic):
    """Notes the models it is told are mixed, and how many local steps each came after."""

    def __init__(self) -> None:
        super().__init__(Settings(options={"task.dim": "4"}))
        self.steps, self.told = 0, list[tuple[int, Tensor]]()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.steps += torch.is_grad_enabled()
        return super().loss(model, batch)

    def mixed(self, model: nn.Module) -> None:
        self.told.append((self.steps, FlatModel(model).read()))


def run(task: Quadratic, session: Descriptor, folder: Path, **options: Any) -> tuple[StandIn, nn.Module]:
    torch.set_num_threads(1)
    pace = options.pop("pace", "lockstep")
    batches = endless(task, options.get("shard"), torch.device("cpu"))
    daemon = StandIn(session)
    model = seeded_model(task, session.seed)
    optimizer = task.optimizer(model.parameters())
    terms = Terms(Path("unused"), pace, session.local_steps, child=True)
    try:
        with Swarm(daemon.attachment(folder, **options), model, optimizer, terms) as swarm:
            swarm.begin()
            train(swarm, task, model, optimizer, batches)
    finally:
        daemon.close()
    return daemon, model


def test_a_bounded_session_trains_to_its_end_and_reports_the_final_metrics(tmp_path: Path) -> None:
    task = load_task("quadratic", Settings(options={"task.dim": "4"}))
    assert isinstance(task, Quadratic)
    daemon, _ = run(task, descriptor(algorithm="sgp", rounds=60, options={"warmup": "0"}), tmp_path)
    metrics = [report["metrics"] for report in daemon.reports() if report.get("metrics")]
    assert metrics[0]["distance"] > 0.5, "right after joining"
    assert metrics[-1]["distance"] < 0.05, "at the end"
    assert daemon.reports()[-1]["checkpoint_round"] == 60
    assert daemon.reports()[-1]["step_s"] > 0


def test_the_schedule_runs_over_the_sessions_steps(tmp_path: Path) -> None:
    task = Sometimes({})
    run(task, descriptor(algorithm="sgp", rounds=10, options={"warmup": "4"}), tmp_path)
    assert task.rates[:8] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert task.rates[19] < 0.01


def test_a_loss_that_is_not_finite_costs_the_steps_since_the_exchange_and_no_more(tmp_path: Path) -> None:
    task = Sometimes({5: math.nan})
    _, model = run(task, descriptor(algorithm="sgp", rounds=60, options={"warmup": "0"}), tmp_path)
    assert torch.isfinite(FlatModel(model).read()).all()
    assert task.evaluate(model)["distance"] < 0.05


def test_three_in_a_row_fail_the_session_with_a_sentence(tmp_path: Path) -> None:
    task = Sometimes(dict.fromkeys((4, 5, 6), math.inf))
    with pytest.raises(DivergedError, match="training diverged in round 2: the loss was inf"):
        run(task, descriptor(algorithm="sgp", rounds=60), tmp_path)


class Detached(Quadratic):
    """A loss that no parameter has a part in."""

    def __init__(self) -> None:
        super().__init__(Settings(options={"task.dim": "4"}))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return super().loss(model, batch).detach()


def test_a_loss_without_a_gradient_is_the_tasks_fault(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"task quadratic: a step along its loss failed: RuntimeError: .*grad"
    ):
        run(Detached(), descriptor(algorithm="sgp", rounds=10), tmp_path)


def test_batches_that_end_are_begun_again(tmp_path: Path) -> None:
    run(Once(3), descriptor(algorithm="sgp", rounds=10), tmp_path)


def test_no_batches_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no batches for shard '1/2'; look at --data and --shard"):
        run(Once(0), descriptor(algorithm="sgp", rounds=10), tmp_path, shard="1/2")


def test_a_task_is_told_of_each_mixed_model_before_it_steps_from_there(tmp_path: Path) -> None:
    task = Told()
    session = descriptor(algorithm="sgp", rounds=3, local_steps=4, options={"warmup": "0"})
    _, model = run(task, session, tmp_path)
    assert [steps for steps, _ in task.told][:3] == [0, 4, 8], "at the beginning, and after each round"
    initial = FlatModel(seeded_model(task, session.seed)).read()
    assert torch.equal(task.told[0][1], initial)
    assert torch.equal(task.told[-1][1], FlatModel(model).read())


class Bursts(Told):
    """Its gradient in one local step is more than any number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss = super().loss(model, batch)
        if self.steps == self.at and torch.is_grad_enabled():
            whole = torch.cat([parameter.reshape(-1) for parameter in model.parameters()]).sum()
            loss = loss + (whole - whole.detach()) * 1e38 * 1e38
        return loss


@pytest.mark.parametrize("pace", ["lockstep", "overlap", "free"])
@pytest.mark.parametrize("at", range(4, 10))
def test_a_task_is_told_of_the_mixed_model_itself_which_is_finite(
    pace: Pace, at: int, tmp_path: Path
) -> None:
    """Not of that and the local steps made meanwhile, of which one may have gone wrong."""
    task = Bursts(at)
    session = descriptor(algorithm="sgp", rounds=4, local_steps=4, options={"warmup": "0"})
    run(task, session, tmp_path, pace=pace)
    assert len(task.told) >= 4
    assert all(bool(model.isfinite().all()) for _, model in task.told)
