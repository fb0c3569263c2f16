"""The daemon's log: lines of text with key=value at their end, to stderr, a rotating file, and `peerd logs`.

    2026-11-21 10:00:00 INFO  home: closed peer=p-… round=17

The session a line belongs to is taken from the context the code runs in (`session_name`), so that what the
mesh logs is told apart as well. For programs that read along: `structured.py`."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
import os
from collections import deque
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from peer.files import cannot_write

KEPT_LINES = 2000  # for `logs`
FILE_BYTES, FILES = 1 << 20, 3  # on an SD card; guess
QUEUED_LINES = 500  # for one follower that does not keep up; the oldest go

session_name: ContextVar[str] = ContextVar("session_name", default="")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """What the code that logged said beside the text, in `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class Lines(logging.Formatter):
    """One line per record: time, level, session, text, then its extra fields; below it a traceback."""

    def __init__(self, form: str = "%(asctime)s %(levelname)-7s %(message)s") -> None:
        super().__init__(form, "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        if session := session_name.get():
            record.message = f"{session}: {record.message}"
        fields = [f"{key}={value}" for key, value in extras(record).items()]
        return " ".join([super().formatMessage(record), *fields])


def _without_traceback(record: logging.LogRecord) -> bool:
    """For zeroconf: that a packet of it finds no network is worth a line, and no crash."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and str(error) not in record.getMessage():
        record.msg, record.args = f"{record.getMessage()}: {error!r}", ()
    record.exc_info = None
    return True


class Recent(logging.Handler):
    """The last lines, and those who follow them."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[tuple[str, str]] = deque(maxlen=KEPT_LINES)
        self._followers: dict[asyncio.Queue[str], str | None] = {}
        self.setFormatter(Lines())

    def emit(self, record: logging.LogRecord) -> None:
        line, session = self.format(record), session_name.get()
        self._lines.append((session, line))
        for queue, wanted in self._followers.items():
            if wanted is None or wanted == session:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(line)

    def lines(self, session: str | None) -> list[str]:
        """The kept lines of one session, or all."""
        return [line for name, line in self._lines if session is None or name == session]

    def follow(self, session: str | None) -> asyncio.Queue[str]:
        queue: asyncio.Queue[str] = asyncio.Queue(QUEUED_LINES)
        self._followers[queue] = session
        return queue

    def unfollow(self, queue: asyncio.Queue[str]) -> None:
        self._followers.pop(queue, None)


class _Private(logging.handlers.RotatingFileHandler):
    """0600, like everything in the state folder."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open(self.baseFilename, "ab", opener=_private), encoding="utf-8")


def _private(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, 0o600)
    os.fchmod(descriptor, 0o600)  # one of an earlier version was wider open
    return descriptor


def start(folder: Path, *, stderr: logging.Handler | None) -> Recent:
    """Set logging up for this process. stderr: who writes there, if anybody. Raises StateError if the log
    file cannot be written."""
    try:
        file = _Private(folder / "peerd.log", maxBytes=FILE_BYTES, backupCount=FILES - 1)
    except OSError as error:
        raise cannot_write(folder / "peerd.log", error) from error
    file.setFormatter(Lines())
    recent = Recent()
    handlers: list[logging.Handler] = [recent, file]
    if stderr is not None:
        handlers.append(stderr)
    logging.raiseExceptions = False  # a full disk must not fill stderr with tracebacks
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = handlers
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("zeroconf").addFilter(_without_traceback)
    return recent
