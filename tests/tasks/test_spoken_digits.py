"""The spoken-digits task: what a device learns alone, and what all the data gives."""

from collections import Counter

import pytest
import torch

from peer.catalogue import SPEAKERS
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, load_task, seeded_model
from peer.schedule import Schedule
from peer.tasks.batches import shuffled
from peer.tasks.spoken_digits import load_clips


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def accuracy(shard: str | None, steps: int) -> float:
    task = load_task("spoken-digits", Settings(order=1))
    model = seeded_model(task, 0)
    optimizer = task.optimizer(model.parameters())
    schedule, batches = Schedule.of({}, steps), task.batches(shard, torch.device("cpu"))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * schedule.factor(step)
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()
    return task.evaluate(model)["accuracy"]


def test_the_official_split_holds() -> None:
    train, test = load_clips(test=False), load_clips(test=True)
    assert (len(train.digits), len(test.digits)) == (2700, 300)
    assert Counter(test.speakers) == dict.fromkeys(SPEAKERS, 50)
    assert set(Counter(train.digits.tolist()).values()) == {270}


def test_features_are_normal_over_the_training_clips() -> None:
    features = load_clips(test=False).features
    assert features.shape == (2700, 1, 32, 32)
    assert features.mean().item() == pytest.approx(0, abs=0.01)
    assert features.std().item() == pytest.approx(1, abs=0.01)


def test_the_model_has_47530_parameters() -> None:
    assert FlatModel(load_task("spoken-digits", Settings()).model()).size == 47530


def test_one_speaker_alone_does_not_know_the_others() -> None:
    assert 0.25 < accuracy("speaker=jackson", 600) < 0.65


def test_all_speakers_together_are_known() -> None:
    assert accuracy(None, 600) > 0.9


def test_every_example_comes_once_per_pass() -> None:
    batches = shuffled(torch.arange(8)[:, None], torch.arange(8), 4, order=3)
    seen = [i for _ in range(2) for i in next(batches)[1].tolist()]
    assert sorted(seen) == list(range(8))
    small = shuffled(torch.arange(3)[:, None], torch.arange(3), 32, order=3)
    assert sorted(next(small)[1].tolist()) == [0, 1, 2]
