"""The learning rate that an algorithm asks for, on top of what the user's optimizer and scheduler have.

RelaySum mixes models that are some rounds old, which makes every step count for less by a known factor
(algorithms/relay_sum.py). While the optimizer steps, the rate of each of its parameter groups is multiplied
by that; before and after it is what the script, or its scheduler, has set.
"""

from __future__ import annotations

from typing import Any

import torch


class ScaledRate:
    """`scale` applies from the next `optimizer.step()` on, until `release`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.scale = 1.0
        self._changed: list[tuple[dict[str, Any], Any, Any]] = []  # group, its rate, what is there instead
        self._hooks = [
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._apply(optimizer)),
            optimizer.register_step_post_hook(lambda *_: self._restore()),
        ]

    def release(self) -> None:
        """The optimizer is the script's alone again. Safe to call twice."""
        self._restore()
        for hook in self._hooks:
            hook.remove()

    def _apply(self, optimizer: torch.optim.Optimizer) -> None:
        self._restore()  # a step that raised an error came to no end
        if self.scale == 1.0:
            return
        for group in optimizer.param_groups:
            rate = group["lr"]
            group["lr"] = rate * self.scale  # a rate that is a tensor is not changed in place
            self._changed.append((group, rate, group["lr"]))

    def _restore(self) -> None:
        for group, rate, scaled in self._changed:
            if group["lr"] is scaled:  # else somebody has set another one meanwhile
                group["lr"] = rate
        self._changed = []
