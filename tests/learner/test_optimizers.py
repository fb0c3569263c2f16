"""`--option optimizer=`: what makes the local steps of the tasks that come with peerd."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli.rehearse import command, request_of
from peer import catalogue
from peer.catalogue import TASKS
from peer.entries import OPTIMIZERS
from peer.errors import UsageError
from peer.learner.task import ADAM_LR, Settings, load_task, seeded_model
from peer.rehearsal.plan import Plan
from peer.rehearsal.play import Play
from peer.rehearsal.trainer import Trainer

LR, BETA, BETA2, EPSILON = 0.05, 0.9, 0.999, 1e-8


def plan_of(words: str) -> Plan:
    asked = command.make_context("rehearse", ["--task", "quadratic", "--momentum", "0.9", *words.split()])
    return Plan.from_request(request_of(asked.params))


def heavy_ball(gradients: list[Tensor]) -> Tensor:
    velocity = torch.zeros_like(gradients[0])
    for gradient in gradients:
        velocity = BETA * velocity + gradient
    return -LR * velocity


def nesterov(gradients: list[Tensor]) -> Tensor:
    """Sutskever et al. 2013, as PyTorch writes it: the step looks ahead by the momentum."""
    return LR * (BETA * heavy_ball(gradients) / LR - gradients[-1])


def adam(gradients: list[Tensor]) -> Tensor:
    """Kingma and Ba 2015, algorithm 1."""
    m = v = torch.zeros_like(gradients[0])
    for gradient in gradients:
        m, v = BETA * m + (1 - BETA) * gradient, BETA2 * v + (1 - BETA2) * gradient.square()
    t = len(gradients)
    return -LR * (m / (1 - BETA**t)) / ((v / (1 - BETA2**t)).sqrt() + EPSILON)


@pytest.mark.parametrize(("kind", "rule"), [("sgd", heavy_ball), ("nesterov", nesterov), ("adam", adam)])
def test_local_steps_are_those_of_the_papers(kind: str, rule: object) -> None:
    plan = plan_of(f"--algorithm relay-sum --peers 2 --rounds 10 --local-steps 1 --lr {LR} --warmup 0"
                   f" --option optimizer={kind}")  # fmt: skip
    trainer = Trainer(plan)
    goal = trainer._judge.minimizer(1)  # type: ignore[attr-defined]
    z, gradients = trainer.initial, []
    for round_ in range(5):
        trainer.train("p000", trainer.initial, round_)  # the other one's steps leave no trace in this one's
        gradients.append((z - goal).double())
        u, _ = trainer.train("p001", z, round_)
        assert torch.allclose(u.double(), rule(gradients), atol=1e-6), round_  # type: ignore[operator]
        z = z + u


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_relay_sum_with_it_comes_to_the_common_minimum_and_agrees(kind: str) -> None:
    plan = plan_of("--algorithm relay-sum --topology binary-tree --peers 3 --rounds 150 --local-steps 1 --lr"
                   f" {0.05 if kind == 'adam' else 0.01} --schedule cosine --final-rounds"
                   f" --option optimizer={kind} --option dim=20")  # fmt: skip
    trainer = Trainer(plan)
    best = torch.stack([trainer._judge.minimizer(k) for k in range(3)]).mean(0)  # type: ignore[attr-defined]
    play = Play(plan, trainer)
    play.play()
    models = torch.stack([play.final[name] for name in plan.names()])
    assert (models - models.mean(0)).norm(dim=1).max() < 1e-4 * best.norm()
    # Adam's steps are hardly longer for a longer gradient: where devices differ it is drawn to their median
    assert (models.mean(0) - best).norm() < (0.5 if kind == "adam" else 0.05) * (
        trainer.initial - best
    ).norm()


@pytest.mark.parametrize("name", [name for name in TASKS if name != "script"])
def test_all_tasks_that_come_with_peerd_have_the_option(name: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 200)
    assert tuple(TASKS[name].options["optimizer"].choices) == OPTIMIZERS
    made = {}
    for kind in OPTIMIZERS:
        pairs = catalogue.resolve_options("relay-sum", name, [f"optimizer={kind}"])
        task = load_task(name, Settings(data=str(text), options=pairs))
        made[kind] = task.optimizer(seeded_model(task, 0).parameters())
    assert [type(made[kind]) for kind in OPTIMIZERS] == [torch.optim.SGD, torch.optim.SGD, torch.optim.Adam]
    assert [made[kind].defaults.get("nesterov") for kind in OPTIMIZERS] == [False, True, None]
    assert made["adam"].defaults["lr"] == ADAM_LR < made["sgd"].defaults["lr"]
    assert math.isclose(made["adam"].defaults["betas"][0], 0.9)


@pytest.mark.parametrize("words", ["--momentum 0", "--algorithm detag"])
def test_without_momentum_there_is_no_nesterov(words: str) -> None:
    asked = command.make_context(
        "rehearse", f"--task quadratic --rounds 4 --option optimizer=nesterov {words}".split()
    )
    with pytest.raises(UsageError, match=r"optimizer=nesterov needs a momentum above 0.*--momentum"):
        request_of(asked.params)


def test_adam_goes_in_front_of_a_momentum_of_an_algorithms_own_without_one() -> None:
    words = "--task quadratic --rounds 4 --option optimizer=adam --algorithm qg-d-psgd --peers 2"
    plan = Plan.from_request(request_of(command.make_context("rehearse", words.split()).params))
    [group] = Trainer(plan)._pupils["p000"].optimizer.param_groups
    assert group["betas"][0] == 0
