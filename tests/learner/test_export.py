"""The model as a file: safetensors with where it comes from, and ONNX."""

import hashlib
import importlib.util
import json
import struct
from pathlib import Path

import onnx
import onnx.reference
import pytest
import safetensors
import torch

from peer.config import Descriptor, JoinOptions
from peer.learner import onnx_export
from peer.learner.checkpoint import Checkpoint, CheckpointFolder
from peer.learner.export import exported, main
from peer.learner.flat import FlatModel

TASK = """
import torch
from torch import nn

def model():
    body = nn.Linear(4, 3)
    body.bias.requires_grad = False
    return nn.Sequential(body, nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))

def batches(shard, device, batch):
    yield torch.randn(batch, 4, device=device)

def loss(model, batch):
    return model(batch).square().mean()
"""
SEED = 3


def test_the_newest_checkpoint_of_a_folder_becomes_safetensors(tmp_path: Path) -> None:
    model = torch.arange(5.0)
    signature = [("layer.weight", [2, 2], "float32"), ("layer.bias", [1], "bfloat16")]
    (tmp_path / "session").mkdir()
    CheckpointFolder(tmp_path / "session").save(Checkpoint("abc", "sgp", 12, 1.0, signature, model))
    known = {"session": "home", "session_id": "abc", "members": "p-a,p-b", "peerd": "0.1.0"}
    out = tmp_path / "out.safetensors"
    assert main([str(tmp_path / "session"), str(out), json.dumps(known)]) == 0
    with safetensors.safe_open(out, "pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("layer.weight"), torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        assert file.get_tensor("layer.bias").dtype == torch.bfloat16
    digest = metadata.pop("digest")
    assert metadata == {**known, "round": "12", "algorithm": "sgp"}
    data = out.read_bytes()
    [length] = struct.unpack_from("<Q", data)
    assert length % 8 == 0, "tensors are aligned"
    assert digest == "sha256:" + hashlib.sha256(data[8 + length :]).hexdigest()


def test_another_number_is_another_digest() -> None:
    model, signature = torch.arange(4.0), [("x", [4], "float32")]
    headers = [exported(model + torch.tensor([0, 0, 0, e]), signature, {})[0] for e in (0.0, 1e-6, 0.0)]
    assert headers[0] == headers[2] != headers[1]


def test_what_is_no_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("not a checkpoint, and longer than the header of one " * 3)
    assert main([str(tmp_path / "notes.txt"), str(tmp_path / "out"), "{}"]) == 65
    assert "is no checkpoint of peerd" in capsys.readouterr().err
    assert main([str(tmp_path / "missing"), str(tmp_path / "out"), "{}"]) == 65
    assert main([str(tmp_path), str(tmp_path / "out"), "{}"]) == 65
    assert main([]) == 2


def session_folder(folder: Path, **changes: object) -> Path:
    """As a daemon keeps a session whose task is a file."""
    fields = {"nonce": "00" * 16, "task": "file", "task_digest": hashlib.sha256(TASK.encode()).hexdigest()}
    session = Descriptor(name="home", seed=SEED, **{**fields, **changes})  # type: ignore[arg-type]
    (folder / "descriptor.json").write_bytes(session.canonical())
    (folder / "options.json").write_text(json.dumps(JoinOptions().to_dict()))
    (folder / "task.py").write_text(TASK)
    return folder


def trained(folder: Path) -> torch.nn.Module:
    """The task's model after some training, of which the shared part is exported to `folder`."""
    task, session, _ = onnx_export.read_task(folder)
    model = onnx_export.seeded_model(task, session.seed)
    flat = FlatModel(model)
    flat.write(flat.read() + 0.25 * torch.randn(flat.size, generator=torch.Generator().manual_seed(1)))
    parts = exported(flat.read(), flat.signature, {"session": "home", "round": "7"})
    (folder / "m.safetensors").write_bytes(b"".join(parts))
    return model.eval()


def test_onnx_computes_what_the_model_computes_and_says_where_it_comes_from(tmp_path: Path) -> None:
    folder = session_folder(tmp_path)
    model, out = trained(folder), tmp_path / "out.onnx"
    assert onnx_export.main([str(folder / "m.safetensors"), str(out), str(folder)]) == 0
    written = onnx.load(out)
    onnx.checker.check_model(written)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert (metadata["session"], metadata["round"]) == ("home", "7")
    assert metadata["digest"].startswith("sha256:")
    evaluator = onnx.reference.ReferenceEvaluator(written)
    [name] = evaluator.input_names
    for count in (1, 5):  # the first axis is of any length
        batch = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
        [found] = evaluator.run(None, {name: batch.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(batch))


def test_without_onnx_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert onnx_export.main([str(tmp_path / "m"), str(tmp_path / "o"), str(tmp_path)]) == 2
    assert "-m pip install onnx onnxscript' does that" in capsys.readouterr().err


def test_a_model_that_only_a_script_knows_is_no_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = session_folder(tmp_path, task="script", task_digest="")
    assert onnx_export.main([str(folder / "m"), str(tmp_path / "o"), str(folder)]) == 65
    assert "only a script knows its layers: write safetensors instead" in capsys.readouterr().err


def test_a_scripts_model_in_a_tasks_session_is_not_taken_for_the_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = session_folder(tmp_path)
    flat = FlatModel(torch.nn.Linear(2, 2))
    (folder / "m").write_bytes(b"".join(exported(flat.read(), flat.signature, {})))
    assert onnx_export.main([str(folder / "m"), str(tmp_path / "o"), str(folder)]) == 65
    assert "the task's model is not the session's" in capsys.readouterr().err
