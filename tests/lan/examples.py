"""Running a script of examples/ on two devices as a user would, and what it left behind."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lan.device import PATIENCE_S, Device, Network
from peer.daemon.store import Store
from peer.learner.checkpoint import Checkpoint, CheckpointFolder

EXAMPLES = Path(__file__).parents[2] / "examples"
HERE = ("--interface", "lo")


def share(name: str, one: Device, other: Device, *options: str) -> None:
    """Make a session on one device and join it on the other; their daemons run."""
    one.ok("create", name, *options, *HERE)
    other.ok("join", name, "--key", one.ok("key", name).out.split()[-1], *HERE)


@dataclass(frozen=True)
class Script:
    """A running example."""

    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls, network: Network, device: Device, example: str, *arguments: str, **environment: str
    ) -> Script:
        command = [sys.executable, str(EXAMPLES / example), *arguments]
        process = subprocess.Popen(
            network.namespace.command(command),
            env={**device.environment(), **environment},  # PEERD_SOCKET says which daemon
            cwd=network.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return cls(process)

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> str:
        """What else it prints, up to its end, which must be one without an error."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, out
        return out


def percent(out: str, what: str) -> float:
    """The figure that an example prints last."""
    return float(re.findall(rf"^{what} ([0-9.]+)%$", out, re.MULTILINE)[-1])


def rounds(out: str) -> tuple[int, int]:
    """How many it closed, and how many of them with others."""
    [found] = re.findall(r"^(\d+) rounds closed, (\d+) of them here and with others$", out, re.MULTILINE)
    return int(found[0]), int(found[1])


def kept(device: Device, name: str) -> Checkpoint:
    """What is on a device's disk of a session's model."""
    [folder] = [f for f in Store(device.state).sessions() if f.note.name == name]
    checkpoint, problems = CheckpointFolder(folder.path).load()
    assert checkpoint is not None, problems
    return checkpoint


def apart(one: Checkpoint, other: Checkpoint) -> float:
    """The distance of two models, in lengths of them."""
    assert one.signature == other.signature
    return float((one.model - other.model).norm() / (one.model.norm() * other.model.norm()).sqrt())
