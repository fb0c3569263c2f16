"""`peerd doctor`: shows what `python -m peer.doctor` finds, which may load zeroconf."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cli.arguments import Place, at_place
from cli.text import clean, count, one_line
from peer.errors import PeerdError
from peer.version import VERSION

Finding = dict[str, Any]
PROBLEM = 1  # the exit code where something keeps this device from finding or training with others
_MARKS = {"ok": ("+", "green"), "warning": ("!", "yellow"), "problem": ("x", "red")}
_WIDTH = 12  # of the column with a check's name


@click.command(name="doctor", short_help="Why no peers are found.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@at_place
def command(place: Place, as_json: bool) -> int:
    """Why are no peers found, and what to do.

    Asks the daemon, listens on each interface for some seconds, and looks at this device: firewall, clock,
    disk, memory, heat, torch. With sudo it also reads the firewall's rules.

    Ends with 0 if there are at most warnings, with 1 if there is a problem.
    """
    show = None if as_json else _shown
    findings = list(_examined(place, show))
    if as_json:
        click.echo(json.dumps({"version": VERSION, **_counted(findings), "checks": findings}))
    else:
        click.echo(f"\n{_summary(findings)}")
    return PROBLEM if _counted(findings)["problems"] else 0


def _examined(place: Place, show: Callable[[Finding], None] | None) -> Iterator[Finding]:
    """Findings as they come. Raises PeerdError if the doctor itself fails."""
    command = [sys.executable, "-P", "-m", "peer.doctor"]
    command += ["--socket", str(Path(place.socket).absolute())] if place.socket else []
    command += ["--state", str(Path(place.state).absolute())] if place.state else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None and child.stderr is not None
            for line in child.stdout:
                record = json.loads(line)
                _progress(str(record.get("progress", "")))
                if "finding" in record:
                    if show is not None:
                        show(record["finding"])
                    yield record["finding"]
            complaint = child.stderr.read().strip()
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        click.echo(complaint, err=True)
        last = complaint.splitlines()[-1] if complaint else f"exit code {child.returncode}"
        raise PeerdError(f"the doctor itself failed, a bug: {one_line(last)}; see above")


def _progress(text: str) -> None:
    """What is waited for, in a line that gives way to the next one; for a person at a terminal."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K" + (f"{clean(text)} …" if text else ""), err=True, nl=False)


def _shown(finding: Finding) -> None:
    mark, color = _MARKS.get(finding["verdict"], ("?", "yellow"))
    name = clean(finding["check"]).ljust(_WIDTH)
    line = f"{click.style(mark, fg=color) if _colors() else mark} {name}{one_line(finding['seen'])}"
    click.echo(line, color=True)
    if finding["advice"]:
        click.echo(f"  {' ' * _WIDTH}-> {one_line(finding['advice'])}")


def _colors() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _counted(findings: list[Finding]) -> dict[str, int]:
    verdicts = [finding["verdict"] for finding in findings]
    return {"problems": verdicts.count("problem"), "warnings": verdicts.count("warning")}


def _summary(findings: list[Finding]) -> str:
    counted = _counted(findings)
    if not counted["problems"] and not counted["warnings"]:
        return "all is well"
    return f"{count(counted['problems'], 'problem')}, {count(counted['warnings'], 'warning')}"
