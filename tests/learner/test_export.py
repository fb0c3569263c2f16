"""The model as a safetensors file."""

from pathlib import Path

import pytest
import safetensors
import torch

from peer.learner.checkpoint import Checkpoint, CheckpointFolder
from peer.learner.export import main


def test_the_newest_checkpoint_of_a_folder_becomes_safetensors(tmp_path: Path) -> None:
    model = torch.arange(5.0)
    signature = [("layer.weight", [2, 2], "float32"), ("layer.bias", [1], "bfloat16")]
    (tmp_path / "session").mkdir()
    CheckpointFolder(tmp_path / "session").save(Checkpoint("abc", "sgp", 12, 1.0, signature, model))
    assert main([str(tmp_path / "session"), str(tmp_path / "out.safetensors"), "home"]) == 0
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"session": "home", "round": "12", "algorithm": "sgp"}
        assert torch.equal(file.get_tensor("layer.weight"), torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        assert file.get_tensor("layer.bias").dtype == torch.bfloat16


def test_what_is_no_checkpoint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("not a checkpoint, and longer than the header of one " * 3)
    assert main([str(tmp_path / "notes.txt"), str(tmp_path / "out"), "home"]) == 65
    assert "is no checkpoint of peerd" in capsys.readouterr().err
    assert main([str(tmp_path / "missing"), str(tmp_path / "out"), "home"]) == 65
    assert main([str(tmp_path), str(tmp_path / "out"), "home"]) == 65
    assert main([]) == 2
