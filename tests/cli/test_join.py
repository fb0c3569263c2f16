from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import Result

from cli import talk
from peer.errors import DataError, UnknownSessionError, WrongKeyError
from peer.keys import format_key, new_key

Run = Callable[..., Result]
KEY = format_key(new_key())


@pytest.fixture
def joining(daemon: Any) -> Any:
    daemon.answers["join"] = lambda request: [
        {"op": "progress", "text": "looking"},
        {"op": "done", "name": request["name"], "first_link_s": 1.25, "waiting": False},
    ]
    daemon.answers["status"] = lambda request: [
        {
            "op": "done",
            "status": {"peer": "p", "sessions": [{"name": "home", "id": "i", "task": "quadratic"}]},
        }
    ]
    return daemon


def keys(daemon: Any) -> list[str | None]:
    return [request["key"] for request in daemon.asked if request["op"] == "join"]


def test_join_says_when_the_first_link_came(run: Run, joining: Any) -> None:
    done = run("join", "home", "--key", KEY)
    assert (done.exit_code, done.stdout) == (0, "joined 'home', first link after 1.2 s\n")
    assert keys(joining) == [KEY]


def test_the_key_may_come_from_a_file_the_environment_or_standard_input(
    run: Run, joining: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY.lower()}\n")
    assert run("join", "home", "--key-file", str(file)).exit_code == 0
    assert run("join", "home", "--key-file", "-", typed=KEY).exit_code == 0
    monkeypatch.setenv("PEERD_KEY", KEY.replace("-", ""))
    assert run("join", "home").exit_code == 0
    assert keys(joining) == [KEY] * 3


def test_a_session_known_here_needs_no_key(run: Run, joining: Any) -> None:
    assert run("join", "home").exit_code == 0
    assert keys(joining) == [None]


def test_a_session_not_known_here_asks_a_person_for_the_key(
    run: Run, joining: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = joining.answers["join"]

    def join(request: dict[str, Any]) -> Any:
        if request["key"] is None:
            raise UnknownSessionError("no session 'home' on this device")
        return known(request)

    joining.answers["join"] = join
    refused = run("join", "home")
    assert refused.exit_code == 66
    assert "--key-file" in refused.stderr
    monkeypatch.setattr("cli.join.at_a_terminal", lambda: True)
    done = run("join", "home", typed=f"{KEY}\n")
    assert done.exit_code == 0, done.output
    assert keys(joining) == [None, None, KEY]
    assert KEY not in done.output


def test_a_budget_goes_to_the_daemon_as_it_is_written(run: Run, joining: Any) -> None:
    assert run("join", "home", "--key", KEY, "--budget", "200kB/min").exit_code == 0
    assert run("join", "home").exit_code == 0
    asked = [request["options"]["budget"] for request in joining.asked if request["op"] == "join"]
    assert asked == ["200kB/min", None]
    refused = run("join", "home", "--budget", "much")
    assert refused.exit_code == 2
    assert "2MB/min" in refused.stderr


def test_quiet_hours_and_manners_go_to_the_daemon_and_manners_may_be_in_the_environment(
    run: Run, joining: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("join", "home", "--key", KEY)
    assert run(*words, "--quiet-hours", "22-7", "--manners", "mains").exit_code == 0
    assert run(*words).exit_code == 0
    monkeypatch.setenv("PEERD_MANNERS", "off")
    assert run(*words, "--quiet-hours", "none").exit_code == 0
    options = [request["options"] for request in joining.asked if request["op"] == "join"]
    asked = [(each["quiet_hours"], each["manners"]) for each in options]
    assert asked == [("22-7", "mains"), (None, None), ("none", "off")]


def test_a_join_in_quiet_hours_is_done_and_says_why_nothing_trains(run: Run, joining: Any) -> None:
    why = "quiet hours 22:00-07:00, until 07:00"
    joining.answers["join"] = lambda _: [{"op": "done", "name": "home", "waiting": False, "paused": why}]
    done = run("join", "home", "--key", KEY)
    assert (done.exit_code, done.stdout) == (0, f"joined 'home', and paused: {why}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--key", "peerd1-AAAA"), "4 letters"),
        (("--key", KEY[:-1] + ("A" if KEY[-1] != "A" else "B")), "checksum"),
        (("--key", KEY, "--key-file", "x"), "both"),
        (("--key-file", "/nosuch"), "cannot be read"),
    ],
)
def test_a_mistyped_key_is_noticed_here(run: Run, joining: Any, words: tuple[str, ...], said: str) -> None:
    refused = run("join", "home", *words)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert KEY not in refused.output
    assert joining.asked == []


def test_nobody_found_is_75_and_says_that_the_session_stays(run: Run, joining: Any) -> None:
    joining.answers["join"] = lambda _: [
        {"op": "done", "name": "home", "first_link_s": None, "waiting": True}
    ]
    refused = run("join", "home", "--key", KEY, "--peer", "127.0.0.1:9", "--timeout", "3")
    assert refused.exit_code == 75
    for word in ("'home'", "3.0 s", "stays", "--peer", "127.0.0.1:9"):
        assert word in refused.stderr


@pytest.mark.parametrize(
    "error", [WrongKeyError("3 peerd devices, none knows it"), DataError("model differs")]
)
def test_the_daemons_error_is_ours(run: Run, joining: Any, error: Any) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise error

    joining.answers["join"] = refuse
    refused = run("join", "home", "--key", KEY)
    assert (refused.exit_code, refused.stderr) == (error.exit_code, f"peerd: {error}\n")


def test_another_task_than_the_sessions_is_said(run: Run, joining: Any) -> None:
    same = run("join", "home", "--key", KEY, "--task", "quadratic")
    other = run("join", "home", "--key", KEY, "--task", "spoken-digits")
    assert (same.exit_code, same.stderr) == (0, "")
    assert other.exit_code == 0
    assert "'quadratic'" in other.stderr


def test_without_a_daemon_the_key_goes_through_a_descriptor_and_never_into_arguments(
    run: Run, nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[list[str], dict[str, str], dict[str, Any]]] = []

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        fd = int(arguments[arguments.index("--request-fd") + 1])
        with open(fd, "rb") as request:
            became.append((arguments, environment, msgpack.unpackb(request.read())))
        raise SystemExit(0)

    monkeypatch.setattr(talk.os, "execve", execve)
    monkeypatch.setenv("PEERD_KEY", KEY)
    run("join", "home")
    [(arguments, environment, request)] = became
    assert (request["op"], request["name"], request["key"]) == ("join", "home", KEY)
    assert not any(KEY in word for word in [*arguments, *environment.values()])
