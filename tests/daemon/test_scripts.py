"""Sessions in which only scripts train, and a daemon that ends with the script that started it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet
from daemon.test_making_way import starts
from daemon.test_sessions import port
from peer.catalogue import SCRIPT
from peer.daemon.owner import READY, Owner

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
        script.close()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not serving.done()
        await other.leave()
        await serving


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
