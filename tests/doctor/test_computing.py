"""The trial of torch in a child: with stand-ins that fail as real ones do, and once with the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from peer.doctor import computing
from peer.doctor.computing import judge, not_tried, try_torch
from peer.doctor.finding import Finding

PATIENCE_S = 120.0
KILLED = "import os, signal\nos.kill(os.getpid(), signal.{name})\n"
AT_FIRST_OPERATION = """
import os, signal
__version__ = "2.10.0"
def ones(*_, **__):
    os.kill(os.getpid(), signal.SIGILL)
"""


async def tried(folder: Path, torch: str, timeout_s: float = PATIENCE_S) -> Finding:
    (folder / "torch.py").write_text(torch)
    return await try_torch(timeout_s, {**os.environ, "PYTHONPATH": str(folder)})


async def test_a_torch_of_another_processor_is_told_by_the_signal_it_dies_of(tmp_path: Path) -> None:
    loading = await tried(tmp_path, KILLED.format(name="SIGILL"))
    assert loading.verdict == "problem"
    assert "illegal instruction while it is loaded" in loading.seen
    assert "-m pip install 'torch>=2.5,<2.10'" in loading.advice
    computing = await tried(tmp_path, AT_FIRST_OPERATION)
    assert "torch 2.10.0 dies of an illegal instruction at its first operation" in computing.seen
    assert computing.data == {"version": "2.10.0", "exit_code": -4, "said": None}


@pytest.mark.parametrize(
    ("torch", "seen"),
    [
        (KILLED.format(name="SIGKILL"), "dies of signal SIGKILL"),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "torch is not installed"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("__version__ = '2.5'\ndef ones(*_, **__): raise RuntimeError('no kernel image')", "no kernel image"),
    ],
)
async def test_whatever_else_is_wrong_is_quoted(tmp_path: Path, torch: str, seen: str) -> None:
    finding = await tried(tmp_path, torch)
    assert finding.verdict == "problem"
    assert seen in finding.seen
    assert finding.advice


@pytest.mark.parametrize(
    ("code", "complaint"), [(-signal.SIGILL, ""), (1, "No module named 'torch'"), (1, "no kernel image")]
)
def test_what_the_installer_has_installed_it_also_changes(
    monkeypatch: pytest.MonkeyPatch, code: int, complaint: str
) -> None:
    assert "-m pip install" in judge(code, "", complaint).advice
    monkeypatch.setattr(computing.sys, "executable", "/opt/peerd/venv/bin/python")
    advice = judge(code, "", complaint).advice
    assert "'sudo deploy/install.sh --torch torch==2.9.1'" in advice
    assert "pip" not in advice


async def test_one_that_takes_too_long_is_no_verdict(tmp_path: Path) -> None:
    finding = await tried(tmp_path, "import signal\nsignal.pause()\n", 0.1)
    assert (finding.verdict, "not loaded and tried within" in finding.seen) == ("warning", True)


async def test_a_trial_that_is_not_waited_for_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    tells = (
        f"import os, signal\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nsignal.pause()\n"
    )
    trial = asyncio.create_task(tried(tmp_path, tells))
    pid = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_torch_that_is_installed_passes() -> None:
    finding = await try_torch(PATIENCE_S)
    assert (finding.verdict, finding.advice) == ("ok", "")
    assert finding.seen == f"torch {finding.data['version']} computes"


def test_with_little_memory_it_is_not_tried() -> None:
    assert "200 MB" in not_tried(200_000_000).seen
