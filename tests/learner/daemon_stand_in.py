"""A daemon's end of a learner's connection: opens one round after another for a learner that is alone."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer.config import Descriptor, JoinOptions
from peer.errors import NoDaemonError
from peer.event_frames import EventAssembler
from peer.events import FINAL, Closed, Finish, Found, HandOver, Key, OpenRound, Ready
from peer.learner.dial import Attachment
from peer.local import Client


def descriptor(**changes: Any) -> Descriptor:
    plain: dict[str, Any] = {"name": "home", "nonce": "00" * 16, "task": "quadratic", "local_steps": 2}
    return Descriptor(**{**plain, **changes})


class StandIn:
    """Answers as a node without neighbors does. `frames` keeps what the learner said besides events."""

    def __init__(self, session: Descriptor, *, resume: bool = False, keep_open: bool = True) -> None:
        ours, theirs = socket.socketpair()
        self.session, self.resume, self.keep_open = session, resume, keep_open
        self.client, self.theirs = Client(ours, Path("stand-in")), Client(theirs, Path("stand-in"))
        self.frames: list[dict[str, Any]] = []
        self.events: list[object] = []
        self.exported = b""
        self.mean_delay = 0.0  # of the rounds it opens
        self.confirms = True  # say stop when a script has handed its mass over
        self.changed = threading.Condition()
        self._assembler = EventAssembler()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def attachment(self, folder: Path, life: int = 1, **options: Any) -> Attachment:
        return Attachment(self.theirs, life, self.session, JoinOptions(**options), folder, None)

    def wait_for(self, seen: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(seen, 60)

    def reports(self) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["op"] == "report"]

    def close(self) -> None:
        """The daemon vanishes. Closing twice is fine."""
        if self.client.fileno() < 0:
            return
        self.client._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.client.close()

    def open_round(self, key: Key) -> None:
        self.client.send_event(OpenRound(key, {}, (), 1, 1.0, mean_delay=self.mean_delay))

    def _serve(self) -> None:
        try:
            while True:
                frame, fd = self.client.receive()
                self._on_frame(frame, fd)
                with self.changed:
                    self.changed.notify_all()
        except NoDaemonError:
            with self.changed:
                self.changed.notify_all()

    def _on_frame(self, frame: dict[str, Any], fd: int | None) -> None:
        if frame["op"] == "exported":
            assert fd is not None
            with os.fdopen(fd, "rb") as file:
                self.exported = file.read()
        elif frame["op"] == "leave":
            self.client.send_event(HandOver(None))
            if self.confirms:
                self.client.send({"op": "stop"})
        elif frame["op"] in ("report", "log", "failed"):
            self.frames.append(frame)
        else:
            event = self._assembler.take(frame, fd)
            self.events.append(event)
            self._on_event(event)

    def _on_event(self, event: object) -> None:
        if isinstance(event, Ready):
            assert self.frames, "the learner introduces its model before it is ready"
            self.client.send_event(Found(resume=self.resume))
            if self.keep_open:
                self.open_round(Key(round=event.round + 1))
        elif isinstance(event, Closed) and self.keep_open:
            after = event.key.round + 1
            if self.session.rounds == 0 or after < self.session.rounds:
                self.open_round(Key(round=after))
            elif event.key.phase != FINAL:
                self.open_round(Key(round=after, phase=FINAL))
            else:
                self.client.send_event(Finish())
                self.client.send({"op": "stop"})


def signature_of(frame: dict[str, Any]) -> bool:
    return bool(hashlib.sha256(frame["signature_list"]).digest() == frame["signature"])
