"""The daemon as a process: what it loads, how it starts, how it ends. Nothing here trains."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from daemon.conftest import session
from peer.config import JoinOptions
from peer.local import connect

COMMAND = [sys.executable, "-P", "-m", "peer"]
IDLE_MB = 60  # architecture.md section 1: the daemon of a 1 GB Pi


class Running:
    """A daemon process that tells through NOTIFY_SOCKET when it is ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "d.sock"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        command = [*COMMAND, "--socket", str(self.socket), "--state", str(folder / "state")]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, cwd="/")

    def wait_ready(self) -> None:
        while b"READY=1" not in self.notify.recv(4096):
            assert self.process.poll() is None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.notify.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    daemon = Running(tmp_path)
    daemon.wait_ready()
    yield daemon
    daemon.close()


def test_the_daemon_loads_no_tensor_library() -> None:
    heavy = "{'torch', 'numpy', 'safetensors', 'rich', 'click', 'matplotlib'}"
    script = f"import sys, peer.__main__; print(*{heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_it_is_small_when_idle_and_ends_politely_on_sigterm(running: Running) -> None:
    with connect(running.socket) as client:
        status = client.ask({"op": "status", "name": None}, 60)[0]["status"]
    assert status["pid"] == running.process.pid
    assert status["rss_mb"] < IDLE_MB
    assert (status["health"], status["sessions"]) == ([], [])
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(120) == 0
    assert not running.socket.exists()


def test_a_second_daemon_on_the_same_socket_says_so_in_one_line(running: Running) -> None:
    command = [*COMMAND, "--socket", str(running.socket), "--state", str(running.folder / "other")]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 78
    [line] = second.stderr.strip().splitlines()
    assert "--socket" in line


def test_a_state_folder_that_cannot_be_made_is_73(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    command = [*COMMAND, "--socket", str(tmp_path / "d.sock"), "--state", str(tmp_path / "state")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 73
    [line] = refused.stderr.strip().splitlines()
    assert str(tmp_path / "state") in line


def test_a_request_by_descriptor_prints_the_key_and_ctrl_c_ends_politely(tmp_path: Path) -> None:
    request = {
        "op": "create",
        "descriptor": session().to_dict(),
        "options": JoinOptions(insecure=True).to_dict(),
    }
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(msgpack.packb(request))
    command = [*COMMAND, "--socket", str(tmp_path / "d.sock"), "--state", str(tmp_path / "state")]
    daemon = subprocess.Popen(
        [*command, "--request-fd", str(reading)], stdout=subprocess.PIPE, text=True, pass_fds=[reading]
    )
    os.close(reading)
    assert daemon.stdout is not None
    lines = [daemon.stdout.readline(), daemon.stdout.readline()]
    assert "peerd join home --key peerd1-" in lines[1]
    daemon.send_signal(signal.SIGINT)
    out, _ = daemon.communicate(timeout=120)
    assert daemon.returncode == 0
    assert "home: " in out


def test_a_request_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\xc1")
    os.close(writing)
    command = [*COMMAND, "--socket", str(tmp_path / "d.sock"), "--state", str(tmp_path / "state")]
    refused = subprocess.run(
        [*command, "--request-fd", str(reading)], capture_output=True, check=False, pass_fds=[reading]
    )
    os.close(reading)
    assert refused.returncode == 2
