"""One device of the demo: a daemon with its own folder and socket, driven by `peerd` as a user would."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peer.demo.terms import (
    ALGORITHM,
    LOCAL_STEPS,
    METRIC,
    TASK,
    TOGETHER,
    TOPOLOGY,
    DemoError,
    Outcome,
    placing,
)
from peer.errors import NoDaemonError, PeerdError
from peer.local import connect, error_of
from peer.status import DeviceStatus, SessionStatus

START_S = 60.0  # for a daemon to answer, on a machine busy with others (guess)
LINK_S = 120.0  # for a first link; every learner loads torch at the same time (guess)
STOP_S = 15.0  # for a daemon to end politely (guess)
HURRY_S = 2.0  # the same when the demo is broken off (guess)
ANSWER_S = 10.0  # for a status; a daemon's loop never waits (guess)
POLL_S = 0.2


class Device:
    """A daemon process and what it has achieved so far."""

    def __init__(self, number: int, shard: str, folder: Path, steps: int) -> None:
        self.name = f"device {number + 1}"
        self.outcome = Outcome(shard)
        self.steps = steps  # local steps of the whole session
        self._placing = placing(steps // LOCAL_STEPS)
        self.folder = folder / f"d{number + 1}"
        self.socket, self.log = self.folder / "s", self.folder / "daemon.log"
        self._process: Process | None = None
        self._asked: float | None = None  # when it was told to create or join
        self._accuracy: float | None = None  # as its learner has found it last

    # --- the daemon --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.folder.mkdir(mode=0o700)
        command = [
            sys.executable,
            "-P",
            "-m",
            "peer",
            "--socket",
            str(self.socket),
            "--state",
            str(self.folder / "state"),
        ]
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while not await self._answers():
            self.check_alive()
            if time.monotonic() > end:
                raise DemoError(f"the daemon of {self.name} is silent; see {self.log}")
            await asyncio.sleep(POLL_S)

    async def _answers(self) -> bool:
        try:
            await self.status()
        except NoDaemonError:
            return False
        return True

    def check_alive(self) -> None:
        """Raises DemoError if the daemon has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise DemoError(
                f"the daemon of {self.name} ended with code {self._process.returncode}; see {self.log}"
            )

    async def stop(self, patience_s: float = STOP_S) -> None:
        """End the daemon, politely if it goes, and with it its learner."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(patience_s):
                    await process.wait()
            except TimeoutError:
                process.kill()
        self._process = None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own process group: a learner that outlived it
        await process.wait()

    # --- driven as a user would ----------------------------------------------------------------------

    async def create(self, rounds: int) -> str:
        """Make the session; its join key."""
        self._asked = time.monotonic()
        printed = await self.peerd(
            [
                "create",
                TOGETHER,
                "--task",
                TASK,
                "--algorithm",
                ALGORITHM,
                "--topology",
                TOPOLOGY,
                "--local-steps",
                str(LOCAL_STEPS),
                "--rounds",
                str(rounds),
                *self._taking_part(),
            ]
        )
        found = re.search(r"peerd1(-[A-Z2-7]{4}){8}", printed)
        if found is None:
            raise DemoError(f"'peerd create' on {self.name} printed no join key; see {self.log}")
        return found[0]

    async def join(self, key: str) -> None:
        """Join the session; returns at the first link."""
        self._asked = time.monotonic()
        await self.peerd(
            ["join", TOGETHER, "--timeout", str(LINK_S), *self._taking_part()], {"PEERD_KEY": key}
        )
        self.outcome.first_link_s = round(time.monotonic() - self._asked, 1)

    async def export(self) -> Path:
        """Write the model as it is now; the file."""
        file = self.folder / "model.safetensors"
        await self.peerd(["export", TOGETHER, "-o", str(file)])
        return file

    def _taking_part(self) -> list[str]:
        """Without manners: on one machine each of these devices would make way for the others."""
        return ["--shard", self.outcome.shard, "--interface", "lo", "--manners", "off"]

    async def peerd(self, arguments: list[str], extra: Mapping[str, str] | None = None) -> str:
        """Run a command for this device; what it prints. Raises DemoError with its error's sentence."""
        command = ["cli.main", "--socket", str(self.socket), *arguments]
        printed, problem = await run_module(command, clean_environment() | dict(extra or {}))
        if problem is not None:
            raise DemoError(f"'peerd {arguments[0]}' on {self.name} failed: {problem}; see {self.log}")
        return printed.decode()

    # --- how it goes -----------------------------------------------------------------------------------

    async def status(self) -> DeviceStatus:
        return DeviceStatus.from_dict(await asyncio.to_thread(self._ask_status))

    def _ask_status(self) -> dict[str, Any]:
        with connect(self.socket) as client:
            client.send({"op": "status", "name": None})
            frame, _ = client.receive(ANSWER_S)
        if frame["op"] == "error":
            raise error_of(frame)
        status: dict[str, Any] = frame["status"]
        return status

    async def look(self) -> SessionStatus | None:
        """The session's status, booked into `outcome`. Raises DemoError if session or daemon failed."""
        self.check_alive()
        try:
            status = await self.status()
        except (PeerdError, TimeoutError) as error:
            raise DemoError(f"{self.name} does not answer: {error}; see {self.log}") from error
        self.outcome.peer = status.peer
        session = next((session for session in status.sessions if session.name == TOGETHER), None)
        if session is None:
            return None
        if session.state == "failed":
            reason = "; ".join(status.health) or "it does not say why"
            raise DemoError(f"the session of {self.name} failed: {reason}; see {self.log}")
        self.book(session)
        return session

    def book(self, session: SessionStatus) -> None:
        """Take over what a status says. A status repeats the last evaluation until there is another: a point
        is made when the accuracy changes, which is at most one look after it was found."""
        outcome = self.outcome
        if session.links and outcome.first_link_s is None and self._asked is not None:
            outcome.first_link_s = round(time.monotonic() - self._asked, 1)
        outcome.bytes_sent = session.bytes_sent if session.bytes_sent is not None else outcome.bytes_sent
        outcome.bytes_dense = session.bytes_dense if session.bytes_dense is not None else outcome.bytes_dense
        outcome.reduction = session.reduction if session.reduction is not None else outcome.reduction
        accuracy = session.metrics.get(METRIC)
        if accuracy is None or accuracy == self._accuracy:
            return
        self._accuracy = accuracy
        if session.round is not None:  # before its first round a latecomer does not know which step it is at
            self._plot(self.step(session.round), accuracy)

    def step(self, round_: int) -> int:
        """Local steps done when this round is closed."""
        return min(self._placing.first(round_ + 1), self.steps)  # the final rounds have none

    def conclude(self, accuracy: float) -> None:
        """The accuracy of the final model."""
        self._plot(self.steps, accuracy)

    def _plot(self, step: int, accuracy: float) -> None:
        curve = self.outcome.together
        if curve and curve[-1][0] >= step:
            curve.pop()
        curve.append((step, accuracy))


def clean_environment() -> dict[str, str]:
    """This process's environment without its own peerd settings; one thread per device for torch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PEERD_")}
    return environment | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


async def run_module(command: list[str], environment: Mapping[str, str]) -> tuple[bytes, str | None]:
    """What `python -m COMMAND` prints; and if it fails, the last line of what it says of that."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-P", "-m", *command], stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment
    )
    try:
        printed, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
    return printed, last[0] if process.returncode != 0 else None
