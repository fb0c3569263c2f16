"""A script that finds no daemon brings its own: one for all scripts, never in another's place."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from learner.daemon_stand_in import descriptor
from peer import local, places
from peer.catalogue import SCRIPT
from peer.config import JoinOptions
from peer.errors import NoDaemonError, PeerdError, StateError, UnknownSessionError, UsageError
from peer.keys import format_key
from peer.learner import own_daemon
from peer.learner.attach import Swarm, attach
from peer.learner.own_daemon import OwnDaemon, Where, attach_to
from peer.local import ForbiddenSocketError, connect


@pytest.fixture
def where(tmp_path: Path) -> Where:
    return Where(tmp_path / "run" / "s", tmp_path / "state")


@pytest.fixture
def owned() -> Iterator[list[OwnDaemon]]:
    """Daemons that are ended after the test."""
    daemons: list[OwnDaemon] = []
    yield daemons
    for daemon in daemons:
        daemon.close()


def pid_of(where: Where) -> int:
    """Of the daemon that answers there. Raises NoDaemonError."""
    with connect(where.socket) as client:
        return int(client.ask({"op": "status", "name": None})[0]["status"]["pid"])


def test_scripts_that_start_at_once_start_one_daemon_and_it_ends_with_them(
    where: Where, owned: list[OwnDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERD_KEY", "")
    monkeypatch.setenv("PEERD_METRICS", "of another daemon")  # no address: one that reads it does not start
    monkeypatch.setenv(
        "NOTIFY_SOCKET", "/nosuch"
    )  # of a service that the script is; not the daemon's to tell
    owned += [OwnDaemon(where, "home") for _ in range(3)]
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda own=own: found.append(own.reach(lambda: pid_of(where))))
        for own in owned
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    [starter] = [own for own in owned if own.runs]
    with pytest.raises(
        UnknownSessionError, match=r"'peerd create home --task script', or give attach the key"
    ):
        attach_to(owned[0], "home", None)
    os.kill(found[0], signal.SIGKILL)
    again = starter.reach(lambda: pid_of(where))
    assert again != found[0]
    process = starter._process
    assert process is not None
    starter.close()
    assert (process.pid, process.returncode) == (again, 0)
    with pytest.raises(NoDaemonError):
        pid_of(where)


def make(where: Where, *names: str) -> None:
    with connect(where.socket) as client:
        for name in names:
            asked = {
                "descriptor": descriptor(name=name, task=SCRIPT).to_dict(),
                "options": JoinOptions().to_dict(),
            }
            assert client.ask({"op": "create", **asked})[0]["op"] == "done"


def script(where: Where, name: str) -> Swarm:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return attach(name, model, optimizer, socket=where.socket, state=where.state)


def test_it_outlives_its_script_where_another_trains_which_may_start_the_next_one(
    where: Where, owned: list[OwnDaemon], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peerd.learner")
    owned.append(OwnDaemon(where, "home"))
    owned[0].reach(lambda: make(where, "home", "other"))
    pid = pid_of(where)
    with script(where, "other") as swarm:
        owned[0].close()
        assert "stays for another one" in caplog.text
        assert "does not end" not in caplog.text
        assert pid_of(where) == pid
        os.kill(pid, signal.SIGKILL)
        with swarm._link.met:
            swarm._link.wait(lambda: not swarm._link.connected, 60)
            swarm._link.wait(lambda: swarm._link.connected, 60)
        assert pid_of(where) != pid
    with pytest.raises(NoDaemonError):
        pid_of(where)


def test_a_daemon_that_cannot_start_says_why(tmp_path: Path, owned: list[OwnDaemon]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "device.pem").write_text("no key")
    owned.append(OwnDaemon(Where(tmp_path / "s", tmp_path / "state"), "home"))
    with pytest.raises(PeerdError, match=r"no daemon runs, and the one .* did not start: .*device\.pem"):
        owned[0].reach(lambda: pid_of(owned[0].where))
    assert not owned[0].runs


def test_a_state_folder_that_cannot_be_made_is_said(owned: list[OwnDaemon]) -> None:
    owned.append(OwnDaemon(Where(Path("/proc/nosuch/s"), Path("/proc/nosuch")), "home"))
    with pytest.raises(StateError, match=r"cannot write /proc/nosuch"):
        owned[0].reach(lambda: pid_of(owned[0].where))


def nobody() -> int:
    raise NoDaemonError("nobody is there")


def test_none_is_started_where_the_script_says_so_or_the_service_is_to_run(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_daemon, "SYSTEM_SOCKET", where.socket)
    for own in (OwnDaemon(where, "home"), OwnDaemon(where, "home", may_start=False)):
        with pytest.raises(NoDaemonError, match="nobody is there"):
            own.reach(nobody)
        assert not own.runs
    assert not where.state.exists()


@pytest.mark.parametrize("visible", [True, False])
def test_beside_a_service_that_may_not_be_used_none_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: bool
) -> None:
    """Whether its socket is seen, or its folder is closed to this user altogether."""

    service = tmp_path / "service" / "peerd.sock"
    service.parent.mkdir()
    service.touch()
    for name in ("PEERD_SOCKET", "PEERD_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(places, "SYSTEM_SOCKET", service)
    monkeypatch.setattr(places.os, "access", lambda path, mode: visible and path == service.parent)
    own = OwnDaemon(Where.of(None, None), "home")
    with pytest.raises(ForbiddenSocketError, match="not in group 'peerd': 'sudo usermod -aG peerd"):
        own.reach(nobody)
    assert not own.runs
    for mine in (Where.of(tmp_path / "mine", None), Where.of(None, tmp_path / "mine")):
        assert not mine.barred(), "another may be asked for, as on the command line"


def test_a_socket_that_may_not_be_used_is_no_missing_daemon(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(local, "_reach", refuse)
    own = OwnDaemon(where, "home")
    with pytest.raises(ForbiddenSocketError, match="may not be used by you"):
        own.reach(lambda: pid_of(where))
    assert not own.runs


def test_with_a_key_a_session_that_has_met_nobody_yet_is_joined_and_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run may have come too early; the second looks again."""
    happened: list[str] = []

    def dialed(socket: Path, session: str, *, child: bool) -> str:
        happened.append("dial")
        if happened == ["dial"]:
            raise UsageError("session 'home' waits for a first member; 'peerd join home' takes it up")
        return "attached"

    monkeypatch.delenv("PEERD_KEY", raising=False)
    monkeypatch.setattr(own_daemon, "dial", dialed)
    monkeypatch.setattr(own_daemon, "join", lambda path, session, key: happened.append(key))
    key, own = format_key(bytes(16)), OwnDaemon(Where(tmp_path / "s", tmp_path), "home")
    assert str(attach_to(own, "home", key)) == "attached"
    assert happened == ["dial", key, "dial"]
    happened.clear()
    with pytest.raises(UsageError, match="waits for a first member"):
        attach_to(own, "home", None)
