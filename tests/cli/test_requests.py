"""leave, key, sessions, logs, export: what is asked, what is shown, how errors end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from peer.errors import (
    ConfigError,
    DataError,
    NobodyFoundError,
    PeerdError,
    PortError,
    StateError,
    UnknownSessionError,
    UsageError,
    WrongKeyError,
)

Run = Callable[..., Result]
ALL = (
    ("status",),
    ("leave", "home"),
    ("key", "home"),
    ("sessions",),
    ("logs",),
    ("export", "home", "-o", "x"),
)


def memfd(content: bytes) -> int:
    fd = os.memfd_create("model")
    os.write(fd, content)
    return fd


@pytest.mark.parametrize("words", ALL)
def test_without_a_daemon_a_command_ends_with_69_and_says_what_to_do(
    run: Run, nobody: Path, words: tuple[str, ...]
) -> None:
    done = run(*words)
    assert done.exit_code == 69
    assert done.stderr.count("\n") == 1
    for word in (f"peerd: no daemon answers on {nobody}", "peerd daemon", "--socket"):
        assert word in done.stderr


@pytest.mark.parametrize("words", [("--socket", "{}", "status"), ("status", "--socket", "{}")])
def test_a_socket_path_that_is_too_long_is_78(run: Run, words: tuple[str, ...]) -> None:
    done = run(*[word.format("/tmp/" + "x" * 100) for word in words])
    assert done.exit_code == 78
    assert "--socket" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("m"), 2), (WrongKeyError("m"), 64), (DataError("m"), 65), (UnknownSessionError("m"), 66),
        (PeerdError("m"), 70), (PortError("m"), 71), (StateError("m"), 73), (NobodyFoundError("m"), 75),
        (ConfigError("m"), 78),
    ],
)  # fmt: skip
def test_each_error_of_the_daemon_has_its_exit_code(
    run: Run, daemon: Any, error: PeerdError, code: int
) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise error

    daemon.answers["key"] = refuse
    done = run("key", "home")
    assert (done.exit_code, done.stderr, done.stdout) == (code, "peerd: m\n", "")


def test_an_error_is_one_clean_line(run: Run, daemon: Any) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise DataError("model differs\n  at \x1b[31m'conv1'")

    daemon.answers["key"] = refuse
    assert run("key", "home").stderr == "peerd: model differs at [31m'conv1'\n"


def test_a_daemon_that_goes_away_is_69(run: Run, daemon: Any) -> None:
    def leave(_: dict[str, Any]) -> Any:
        raise EOFError

    daemon.answers["key"] = leave
    done = run("key", "home")
    assert done.exit_code == 69
    assert "closed the connection" in done.stderr


def test_leave_hands_over_and_may_forget(run: Run, daemon: Any) -> None:
    daemon.answers["leave"] = lambda _: [{"op": "progress", "text": "handing over"}, {"op": "done"}]
    kept, forgotten = run("leave", "home"), run("leave", "home", "--forget")
    assert (kept.stdout, forgotten.stdout) == (
        "left 'home'; the checkpoint is kept\n",
        "left 'home'; checkpoint and key are deleted\n",
    )
    assert [request["forget"] for request in daemon.asked] == [False, True]


def test_key_prints_the_key_and_nothing_else(run: Run, daemon: Any) -> None:
    daemon.answers["key"] = lambda _: [{"op": "done", "key": "peerd1-AAAA"}]
    assert run("key", "home").stdout == "peerd1-AAAA\n"


def test_sessions_are_shown_for_people_and_programs(run: Run, daemon: Any) -> None:
    sessions = [
        {
            "name": "home",
            "id": "0123456789abcdef",
            "state": "training",
            "members": 3,
            "known": True,
            "seen": True,
        },
        {"name": None, "id": None, "state": None, "members": None, "known": False, "seen": True},
    ]
    daemon.answers["sessions"] = lambda _: [{"op": "done", "sessions": sessions}]
    _, home, other = run("sessions").stdout.splitlines()
    assert home.split()[:4] == ["home", "0123456789ab", "training", "3"]
    assert "needs its key" in other
    assert '"known": true' in run("sessions", "--json").stdout


def test_logs_show_every_line_of_the_session(run: Run, daemon: Any) -> None:
    daemon.answers["logs"] = lambda _: [
        {"op": "progress", "text": "round=1"}, {"op": "progress", "text": "round=2\x1b[2J"}, {"op": "done"},
    ]  # fmt: skip
    assert run("logs", "home", "-f").stdout == "round=1\nround=2[2J\n"
    assert daemon.asked == [{"op": "logs", "name": "home", "follow": True}]


@pytest.mark.parametrize("verb", ["leave", "export"])
def test_the_help_says_where_scripts_beside_the_service_keep_theirs(run: Run, verb: str) -> None:
    assert ".local/state/peerd/scripts" in run(verb, "--help").stdout


def test_export_writes_the_whole_file(run: Run, daemon: Any, tmp_path: Path) -> None:
    model = os.urandom(3_000_000)
    daemon.answers["export"] = lambda _: [({"op": "done"}, memfd(model))]
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    done = run("export", "home", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert target.read_bytes() == model
    assert stat.S_IMODE(target.stat().st_mode) & 0o077 == 0o077 & ~umask() & 0o066
    assert "3.0 MB" in done.stdout


def test_export_asks_for_what_the_files_names_say(run: Run, daemon: Any, tmp_path: Path) -> None:
    def answer(request: Any) -> Any:
        kind = "onnx" if request["onnx"] else "safetensors"
        return [({"op": "done", "format": kind}, memfd(kind.encode()))]

    daemon.answers["export"] = answer
    plain, graph, other = (str(tmp_path / name) for name in ("m.safetensors", "m.onnx", "graph"))
    assert run("export", "home", "-o", plain, "--onnx", other).exit_code == 0
    assert run("export", "home", "-o", graph).exit_code == 0
    written = [Path(path).read_bytes() for path in (plain, graph, other)]
    assert written == [b"safetensors", b"onnx", b"onnx"]
    done = run("export", "home")
    assert done.exit_code == 2
    assert "-o FILE.safetensors, or with --onnx FILE.onnx" in done.stderr


def test_a_daemon_that_knows_no_onnx_is_not_taken_at_its_word(run: Run, daemon: Any, tmp_path: Path) -> None:
    daemon.answers["export"] = lambda _: [({"op": "done"}, memfd(b"safetensors"))]
    done = run("export", "home", "--onnx", str(tmp_path / "m.onnx"))
    assert done.exit_code == 70
    assert "the daemon is older and writes no ONNX" in done.stderr
    assert not list(tmp_path.glob("*m.onnx*"))


def test_export_that_cannot_be_written_is_73_and_leaves_nothing(
    run: Run, daemon: Any, tmp_path: Path
) -> None:
    daemon.answers["export"] = lambda _: [({"op": "done"}, memfd(b"model"))]
    for target in (tmp_path / "nosuch" / "m", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        done = run("export", "home", "-o", str(target))
        assert done.exit_code == 73
        assert str(target) in done.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_export_without_a_model_is_an_internal_error(run: Run, daemon: Any, tmp_path: Path) -> None:
    daemon.answers["export"] = lambda _: [{"op": "done"}]
    assert run("export", "home", "-o", str(tmp_path / "m")).exit_code == 70


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
