"""A disk that was copied: two running devices with one key, in the middle of a session."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from daemon.conftest import PATIENCE_S, Home, here
from daemon.puppet import Puppet
from daemon.test_sessions import knows, pair, port, quiet, until
from peer.doctor import peers
from peer.doctor.peers import Around


def copied(of: Home, to: Path) -> None:
    """The key, and how often the device has started."""
    to.mkdir(mode=0o700)
    for name in ("device.pem", "boot"):
        shutil.copy(of.state / name, to / name)


async def test_all_devices_name_a_copy_and_the_one_that_started_later_does_not_train(
    home: Callable[[str], Home], tmp_path: Path
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        copied(b, tmp_path / "c")
        c = home("c")
        assert c.daemon.device.key.id == b.daemon.device.key.id
        joining = asyncio.create_task(
            c.daemon.join("home", a.daemon.key("home"), here(peers=(port(a),)), quiet)
        )
        await until(a.daemon.sessions["home"], lambda: knows(c))
        third = await Puppet.attach(c.socket, "home")
        drivers = [h.daemon.sessions["home"] for h in (a, b, c)]
        await until(drivers[2], lambda: drivers[2].failure is not None)
        await asyncio.gather(joining, return_exceptions=True)
        await third.ended()
        for driver in drivers[:2]:
            await until(driver, lambda d=driver: d.node is not None and d.node.members.copies)  # type: ignore[misc]
        for h in (a, b, c):
            [sentence] = [s for s in h.daemon.status(None).health if "two running devices" in s]
            assert f"the identity {b.daemon.device.key.id}: 'b'" in sentence
            assert "started later 'c'" in sentence
            assert "delete device.pem" in sentence
            told = [f for f in peers.judge(h.daemon.network(), Around()) if f.check == "identity"]
            assert [(f.verdict, b.daemon.device.key.id in f.seen) for f in told] == [("problem", True)]
        assert c.daemon.status("home").sessions[0].state == "failed"
        assert drivers[1].failure is None
        rounds = first.rounds, second.rounds
        await asyncio.gather(first.until(rounds[0] + 5), second.until(rounds[1] + 5))
