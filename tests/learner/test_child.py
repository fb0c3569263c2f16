"""`python -m peer.learner`: exit codes, and what the daemon is told. Import of `peer` stays light."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.daemon_stand_in import StandIn, descriptor
from peer.compression import values
from peer.daemon.supervisor import environment
from peer.learner import __main__ as child
from peer.learner.devices import name_of, pick_device, use_threads
from peer.learner.dial import Attachment

ARGUMENTS = ["--socket", "/run/none", "--session", "home"]
Attach = Callable[[Attachment], None]


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Attach:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(child, "LINGER_S", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda attached: monkeypatch.setattr(child, "dial", lambda *_, **__: attached)


def test_a_bounded_session_ends_with_code_0(attach: Attach, tmp_path: Path) -> None:
    daemon = StandIn(descriptor(rounds=3))
    attach(daemon.attachment(tmp_path, device="cpu"))
    assert child.main(ARGUMENTS) == 0
    assert torch.get_num_threads() == 1
    daemon.close()


@pytest.mark.parametrize(("learners", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (9, 1)])
def test_learners_of_one_device_share_its_cores(
    learners: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", environment({}, learners)["OMP_NUM_THREADS"])
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        use_threads()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_task_file_that_does_not_load_is_told_with_code_65(attach: Attach, tmp_path: Path) -> None:
    daemon = StandIn(descriptor(task="file", task_digest="0" * 64))
    (tmp_path / "task.py").write_text("def model(): ...\n")
    attach(replace(daemon.attachment(tmp_path), task_file=tmp_path / "task.py"))
    assert child.main(ARGUMENTS) == 65
    daemon.wait_for(lambda: bool(daemon.frames))
    assert daemon.frames[0]["code"] == 65
    assert "defines no batches(shard, device)" in daemon.frames[0]["message"]
    daemon.close()


def test_a_codec_that_gives_other_bytes_is_told_and_nothing_is_trained(
    attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a version of numpy that rounds otherwise."""
    floor = np.floor
    monkeypatch.setattr(values.np, "rint", floor)
    daemon = StandIn(descriptor(rounds=3))
    attach(daemon.attachment(tmp_path, device="cpu"))
    assert child.main(ARGUMENTS) == 70
    daemon.wait_for(lambda: bool(daemon.frames))
    assert daemon.frames[0]["op"] == "failed" and daemon.frames[0]["code"] == 70
    said = daemon.frames[0]["message"]
    assert f"the codec 'int8' gives other bytes than it should with numpy {np.__version__} and torch" in said
    assert "Install other versions of the two (peerd was made with numpy" in said
    assert not daemon.events, "it was never a member"
    daemon.close()


def test_an_unknown_shard_is_told_with_code_65(attach: Attach, tmp_path: Path) -> None:
    daemon = StandIn(descriptor(task="spoken-digits"))
    attach(daemon.attachment(tmp_path, shard="speaker=dan", device="cpu"))
    assert child.main(ARGUMENTS) == 65
    daemon.wait_for(lambda: bool(daemon.frames))
    assert daemon.frames[0]["code"] == 65, "before it was a member"
    assert "no speaker is called 'dan'" in daemon.frames[0]["message"]
    daemon.close()


def test_ctrl_c_does_not_end_it_before_the_daemon_does(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(120)
        command = [sys.executable, "-m", "peer.learner", "--socket", str(tmp_path / "s"), "--session", "home"]
        learner = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        connection, _ = listener.accept()
        learner.send_signal(signal.SIGINT)
        connection.close()
        assert learner.wait(120) == 69


def test_no_daemon_is_code_69(tmp_path: Path) -> None:
    assert child.main(["--socket", str(tmp_path / "none"), "--session", "home"]) == 69


def test_importing_peer_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "grpc", "zeroconf", "msgpack", "asyncio", "logging"}
    code = f"import sys, peer; print(sorted({heavy} & set(sys.modules)), callable(peer.attach))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_auto_falls_back_to_the_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == (torch.device("cpu"), "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("peer.learner.devices._kernel_fault", lambda: "no kernel image is available")
    device, remark = pick_device("auto")
    assert device == torch.device("cpu")
    assert "no kernel image is available" in remark
    assert name_of(device) == "CPU"


def test_a_gpu_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "Orin (nvgpu)", 1: "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index or 0])
    assert [name_of(torch.device(kind)) for kind in ("cuda", "cuda:1", "mps")] == [*names.values(), "mps"]
