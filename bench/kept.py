"""Figures kept as JSON, and beside them, in measured_on.json, when, of which commit and on what machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
LIBRARIES = ("torch", "numpy", "grpcio")
BESIDE = "measured_on.json"
LEFT_OUT = (":!bench/results", ":!*.md")
UNKNOWN = "unknown"


def read(path: Path) -> Any:
    """What a file has; {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, figures: object) -> None:
    path.parent.mkdir(exist_ok=True)
    words = json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{words}\n", encoding="utf-8")


def keep(path: Path, figures: object, parts: Iterable[str] = ()) -> None:
    """Write them, and what they were measured on. parts: keys of `figures` that are new, unless all are."""
    write(path, figures)
    names = [f"{path.stem}, {part}" for part in parts]
    beside = path.with_name(BESIDE)
    known = read(beside)
    if not names:  # of its parts none is of another time any more
        known = {name: where for name, where in known.items() if not name.startswith(f"{path.stem}, ")}
    write(beside, known | dict.fromkeys(names or [path.stem], circumstances()))


def circumstances() -> dict[str, str]:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "day": datetime.now(UTC).date().isoformat(),
        "commit": COMMIT,
        "machine": f"{os.cpu_count()} x {_processor()}, {gigabytes:.0f} GiB",
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def commit(root: Path) -> str:
    """With a + where files that are kept in it have changed since, results and pages left out; UNKNOWN of
    what git does not take for a repository, or without git."""
    try:
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *LEFT_OUT)
        return _git(root, "rev-parse", "--short=7", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return UNKNOWN


def _processor() -> str:
    """Its name, as Linux knows it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


COMMIT = commit(ROOT)  # as this program begins: another one may be made while it measures
