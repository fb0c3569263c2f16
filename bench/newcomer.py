"""A newcomer's path: from a clone to two devices that train, every command and its seconds. `make bench`
leaves it out, since it fetches packages; alone: `PYTHONPATH=tests:bench:. python bench/newcomer.py`.

Both devices are on this machine, in network namespaces on one switch, so there is one clone and one
installation, by deploy/install.sh, and everything shares the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kept import keep
from rich.console import Console
from rich.table import Table

from lan.bridge import Switch, Wired  # tests/, see above

ROOT = Path(__file__).parents[1]
LOOK_EVERY_S = 0.25
FAR_S = 600.0  # only a failure takes so long


@dataclass
class Walk:
    """What was typed where, and how long it took."""

    steps: list[tuple[str, str, float]] = field(default_factory=list)

    def step(self, where: str, command: str, argv: list[str], **how: Any) -> str:
        begun = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=FAR_S, **how)
        if done.returncode != 0:
            sys.exit(f"{where}$ {command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self.took(where, command, begun)
        return str(done.stdout + done.stderr)

    def took(self, where: str, command: str, begun: float) -> None:
        self.steps.append((where, command, time.monotonic() - begun))

    def seconds(self) -> float:
        return sum(seconds for _, _, seconds in self.steps)


class Typed:
    """A device on which somebody types."""

    def __init__(self, device: Wired, peerd: Path, walk: Walk) -> None:
        self._device, self._peerd, self._walk = device, str(peerd), walk
        self._how: dict[str, Any] = {
            "env": {k: v for k, v in device.environment().items() if k != "PYTHONPATH"},
            "cwd": device.socket.parent,
        }

    def _argv(self, *words: str) -> list[str]:
        return self._device.namespace.command([self._peerd, *words])

    def daemon(self) -> None:
        """In a terminal of its own; the namespace's end is its end."""
        begun = time.monotonic()
        with self._device.log.open("ab") as log:
            subprocess.Popen(
                self._argv("daemon"), stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self._how
            )
        wait(self._device.answers, f"{self._device.name}'s daemon")
        self._walk.took(self._device.name, "peerd daemon &", begun)

    def peerd(self, *words: str) -> str:
        return self._walk.step(
            self._device.name, " ".join(["peerd", *words]), self._argv(*words), **self._how
        )

    def trains(self) -> bool:
        """With another device, from which something came."""
        done = subprocess.run(self._argv("status", "--json"), capture_output=True, text=True, **self._how)
        [session] = json.loads(done.stdout)["sessions"]
        heard = any(link["direction"] == "in" and link["parcels"] > 0 for link in session["links"])
        return bool(session["state"] == "training" and session["members"] == 2 and session["round"] and heard)


def wait(condition: Any, what: str) -> None:
    end = time.monotonic() + FAR_S
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what}: not after {FAR_S:.0f} s")
        time.sleep(LOOK_EVERY_S)


def walked(repository: str, torch: str | None, folder: Path, lan: Switch) -> Walk:
    walk = Walk()
    walk.step("both", "git clone … peerd", ["git", "clone", "--quiet", repository, str(folder / "peerd")])
    options = ["--no-service", "--prefix", str(folder / "opt"), "--bin-dir", str(folder / "bin")]
    options += ["--torch", torch] if torch else []
    walk.step(
        "both", "sudo peerd/deploy/install.sh", [str(folder / "peerd" / "deploy" / "install.sh"), *options],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    one, two = (Typed(lan.add(name), folder / "bin" / "peerd", walk) for name in ("pi-1", "pi-2"))
    one.daemon()
    [key] = re.findall(
        r"peerd1-\S+", one.peerd("create", "home", "--task", "spoken-digits", "--shard", "speaker=theo")
    )
    two.daemon()
    two.peerd("join", "home", "--key", key, "--shard", "speaker=lucas")
    begun = time.monotonic()
    wait(lambda: one.trains() and two.trains(), "two devices that train together")
    walk.took("both", "peerd status, until each has closed a round with the other", begun)
    return walk


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repository", default=str(ROOT), help="what is cloned (this one)")
    options.add_argument("--torch", help="for install.sh (else its own choice)")
    options.add_argument("--json", type=Path, help="write the figures here too")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        lan = Switch()
        try:
            walk = walked(asked.repository, asked.torch, Path(folder), lan)
        finally:
            lan.close()
    steps = [(where, re.sub(r"peerd1-\S+", "peerd1-…", command), took) for where, command, took in walk.steps]
    table = Table("where", "command", "s", title="From a clone to two devices that train")
    for where, command, seconds in steps:
        table.add_row(where, command, f"{seconds:.1f}")
    table.add_section()
    table.add_row("", f"{len(steps)} commands", f"{walk.seconds():.1f}")
    Console(width=110).print(table)
    if asked.json is not None:
        said = [{"where": where, "command": command, "s": round(took, 1)} for where, command, took in steps]
        keep(asked.json, {"steps": said, "s": round(walk.seconds(), 1)})


if __name__ == "__main__":
    main()
