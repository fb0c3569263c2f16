"""The model as ONNX: what `peerd export --onnx` writes, made of an exported safetensors file and the task.

    python -m peer.learner.onnx_export MODEL.safetensors OUT.onnx FOLDER      FOLDER: the session's

What the model is called with is seen by watching the task compute its loss once, on a batch of this device.
The first axis of every tensor may then have any length, where the model allows it (torch 2.6 and later). The
file carries the same metadata as the safetensors file.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from peer.catalogue import SCRIPT
from peer.config import Descriptor, JoinOptions
from peer.errors import DataError, PeerdError, UsageError
from peer.files import cannot_write
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, Task, load_task, said, seeded_model

NEEDED = ("onnx", "onnxscript")  # torch.onnx imports both


def check_installed() -> None:
    """Raises UsageError that says how to install what is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} must be installed for it; '{sys.executable} -m pip install "
            f"{' '.join(missing)}' does that, or leave --onnx out for safetensors"
        )


def read_task(folder: Path) -> tuple[Task, Descriptor, JoinOptions]:
    """The task of the session kept in `folder`. Raises DataError."""
    try:
        session = Descriptor.from_dict(json.loads((folder / "descriptor.json").read_bytes()))
        options = JoinOptions.from_dict(json.loads((folder / "options.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"what is kept of the session in {folder} cannot be read: {error}") from error
    if session.task == SCRIPT:
        raise DataError(
            "only a script knows its layers: write safetensors instead, load them into the script's model, "
            "and call torch.onnx.export there"
        )
    settings = Settings(
        seed=session.seed, batch=session.batch, lr=session.lr, data=options.data, options=session.options
    )
    file = folder / "task.py"
    return load_task(session.task, settings, file if session.task == "file" else None), session, options


def filled(task: Task, seed: int, source: Path) -> tuple[nn.Module, dict[str, str]]:
    """The task's model with a file's numbers, and the file's metadata. Raises DataError."""
    model = seeded_model(task, seed)
    with safetensors.safe_open(source, "pt") as file:
        names, metadata = list(file.keys()), dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in names}
    wanted = {name for name, _, _ in FlatModel(model).signature}
    if wanted != set(names):
        odd = min(wanted ^ set(names))
        raise DataError(
            f"the task's model is not the session's: '{odd}' is in one alone; a script trains another model "
            "here? Write safetensors instead"
        )
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise DataError(f"the task's model is not the session's: {said(error)}") from error
    return model, metadata


def call_of(task: Task, model: nn.Module, batch: object) -> dict[str, Any]:
    """By name, what the model is first called with when the task computes its loss. Raises DataError."""
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model.eval()
            task.loss(model, batch)
    finally:
        hook.remove()
    if not calls:
        raise DataError(f"task {task.name}: its loss never calls the model, which has no input then")
    return calls[0]


def write(model: nn.Module, call: Mapping[str, Any], target: Path, metadata: Mapping[str, str]) -> None:
    """Write the model, as it evaluates. Raises DataError, StateError."""
    any_length = getattr(torch.export.Dim, "AUTO", None)  # 2.6
    shapes = None
    if any_length is not None:
        shapes = {
            name: {0: any_length} if isinstance(value, Tensor) and value.dim() else None
            for name, value in call.items()
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of deprecations
            program = torch.onnx.export(
                model.eval(), kwargs=dict(call), dynamo=True, dynamic_shapes=shapes, verbose=False
            )
    except Exception as error:  # torch names no common class for what it cannot put into ONNX
        raise DataError(f"torch.onnx cannot write this model: {said(error)[:500]}") from error
    assert program is not None, "what torch.onnx.export gives with dynamo=True"
    program.model.metadata_props.update(metadata)
    try:
        program.save(target)
    except OSError as error:
        raise cannot_write(target, error) from error


def main(arguments: list[str]) -> int:
    """Write the export; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise UsageError("expected MODEL.safetensors OUT.onnx FOLDER")
        source, target, folder = map(Path, arguments)
        check_installed()
        task, session, options = read_task(folder)
        model, metadata = filled(task, session.seed, source)
        batch = next(iter(task.batches(options.shard, torch.device("cpu"))), None)
        write(model, call_of(task, model, batch), target, metadata)
    except PeerdError as error:
        sys.stderr.write(f"peerd export: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
