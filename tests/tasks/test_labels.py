"""Logit adjustment, and the examples held out to choose settings by."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from peer.errors import DataError
from peer.learner.task import Settings, load_task
from peer.tasks.labels import Adjusted
from peer.tasks.spoken_digits import load_clips, split


def settings(**options: str) -> Settings:
    return Settings(options={f"task.{key.replace('_', '-')}": value for key, value in options.items()})


def test_the_loss_is_cross_entropy_of_logits_and_tau_log_prior() -> None:
    labels, own = torch.tensor([0, 2]), torch.tensor([0, 0, 0, 2])
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    adjusted = Adjusted(settings(logit_adjustment="0.5"), 3)
    adjusted.know(own)
    prior = torch.tensor([4 / 7, 1 / 7, 2 / 7])
    expected = functional.cross_entropy(logits + 0.5 * prior.log(), labels)
    assert adjusted.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_by_default_it_is_the_plain_one() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    plain = Adjusted(settings(), 3)
    plain.know(labels)
    assert plain.loss(logits, labels).item() == functional.cross_entropy(logits, labels).item()


def test_with_equal_counts_nothing_changes() -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(2)
    adjusted = Adjusted(settings(logit_adjustment="1"), 3)
    adjusted.know(labels)
    expected = functional.cross_entropy(logits, labels).item()
    assert adjusted.loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


class Constant(nn.Module):
    """The same logits for whatever comes: those of a model that takes all digits for equally likely."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(clips), 10)


def test_a_device_with_skewed_labels_teaches_the_adjusted_model_no_bias() -> None:
    """With tau 1 and labels as frequent as the prior says, equal logits are where the loss is least."""
    bias = {}
    for tau in ("0", "1"):
        options = {"task.logit-adjustment": tau}
        task, model = load_task("spoken-digits", Settings(batch=2700, options=options)), Constant()
        everything = next(task.batches("dirichlet=0.1:0/8", torch.device("cpu")))
        task.loss(model, everything).backward()
        assert model.logits.grad is not None
        bias[tau] = float(model.logits.grad.abs().max())
    assert bias["0"] > 0.5 and bias["1"] < 0.05  # what is left is the prior's one example more of each


@pytest.mark.parametrize("text", ["-1", "5", "much"])
def test_an_adjustment_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected a number from 0 to 4"):
        load_task("spoken-digits", settings(logit_adjustment=text))


def test_clips_held_out_are_of_all_speakers_and_digits_and_nobodys_to_learn_from() -> None:
    clips = load_clips(test=False)
    kept, held = split(clips, 300)
    assert (len(kept.digits), len(held.digits)) == (2400, 300)
    assert min(Counter(held.speakers).values()) == max(Counter(held.speakers).values()) == 50
    assert min(Counter(held.digits.tolist()).values()) >= 20
    together = torch.cat([kept.features, held.features]).sum(dtype=torch.float64)
    assert together.item() == pytest.approx(clips.features.sum(dtype=torch.float64).item())
    task = load_task("spoken-digits", Settings(batch=400, options={"task.validation": "300"}))
    seen = {
        clip.numpy().tobytes()
        for k in range(6)
        for clip in next(task.batches(f"{k}/6", torch.device("cpu")))[0]
    }
    assert len(seen) == 2400
    assert not seen & {clip.numpy().tobytes() for clip in held.features}


def test_more_cannot_be_held_out_than_there_is() -> None:
    task = load_task("spoken-digits", settings(validation="2700"))
    with pytest.raises(DataError, match="validation=2700: there are 2700 clips"):
        task.batches(None, torch.device("cpu"))
