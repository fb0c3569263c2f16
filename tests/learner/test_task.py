"""Tasks by name and from a user's file."""

import sys
from pathlib import Path

import pytest
import torch

from peer.catalogue import SCRIPT, TASKS
from peer.errors import DataError
from peer.learner.task import BUILT_IN, Settings, load_task, seeded_model

GOOD = """
import torch

def model():
    return torch.nn.Linear(2, 1)

def batches(shard, device, batch, data=None):
    for _ in range(3):
        yield torch.full((batch, 2), float(len(shard)), device=device)

def loss(model, batch):
    return model(batch).square().mean()
"""


def file_task(tmp_path: Path, text: str, **settings: int):  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.py"
    path.write_text(text)
    return load_task("file", Settings(**settings), path)  # type: ignore[arg-type]


def test_the_catalogue_lists_the_built_in_tasks() -> None:
    assert {*BUILT_IN, SCRIPT} == set(TASKS)


def test_a_session_for_scripts_has_no_task_to_load() -> None:
    with pytest.raises(DataError, match=r"only scripts train in it: call peer\.attach in one"):
        load_task(SCRIPT, Settings())


def test_a_file_is_a_task(tmp_path: Path) -> None:
    task = file_task(tmp_path, GOOD, batch=5)
    model = seeded_model(task, 1)
    batches = list(task.batches("ab", torch.device("cpu")))
    assert len(batches) == 3
    assert batches[0].shape == (5, 2)
    assert task.loss(model, batches[0]).ndim == 0
    assert task.evaluate(model) == {}
    assert task.optimizer(model.parameters()).defaults["momentum"] == 0.9


def test_a_seed_gives_every_device_the_same_model_and_leaves_randomness_alone(tmp_path: Path) -> None:
    task = file_task(tmp_path, GOOD)
    torch.manual_seed(5)
    first = seeded_model(task, 1)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), drawn)
    assert torch.equal(first.weight, seeded_model(task, 1).weight)
    assert not torch.equal(first.weight, seeded_model(task, 2).weight)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            GOOD.replace("def loss(model, batch)", "def lost(model, batch)"),
            r"mine.py defines no loss\(model, batch\)",
        ),
        (
            GOOD.replace("(shard, device, batch, data=None)", "(shard)"),
            r"mine.py, line 7: batches\(\) must take",
        ),
        (GOOD + "\nx = (1\n", r"mine.py, line 14: .* never closed"),
        (GOOD + "\nx = 1 / 0\n", r"mine.py, line 14: ZeroDivisionError"),
        (
            GOOD + "\nimport no_such_package\n",
            "line 14: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        (GOOD + "\nloss = 3\n", r"defines no loss"),
        (GOOD + "\nimport sys; sys.exit()\n", r"mine.py, line 14: SystemExit$"),
        (GOOD + "\nclass loss: ...\n", r"loss is a type; write 'def loss\(model, batch\)'"),
    ],
)
def test_a_bad_file_is_an_error_that_names_line_and_lack(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        file_task(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            GOOD.replace("return torch.nn.Linear(2, 1)", "return 1"),
            r"line 4: model\(\) must return a torch.nn.Module",
        ),
        (GOOD.replace("Linear(2, 1)", "Linaer(2, 1)"), r"line 5, in model\(\): AttributeError"),
        (GOOD.replace("range(3)", "nothing"), r"line 8, in batches\(\): NameError"),
        (
            GOOD.replace("model(batch).square().mean()", "model(batch)"),
            r"line 11: .* one real number, and returned a tensor of shape \[32, 1\] and type float32 with a",
        ),
        (
            GOOD.replace(".mean()", ".mean().detach()"),
            r"line 11: .* a tensor of shape \[\] and type float32 with no gradient",
        ),
        (
            GOOD.replace("return model(batch).square().mean()", "return None"),
            "line 11: .* and returned None$",
        ),
        (
            GOOD.replace("return torch.nn.Linear(2, 1)", "return torch.nn.Linear"),
            "line 4: .* and returned the class Linear itself",
        ),
        (
            GOOD.replace("return model(batch)", "raise SystemExit(3)  #"),
            r"line 12, in loss\(\): SystemExit: 3",
        ),
        (GOOD.replace("for _ in range(3):", "if exit(4):"), r"line 8, in batches\(\): SystemExit: 4"),
        (GOOD.replace("model(batch).s", "model(batch[:, :1]).s"), r"line 12, in loss\(\): RuntimeError"),
    ],
)
def test_what_a_file_raises_names_its_line(text: str, words: str, tmp_path: Path) -> None:
    task = file_task(tmp_path, text)
    with pytest.raises(DataError, match=words):
        task.loss(task.model(), next(iter(task.batches("ab", torch.device("cpu")))))


@pytest.mark.parametrize("first", ["", "from __future__ import annotations\n"])
def test_a_file_may_define_dataclasses(tmp_path: Path, first: str) -> None:
    size = (
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Size:\n"
        "    inputs: int = 2\n"
        "KIND = type(Size.__annotations__['inputs']).__name__\n"
    )
    text = first + size + GOOD.replace("Linear(2, 1)", "Linear(Size().inputs, 1)")
    task = file_task(tmp_path, text)
    assert task.model().weight.shape == (1, 2)
    assert ("str" if first else "type") == sys.modules["peerd_task"].KIND, "the file's own futures alone"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("3.0", "line 14: .* must return a dict of names and numbers, and returned a value of type float"),
        ("{'accuracy': [1]}", "'accuracy' is a value of type list"),
        ("{'accuracy': torch.ones(2)}", r"'accuracy' is a tensor of shape \[2\] and type float32 with no"),
    ],
)
def test_figures_that_are_none_are_described(tmp_path: Path, given: str, words: str) -> None:
    task = file_task(tmp_path, GOOD + f"\ndef evaluate(model):\n    return {given}\n")
    with pytest.raises(DataError, match=words):
        task.evaluate(task.model())


def test_a_missing_file_and_an_unknown_name_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_task("file", Settings(), tmp_path / "gone.py")
    with pytest.raises(DataError, match="no task is called 'digits'; known: spoken-digits, quadratic"):
        load_task("digits", Settings())
