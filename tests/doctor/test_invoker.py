"""`sudo peerd doctor`: whose daemon is meant, and what is done as whom."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from peer import places
from peer.doctor import __main__ as entry
from peer.doctor import invoker

CAN_RUN_THIS = invoker.can_run_this
BOB = pwd.struct_passwd(("bob", "x", 54321, 54322, "", "/home/bob", "/bin/sh"))


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of root, through sudo of bob's; root's own folders are in tmp_path."""
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "service")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(invoker, "can_run_this", lambda user: True)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: BOB if uid == BOB.pw_uid else pytest.fail("another"))
    return {"SUDO_UID": str(BOB.pw_uid), "HOME": str(tmp_path / "root"), "XDG_RUNTIME_DIR": "/run/user/0"}


def listens(path: Path) -> None:
    """A socket of whoever runs the tests, so not of bob."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_where_nobody_answers_root_the_users_own_daemon_is_meant(sudo: dict[str, str]) -> None:
    assert invoker.invoker(None, None, sudo) == BOB


def test_who_may_not_read_this_peerd_is_not_become(
    sudo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoker, "can_run_this", CAN_RUN_THIS)
    ran: list[dict[str, Any]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        ran.append(how)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(invoker.subprocess, "run", run)
    monkeypatch.setattr(os, "getgrouplist", lambda *_: [54322])
    assert invoker.invoker(None, None, sudo) is None
    assert [(how["user"], how["group"], how["extra_groups"]) for how in ran] == [(54321, 54322, [54322])]


def test_a_service_is_asked_as_root(sudo: dict[str, str]) -> None:
    listens(places.SYSTEM_SOCKET)
    assert invoker.invoker(None, None, sudo) is None


def test_a_named_socket_is_asked_as_its_owner(
    sudo: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens(tmp_path / "s")
    assert invoker.invoker(str(tmp_path / "s"), None, sudo) is None
    stat = os.stat_result((0, 0, 0, 0, BOB.pw_uid, 0, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: stat)
    assert invoker.invoker(str(tmp_path / "s"), None, sudo) == BOB


@pytest.mark.parametrize("number", [None, "", "0", "bob"])
def test_without_sudo_of_a_user_root_stays_root(sudo: dict[str, str], number: str | None) -> None:
    env = {**sudo, "SUDO_UID": number} if number is not None else {}
    assert invoker.invoker(None, None, env) is None


def test_the_rules_are_read_as_root_and_all_else_is_the_users(
    sudo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[Any] = []
    for name in ("initgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda *given, name=name: happened.append((name, *given)))
    monkeypatch.setattr(entry.firewall, "rules_or_why", lambda: happened.append("rules") or [])

    async def examined(*given: object) -> AsyncIterator[Any]:
        happened.append(("examine", given[3], os.environ["HOME"], os.environ.get("XDG_RUNTIME_DIR")))
        for nothing in ():
            yield nothing

    monkeypatch.setattr(entry, "examine", examined)
    for name, value in sudo.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PEERD_SOCKET", raising=False)
    asyncio.run(entry._write(None, None))
    assert happened == [
        "rules",
        ("initgroups", "bob", 54322),
        ("setgid", 54322),
        ("setuid", 54321),
        ("examine", [], "/home/bob", None),
    ]
