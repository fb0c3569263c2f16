"""Devices that lack memory for replicas train without them, and `status` says so, at both ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import peer
from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.test_sessions import knows, port, quiet, until
from peer.compression.chunks import coding_bytes
from peer.learner import memory

Make = Callable[[str], Home]
LINEAR_BYTES = 65 * 6  # of a replica and its history of the model below


def script(socket: Path, stop: threading.Event) -> None:
    """A learner, until it is told to stop."""
    torch.set_num_threads(1)
    model = torch.nn.Linear(64, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with peer.attach("home", model, optimizer, socket=socket, pace="lockstep") as swarm:
        while not stop.is_set() and not swarm.done:
            optimizer.zero_grad()
            (model(torch.ones(64)) - 1).square().sum().backward()
            optimizer.step()
            swarm.step()


async def trained(home: Make, seen: Callable[[Home, Home], bool], **changes: object) -> tuple[Home, Home]:
    """Two daemons with a learner each, until something is seen."""
    a, b = home("a"), home("b")
    key = await a.daemon.create(session(algorithm="difference-push", local_steps=1, **changes), here())
    stop = threading.Event()
    learners = [asyncio.create_task(asyncio.to_thread(script, a.socket, stop))]
    joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
    driver = a.daemon.sessions["home"]
    await until(driver, lambda: knows(b))
    learners.append(asyncio.create_task(asyncio.to_thread(script, b.socket, stop)))
    try:
        await joining
        await until(driver, lambda: seen(a, b))
    finally:
        stop.set()
        await asyncio.gather(*learners)
    return a, b


def without(home: Home) -> int | None:
    return home.daemon.status("home").sessions[0].links_without_replica


def said(home: Home) -> list[str]:
    return [sentence for sentence in home.daemon.status(None).health if "memory is short" in sentence]


@pytest.mark.parametrize("given", ["by the session", "by the device"])
async def test_links_without_a_replica_are_said_at_both_ends(
    home: Make, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_mb = 1e-4  # less than LINEAR_BYTES
    options = {"algorithm.replica-mb": "0.0001"} if given == "by the session" else {}
    monkeypatch.setattr(
        memory, "available_bytes", lambda: coding_bytes(65) + int(tiny_mb * 1e6 / memory.SHARE)
    )
    assert tiny_mb * 1e6 < LINEAR_BYTES
    shown: list[tuple[list[str], float | None]] = []

    def seen(a: Home, b: Home) -> bool:
        if without(a) != 2 or without(b) != 2:
            return False
        shown.extend((said(one), one.daemon.status("home").sessions[0].replica_mb) for one in (a, b))
        return True

    async with asyncio.timeout(PATIENCE_S):
        await trained(home, seen, options=options)
    for sentences, room_mb in shown:
        assert room_mb == pytest.approx(tiny_mb)
        (sentence,) = sentences
        assert sentence.startswith("home: memory is short: 2 link(s) do without")
        assert "0.0001 MB are free here" in sentence and "start peerd again" in sentence


async def test_with_memory_enough_nothing_is_said(home: Make) -> None:
    def seen(a: Home, b: Home) -> bool:
        rounds = [one.daemon.status("home").sessions[0].round for one in (a, b)]
        return all(round_ is not None and round_ > 5 for round_ in rounds) and without(a) == without(b) == 0

    async with asyncio.timeout(PATIENCE_S):
        a, b = await trained(home, seen)
    assert said(a) == said(b) == []
