"""What a person sees while a rehearsal runs: a bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

SHOW_S = 0.1  # between two looks: as often as rich draws


class Progress:
    """Rounds, virtual time and how long it will take. Use in a `with` statement."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._bars = Bars(
            TextColumn("round"), MofNCompleteColumn(), BarColumn(),
            TextColumn("{task.fields[virtual_s]:.0f} virtual s, left"), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bars.add_task("", total=rounds, virtual_s=0.0)
        self._shown_at = 0.0

    def show(self, round_: int, virtual_s: float) -> None:
        """The first peer has closed so many rounds."""
        if self._bars.disable or time.monotonic() - self._shown_at < SHOW_S:
            return
        self._shown_at = time.monotonic()
        self._bars.update(self._task, completed=round_, virtual_s=virtual_s)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()
