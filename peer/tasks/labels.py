"""For skewed labels: a loss that expects this device's labels to be as frequent as they are.

    loss = CE(logits + tau log prior, y)        prior_c = (count_c + 1) / (N + classes), of the device's own

A device that has seen hardly anything but shirts learns mostly that everything is a shirt; here its prior
says so already, and the model need not (logit adjustment: Menon et al., ICLR 2021). Predictions use the plain
logits, so all classes count as equally frequent where the model is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from peer.errors import DataError
from peer.learner.task import Settings

OPTION = "logit-adjustment"
MOST = 4.0  # tau; above 1 it overdoes what it is for


class Adjusted:
    """Cross entropy of one device. tau 0: the plain one."""

    def __init__(self, settings: Settings, classes: int) -> None:
        self.tau, self._classes = _tau(settings.option(OPTION, "0")), classes
        self._offset: Tensor | None = None

    def know(self, labels: Tensor) -> None:
        """All labels of the device's own examples; before that the loss is the plain one."""
        if self.tau:
            counts = torch.bincount(labels, minlength=self._classes).to(torch.float32)
            self._offset = self.tau * ((counts + 1) / (counts.sum() + self._classes)).log()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._offset is not None:
            logits = logits + self._offset
        return functional.cross_entropy(logits, labels)


def _tau(text: str) -> float:
    try:
        tau = float(text)
    except ValueError:
        tau = -1.0
    if not 0 <= tau <= MOST:
        raise DataError(
            f"option {OPTION}={text}: expected a number from 0 to {MOST:g}, 0.5 for skewed labels"
        )
    return tau
