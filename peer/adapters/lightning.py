"""A PyTorch Lightning callback that trains with the other devices of a session.

    from peer.adapters.lightning import PeerdCallback
    Trainer(callbacks=[PeerdCallback("home")], max_steps=-1).fit(module, loader)

Works with `lightning` and with `pytorch_lightning`, whichever the script uses.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from peer.adapters.membership import AttachOptions, Membership, Part
from peer.errors import UsageError
from peer.learner.attach import Swarm

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:

    def _callback() -> type:
        """The base class of the Lightning that is in use, else of the one that is installed."""
        names = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(names, key=lambda name: name not in sys.modules):
            try:
                return importlib.import_module(name).Callback
            except ModuleNotFoundError as error:
                if error.name not in ("lightning", *names):
                    raise
        raise ImportError(
            "peer.adapters.lightning needs PyTorch Lightning; install it with "
            f"'{sys.executable} -m pip install peerd[lightning]'"
        )

    Callback = _callback()


class PeerdCallback(Callback):  # type: ignore[misc]  # Lightning is not read by mypy
    """Makes a Trainer's `fit` a member of `session`, from its first step to its end, and stops it when the
    session does.

    shared: gives the part of the module that is shared, None is all of it. Further options are those of
    `peer.attach`. `swarm` is what `peer.attach` gave, None before. What is validated is shown in
    `peerd status`. Raises, at the first step, what `peer.attach` raises; UsageError for several processes or
    several optimizers.
    """

    def __init__(self, session: str, *, shared: Part | None = None, **options: Unpack[AttachOptions]) -> None:
        super().__init__()
        self._membership = Membership(session, shared, options)
        self._steps = 0

    @property
    def swarm(self) -> Swarm | None:
        return self._membership.swarm

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise UsageError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers, and peerd follows "
                "one; give all parameters to one, in several groups if need be"
            )
        self._membership.begin(pl_module, trainer.optimizers[0], trainer.world_size)
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return  # gradients are still being accumulated
        self._steps = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not self._membership.step(loss):
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._membership.report(trainer.callback_metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._membership.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._membership.end()
