"""For skewed labels: cross entropy, and what two options make of it.

    logit-adjustment=tau           CE(logits + tau log prior, y)
                                   prior_c = (count_c + 1) / (N + classes), of the device's own labels
    not-true-distillation=lambda   CE(logits, y) + lambda KL(q(anchor) || q(logits))
                                   q: softmax over all classes but y; anchor: logits of the last mixed model

A device that has seen hardly anything but shirts learns mostly that everything is a shirt. Logit adjustment
(Menon et al., ICLR 2021): its prior says so already, and the model need not. Predictions use the plain
logits, so all classes count as equally frequent where the model is used. Not-true distillation (Lee et al.,
NeurIPS 2022, FedNTD, at temperature 1): what the mixed model says of the classes that an example is not of
stays as it is in the local steps; it costs a second pass through the model, without a gradient, and the
memory of another one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer.errors import DataError
from peer.learner.task import Settings

ADJUSTMENT, DISTILLATION = "logit-adjustment", "not-true-distillation"
MOST_ADJUSTED = 4.0  # tau; above 1 it overdoes what it is for
MOST_DISTILLED = 1.0  # lambda; training diverges at 3 (noniid_experiments)


class CrossEntropy:
    """Of one device. Without the options the plain one, as it is where no gradient is asked for but for the
    adjustment: a model is judged by its own logits."""

    def __init__(self, settings: Settings, classes: int) -> None:
        self.tau = _number(settings, ADJUSTMENT, MOST_ADJUSTED, "0.5 for skewed labels")
        self.weight = _number(settings, DISTILLATION, MOST_DISTILLED, "1 for skewed labels")
        self._classes = classes
        self._offset: Tensor | None = None
        self._anchor: nn.Module | None = None

    def know(self, labels: Tensor) -> None:
        """All labels of the device's own examples; before that nothing is adjusted."""
        if self.tau:
            counts = torch.bincount(labels, minlength=self._classes).to(torch.float32)
            self._offset = self.tau * ((counts + 1) / (counts.sum() + self._classes)).log()

    def mixed(self, model: nn.Module) -> None:
        """`model` as it is now is the anchor; before the first one nothing is distilled."""
        if not self.weight:
            return
        if self._anchor is None:
            self._anchor = copy.deepcopy(model).eval().requires_grad_(False)
        else:
            self._anchor.load_state_dict(model.state_dict())

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar, the mean over the batch. inputs: of the model; labels: [batch]."""
        logits = model(inputs)
        adjusted = logits if self._offset is None else logits + self._offset
        loss = functional.cross_entropy(adjusted, labels)
        if self._anchor is not None and torch.is_grad_enabled():
            with torch.no_grad():
                kept = self._anchor(inputs)
            loss = loss + self.weight * not_true_divergence(kept, logits, labels)
        return loss


def not_true_divergence(kept: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """KL(q(kept) || q(logits)), the mean over the batch; q: softmax over all classes but the label. Both
    [batch, classes]."""
    others = torch.arange(logits.shape[1] - 1, device=labels.device)
    others = others + (others >= labels[:, None])
    before, now = (every.gather(1, others).log_softmax(1) for every in (kept, logits))
    return functional.kl_div(now, before, reduction="batchmean", log_target=True)


def _number(settings: Settings, option: str, most: float, advice: str) -> float:
    text = settings.option(option, "0")
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise DataError(f"option {option}={text}: expected a number from 0 to {most:g}, {advice}")
    return number
