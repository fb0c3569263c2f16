"""The learning curve as a picture. matplotlib is an extra, and loaded for nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from peer.errors import StateError, UsageError


def check_drawable() -> None:
    """Before anything is computed: can a picture be drawn? Raises UsageError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed; 'pip install peerd[demo]' brings it"
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """Mean and worst of the watched peers over rounds, and the final mean of all, as a PNG. Raises
    StateError."""
    from matplotlib.figure import Figure

    arguments, metric = report["arguments"], report["metric"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    rounds = [point[0] for point in report["curve"]]
    axes.plot(rounds, [point[1] for point in report["curve"]], color="C0", label="mean of the peers watched")
    axes.plot(
        rounds, [point[2] for point in report["curve"]], color="C0", linestyle=":", label="worst of them"
    )
    if metric["averaged_model"] is not None:
        axes.axhline(metric["averaged_model"], color="C1", linewidth=0.8, label="averaged model, at the end")
        axes.plot([arguments["rounds"]], [metric["mean"]], "o", color="C2", label="mean of all, at the end")
    axes.set(xlabel="rounds", ylabel=metric["name"] or "")
    axes.set_title(
        f"{arguments['algorithm']}, {arguments['topology']}, {arguments['task']}, {arguments['split']}",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error
