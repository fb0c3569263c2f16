"""The two acts: each device alone, then all of them together. Every process started here is ended here."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from peer.demo.devices import HURRY_S, STOP_S, Device, clean_environment, run_module
from peer.demo.progress import Progress
from peer.demo.terms import LOCAL_STEPS, DemoError, Outcome, shards
from peer.status import SessionStatus

AT_ONCE = 2  # devices training alone at the same time: cores of the smallest machine thought of
LOOK_S = 1.0


async def tell(count: int, steps: int, folder: Path, progress: Progress) -> list[Outcome]:
    """Both acts; what every device achieved. Raises DemoError."""
    rounds = max(1, steps // LOCAL_STEPS)
    steps = rounds * LOCAL_STEPS
    devices = [Device(number, shard, folder, steps) for number, shard in enumerate(shards(count))]
    await alone(devices, steps, progress)
    await together(devices, rounds, progress)
    return [device.outcome for device in devices]


async def alone(devices: Sequence[Device], steps: int, progress: Progress) -> None:
    """Every device trains by itself, a few at a time."""
    progress.act("alone, without the others", [device.name for device in devices], steps)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, device: Device) -> None:
        async with slots:
            await _train_alone(number, device, steps, progress)

    await _all(one(number, device) for number, device in enumerate(devices))


async def _train_alone(number: int, device: Device, steps: int, progress: Progress) -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-P", "-m", "peer.demo.alone", device.outcome.shard, str(steps), str(number + 1)],
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=clean_environment(),
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        async for line in process.stdout:
            point = json.loads(line)
            device.outcome.alone.append((point["step"], point["accuracy"]))
            progress.show(device.name, point["step"], point["accuracy"])
        said = (await process.stderr.read()).decode().strip()
        if await process.wait() != 0:
            raise DemoError(f"training {device.name} alone failed: {said.splitlines()[-1:] or 'no reason'}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def together(devices: Sequence[Device], rounds: int, progress: Progress) -> None:
    """All devices find each other and train one model."""
    progress.act("together", [device.name for device in devices], rounds * LOCAL_STEPS)
    async with _running(devices):
        progress.say(f"{len(devices)} daemons are up; the first one makes the session, the others join")
        key = await devices[0].create(rounds)
        joins = [asyncio.create_task(device.join(key)) for device in devices[1:]]
        try:
            await _watch(devices, joins, rounds, progress)
            await _conclude(devices, rounds, progress)
        finally:
            for join in joins:
                join.cancel()
            await asyncio.gather(*joins, return_exceptions=True)


async def _watch(
    devices: Sequence[Device], joins: Sequence[asyncio.Task[None]], rounds: int, progress: Progress
) -> None:
    """Look at every device once a second until all have closed the last round."""
    linked = False
    while True:
        for join in joins:
            if join.done():
                join.result()
        sessions = [await device.look() for device in devices]
        for device, session in zip(devices, sessions, strict=True):
            if session is not None and session.round is not None and session.round >= 0:
                accuracy = device.outcome.together[-1][1] if device.outcome.together else None
                progress.show(device.name, device.step(session.round), accuracy)
        if not linked:
            count = sum(device.outcome.first_link_s is not None for device in devices)
            progress.wait(f"every device starts its learner and looks for others: {count} linked")
        if not linked and all(join.done() for join in joins):
            linked = True
            slowest = max(device.outcome.first_link_s or 0.0 for device in devices)
            progress.say(f"all devices are linked, the last after {slowest:.1f} s")
        if linked and all(_is_over(session) for session in sessions):
            return
        await asyncio.sleep(LOOK_S)


async def _conclude(devices: Sequence[Device], rounds: int, progress: Progress) -> None:
    """Evaluate every device's final model. What a learner has reported by the session's end may be of a model
    before the final rounds."""
    progress.say("the session is finished; every device's final model is evaluated")
    files = [await device.export() for device in devices]
    printed, problem = await run_module(["peer.demo.final", *map(str, files)], clean_environment())
    if problem is not None:
        raise DemoError(f"evaluating failed: {problem}")
    for device, line in zip(devices, printed.splitlines(), strict=True):
        found = json.loads(line)
        if found["round"] < rounds:
            raise DemoError(
                f"the model of {device.name} is of round {found['round']}, not a final one; see {device.log}"
            )
        device.conclude(found["accuracy"])
        progress.show(device.name, rounds * LOCAL_STEPS, found["accuracy"])


def _is_over(session: SessionStatus | None) -> bool:
    return session is None or session.state == "stopped"


@asynccontextmanager
async def _running(devices: Sequence[Device]) -> AsyncIterator[None]:
    patience_s = HURRY_S
    try:
        await _all(device.start() for device in devices)
        yield
        patience_s = STOP_S
    finally:
        await asyncio.shield(asyncio.gather(*(device.stop(patience_s) for device in devices)))


async def _all(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all at the same time; the first error ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
