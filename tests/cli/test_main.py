from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

import cli.main
from cli.main import COMMANDS, peerd

Run = Callable[..., Result]
HEAVY = ("torch", "numpy", "grpc", "google", "zeroconf", "cryptography", "asyncio", "rich", "safetensors")


def loaded_by(tmp_path: Path, *words: str) -> set[str]:
    """Modules a command has loaded at its end, in a process of its own."""
    code = (
        "import sys, cli.main\n"
        f"cli.main.run({list(words)!r})\n"
        "sys.stdout.flush(); sys.stderr.write('\\n' + ' '.join(sys.modules))"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PEERD_SOCKET": str(tmp_path / "s")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["status"], ["status", "--json"], ["create", "--help"], ["key", "x"], ["doctor", "--help"]],
)
def test_a_command_loads_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    loaded = loaded_by(tmp_path, *words)
    assert {"click", "peer"} <= loaded
    assert not loaded & set(HEAVY)


def test_a_status_that_is_shown_loads_nothing_heavy(daemon: Any, tmp_path: Path) -> None:
    daemon.answers["status"] = lambda _: [{"op": "done", "status": {"peer": "p", "sessions": []}}]
    code = (
        "import sys, cli.main\n"
        f"assert cli.main.run(['--socket', {str(daemon.path)!r}, 'status']) == 0\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert not {name.partition(".")[0] for name in done.stderr.split()} & set(HEAVY)


def test_help_names_every_command_and_every_command_is_there(run: Run) -> None:
    shown = run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        assert isinstance(peerd.get_command(click.Context(peerd), name), click.Command)
        assert run(name, "--help").exit_code == 0


def test_usage_errors_are_one_line_that_names_the_help(run: Run) -> None:
    refused = run("create", "home", "--rounds", "many")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "see 'peerd create --help'" in refused.stderr


def failing(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return click.Command("status", callback=fail)


def test_an_interrupt_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.main.Commands, "get_command", lambda *_: failing(KeyboardInterrupt()))
    assert run("status").exit_code == 130


def test_a_bug_is_70_and_says_where_its_details_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli.main.Commands, "get_command", lambda *_: failing(ZeroDivisionError("by zero")))
    done = run("status")
    log = tmp_path / "state" / "cli-error.log"
    assert done.exit_code == 70
    assert "ZeroDivisionError: by zero" in done.stderr
    assert str(log) in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in log.read_text()


def test_a_bug_whose_details_cannot_be_kept_shows_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERD_STATE", "/proc/nosuch")
    monkeypatch.setattr(cli.main.Commands, "get_command", lambda *_: failing(ZeroDivisionError("by zero")))
    done = run("status")
    assert done.exit_code == 70
    assert "Traceback" in done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    piped = subprocess.run(
        f"{sys.executable} -P -m cli.main --help | true",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert piped.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["status"]])
def test_an_output_that_is_full_is_a_sentence(daemon: Any, tmp_path: Path, words: list[str]) -> None:
    daemon.answers["status"] = lambda _: [{"op": "done", "status": {"peer": "p", "sessions": []}}]
    command = [sys.executable, "-P", "-m", "cli.main", "--socket", str(daemon.path), *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 73
    assert done.stderr.startswith("peerd: the output could not be written: No space left")
    assert done.stderr.count("\n") == 1


def test_peerd_alone_shows_its_help(run: Run) -> None:
    bare = run()
    assert (bare.exit_code, bare.stdout) == (2, "")
    assert bare.stderr == run("--help").stdout
    assert "\nCommands:\n" in bare.stderr


@pytest.mark.parametrize("words", [["create"], ["join"], ["nosuch"], ["create", "x", "y"]])
def test_a_sentence_ends_once(run: Run, words: list[str]) -> None:
    assert ".;" not in run(*words).stderr


def test_a_state_folder_of_nobody_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERD_STATE", "~nosuch/x")
    done = run("status")
    assert (done.exit_code, done.stderr.count("\n")) == (78, 1)
    assert "PEERD_STATE is '~nosuch/x'" in done.stderr
    monkeypatch.setattr(cli.main.Commands, "get_command", lambda *_: failing(ZeroDivisionError("by zero")))
    assert run("status").exit_code == 70


def test_every_option_has_a_help_text() -> None:
    for name in COMMANDS:
        command = peerd.get_command(click.Context(peerd), name)
        assert command is not None
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (name, option.name)


def test_daemon_and_demo_become_other_programs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []

    def become(_: str, arguments: list[str], *__: object) -> None:
        became.append(arguments[1:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    monkeypatch.setattr("os.execv", become)
    run("daemon", "--state", "/tmp/s")
    run("demo", "--devices", "3", "--json", "x.json")
    daemon_words, demo_words = became
    assert daemon_words == ["-P", "-m", "peer", "--state", "/tmp/s"]
    assert demo_words[:3] == ["-P", "-m", "peer.demo"]
    assert demo_words[demo_words.index("--devices") + 1] == "3"
    assert demo_words[demo_words.index("--json") + 1] == "x.json"


def test_daemon_hands_its_options_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []

    def become(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        became.append(arguments[3:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    run("--state", "/s", "daemon", "--metrics", "0.0.0.0:9790", "--log-format", "json")
    run("daemon")
    assert became == [["peer", "--metrics=0.0.0.0:9790", "--log-format=json", "--state", "/s"], ["peer"]]
    refused = run("daemon", "--log-format", "xml")
    assert refused.exit_code == 2
    assert "--log-format" in refused.output
