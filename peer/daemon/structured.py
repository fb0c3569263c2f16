"""The log for programs: entries of systemd's journal with fields, or one JSON object a line.

    journalctl -u peerd PEERD_SESSION=home -p warning
    {"ts": "2026-11-21T10:00:00.000+00:00", "level": "INFO", "logger": "peer.daemon.learning",
     "session": "home", "message": "closed", "round": 17}

Where stderr is the journal (JOURNAL_STREAM, systemd.exec(5)) entries go to its own socket in its own format
(systemd.io/JOURNAL_NATIVE_PROTOCOL): 30 lines, because `systemd-python` and `cysystemd` are built against
libsystemd's headers, and `journald-send` needs Python 3.12."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from peer.daemon.logs import Lines, extras, session_name
from peer.errors import ConfigError

FORMATS = ("text", "json")
VARIABLE = "PEERD_LOG_FORMAT"
JOURNAL = Path("/run/systemd/journal/socket")
_PRIORITIES = ((50, 2), (40, 3), (30, 4), (20, 6))  # of syslog(3), from each of logging's levels on
_DEBUG = 7


def to_stderr(asked: str | None, environment: Mapping[str, str], journal: Path = JOURNAL) -> logging.Handler:
    """Who writes to stderr: in the format that is asked for or that the environment names, else with fields
    where stderr is the journal, else text. Raises ConfigError for a format that there is not."""
    form = asked or environment.get(VARIABLE) or None
    if form is not None and form not in FORMATS:
        raise ConfigError(f"{VARIABLE} is {form!r}, and there is {' or '.join(FORMATS)}; correct it")
    if form is None and _is_journal(environment):
        return Journal(journal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Objects() if form == "json" else Lines())
    return handler


def _is_journal(environment: Mapping[str, str]) -> bool:
    """Is stderr what systemd connected to the journal, and not sent elsewhere since?"""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


class Objects(logging.Formatter):
    """A JSON object per record: ts, level, logger, session (or null), message, then the extra fields, and
    `exception` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "session": session_name.get() or None,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Journal(logging.Handler):
    """Entries of the journal; while it takes none (it is restarted, or slow), lines with their level on
    stderr (sd-daemon(3)), which it reads later."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(Lines("%(message)s"))
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        try:
            self._socket.sendto(_entry(record, text), self._path)
        except OSError:
            level = f"<{_priority(record)}>"
            sys.stderr.write("".join(f"{level}{line}\n" for line in text.splitlines()))

    def close(self) -> None:
        self._socket.close()
        super().close()


def _entry(record: logging.LogRecord, text: str) -> bytes:
    """One record as the journal takes it. A trusted field says who sent it; these say what and from where."""
    fields = {
        "MESSAGE": text,
        "PRIORITY": _priority(record),
        "SYSLOG_IDENTIFIER": "peerd",
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
        "PEERD_SESSION": session_name.get(),
        **{f"PEERD_{key.upper()}": value for key, value in extras(record).items()},
    }
    return b"".join(_field(name, str(value)) for name, value in fields.items() if value not in ("", None))


def _priority(record: logging.LogRecord) -> int:
    return next((priority for level, priority in _PRIORITIES if record.levelno >= level), _DEBUG)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
    return b"%s=%s\n" % (name.encode(), data)
