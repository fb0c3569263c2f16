"""What the doctor learns of real daemons: whether one may be asked, and what it has seen of others."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.test_sessions import knows, pair, port, quiet, until
from peer import local, places
from peer.doctor import machine, peers, reach
from peer.doctor.finding import Finding
from peer.doctor.peers import Around
from peer.doctor.reach import Reached
from peer.events import PeerId
from peer.keys import format_key, new_key, parse_key
from peer.local import ForbiddenSocketError
from peer.mesh import discovery
from peer.mesh.discovery import Discovery
from peer.mesh.greeting import PROTOCOL_MAX

Make = Callable[[str], Home]
ONE_SHOT = """
import json, pathlib, sys
from peer import local, places
from peer.doctor.reach import reach
socket, places.SYSTEM_SOCKET = sys.argv[1] or None, pathlib.Path(sys.argv[2])
local.SYSTEM_SOCKET = places.SYSTEM_SOCKET
found = reach(socket, None, {"XDG_STATE_HOME": sys.argv[3]})
print(json.dumps([finding.to_dict() for finding in found.findings]))
"""


async def asks(socket: Path | None, state: Path, **env: str) -> Reached:
    return await asyncio.to_thread(reach.reach, str(socket) if socket else None, str(state), env)


def judged(home: Home) -> dict[str, Finding]:
    """By check, what is made of what this daemon knows. The last of each."""
    return {finding.check: finding for finding in peers.judge(home.daemon.network(), Around())}


# --- is there one, and may it be asked -------------------------------------------------------------------


async def test_one_that_answers_tells_its_status_and_its_network(home: Make) -> None:
    a = home("a")
    found = await asks(a.socket, a.state)
    [finding] = found.findings
    assert (finding.verdict, f"answers on {a.socket}" in finding.seen) == ("ok", True)
    assert found.network is not None and found.status is not None
    assert found.network["peer"] == found.status["peer"] == a.daemon.device.key.id
    assert found.network["disk"]["writable"]


async def test_none_is_a_problem_that_names_the_socket_and_how_to_start_one(
    home: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = await asks(tmp_path / "none", tmp_path)
    [finding] = nobody.findings
    assert finding.verdict == "problem"
    assert f"none answers on {tmp_path / 'none'} (nothing is there)" in finding.seen
    assert "peerd daemon" in finding.advice
    assert "sudo" not in finding.advice
    monkeypatch.setattr(reach.os, "geteuid", lambda: 0)
    [finding] = (await asks(tmp_path / "none", tmp_path, SUDO_UID="1000")).findings
    assert "a user's own is found by 'peerd doctor' without sudo" in finding.advice
    left = home("a")
    left.control._listener.close()  # type: ignore[union-attr]
    [finding] = (await asks(left.socket, tmp_path)).findings
    assert "left of one that has ended" in finding.seen


async def test_one_that_says_nothing_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "CONNECT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "hung"))
        hung.listen()
        [finding] = (await asks(tmp_path / "hung", tmp_path)).findings
    assert (finding.verdict, "stopped or hangs" in finding.seen) == ("problem", True)
    assert "restart" in finding.advice


async def test_one_that_is_older_is_a_warning(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a = home("a")
    del a.control._requests["network"]
    monkeypatch.setattr(reach, "VERSION", "9.9")
    found = await asks(a.socket, a.state)
    [finding] = found.findings
    assert (finding.verdict, "restart the daemon" in finding.advice) == ("warning", True)
    assert found.network is None and found.status is not None


async def test_one_whose_disk_is_gone_tells_what_it_can(home: Make) -> None:
    a = home("a")
    shutil.rmtree(a.state)
    found = await asks(a.socket, a.state)
    assert found.network is not None and found.status is not None
    [sentence] = found.status["health"]
    assert "cannot be looked at" in sentence
    gone = machine.disk(found.network["disk"])
    assert (gone.verdict, "it is gone" in gone.seen) == ("problem", True)


def without_overriding_modes(socket: str, system: Path, state: Path) -> list[dict[str, Any]]:
    """What a process finds that modes of files bind, as they bind everybody but root."""
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", sys.executable, "-c", ONE_SHOT]
    said = subprocess.run(
        [*command, socket, str(system), str(state)], capture_output=True, text=True, check=True, timeout=60
    )
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return found


async def test_a_socket_without_permission_is_told_from_no_daemon(home: Make, tmp_path: Path) -> None:
    a = home("a")
    a.socket.chmod(0)
    [finding] = await asyncio.to_thread(
        without_overriding_modes, str(a.socket), tmp_path / "no", tmp_path / "state"
    )
    assert finding["verdict"] == "problem"
    assert f"socket {a.socket} may not be used by" in finding["seen"]
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "peerd.sock").touch()
    closed.chmod(0)
    [finding] = await asyncio.to_thread(
        without_overriding_modes, "", closed / "peerd.sock", tmp_path / "state"
    )
    assert f"socket {closed / 'peerd.sock'} may not be used by" in finding["seen"], (
        "the user has no own daemon"
    )
    assert finding["data"]["system_socket_closed"] is True


async def test_who_is_kept_out_of_the_service_reads_what_every_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tmp_path / "service" / "peerd.sock"
    service.parent.mkdir()
    service.touch()
    access = os.access
    monkeypatch.setattr(places, "SYSTEM_SOCKET", service)
    monkeypatch.setattr(local, "SYSTEM_SOCKET", service)
    monkeypatch.setattr(
        places.os,
        "access",
        lambda path, mode: not Path(path).is_relative_to(service.parent) and access(path, mode),
    )
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    [finding] = (await asyncio.to_thread(reach.reach, None, None, env)).findings
    assert f"{finding.seen}; {finding.advice}" == str(ForbiddenSocketError(service))
    assert "usermod -aG peerd" in finding.advice
    [own] = (await asyncio.to_thread(reach.reach, None, str(tmp_path / "mine"), env)).findings
    assert "no daemon runs" in own.seen, "--state names another"


async def test_two_daemons_with_a_session_of_one_name_are_told_apart(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        monkeypatch.setattr(places, "SYSTEM_SOCKET", b.socket)
        env = {"PEERD_SOCKET": str(a.socket), "XDG_RUNTIME_DIR": str(a.state)}
        await a.daemon.create(session(), here())
        two = (await asks(None, a.state, **env)).findings[1]
        assert (two.check, two.verdict, str(b.socket) in two.seen) == ("daemon", "warning", True)
        await b.daemon.create(session(nonce="11" * 16), here())
        same = (await asks(None, a.state, **env)).findings[1]
    ids = [h.daemon.sessions["home"].descriptor.id for h in (a, b)]  # type: ignore[union-attr]
    assert (same.check, same.verdict) == ("names", "problem")
    assert all(identifier in same.seen for identifier in ids)
    assert f"peerd --socket {b.socket} leave home --forget" in same.advice


# --- what it has seen of others --------------------------------------------------------------------------


async def test_members_that_train_have_called_each_other_and_all_is_well(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, _, _ = await pair(home)
        for one, other in ((a, b), (b, a)):
            driver = one.daemon.sessions["home"]
            await until(driver, lambda one=one: one.daemon.network()["sessions"][0]["members"][0]["calls"])  # type: ignore[misc]
            [facts] = one.daemon.network()["sessions"]
            assert [m["peer"] for m in facts["members"]] == [other.daemon.device.key.id]
            assert facts["members"][0]["unreached"] is None
            assert (facts["interfaces"], facts["met"]) == (["lo"], True)
            assert {finding.verdict for finding in judged(one).values()} == {"ok"}
        found = await asks(a.socket, a.state)
        assert found.network is not None
        assert found.network["sessions"][0]["name"] == "home"


async def test_a_wrong_key_is_seen_on_real_announcements(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        await a.daemon.create(session(), here())
        joining = asyncio.create_task(b.daemon.join("home", format_key(new_key()), here(), quiet))
        await until(a.daemon.sessions["home"], lambda: "home" in b.daemon.sessions)
        driver = b.daemon.sessions["home"]
        await until(driver, lambda: driver.finder.foreign)
        key = judged(b)["key"]
        assert (key.verdict, key.data["strangers"]) == ("problem", [a.daemon.device.key.id])
        assert judged(a)["key"].verdict == "ok", "it made its session: its key is right"
        await until(driver, lambda: a.daemon.sessions["home"].finder.foreign)
        assert judged(a)["names"].verdict == "warning"
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)


async def test_a_session_that_was_made_anew_with_an_old_key_is_another(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        other = session(nonce="11" * 16)
        b.daemon.store.session(parse_key(key), "home").save_descriptor(other)
        joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b))
        driver = b.daemon.sessions["home"]
        await until(driver, lambda: b.daemon.network()["sessions"][0]["other_sessions"])
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        names = judged(b)["names"]
    assert names.verdict == "problem"
    assert f"'home' is {other.id} here" in names.seen
    assert session().id in names.seen


async def test_an_announcement_of_another_protocol_is_named(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        driver = a.daemon.sessions["home"]
        monkeypatch.setattr(discovery, "PROTOCOL_MAX", PROTOCOL_MAX + 4)
        newer = PeerId("p-" + "n" * 26)
        announcer = Discovery(driver._beacon_key, newer, 7001, ("lo",), lambda sighting: None)
        await announcer.start()
        try:
            await until(driver, lambda: driver.finder.other_versions)
        finally:
            await announcer.stop()
        versions = judged(a)["versions"]
    assert versions.verdict == "problem"
    assert f"{newer} speaks protocol {PROTOCOL_MAX + 4}" in versions.seen


async def test_a_member_that_nobody_answers_for_is_not_met(home: Make) -> None:
    """It announces itself, and its port is shut."""
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        driver = a.daemon.sessions["home"]
        shut = PeerId("p-" + "s" * 26)
        announcer = Discovery(driver._beacon_key, shut, 9, ("lo",), lambda sighting: None)
        await announcer.start()
        try:
            await until(driver, lambda: driver.finder.unmet)
        finally:
            await announcer.stop()
        [facts] = a.daemon.network()["sessions"]
    assert "127.0.0.1:9" in facts["unmet"][shut]
