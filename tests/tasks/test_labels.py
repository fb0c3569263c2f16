"""Logit adjustment, not-true distillation, and the examples held out to choose settings by."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from peer.errors import DataError
from peer.learner.task import Settings, load_task
from peer.tasks.labels import CrossEntropy, not_true_divergence
from peer.tasks.spoken_digits import load_clips, split


def settings(**options: str) -> Settings:
    return Settings(options={f"task.{key.replace('_', '-')}": value for key, value in options.items()})


def test_the_loss_is_cross_entropy_of_logits_and_tau_log_prior() -> None:
    labels, own = torch.tensor([0, 2]), torch.tensor([0, 0, 0, 2])
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    adjusted = CrossEntropy(settings(logit_adjustment="0.5"), 3)
    adjusted.know(own)
    prior = torch.tensor([4 / 7, 1 / 7, 2 / 7])
    expected = functional.cross_entropy(logits + 0.5 * prior.log(), labels)
    assert adjusted.loss(nn.Identity(), logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_by_default_it_is_the_plain_one() -> None:
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    plain = CrossEntropy(settings(), 3)
    plain.know(labels)
    plain.mixed(nn.Linear(3, 3))
    assert plain.loss(nn.Identity(), logits, labels).item() == functional.cross_entropy(logits, labels).item()


def test_with_equal_counts_nothing_changes() -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(2)
    adjusted = CrossEntropy(settings(logit_adjustment="1"), 3)
    adjusted.know(labels)
    expected = functional.cross_entropy(logits, labels).item()
    assert adjusted.loss(nn.Identity(), logits, labels).item() == pytest.approx(expected, rel=1e-6)


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


def kept_and_said(
    seed: int, rows: int = 5, classes: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    kept, said = (torch.from_numpy(rng.normal(size=(rows, classes))) for _ in range(2))
    return kept, said, torch.from_numpy(rng.integers(classes, size=rows))


def test_not_true_divergence_is_that_of_the_other_classes_softmax() -> None:
    kept, said, labels = kept_and_said(0)
    total = 0.0
    for before, now, y in zip(kept.numpy(), said.numpy(), labels.tolist(), strict=True):
        q, p = (np.exp(np.delete(one, y)) / np.exp(np.delete(one, y)).sum() for one in (before, now))
        total += float((q * np.log(q / p)).sum())
    assert not_true_divergence(kept, said, labels).item() == pytest.approx(total / 5, rel=1e-12)


def test_what_is_said_of_the_true_class_is_free() -> None:
    kept, said, labels = kept_and_said(1)
    other = said.clone()
    other[torch.arange(5), labels] += 7.0
    assert torch.equal(not_true_divergence(kept, said, labels), not_true_divergence(kept, other, labels))


def test_distilled_is_what_the_model_said_when_it_was_mixed_last() -> None:
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(6, 4), torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    entropy = CrossEntropy(settings(not_true_distillation="0.5"), 4)

    def expected(kept: torch.Tensor | None) -> float:
        said = model(inputs)
        more = 0.0 if kept is None else 0.5 * not_true_divergence(kept, said, labels).item()
        return functional.cross_entropy(said, labels).item() + more

    def step() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))

    assert entropy.loss(model, inputs, labels).item() == expected(None), "nothing was mixed yet"
    for _ in range(2):
        kept = model(inputs).detach()
        entropy.mixed(model)
        assert entropy.loss(model, inputs, labels).item() == expected(None), "it is what it was"
        step()
        assert entropy.loss(model, inputs, labels).item() == pytest.approx(expected(kept), rel=1e-6)
        assert expected(kept) - expected(None) > 0.01
    with torch.no_grad():
        assert entropy.loss(model, inputs, labels).item() == expected(None), "another half's model is judged"
    entropy.loss(model, inputs, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("text", ["-1", "1.5", "nan", "much"])
def test_a_distillation_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"not-true-distillation=.*expected a number from 0 to 1,"):
        load_task("spoken-digits", settings(not_true_distillation=text))


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
