"""A stand-in for the daemon: the real server end of the local socket, with answers made up by the test."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli.main
from peer.errors import PeerdError
from peer.local import Connection, error_frame

Frame = dict[str, Any]
Answers = list[Frame | tuple[Frame, int]]  # with a descriptor, which the daemon closes


class FakeDaemon:
    """Listens until closed. `answers[op]` gives the frames for a request; `asked` is what came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Frame] = []
        self.answers: dict[str, Callable[[Frame], Answers]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._stop = asyncio.Event()
        self._thread.start()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as clients:
            accepting = clients.create_task(self._accept(clients))
            await self._stop.wait()
            accepting.cancel()

    async def _accept(self, clients: asyncio.TaskGroup) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self._listener)
            clients.create_task(self._speak(Connection(sock, self._loop)))

    async def _speak(self, connection: Connection) -> None:
        try:
            while True:
                request, _ = await connection.receive()
                if request["op"] == "hello":
                    connection.send({"op": "hello", "protocol": 2, "version": "0", "pid": os.getpid()})
                    continue
                self.asked.append(request)
                self._answer(connection, request)
        except EOFError:
            connection.close()

    def _answer(self, connection: Connection, request: Frame) -> None:
        try:
            answers = self.answers[request["op"]](request)
        except PeerdError as error:
            answers = [error_frame(error)]
        for answer in answers:
            frame, fd = answer if isinstance(answer, tuple) else (answer, None)
            connection.send(frame, fd)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._listener.close()
        self._loop.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    monkeypatch.setenv("PEERD_SOCKET", str(fake.path))
    yield fake
    fake.close()


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket's path on which nobody listens."""
    monkeypatch.setenv("PEERD_SOCKET", str(tmp_path / "none"))
    return tmp_path / "none"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no folder of whoever runs the tests."""
    monkeypatch.delenv("PEERD_KEY", raising=False)
    monkeypatch.delenv("PEERD_MANNERS", raising=False)
    monkeypatch.setenv("PEERD_STATE", str(tmp_path / "state"))


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command as `peerd` does, errors turned into a line and an exit code."""

    def run_with(*arguments: str, typed: str | None = None) -> Result:
        class Whole:
            """What CliRunner calls in place of a click command: our own entry."""

            name = "peerd"

            def main(self, args: list[str], prog_name: str, **extra: object) -> None:
                raise SystemExit(cli.main.run(args))

        return CliRunner().invoke(Whole(), list(arguments), input=typed)  # type: ignore[arg-type]

    return run_with
