"""Fashion-MNIST: 60,000 small pictures of clothes for training and 10,000 for testing, of ten kinds.

The data does not come with peerd: the four official files lie in the folder of `--data`. On one node, the
whole data, batches of 32 and a falling rate, `model=cnn` gets 88-89 % after two epochs, `model=mlp` about as
much after three; at a constant rate two or three points less.
Shards are `3/8` and `dirichlet=0.1:3/8` (shards.py). With `validation=5000` the last 5,000 training pictures
are nobody's, and what is evaluated on instead of the test pictures: settings are chosen so. The data set is
by Xiao, Rasul and Vollgraf 2017 (arXiv:1708.07747), MIT license.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peer.catalogue import TASKS, check_shard
from peer.errors import DataError, UsageError
from peer.learner.task import BATCH, Settings, optimizer_of
from peer.tasks.batches import Batch, held_out, shuffled
from peer.tasks.idx import read_idx
from peer.tasks.labels import CrossEntropy
from peer.tasks.shards import select

WHERE_FROM = "from https://github.com/zalandoresearch/fashion-mnist, folder data/fashion"
KINDS, SIDE = 10, 28
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pictures' bytes / 255
LR, MOMENTUM = 0.2, 0.0  # what decentralized algorithms are compared with on it: best rate without momentum
AT_ONCE = 1000  # test pictures through the model: 6 MB of activations of the cnn

KNOWN = TASKS["fashion-mnist"].options


class Pictures(NamedTuple):
    bytes: NDArray[np.uint8]  # [pictures, 28, 28]
    kinds: tuple[int, ...]  # one per picture


@cache  # a rehearsal's devices share it
def load_pictures(folder: Path, test: bool) -> Pictures:
    """The test pictures, or those for training. Raises DataError that names the file."""
    prefix = "t10k" if test else "train"
    pictures = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (SIDE, SIDE), WHERE_FROM)
    path = folder / f"{prefix}-labels-idx1-ubyte.gz"
    kinds = read_idx(path, (), WHERE_FROM)
    if len(kinds) != len(pictures):
        raise DataError(
            f"{path} has {len(kinds)} labels for {len(pictures)} pictures; get both files anew {WHERE_FROM}"
        )
    if kinds.max() >= KINDS:
        raise DataError(
            f"{path} has a label {kinds.max()}: expected 0 to {KINDS - 1}; get it anew {WHERE_FROM}"
        )
    return Pictures(pictures, tuple(kinds.tolist()))


def features(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures as the models take them: [pictures, 1, 28, 28], mean 0 and deviation 1 over the training
    data."""
    scaled = pictures.astype(np.float32)
    scaled -= np.float32(255 * MEAN)
    scaled /= np.float32(255 * DEVIATION)
    return torch.from_numpy(scaled)[:, None]


@cache
def _judged_by(folder: Path, validation: int) -> Batch:
    """The test pictures; with `validation` above 0, so many of the training pictures."""
    pictures = load_pictures(folder, test=not validation)
    return features(pictures.bytes[-validation:]), torch.tensor(pictures.kinds[-validation:])


def mlp() -> nn.Module:
    """101,770 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, KINDS))


def cnn() -> nn.Module:
    """54,314 parameters. Strides instead of pooling: a third less time per epoch, as good."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, KINDS),
    )  # fmt: skip


MODELS = {"cnn": cnn, "mlp": mlp}


class FashionMnist:
    """The task, see peer/learner/task.py."""

    name = "fashion-mnist"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        kind = settings.option("model", KNOWN["model"].default)
        if kind not in MODELS:
            raise DataError(f"option model={kind}: expected one of {', '.join(MODELS)}")
        self._model = MODELS[kind]
        if settings.data is None:
            raise DataError(f"task {self.name} needs --data DIR, a folder with the four files {WHERE_FROM}")
        self._folder = Path(settings.data)
        self._validation = held_out(settings)
        self._cross_entropy = CrossEntropy(settings, KINDS)

    def model(self) -> nn.Module:
        return self._model()

    def batches(self, shard: str | None, device: torch.device) -> Iterator[Batch]:
        pictures = load_pictures(self._folder, test=False)
        load_pictures(self._folder, test=True)  # if it cannot be read, say so before others count on us
        if shard:
            try:
                check_shard(self.name, shard)
            except UsageError as error:
                raise DataError(str(error)) from error
        if self._validation >= len(pictures.kinds):
            raise DataError(f"option validation={self._validation}: there are {len(pictures.kinds)} pictures")
        learnt = pictures.kinds[: len(pictures.kinds) - self._validation]
        chosen = select(shard, learnt, [], self._settings.seed)
        kinds = torch.tensor([pictures.kinds[i] for i in chosen], device=device)
        self._cross_entropy.know(kinds)
        mine = features(pictures.bytes[chosen]).to(device)
        return shuffled(mine, kinds, self._settings.batch or BATCH, self._settings.order)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        pictures, kinds = batch
        return self._cross_entropy.loss(model, pictures, kinds)

    def mixed(self, model: nn.Module) -> None:
        self._cross_entropy.mixed(model)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of(parameters, self._settings, LR, MOMENTUM)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on all test pictures, or on those held out for validation, in [0, 1]."""
        pictures, kinds = _judged_by(self._folder, self._validation)
        device = next(model.parameters()).device
        guessed = [model(part.to(device)).argmax(dim=1).cpu() for part in pictures.split(AT_ONCE)]
        return {"accuracy": (torch.cat(guessed) == kinds).double().mean().item()}


def create(settings: Settings) -> FashionMnist:
    return FashionMnist(settings)
