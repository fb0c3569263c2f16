"""The quadratic task: alone its own minimizer, together the mean of all."""

import pytest
import torch

from peer.errors import DataError
from peer.learner.task import Settings, load_task, seeded_model

CPU = torch.device("cpu")


def trained(shard: str, steps: int = 200) -> tuple[torch.Tensor, float]:
    task = load_task("quadratic", Settings(options={"task.dim": "50"}))
    model, batches = seeded_model(task, 0), task.batches(shard, CPU)
    optimizer = task.optimizer(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()
    (x,) = model.parameters()
    return x.detach(), task.evaluate(model)["distance"]


def test_alone_it_is_far_from_the_mean_minimizer() -> None:
    _, distance = trained("1/4")
    assert distance > 0.5


def test_the_mean_of_all_shards_models_is_the_mean_minimizer() -> None:
    task = load_task("quadratic", Settings(options={"task.dim": "50"}))
    model = task.model()
    task.batches("0/4", CPU)
    (x,) = model.parameters()
    x.data.copy_(torch.stack([trained(f"{k}/4")[0] for k in range(4)]).mean(dim=0))
    assert task.evaluate(model)["distance"] < 1e-3


def test_noise_is_each_devices_own_and_the_minimizer_is_not() -> None:
    def first(order: int, noise: str) -> torch.Tensor:
        task = load_task("quadratic", Settings(order=order, options={"task.noise": noise}))
        return next(task.batches("0/2", CPU))

    assert torch.equal(first(1, "0"), first(2, "0"))
    assert not torch.equal(first(1, "1"), first(2, "1"))


@pytest.mark.parametrize("shard", ["4/4", "speaker=jackson", "1"])
def test_an_unknown_shard_is_an_error(shard: str) -> None:
    with pytest.raises(DataError, match="knows k/n"):
        load_task("quadratic", Settings()).batches(shard, CPU)


@pytest.mark.parametrize(
    "options", [{"task.dim": "0"}, {"task.dim": "x"}, {"task.noise": "-1"}, {"task.noise": "nan"}]
)
def test_a_bad_option_is_an_error(options: dict[str, str]) -> None:
    with pytest.raises(DataError, match="expected a"):
        load_task("quadratic", Settings(options=options))
