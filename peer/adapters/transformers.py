"""A callback for Hugging Face's Trainer that trains with the other devices of a session.

    from peer.adapters.transformers import PeerdCallback
    Trainer(model, arguments, train_dataset=mine, callbacks=[PeerdCallback("home")]).train()

Only what requires a gradient travels: freeze what is not to be trained, or wrap it with an adapter library
such as peft, before the Trainer is made.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import nn

from peer.adapters.membership import AttachOptions, Membership, Part
from peer.learner.attach import Swarm

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    if missing.name != "transformers":
        raise
    raise ImportError(
        "peer.adapters.transformers needs Hugging Face's transformers; install it with "
        f"'{sys.executable} -m pip install peerd[transformers]'"
    ) from missing

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class PeerdCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not read by mypy
    """Makes `Trainer.train` a member of `session`, from its first step to its end, and stops it when the
    session does.

    shared: gives the part of the model that is shared, None is all of it. Further options are those of
    `peer.attach`. `swarm` is what `peer.attach` gave, None before. What is logged as loss, and what is
    evaluated, is shown in `peerd status`. Raises, at the beginning, what `peer.attach` raises; UsageError for
    several processes.
    """

    def __init__(self, session: str, *, shared: Part | None = None, **options: Unpack[AttachOptions]) -> None:
        self._membership = Membership(session, shared, options)
        self._loss: object = None

    @property
    def swarm(self) -> Swarm | None:
        return self._membership.swarm

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        model: nn.Module = trainer["model"]
        self._membership.begin(model, _innermost(trainer["optimizer"]), args.world_size)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        if not self._membership.step(self._loss):
            control.should_training_stop = True
        self._loss = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **trainer: Any,
    ) -> None:
        self._loss = (logs or {}).get("loss")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, object] | None = None,
        **trainer: Any,
    ) -> None:
        self._membership.report(metrics or {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        self._membership.end()


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The one that steps, without what accelerate wraps around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer
