"""What a task is, and where one comes from: a built-in name, or a user's Python file.

    model() -> nn.Module
    batches(shard, device) -> iterator          endless, or begun again when it ends
    loss(model, batch) -> scalar tensor
    optimizer(parameters) -> Optimizer           optional; else SGD with momentum
    evaluate(model) -> {name: float}             optional; each of them read as "higher or lower is your
    business"

A file's `batches` may also name parameters `data`, `batch` or `seed`; they are then given: the folder of
`--data` (or None), the batch size, and a number of this device's own. Task code never travels between
devices.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from peer.catalogue import SCRIPT
from peer.errors import DataError, PeerdError

BUILT_IN = {
    "spoken-digits": "peer.tasks.spoken_digits",
    "quadratic": "peer.tasks.quadratic",
    "fashion-mnist": "peer.tasks.fashion_mnist",
    "characters": "peer.tasks.characters",
}
MOMENTUM = 0.9  # sparse_push_experiments: every accuracy there was measured with it
BATCH = 32  # as above
LR = 0.02  # FSDD rows there: the rate at which the longest run was best
ADAM_LR = 0.001  # Kingma and Ba 2015, algorithm 1; the tasks' own rates are for SGD
PARAMETERS = {
    "model": 0,
    "batches": 2,
    "loss": 2,
    "optimizer": 1,
    "evaluate": 1,
}  # how many each function takes
EXTRAS = ("data", "batch", "seed")  # what `batches` may name besides
REQUIRED = ("model", "batches", "loss")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """What a task is made with. `seed` is the session's (initial model, shards: the same on all devices),
    `order` this device's own (order of batches). None: the task's own default."""

    seed: int = 0
    order: int = 0
    batch: int | None = None
    lr: float | None = None
    momentum: float | None = None
    data: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def option(self, name: str, default: str) -> str:
        """The option `task.name`, or bare `name`."""
        return self.options.get(f"task.{name}", self.options.get(name, default))


class Task(Protocol):
    """A model, its data and its loss. Everything random is decided by the seeds in its settings."""

    name: str

    def model(self) -> nn.Module:
        """A new model, on the CPU."""

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Any]:
        """Batches of this device's part of the data, on `device`. Raises DataError for an unknown shard."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """A scalar to minimize."""

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What makes the local steps. Its learning rate is the highest one of the schedule."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Named figures of `model`; may be empty."""


@runtime_checkable
class HearsOfMixes(Protocol):
    """A task that wants to know of each newly mixed model."""

    def mixed(self, model: nn.Module) -> None:
        """`model` is one now, before the local steps from there."""


def tell_mixed(task: Task, model: nn.Module) -> None:
    """`model` is newly mixed; tell the task if it wants to know."""
    if isinstance(task, HearsOfMixes):
        task.mixed(model)


def optimizer_of(
    parameters: Iterable[nn.Parameter], settings: Settings, lr: float = LR, momentum: float = MOMENTUM
) -> torch.optim.Optimizer:
    """What the option `optimizer` says, at the session's rate and momentum or these defaults: SGD with heavy
    ball momentum, with Nesterov's (Sutskever et al. 2013), or Adam with the momentum as its first beta. The
    latter two have one in any task."""
    kind = settings.option("optimizer", "sgd")
    if settings.momentum is not None:
        momentum = settings.momentum
    elif kind != "sgd":
        momentum = MOMENTUM
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr or ADAM_LR, betas=(momentum, 0.999))
    return torch.optim.SGD(parameters, lr=settings.lr or lr, momentum=momentum, nesterov=kind == "nesterov")


def load_task(name: str, settings: Settings, file: Path | None = None) -> Task:
    """The built-in task `name`, or the one in `file`. Raises DataError."""
    if file is not None:
        return FileTask(file, settings)
    if name == SCRIPT:
        raise DataError(
            "the session's task is 'script': only scripts train in it: call peer.attach in one of your own, "
            "for the model is known to it alone"
        )
    if name not in BUILT_IN:
        raise DataError(f"no task is called '{name}'; known: {', '.join(BUILT_IN)}, or a Python file")
    task: Task = importlib.import_module(BUILT_IN[name]).create(settings)
    return task


def seeded_model(task: Task, seed: int) -> nn.Module:
    """`task.model()` with the session's seed: the same numbers on all devices. Global randomness is left
    as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.model()


class FileTask:
    """A user's file as a task. What its code raises becomes a DataError that names file, line and
    function."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.name = path.name
        self._path, self._settings = path, settings
        self._functions = _functions(path)

    def model(self) -> nn.Module:
        made = self._call("model")
        if not isinstance(made, nn.Module):
            raise self._wrong("model", "a torch.nn.Module", made)
        return made

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Any]:
        known = {
            "data": self._settings.data,
            "batch": self._settings.batch or BATCH,
            "seed": self._settings.order,
        }
        extras = {name: known[name] for name in _extras(self._functions["batches"])}
        found = self._call("batches", shard, device, **extras)
        if not isinstance(found, Iterable):
            raise self._wrong("batches", "an iterator of batches", found)
        iterator = iter(found)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (Exception, SystemExit) as error:
                raise self._blame("batches", error) from error
            yield batch

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self._call("loss", model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            raise self._wrong("loss", "a tensor with one real number", loss)
        if torch.is_grad_enabled() and not loss.requires_grad:
            expected = "what the model's parameters can be improved by (no .item(), .detach() or no_grad())"
            raise self._wrong("loss", expected, loss)
        return loss

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if "optimizer" not in self._functions:
            return optimizer_of(parameters, self._settings)
        made = self._call("optimizer", parameters)
        if not isinstance(made, torch.optim.Optimizer):
            raise self._wrong("optimizer", "a torch.optim.Optimizer", made)
        return made

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if "evaluate" not in self._functions:
            return {}
        found = self._call("evaluate", model)
        if not isinstance(found, Mapping):
            raise self._wrong("evaluate", "a dict of names and numbers", found)
        return {str(name): self._number(name, value) for name, value in found.items()}

    def _number(self, name: object, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # the last one is a tensor's
            line, found = self._functions["evaluate"].__code__.co_firstlineno, _described(value)
            raise DataError(
                f"{self._path}, line {line}: evaluate() must return a dict of names and numbers, and "
                f"'{name}' is {found}"
            ) from error

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        try:
            return self._functions[name](*arguments, **named)
        except PeerdError:
            raise
        except (Exception, SystemExit) as error:
            raise self._blame(name, error) from error

    def _blame(self, name: str, error: BaseException) -> DataError:
        where = f"{self._path}, line {_line_in(self._path, error)}"
        return DataError(f"{where}, in {name}(): {said(error)}")

    def _wrong(self, name: str, expected: str, found: object) -> DataError:
        line = self._functions[name].__code__.co_firstlineno
        return DataError(
            f"{self._path}, line {line}: {name}() must return {expected}, and returned {_described(found)}"
        )


def said(error: BaseException) -> str:
    """An error's class and words, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _described(found: object) -> str:
    """What a user's function gave instead of what it should."""
    if isinstance(found, Tensor):
        gradient = "a" if found.requires_grad else "no"
        kind = str(found.dtype).removeprefix("torch.")
        return f"a tensor of shape {list(found.shape)} and type {kind} with {gradient} gradient"
    if isinstance(found, type):
        return f"the class {found.__name__} itself"
    return "None" if found is None else f"a value of type {type(found).__name__}"


def _functions(path: Path) -> dict[str, types.FunctionType]:
    """The task functions of a file. Raises DataError naming file, line and what is missing."""
    module = _run(path)
    found = {name: value for name in PARAMETERS if callable(value := getattr(module, name, None))}
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise DataError(
            f"{path} defines no {_signature(missing[0])}; a task file needs "
            f"{', '.join(map(_signature, REQUIRED))}"
        )
    for name, function in found.items():
        if not isinstance(function, types.FunctionType):
            raise DataError(f"{path}: {name} is a {type(function).__name__}; write 'def {_signature(name)}'")
        try:
            extras = dict.fromkeys(_extras(function)) if name == "batches" else {}
            inspect.signature(function).bind(*range(PARAMETERS[name]), **extras)
        except TypeError as error:
            raise DataError(
                f"{path}, line {function.__code__.co_firstlineno}: {name}() must take "
                f"{_signature(name)}: {error}"
            ) from error
    return found


def _extras(batches: types.FunctionType) -> list[str]:
    """Which of the optional parameters this `batches` names beyond its two."""
    return [name for name in list(inspect.signature(batches).parameters)[2:] if name in EXTRAS]


def _signature(name: str) -> str:
    names = {
        "batches": "shard, device",
        "loss": "model, batch",
        "optimizer": "parameters",
        "evaluate": "model",
    }
    return f"{name}({names.get(name, '')})"


def _run(path: Path) -> types.ModuleType:
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except OSError as error:
        raise DataError(f"the task file {path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise DataError(f"{path}, line {line}: {getattr(error, 'msg', error)}") from error
    module = types.ModuleType("peerd_task")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there for what its names mean
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise DataError(f"{path}, line {_line_in(path, error)}: {said(error)}") from error
    return module


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of `path` on the error's way up."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return (lines[-1] if lines else None) or 1
