"""Daemons in this process: real state folders, Unix sockets, gRPC, mDNS; learners are puppets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peer.config import Descriptor, JoinOptions
from peer.daemon.app import Daemon
from peer.daemon.control import ControlServer
from peer.daemon.logs import Recent
from peer.daemon.store import Store

PATIENCE_S = 120.0


class Home:
    """One device: its daemon, and the control socket in front of it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.state, self.socket = folder / name, folder / f"{name}.sock"
        self.recent = Recent()
        logging.getLogger().addHandler(self.recent)
        self.daemon = Daemon(Store(self.state), self.socket, self.recent)
        self.daemon.device = replace(
            self.daemon.device, name=name, supervisor=lambda session, on_death: NoChild()
        )
        self.control = ControlServer(self.daemon)
        self.control.start()

    async def stop(self) -> None:
        await self.daemon.stop()
        await self.control.stop()
        logging.getLogger().removeHandler(self.recent)


class NoChild:
    """Stands in for the supervisor: the test attaches a puppet itself."""

    restarts, last_code, running, pid = 0, None, False, None

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    async def stop(self) -> None: ...


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Callable[[str], Home]]:
    """Makes a device by name; all of them are stopped at the end, at once."""
    homes: list[Home] = []

    def make(name: str) -> Home:
        homes.append(Home(tmp_path, name))
        return homes[-1]

    yield make
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(h.stop() for h in homes))


def session(name: str = "home", **changes: object) -> Descriptor:
    fields = {"nonce": "00" * 16, "task": "quadratic", "algorithm": "sgp", "local_steps": 4, **changes}
    return Descriptor(name=name, **fields)  # type: ignore[arg-type]


def here(**changes: object) -> JoinOptions:
    """Options of a device that is found on loopback only, or by `peers`."""
    fields = {"insecure": True, "timeout_s": 60.0, **changes}
    return JoinOptions(**fields)  # type: ignore[arg-type]
