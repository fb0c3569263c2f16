"""Sessions in which only scripts train, a daemon that ends with the script that started it, and what an
export is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask
from daemon.test_making_way import starts
from daemon.test_sessions import pair, port
from peer.catalogue import SCRIPT
from peer.daemon.company import everybody
from peer.daemon.exporting import provenance
from peer.daemon.owner import Owner
from peer.daemon.store import SessionFolder
from peer.errors import DataError
from peer.local import READY, STAYS
from peer.version import VERSION

Make = Callable[[str], Home]


async def test_in_a_session_for_scripts_no_child_is_started_and_a_member_met_is_a_link(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(task=SCRIPT), here())
        said: list[str] = []
        driver = await b.daemon.join("home", key, here(peers=(port(a),)), said.append)
        assert driver.linked.is_set()
        await b.daemon.join(
            "home", None, here(), said.append
        )  # taken up again, there is still nothing to start
        assert (starts(a), starts(b)) == (0, 0)
        wanted = "home: no script trains here now; start one that calls peer.attach('home', …)"
        assert wanted in b.daemon.status("home").health
        scripts = [await Puppet.attach(each.socket, "home", child=False) for each in (a, b)]
        await asyncio.gather(*(script.until(3) for script in scripts))
        assert wanted not in b.daemon.status("home").health


async def test_no_child_is_started_where_the_script_is_awaited_that_started_the_daemon(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        a.daemon._awaited = "home"
        await a.daemon.create(session(), here())
        assert starts(a) == 0
        await a.daemon.create(session("other"), here())
        supervisor = a.daemon.sessions["other"].learning.supervisor
        assert supervisor.starts == 1  # type: ignore[attr-defined]


async def test_a_daemon_ends_with_the_last_script_and_not_with_its_owner_alone(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(task=SCRIPT), here())
        script, end = socket.socketpair()
        serving = asyncio.create_task(Owner(end.detach()).serve(a.daemon))
        assert await asyncio.to_thread(script.recv, 64) == READY
        other = await Puppet.attach(a.socket, "home", child=False)
        await other.training.wait()
        script.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(script.recv, 64) == STAYS
        assert not serving.done()
        await other.leave()
        await serving
        assert await asyncio.to_thread(script.recv, 64) == b""
        script.close()


async def test_it_says_nothing_to_an_owner_who_was_the_only_one(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        script, end = socket.socketpair()
        serving = asyncio.create_task(Owner(end.detach()).serve(a.daemon))
        assert await asyncio.to_thread(script.recv, 64) == READY
        script.shutdown(socket.SHUT_WR)
        await serving
        assert await asyncio.to_thread(script.recv, 64) == b""
        script.close()


async def test_a_script_that_dials_while_sessions_are_taken_up_waits_for_its_own(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(task=SCRIPT), here())
        driver = a.daemon.sessions.pop("home")
        a.daemon._taken_up.clear()
        dialing = asyncio.create_task(Puppet.attach(a.socket, "home", child=False))
        await asyncio.sleep(0)
        a.daemon.sessions["home"] = driver
        a.daemon._taken_up.set()
        script = await dialing
        await script.training.wait()


async def test_onnx_is_made_by_a_process_that_is_given_the_model_and_the_session(home: Make) -> None:
    """Which says that of a script's model nobody but the script knows the layers."""
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(task=SCRIPT), here())
        script = await Puppet.attach(a.socket, "home", child=False)
        await script.training.wait()
        with pytest.raises(
            DataError, match=r"^the model of 'home' cannot be exported as ONNX: only a script"
        ):
            await ask(a.socket, "export", name="home", onnx=True)


async def test_an_export_says_where_the_model_comes_from_also_when_nobody_is_there_any_more(
    home: Make,
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        both = sorted(each.daemon.device.key.id for each in (a, b))
        driver = a.daemon.sessions["home"]
        here_now = provenance(driver.folder, everybody(driver.node))
        assert here_now["members"].split(",") == both
        assert (here_now["session"], here_now["session_id"]) == ("home", session().id)
        assert (here_now["task"], here_now["peerd"]) == ("quadratic", VERSION)
        assert here_now["written"].endswith("Z")
        assert "task_digest" not in here_now, "the task is built in"
        await a.daemon.leave("home", False)
        later = provenance(SessionFolder(driver.folder.path), [])
        assert later["members"].split(",") == both
