"""What a person sees while the demo works: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

LINE_S = 4.0  # between lines where there is no terminal: often enough to look alive


class Progress:
    """The act that is on, and how far each device is. Use in a `with` statement."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, tuple[int, float | None]] = {}
        self._steps = 0
        self._last_line = time.monotonic()

    def act(self, title: str, names: Sequence[str], steps: int) -> None:
        """A new act begins, in which every device takes so many local steps."""
        self._end_act()
        self._steps, self._shown = steps, dict.fromkeys(names, (0, None))
        self.console.print(f"{title}: {len(names)} devices, {steps} local steps each", highlight=False)
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[accuracy]}"), TimeElapsedColumn(), console=self.console,
            )  # fmt: skip
            self._tasks = {name: self._bars.add_task(name, total=steps, accuracy="") for name in names}
            self._bars.start()

    def show(self, name: str, step: int, accuracy: float | None) -> None:
        """A device is at this local step, with this accuracy if it is known."""
        known = accuracy if accuracy is not None else self._shown[name][1]
        self._shown[name] = (step, known)
        if self._bars is not None:
            said = f"{100 * known:.0f} % right" if known is not None else ""
            self._bars.update(self._tasks[name], completed=step, accuracy=said)
        elif time.monotonic() - self._last_line >= LINE_S:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        done = sum(step for step, _ in self._shown.values()) / (self._steps * len(self._shown))
        known = [accuracy for _, accuracy in self._shown.values() if accuracy is not None]
        right = f", {100 * min(known):.0f} to {100 * max(known):.0f} % right" if known else ""
        self.console.print(f"  {100 * done:3.0f} % done{right}", highlight=False)

    def wait(self, text: str) -> None:
        """Nothing has moved; say what is waited for, now and then."""
        if self._bars is None and time.monotonic() - self._last_line >= LINE_S:
            self._last_line = time.monotonic()
            self.say(text)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def _end_act(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        elif self._shown:
            self._line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end_act()
