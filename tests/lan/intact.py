"""What no fault may do to devices on a switch: each of these raises AssertionError with what it found."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lan.bridge import Switch, Wired
from lan.watching import sessions
from peer.learner.checkpoint import unpack

NEVER_LOGGED = (
    "Traceback",
    "Fatal Python error",
    "terminate called",  # by C++, before it aborts
    "Aborted",
    "was told to stop, and ended by signal",  # a learner
    "sent something that was refused",
    "is damaged",
)
PASSAGE = 40  # lines, when one of these is found


def clean_logs(lan: Switch) -> None:
    """No crash of a daemon or learner, and no neighbor blamed."""
    for device in lan.devices.values():
        lines = device.log.read_text(errors="replace").splitlines()
        for at, line in enumerate(lines):
            said = "\n".join(lines[max(0, at - 2) : at + PASSAGE])
            assert not any(words in line for words in NEVER_LOGGED), f"{device.name} logged:\n{said}"


def checkpoints_load(device: Wired) -> None:
    """All there are; a leftover of an interrupted write is none."""
    kept = list(device.state.glob("sessions/*/ckpt-*.peerd"))
    assert kept, f"{device.name} has no checkpoint"
    for path in kept:
        checkpoint, _ = unpack(path.read_bytes(), str(path))
        assert bool(checkpoint.model.isfinite().all()), f"{path} is not finite"


def finite(devices: Iterable[Wired]) -> None:
    for session in sessions(devices):
        figures = [session["weight"], session["loss"], *session["metrics"].values()]
        assert all(math.isfinite(figure) for figure in figures if figure is not None), session


def nothing_refused(devices: Iterable[Wired]) -> None:
    for session in sessions(devices):
        assert not any(link["rejected"] for link in session["links"]), session["links"]
