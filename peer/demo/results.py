"""What the demo ends with: a table, a JSON file, a picture of the learning curves."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from peer.demo.terms import ALGORITHM, TASK, TOPOLOGY, Outcome
from peer.errors import StateError


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row per device."""
    made = Table(title="right on the test clips of all speakers", title_justify="left")
    for number, name in enumerate(
        ("device", "its data", "alone", "together", "sent", "less by", "first link")
    ):
        made.add_column(name, justify="left" if number < 2 else "right")
    for number, outcome in enumerate(outcomes):
        entry = outcome.to_dict()
        made.add_row(
            str(number + 1),
            outcome.shard.removeprefix("speaker="),
            _percent(entry["alone"]),
            _percent(entry["together"]),
            f"{outcome.bytes_sent / 1e6:.2f} MB" if outcome.bytes_sent is not None else "–",
            f"{outcome.reduction:.0f}x" if outcome.reduction is not None else "–",
            f"{outcome.first_link_s:.1f} s" if outcome.first_link_s is not None else "–",
        )
    return made


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f} %" if share is not None else "–"


def write_json(outcomes: Sequence[Outcome], seconds: float, path: Path) -> None:
    """The contract's figures. Raises StateError."""
    figures = {
        "task": TASK,
        "algorithm": ALGORITHM,
        "topology": TOPOLOGY,
        "seconds": round(seconds, 1),
        "devices": [outcome.to_dict() for outcome in outcomes],
    }
    try:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Before minutes of work: can this file be written? Raises StateError."""
    folder = path.absolute().parent
    target = path if path.exists() else folder
    if not folder.is_dir() or path.is_dir() or not os.access(target, os.W_OK):
        raise StateError(f"{path} cannot be written; name another file, in a folder that is there")


def draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Write the learning curves as a PNG; False without matplotlib. Raises StateError."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, outcome in enumerate(outcomes):
        for curve, label, style in ((outcome.alone, "alone", ":"), (outcome.together, "together", "-")):
            named = f"{outcome.shard.removeprefix('speaker=')}, {label}"
            axes.plot(*_axes_of(curve), style, color=f"C{number}", label=named)
    axes.set(xlabel="local steps", ylabel="accuracy on the clips of all speakers", ylim=(0, 1))
    axes.set_title("dotted: each device alone; solid: together", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error
    return True


def _axes_of(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [accuracy for _, accuracy in curve]
