"""A learner without a model, for tests of the daemon: it keeps the rules of the local protocol and of rounds.

Payloads are a few bytes of text; weights are numbers that follow push-sum, so that mass can be counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

from peer.event_frames import EventAssembler
from peer.events import (
    Acked,
    Closed,
    Deadline,
    Deliver,
    Expect,
    Found,
    HandOver,
    Holds,
    Key,
    LinkDown,
    LinkUp,
    OpenRound,
    Push,
    Pushed,
    Ready,
    Returned,
    Sponsor,
    Taken,
)
from peer.local import PROTOCOL, Connection, Frame, error_of
from peer.shared_buffer import SharedBuffer

SIGNATURE = json.dumps([["weight", [2, 3], "float32"]]).encode()


async def dial(path: Path, role: str = "cli") -> Connection:
    """A connection to a daemon, after the hellos."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    connection = Connection(sock, asyncio.get_running_loop())
    connection.send({"op": "hello", "protocol": PROTOCOL, "role": role})
    frame, _ = await connection.receive()
    if frame["op"] == "error":
        connection.close()
        raise error_of(frame)
    return connection


async def ask(path: Path, op: str, **fields: Any) -> tuple[Frame, int | None]:
    """One request; its last answer. Raises the error it reports."""
    connection = await dial(path)
    try:
        connection.send({"op": op, **fields})
        frame, fd = await connection.receive()
        while frame["op"] == "progress":
            frame, fd = await connection.receive()
        if frame["op"] == "error":
            raise error_of(frame)
        return frame, fd
    finally:
        connection.close()


class Puppet:
    """`rounds` closed so far, `weight`, `heard` payloads, `stopped` by the daemon; `training`: has mass."""

    def __init__(self, connection: Connection, welcome: Frame, signature: bytes) -> None:
        self.connection, self.welcome = connection, welcome
        self.life = int(welcome["life"])
        self.weight, self.rounds = 0.0, 0
        self.threads: int | None = None
        self.shares: list[float] = []
        self.heard: list[bytes] = []
        self.commands: list[object] = []
        self.stopped = False
        self.training, self.changed = asyncio.Event(), asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._signature = signature
        self._links: dict[str, int] = {}
        self._round: OpenRound | None = None
        self._came: dict[str, Key] = {}  # the newest round heard of each
        self._sent: dict[str, float] = {}  # and not acknowledged
        self._heir: str | None = None
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def attach(
        cls, path: Path, session: str, *, child: bool = True, signature: bytes = SIGNATURE
    ) -> Puppet:
        connection = await dial(path, "learner")
        connection.send({"op": "attach", "session": session, "child": child, "pid": 1})
        frame, _ = await connection.receive()
        if frame["op"] == "error":
            connection.close()
            raise error_of(frame)
        return cls(connection, frame, signature)

    async def until(self, rounds: int) -> None:
        """Wait for so many closed rounds."""
        while self.rounds < rounds:
            self.changed.clear()
            await self.changed.wait()

    async def ended(self) -> None:
        await self._task

    async def leave(self) -> None:
        """End as a script does: politely, once the daemon says that its mass is handed over."""
        self.connection.send({"op": "leave"})
        while not self.stopped:
            self.changed.clear()
            await self.changed.wait()
        self.close()

    def report(self, **figures: Any) -> None:
        self.connection.send({"op": "report", **figures})

    def freeze(self) -> None:
        """Answer nothing until `thaw`, as under SIGSTOP."""
        self._awake.clear()

    def thaw(self) -> None:
        self._awake.set()

    def close(self) -> None:
        self.connection.close()

    async def _run(self) -> None:
        digest = hashlib.sha256(self._signature).digest()
        self.connection.send(
            {"op": "report", "parameters": 6, "signature": digest, "signature_list": self._signature}
        )
        self.connection.send_event(Ready(self.life))
        assembler = EventAssembler()
        try:
            while True:
                frame, fd = await self.connection.receive()
                await self._awake.wait()
                if frame["op"] == "stop":
                    self.stopped = True
                elif frame["op"] == "threads":
                    self.threads = frame["count"]
                elif frame["op"] == "share":
                    self.shares.append(frame["share"])
                elif frame["op"] == "export":
                    with SharedBuffer.of(b"a model") as buffer:
                        self.connection.send({"op": "exported", "size": len(buffer)}, buffer.fileno())
                else:
                    command = assembler.take(frame, fd)
                    self.commands.append(command)
                    self._obey(command)
                self.changed.set()
        except EOFError:
            self.changed.set()
        finally:
            self.connection.close()

    def _obey(self, command: object) -> None:
        match command:
            case Found():
                self._seat(1.0)
            case LinkUp(peer, "out", epoch):
                self._links[peer] = epoch
            case LinkDown(peer, "out"):
                self._links.pop(peer, None)
            case OpenRound():
                self._open(command)
            case Deliver(src, epoch, number, key, payload):
                self._receive(src, epoch, number, key, payload)
            case Acked(dst):
                self._sent.pop(dst, None)
                self._give_all()
            case Returned(dst):
                self.weight += self._sent.pop(dst, 0.0)
                self._give_all()
            case Sponsor(dst) if dst in self._links:
                self._give(dst, self.weight / 2, self._key())
            case HandOver(dst):
                self._heir = dst
                self._give_all()
            case Expect(_, expected) if self._round is not None:
                self._round = OpenRound(self._round.key, {}, expected, 1, 1.0)
                self._close_if_ready()
            case Deadline(key) if self._round is not None and self._round.key == key:
                self._close()

    def _key(self) -> Key:
        return self._round.key if self._round is not None else Key()

    def _seat(self, weight: float) -> None:
        self.weight += weight
        self.training.set()
        self.connection.send_event(Holds((), self.weight))

    def _open(self, command: OpenRound) -> None:
        self._round = command
        for dst, share in command.out.items():
            if dst in self._links:
                self._give(dst, share * self.weight, command.key)
        self.connection.send_event(Pushed(command.key))
        self._close_if_ready()

    def _give(self, dst: str, weight: float, key: Key) -> None:
        if dst in self._sent:
            return  # it stays home while a parcel to there is unacknowledged
        self.weight -= weight
        self._sent[dst] = weight
        with SharedBuffer.of(repr(weight).encode()) as payload:
            self.connection.send_event(Push(dst, self._links[dst], key, payload))

    def _give_all(self) -> None:
        if self._heir in self._links and self._heir not in self._sent and self.weight:
            self._give(self._heir, self.weight, self._key())
            self.connection.send_event(Holds((), 0.0))

    def _receive(self, src: str, epoch: int, number: int, key: Key, payload: object) -> None:
        assert isinstance(payload, SharedBuffer)
        text = bytes(payload.view())
        payload.close()
        self.heard.append(text)
        self.connection.send_event(Taken(src, epoch, number))
        if not self.training.is_set():
            self._seat(float(text))
        else:
            self._came[src] = max(key, self._came.get(src, key))
            self.weight += float(text)
        self._close_if_ready()

    def _close_if_ready(self) -> None:
        if self._round is not None and all(self._counts(src) for src in self._round.expected):
            self._close()

    def _counts(self, src: str) -> bool:
        """Has a message of this round, or of one later, come from there?"""
        return self._round is not None and self._came.get(src, Key(-1)) >= self._round.key

    def _close(self) -> None:
        assert self._round is not None
        heard = tuple(sorted(filter(self._counts, self._came)))
        key, self._round = self._round.key, None
        self.rounds += 1
        self.connection.send_event(Closed(key, heard, self.weight))
