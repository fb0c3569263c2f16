"""What systemd is told: signs of life from the loop while it turns, and only then."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.conftest import here
from daemon.test_process import Running
from peer.daemon import watchdog
from peer.daemon.store import Store
from peer.keys import new_key

BLOCKED_S = 0.2  # twenty times as long as between two signs


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def waiting(end: socket.socket) -> list[bytes]:
    """What has come and is not read yet."""
    found = []
    while select.select([end], [], [], 0)[0]:
        found.append(end.recv(4096))
    return found


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 20.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),  # another process is watched
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_a_third_of_the_period_if_somebody_waits(environment: dict[str, str], expected: float | None) -> None:
    assert watchdog.interval_s(environment) == expected


async def test_a_loop_that_is_blocked_sends_no_sign_of_life(systemd: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    feeding = asyncio.create_task(watchdog.feed(0.01, lambda: "2 sessions"))
    try:
        async with asyncio.timeout(60):
            signs = [await loop.sock_recv(systemd, 4096) for _ in range(3)]
        waiting(systemd)
        select.select([systemd], [], [], BLOCKED_S)  # holds up the loop: nobody else may send
        held_up = waiting(systemd)
        async with asyncio.timeout(60):
            again = await loop.sock_recv(systemd, 4096)
    finally:
        feeding.cancel()
    assert signs == 3 * [b"WATCHDOG=1\nSTATUS=2 sessions"]
    assert held_up == []
    assert again.startswith(b"WATCHDOG=1")


def test_ready_is_said_once_every_session_on_disk_is_taken_up(tmp_path: Path) -> None:
    folder = Store(tmp_path / "state").session(new_key(), "home")
    folder.save_options(here())
    daemon = Running(tmp_path)
    try:
        said = daemon.notify.recv(4096)
    finally:
        daemon.close()
    assert said == b"READY=1\nSTATUS=1 session(s): home waiting"


def test_a_daemon_that_is_watched_feeds_the_dog_and_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    daemon = Running(tmp_path)
    try:
        said = b""
        while b"READY=1" not in said:
            said = daemon.notify.recv(4096)
            assert daemon.process.poll() is None
        assert daemon.socket.exists(), "ready before its socket listens"
        while not said.startswith(b"WATCHDOG=1"):
            said = daemon.notify.recv(4096)
        assert b"STATUS=0 session(s)" in said
    finally:
        daemon.close()
