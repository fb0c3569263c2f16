"""A daemon that has the socket and does not answer: every command says so, and none becomes a second one."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from cli import talk
from peer.keys import format_key, new_key
from peer.local import connect

KEY = format_key(new_key())


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket that connects and stays silent, as of a daemon that is stopped."""
    path = tmp_path / "hung"
    monkeypatch.setenv("PEERD_SOCKET", str(path))
    monkeypatch.setattr(talk, "connect", functools.partial(connect, timeout_s=0.1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize(
    "words", [("status",), ("create", "home"), ("join", "home", "--key", KEY)], ids=lambda words: words[0]
)
def test_a_hung_daemon_is_69_and_is_not_doubled(
    run: Callable[..., Result], hung: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk.os, "execve", lambda *_: pytest.fail("it becomes a daemon of its own"))
    done = run(*words)
    assert done.exit_code == 69, done.output
    assert done.stderr.startswith(f"peerd: the daemon on {hung} does not answer")
    assert "restart it" in done.stderr
    assert done.stderr.count("\n") == 1
