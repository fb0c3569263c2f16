"""What is shown of findings, and the exit code. The doctor itself is a stand-in that prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import cli.doctor

Run = Callable[..., Result]
Finds = Callable[..., None]


def finding(check: str, verdict: str, seen: str, advice: str = "") -> dict[str, Any]:
    return {"check": check, "verdict": verdict, "seen": seen, "advice": advice, "data": {}}


FINE = finding("clock", "ok", "the clock shows noon")
WARNS = finding("memory", "warning", "little is left", "end other programs")
FAILS = finding("daemon", "problem", "no daemon\x1b[2J runs", "start one")


@pytest.fixture
def finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finds:
    """Have the doctor find these, or print this and end badly."""

    def find(*findings: dict[str, Any], ends: str = "") -> None:
        lines = [json.dumps({"progress": "listening"}), *(json.dumps({"finding": one}) for one in findings)]
        script = f"print({chr(10).join(lines)!r}, flush=True)\n{ends}\n"
        stand_in = tmp_path / "stand_in.py"
        stand_in.write_text(script)
        popen = cli.doctor.subprocess.Popen
        monkeypatch.setattr(
            cli.doctor.subprocess,
            "Popen",
            lambda _, **how: popen([sys.executable, "-P", str(stand_in)], **how),
        )

    return find


def test_what_is_wrong_is_shown_with_what_to_do_and_ends_with_1(run: Run, finds: Finds) -> None:
    finds(FINE, WARNS, FAILS)
    done = run("doctor")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "+ clock       the clock shows noon",
        "! memory      little is left",
        "              -> end other programs",
        "x daemon      no daemon[2J runs",
        "              -> start one",
        "",
        "1 problem, 1 warning",
    ]
    assert done.stderr == ""


def test_with_warnings_at_the_most_it_ends_with_0(run: Run, finds: Finds) -> None:
    finds(FINE, WARNS)
    done = run("doctor")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "0 problems, 1 warning"


def test_when_all_is_well_that_is_said(run: Run, finds: Finds) -> None:
    finds(FINE)
    done = run("doctor")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "all is well")


def test_programs_have_one_object(run: Run, finds: Finds) -> None:
    finds(FINE, FAILS)
    done = run("doctor", "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said == {"version": said["version"], "problems": 1, "warnings": 0, "checks": [FINE, FAILS]}


def test_a_doctor_that_fails_itself_is_a_bug_and_shows_its_details(run: Run, finds: Finds) -> None:
    finds(FINE, ends="raise ZeroDivisionError('by zero')")
    done = run("doctor")
    assert done.exit_code == 70
    assert "ZeroDivisionError: by zero; see above" in done.stderr
    assert "Traceback" in done.stderr


def test_colors_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.doctor.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    cli.doctor._shown(FAILS)
    assert capsys.readouterr().out.startswith("\x1b[31mx\x1b[0m daemon")
    monkeypatch.setenv("NO_COLOR", "1")
    cli.doctor._shown(FAILS)
    assert capsys.readouterr().out.startswith("x daemon")
