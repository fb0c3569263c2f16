"""One training run's place in a session, for a loop that is not the script's own.

A loop that ends with an exception may never say so: what is attached by then is let go of at the
interpreter's exit, so that its mass is handed over whatever happens.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from peer.errors import UsageError
from peer.learner.attach import Pace, Swarm, attach

Part = Callable[[Any], nn.Module]  # of the loop's model: what is shared with the other devices


class AttachOptions(TypedDict, total=False):
    """As for `peer.attach`."""

    socket: str | Path | None
    state: str | Path | None
    key: str | None
    start_daemon: bool
    pace: Pace | None
    local_steps: int | None
    manners: bool


class Membership:
    """`begin`, then `step` after each step of the optimizer, `end`. `swarm`: the one attached last."""

    def __init__(self, session: str, part: Part | None, options: AttachOptions) -> None:
        self.session = session
        self.swarm: Swarm | None = None
        self._part, self._options = part, options

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, processes: int) -> None:
        """Attach. processes: that the loop is spread over. Raises what `peer.attach` raises, and UsageError
        when there are several."""
        if processes != 1:
            raise UsageError(
                f"this loop is spread over {processes} processes, and one device trains in "
                f"'{self.session}' as one; start it with one process"
            )
        self.end()
        shared = self._part(model) if self._part is not None else model
        self.swarm = attach(self.session, shared, optimizer, **self._options)
        atexit.register(self.end)

    def step(self, loss: object) -> bool:
        """One step is done; exchange when it is time. False: no more steps are wanted."""
        assert self.swarm is not None, "step() comes after begin()"
        if not self.swarm.done:
            self.swarm.step(_number(loss))
        return not self.swarm.done

    def report(self, metrics: Mapping[str, object]) -> None:
        """Show those of these figures that are numbers in `status`."""
        found = {name: number for name, value in metrics.items() if (number := _number(value)) is not None}
        if self.swarm is not None and found:
            self.swarm.report(found)

    def end(self) -> None:
        """Hand over and let go. Safe to call twice."""
        atexit.unregister(self.end)
        if self.swarm is not None:
            self.swarm.close()


def _number(value: object) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, int | float) else None
