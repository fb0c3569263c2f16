"""The log for programs: what the journal is sent and what a JSON line holds, beside what a person reads."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from peer.daemon import logs, structured
from peer.errors import ConfigError

log = logging.getLogger("peer.daemon.learning")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers, root.level, logging.raiseExceptions
    session = logs.session_name.set("")
    yield
    logs.session_name.reset(session)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """Where systemd's journal listens, at `tmp_path / "journal"`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.settimeout(60)
        yield listening


def fields(datagram: bytes) -> dict[str, str]:
    """An entry of the journal, read as its protocol says."""
    found = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            size = struct.unpack("<Q", rest[:8])[0]
            value, rest = rest[8 : 8 + size], rest[8 + size :].removeprefix(b"\n")
        found[name.decode()], datagram = value.decode(), rest
    return found


def start(folder: Path, stderr: logging.Handler) -> logs.Recent:
    logging.getLogger().handlers = []
    return logs.start(folder, stderr=stderr)


def test_an_entry_of_the_journal_has_its_session_and_its_fields(
    tmp_path: Path, journal: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        known = os.fstat(stderr.fileno())
        environment = {"JOURNAL_STREAM": f"{known.st_dev}:{known.st_ino}"}
        recent = start(tmp_path, structured.to_stderr(None, environment, tmp_path / "journal"))
        logs.session_name.set("home")
        log.warning("closed %d", 1, extra={"round": 17, "peer": "p-b"})
        entry = fields(journal.recv(65536))
    assert entry["MESSAGE"] == "home: closed 1 round=17 peer=p-b"
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", "peerd")
    assert (entry["PEERD_SESSION"], entry["PEERD_ROUND"], entry["PEERD_PEER"]) == ("home", "17", "p-b")
    assert (entry["LOGGER"], Path(entry["CODE_FILE"]).name) == ("peer.daemon.learning", Path(__file__).name)
    assert entry["CODE_FUNC"] == "test_an_entry_of_the_journal_has_its_session_and_its_fields"
    assert entry["CODE_LINE"].isdigit()
    assert (tmp_path / "stderr").read_text() == ""
    [line] = recent.lines("home")
    assert line.endswith("WARNING home: closed 1 round=17 peer=p-b")
    assert (tmp_path / "peerd.log").read_text() == f"{line}\n"


def test_a_traceback_is_one_entry_and_no_foreign_text_makes_a_field(
    tmp_path: Path, journal: socket.socket
) -> None:
    start(tmp_path, structured.Journal(tmp_path / "journal"))
    try:
        raise OSError("no room\nPRIORITY=0\nPEERD_SESSION=theirs")
    except OSError:
        log.exception("not saved", extra={"device": "pi\n_UID=0"})
    entry = fields(journal.recv(65536))
    assert (entry["PRIORITY"], entry.get("PEERD_SESSION"), entry.get("_UID")) == ("3", None, None)
    assert entry["MESSAGE"].startswith("not saved device=pi\n_UID=0\nTraceback")
    assert entry["PEERD_DEVICE"] == "pi\n_UID=0"


def test_while_the_journal_takes_nothing_stderr_has_lines_with_their_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    start(tmp_path, structured.Journal(tmp_path / "nobody"))
    log.error("two\nlines")
    log.info("one")
    assert sys.stderr.getvalue() == "<3>two\n<3>lines\n<6>one\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("environment", [{}, {"JOURNAL_STREAM": "1:2"}])
def test_a_terminal_and_a_file_get_text(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the journal was stderr before somebody sent it elsewhere."""
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        recent = start(tmp_path, structured.to_stderr(None, environment))
        log.info("ready", extra={"port": 7070})
    assert (tmp_path / "stderr").read_text().splitlines() == recent.lines(None)
    assert recent.lines(None)[0].endswith("INFO    ready port=7070")


def test_json_is_one_object_a_line_and_peerd_logs_stays_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    recent = start(tmp_path, structured.to_stderr(None, {"PEERD_LOG_FORMAT": "json"}))
    log.info("ready", extra={"port": 7070, "state": tmp_path})
    logs.session_name.set("home")
    try:
        raise OSError("no room")
    except OSError:
        log.exception("a\nb \x1b[1m")
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    ready, failed = map(json.loads, lines)
    assert datetime.fromisoformat(ready.pop("ts")).tzinfo is not None
    assert ready == {
        "level": "INFO", "logger": log.name, "session": None, "message": "ready",
        "port": 7070, "state": str(tmp_path),
    }  # fmt: skip
    assert (failed["session"], failed["level"], failed["message"]) == ("home", "ERROR", "a\nb \x1b[1m")
    assert failed["exception"].endswith("OSError: no room")
    assert "\x1b" not in "".join(lines)
    assert recent.lines("home")[0].split(" ERROR ")[1].startswith("  home: a\nb")


def test_a_flag_outranks_the_environment_and_a_format_there_is_not_is_said() -> None:
    environment = {"PEERD_LOG_FORMAT": "xml"}
    assert isinstance(structured.to_stderr("text", environment).formatter, logs.Lines)
    with pytest.raises(ConfigError, match="PEERD_LOG_FORMAT is 'xml', and there is text or json"):
        structured.to_stderr(None, environment)
