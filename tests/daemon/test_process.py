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

import peer.__main__
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


def test_the_daemon_loads_no_tensor_library(tmp_path: Path) -> None:
    heavy = "{'torch', 'numpy', 'safetensors', 'rich', 'click', 'matplotlib', 'prometheus_client'}"
    script = (
        "import sys, peer.__main__\n"
        f"assert peer.__main__.main(['--socket', {str(tmp_path / 's')!r}, '--state', '/proc/nosuch']) == 73\n"
        "assert {'peer.daemon.app', 'peer.daemon.foreground', 'grpc'} <= set(sys.modules)\n"
        f"print(*{heavy} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_ctrl_c_while_it_starts_is_130_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "zeroconf.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*COMMAND, "--socket", str(tmp_path / "s"), "--state", str(tmp_path / "state")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "peerd: interrupted\n")


def test_a_bug_is_70_in_one_line_with_its_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(peer.__main__, "serve", serve)
    assert peer.__main__.main([]) == 70
    said = "peerd: internal error, a bug: ZeroDivisionError: by zero; its traceback is in the log\n"
    assert capsys.readouterr().err == said
    [record] = [record for record in caplog.records if record.name == "peer.daemon"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


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


def test_a_reader_that_has_enough_does_not_end_the_session(tmp_path: Path) -> None:
    options = JoinOptions(insecure=True).to_dict()
    request = {"op": "create", "descriptor": session().to_dict(), "options": options}
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(msgpack.packb(request))
    command = [*COMMAND, "--socket", str(tmp_path / "d.sock"), "--state", str(tmp_path / "state")]
    daemon = subprocess.Popen(
        [*command, "--request-fd", str(reading)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[reading],
    )
    os.close(reading)
    assert daemon.stdout is not None
    daemon.stdout.readline()
    daemon.stdout.close()
    with connect(tmp_path / "d.sock") as client:
        status = client.ask({"op": "status", "name": None}, 60)[0]["status"]
    assert [each["name"] for each in status["sessions"]] == ["home"]
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(120) == 0
    assert daemon.stderr is not None
    assert daemon.stderr.read() == ""
    daemon.stderr.close()


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
