"""The daemon's log: lines of text with key=value at their end, to stderr, a rotating file, and `peerd logs`.

    2026-11-21 10:00:00 INFO  home: closed peer=p-… round=17

The session a line belongs to is taken from the context the code runs in (`session_name`), so that what the
mesh logs is told apart as well."""

from __future__ import annotations

import asyncio
import io
import logging
import logging.handlers
import os
import sys
from collections import deque
from contextvars import ContextVar
from pathlib import Path

from peer.files import cannot_write

KEPT_LINES = 2000  # for `logs`
FILE_BYTES, FILES = 1 << 20, 3  # on an SD card; guess
QUEUED_LINES = 500  # for one follower that does not keep up; the oldest go

session_name: ContextVar[str] = ContextVar("session_name", default="")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "session"}


class Lines(logging.Formatter):
    """One line per record: time, level, session, text, then the record's extra fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        extras = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD]
        line = super().format(record)
        return " ".join([line, *extras]) if extras else line


def _add_session(record: logging.LogRecord) -> bool:
    session = session_name.get()
    setattr(record, "session", session)  # noqa: B010 - no attribute that a LogRecord declares
    if session:
        record.msg = f"{session}: {record.msg}"
    return True


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
        self.addFilter(_add_session)

    def emit(self, record: logging.LogRecord) -> None:
        line, session = self.format(record), getattr(record, "session", "")
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


def start(folder: Path, *, stderr: bool) -> Recent:
    """Set logging up for this process. Raises StateError if the log file cannot be written."""
    try:
        file = _Private(folder / "peerd.log", maxBytes=FILE_BYTES, backupCount=FILES - 1)
    except OSError as error:
        raise cannot_write(folder / "peerd.log", error) from error
    recent = Recent()
    handlers: list[logging.Handler] = [recent, file]
    if stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers[1:]:
        handler.setFormatter(Lines())
    logging.raiseExceptions = False  # a full disk must not fill stderr with tracebacks
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = handlers
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("zeroconf").addFilter(_without_traceback)
    return recent
