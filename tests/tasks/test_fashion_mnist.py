"""The fashion-mnist task on files of the official format that these tests write themselves."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from peer.errors import DataError
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, Task, load_task, seeded_model
from peer.tasks.fashion_mnist import features, load_pictures
from tasks.clothes import TEST, TRAIN, idx, write_clothes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clothes(tmp_path)
    return tmp_path


def task_on(folder: Path | None, model: str = "cnn", **settings: int) -> Task:
    data = None if folder is None else str(folder)
    return load_task("fashion-mnist", Settings(data=data, options={"task.model": model}, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "size"), [("mlp", 101_770), ("cnn", 54_314)])
def test_a_few_steps_teach_it(folder: Path, model: str, size: int) -> None:
    task = task_on(folder, model)
    net = seeded_model(task, 0)
    assert FlatModel(net).size == size
    optimizer, batches = task.optimizer(net.parameters()), task.batches(None, CPU)
    before = task.evaluate(net)["accuracy"]
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(net, next(batches)).backward()
        optimizer.step()
    assert before < 0.4 and task.evaluate(net)["accuracy"] > 0.9


def test_features_are_the_bytes_made_normal(folder: Path) -> None:
    pictures, kinds = next(task_on(folder, batch=TRAIN).batches(None, CPU))
    assert pictures.shape == (TRAIN, 1, 28, 28) and pictures.dtype == torch.float32
    assert pictures.max().item() == pytest.approx((1 - 0.2860) / 0.3530, rel=1e-5)
    rows = pictures[:, 0].mean(dim=2).argmax(dim=1)
    assert torch.equal(rows, 2 * kinds + 4)


def kinds_of(task: Task, shard: str, size: int) -> Counter[int]:
    return Counter(next(task.batches(shard, CPU))[1].tolist())


def test_shards_have_equal_sizes_and_their_own_kinds(folder: Path) -> None:
    task = task_on(folder, batch=TRAIN // 8)
    for shard, kinds in (("{}/8", range(8, 11)), ("dirichlet=0.01:{}/8", range(1, 7))):
        parts = [kinds_of(task, shard.format(k), TRAIN // 8) for k in range(8)]
        assert sum(parts, Counter()) == Counter(load_pictures(folder, test=False).kinds)
        assert {part.total() for part in parts} == {TRAIN // 8}
        assert len(parts[0]) in kinds
    again = task_on(folder, batch=TRAIN // 8, order=5)
    other = task_on(folder, batch=TRAIN // 8, seed=5)
    shard = "dirichlet=0.01:1/8"
    assert kinds_of(again, shard, TRAIN // 8) == kinds_of(task, shard, TRAIN // 8)
    assert kinds_of(other, shard, TRAIN // 8) != kinds_of(task, shard, TRAIN // 8)


@pytest.mark.parametrize("shard", ["speaker=theo", "natural:0/2"])
def test_pictures_have_no_speakers(folder: Path, shard: str) -> None:
    with pytest.raises(
        DataError, match=r"fashion-mnist has no (speaker|natural) shards; it has dirichlet, part"
    ):
        task_on(folder).batches(shard, CPU)


def test_devices_of_one_process_read_the_files_once(folder: Path) -> None:
    task_on(folder).batches("0/2", CPU)
    for path in folder.iterdir():
        path.unlink()
    other = task_on(folder)
    assert len(next(other.batches("1/2", CPU))[1]) == 32
    assert 0 <= other.evaluate(seeded_model(other, 0))["accuracy"] <= 1


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def garble(path: Path) -> None:
    path.write_bytes(b"\x00" * 100)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def flip(path: Path) -> None:
    packed = bytearray(path.read_bytes())
    for at in random.Random(0).sample(range(20, len(packed) - 8), 8):
        packed[at] ^= 0xFF
    path.write_bytes(bytes(packed))


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (Path.unlink, "there is no file"),
        (garble, "is cut short or garbled"),
        (cut, "is cut short or garbled"),
        (flip, "is cut short or garbled|is no idx file|announces"),
        (lambda path: path.write_bytes(b""), "found nothing"),
        (lambda path: idx(path, (3, 3, 28), b"abc"), "found 0x00000803, 3"),
        (lambda path: idx(path, (3,), b"abc", magic=0x903), "found 0x00000903, 3"),
        (lambda path: idx(path, (9, 28, 28) if name_of(path) else (9,), b"abc"), "announces 9 items"),
        (lambda path: idx(path, (0, 28, 28) if name_of(path) else (0,), b""), "announces 0 items"),
        (lambda path: idx(path, (1, 28, 28) if name_of(path) else (1,), bytes(999)), "holds more"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name_and_where_to_get_it(
    folder: Path, name: str, harm, words: str
) -> None:
    harm(folder / name)
    with pytest.raises(DataError, match=words) as caught:
        task_on(folder).batches(None, CPU)
    assert str(folder / name) in str(caught.value)
    assert "zalandoresearch/fashion-mnist" in str(caught.value) or "look at --data" in str(caught.value)


def name_of(path: Path) -> bool:
    """Is it one of pictures?"""
    return "images" in path.name


def test_labels_that_fit_no_pictures_are_refused(folder: Path) -> None:
    idx(folder / LABELS, (2,), b"ab")
    with pytest.raises(DataError, match="has 2 labels for 100 pictures"):
        task_on(folder).batches(None, CPU)
    idx(folder / LABELS, (TEST,), bytes([10] * TEST))
    with pytest.raises(DataError, match="has a label 10: expected 0 to 9"):
        task_on(folder).batches(None, CPU)


def test_without_data_or_with_an_unknown_model_it_says_what_it_needs(folder: Path) -> None:
    with pytest.raises(DataError, match=r"needs --data DIR, a folder with the four files from https://"):
        task_on(None)
    with pytest.raises(DataError, match="option model=lenet: expected one of cnn, mlp"):
        task_on(folder, "lenet")


def test_the_last_pictures_are_held_out_and_judge_instead_of_the_test_set(folder: Path) -> None:
    options = {"task.validation": "80"}
    task = load_task("fashion-mnist", Settings(data=str(folder), batch=TRAIN - 80, options=options))
    _, kinds = next(task.batches(None, CPU))
    assert len(kinds) == TRAIN - 80
    first = load_pictures(folder, test=False).kinds[: TRAIN - 80]
    assert Counter(kinds.tolist()) == Counter(first)
    net = seeded_model(task, 0)
    held = load_pictures(folder, test=False)
    right = net(features(held.bytes[-80:])).argmax(dim=1) == torch.tensor(held.kinds[-80:])
    assert task.evaluate(net)["accuracy"] == pytest.approx(right.double().mean().item())
    none_left = Settings(data=str(folder), options={"task.validation": str(TRAIN)})
    with pytest.raises(DataError, match=f"validation={TRAIN}: there are {TRAIN} pictures"):
        load_task("fashion-mnist", none_left).batches(None, CPU)
