"""All checks, in order and within bounds: what waits runs at once, and nothing waits longer than TOTAL_S."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from peer import places
from peer.available import available_bytes
from peer.daemon import clocks, host
from peer.daemon.disk import disk
from peer.doctor import complaints, computing, firewall, interfaces, machine, multicast, peers
from peer.doctor.finding import Finding
from peer.doctor.reach import Reached, reach
from peer.errors import PeerdError

TOTAL_S = 7.0  # from the start, imports not counted: a user waits for ten at the most
DIAL_S = 2.0
MAX_DIALED = 32
Say = Callable[[str], None]


async def examine(
    socket: str | None, state: str | None, say: Say, rules: firewall.Rules | str | None = None
) -> AsyncIterator[Finding]:
    """Findings as they are ready. socket, state: the flags. say: told what is waited for. rules: of the
    firewall, where they are read already."""
    clock = asyncio.get_running_loop().time
    ends = clock() + TOTAL_S
    say("asking the daemon")
    reached = await asyncio.to_thread(reach, socket, state, os.environ)
    for finding in reached.findings:
        yield finding
    computes = asyncio.create_task(_torch(reached, ends))
    told = set()
    try:
        async for finding in _checks(reached, state, say, rules):
            if finding.verdict != "ok":
                told.add(finding.check)
            yield finding
        for finding in complaints.judge(reached, told):
            yield finding
        say("trying torch")
        yield await computes
    finally:
        computes.cancel()
        await asyncio.gather(computes, return_exceptions=True)


async def _checks(
    reached: Reached, state: str | None, say: Say, rules: firewall.Rules | str | None
) -> AsyncIterator[Finding]:
    """What is looked at here, and needs no trial."""
    async for finding in _network(reached, say, rules):
        yield finding
    yield machine.clock(clocks.shown_s())
    yield machine.disk(_disk(reached, state))
    yield machine.memory(await asyncio.to_thread(available_bytes), _learner(reached) is not None)
    yield machine.throttling(await host.look(), complaints.slowed(reached.status))


async def _network(reached: Reached, say: Say, rules: firewall.Rules | str | None) -> AsyncIterator[Finding]:
    """Interfaces, multicast, firewall, and who is there."""
    network = reached.network
    asked = _asked(network)
    reading = asyncio.create_task(
        asyncio.to_thread(firewall.rules_or_why if rules is None else lambda: rules)
    )
    try:
        wires = interfaces.look(asked)
    except OSError as error:
        seen, advice = (
            f"this device's addresses cannot be looked at: {error}",
            "is /sys there, and netlink allowed?",
        )
        yield Finding("interfaces", "problem", seen, advice)
        wires = interfaces.Wires((), {}, frozenset())
    else:
        yield interfaces.judge(wires, interfaces.in_container())
    where = ", ".join(one.name for one in wires.used) or "nothing"
    say(f"listening for {multicast.LISTEN_S:.0f} s on {where}")
    heard = await multicast.listen(wires.used, wires.own, asked)
    yield multicast.judge(heard, peers.waits(network), firewall.how_to_allow(firewall.MDNS))
    yield firewall.judge(await reading, peers.ports(network), peers.unreachable(network))
    me = str(network["peer"]) if network is not None else ""
    others = [s for s in heard.sightings if s.peer != me][:MAX_DIALED]
    dialed = await multicast.dial(others, DIAL_S)
    pace = complaints.pace(reached.status)
    around = peers.Around(heard.sightings, dialed, wires.own, me, heard.deaf, pace)
    for finding in peers.judge(network, around):
        yield finding


def _asked(network: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What --interface names in the sessions that run; none where one of them takes the usual ones."""
    named = [tuple(session.get("asked_interfaces", ())) for session in peers.sessions_of(network)]
    if not named or () in named:
        return ()
    return tuple(dict.fromkeys(name for names in named for name in names))


def _disk(reached: Reached, state: str | None) -> Mapping[str, Any]:
    """As the daemon finds it, who may be another user; else as this one would."""
    if reached.network is not None:
        facts: Mapping[str, Any] = reached.network["disk"]
        return facts
    try:
        return disk(places.state_folder(state, os.environ))
    except PeerdError as error:
        return {"folder": state or "of this user", "problem": str(error)}


def _learner(reached: Reached) -> str | None:
    """A session whose learner trains now."""
    sessions = reached.status["sessions"] if reached.status is not None else ()
    return next(
        (str(s["name"]) for s in sessions if s["step_s"] is not None and s["state"] == "training"), None
    )


async def _torch(reached: Reached, ends: float) -> Finding:
    trains = _learner(reached)
    if trains is not None:
        return computing.in_use(trains)
    available = available_bytes()
    if available is not None and available < computing.UNTRIED_BYTES:
        return computing.not_tried(available)
    left = ends - asyncio.get_running_loop().time()
    return await computing.try_torch(max(1.0, left))
