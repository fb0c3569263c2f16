"""Spoken digits: 3,000 clips of six speakers saying 0 to 9, as 32 x 32 log-mel pictures.

A device that trains alone on its owner's voice knows the owner and gets 43-52 % over all speakers; trained
together every speaker is above 95 %. The data set is the Free Spoken Digit Dataset (data/LICENSE); its own
split holds: takes 0-4 of every speaker and digit test (300 clips), the others train (2,700). With
`validation=300` every ninth of those is nobody's, and what is evaluated on instead of the test clips:
settings are chosen so. Shards: see shards.py; `speaker=NAME` is the natural one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import as_file, files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from peer.errors import DataError
from peer.learner.task import BATCH, Settings, optimizer_of
from peer.tasks.batches import Batch, held_out, shuffled
from peer.tasks.labels import CrossEntropy
from peer.tasks.shards import select

DIGITS = 10


class Clips(NamedTuple):
    features: Tensor  # [clips, 1, 32, 32], mean 0 and deviation 1 over the training clips
    digits: Tensor  # [clips]
    speakers: tuple[str, ...]  # one name per clip


@cache
def load_clips(test: bool) -> Clips:
    """The 300 test clips, or the 2,700 others. Raises DataError when the file cannot be read."""
    source = files("peer.tasks") / "data" / "spoken_digits.npz"
    try:
        with as_file(source) as path, np.load(path, allow_pickle=False) as arrays:
            chosen = arrays["is_test"] == test
            scale, offset = arrays["affine"]
            features = arrays["features"][chosen].astype(np.float32) * scale + offset
            names = arrays["speakers"]
            speakers = tuple(str(names[i]) for i in arrays["speaker"][chosen])
            digits = arrays["digit"][chosen].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the spoken-digits data {source} cannot be read ({error}); install peerd again"
        ) from error
    return Clips(torch.from_numpy(features)[:, None], torch.from_numpy(digits), speakers)


def split(clips: Clips, validation: int) -> tuple[Clips, Clips]:
    """What is learnt from, and so many clips held out, evenly over speakers and digits. Raises DataError."""
    count = len(clips.digits)
    if validation >= count:
        raise DataError(f"option validation={validation}: there are {count} clips to train with")
    held = [(2 * i + 1) * count // (2 * validation) for i in range(validation)]
    kept = sorted(set(range(count)) - set(held))
    return _of(clips, kept), _of(clips, held)


def _of(clips: Clips, chosen: list[int]) -> Clips:
    names = tuple(clips.speakers[i] for i in chosen)
    return Clips(clips.features[chosen], clips.digits[chosen], names)


class SpokenDigits:
    """The task, see peer/learner/task.py. 47,530 parameters."""

    name = "spoken-digits"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._validation = held_out(settings)
        self._cross_entropy = CrossEntropy(settings, DIGITS)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Batch]:
        clips = split(load_clips(test=False), self._validation)[0]
        chosen = select(shard, clips.digits.tolist(), clips.speakers, self._settings.seed)
        features, digits = clips.features[chosen].to(device), clips.digits[chosen].to(device)
        self._cross_entropy.know(digits)
        return shuffled(features, digits, self._settings.batch or BATCH, self._settings.order)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        features, digits = batch
        return self._cross_entropy.loss(model, features, digits)

    def mixed(self, model: nn.Module) -> None:
        self._cross_entropy.mixed(model)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(parameters, self._settings)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on all 300 test clips, or on those held out for validation, of all speakers, in [0, 1]."""
        held = split(load_clips(test=False), self._validation)[1] if self._validation else None
        clips = held or load_clips(test=True)
        device = next(model.parameters()).device
        guessed = model(clips.features.to(device)).argmax(dim=1).cpu()
        return {"accuracy": (guessed == clips.digits).double().mean().item()}


def create(settings: Settings) -> SpokenDigits:
    return SpokenDigits(settings)
