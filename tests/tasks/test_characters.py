"""The characters task on texts that these tests write themselves."""

import gzip
from pathlib import Path

import pytest
import torch

from peer.errors import DataError
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, Task, load_task, seeded_model

CPU = torch.device("cpu")
VERSE = "the cat sat on the mat, and the dog sat on the log. "
TEXT = VERSE * 100


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def task_on(data: Path | None, *, lr: float | None = None, batch: int | None = None, **options: str) -> Task:
    named = {f"task.{name}": value for name, value in options.items()}
    settings = Settings(data=None if data is None else str(data), options=named, lr=lr, batch=batch)
    return load_task("characters", settings)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "verse.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("model", "size"), [("gru", 103_424), ("transformer", 134_144)])
def test_a_few_steps_teach_it(text: Path, model: str, size: int) -> None:
    task = task_on(text, model=model, context="16", batch=8)
    net = seeded_model(task, 0)
    assert FlatModel(net).size == size
    optimizer, batches = task.optimizer(net.parameters()), task.batches(None, CPU)
    before = task.evaluate(net)
    assert before["accuracy"] < 0.2 and before["bits-per-byte"] == pytest.approx(8, abs=1)
    for _ in range(80):
        optimizer.zero_grad()
        task.loss(net, next(batches)).backward()
        optimizer.step()
    after = task.evaluate(net)
    assert after["accuracy"] > 0.4 and after["bits-per-byte"] < 3


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_no_byte_is_foretold_from_what_comes_after_it(text: Path, model: str) -> None:
    task = task_on(text, model=model)
    net = seeded_model(task, 0).eval()
    symbols = next(task.batches(None, CPU))[:2, :-1]
    changed = symbols.clone()
    changed[:, 40:] = 7
    with torch.no_grad():
        assert torch.allclose(net(symbols)[:, :40], net(changed)[:, :40], atol=1e-5)
        assert not torch.allclose(net(symbols)[:, 40:], net(changed)[:, 40:], atol=1e-2)


def test_shards_are_pieces_in_a_row_and_none_has_the_last_tenth(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(bytes(byte for byte in range(250) for _ in range(100)))
    task = task_on(path, batch=256, context="8")
    pieces = [{*next(task.batches(f"{k}/5", CPU)).flatten().tolist()} for k in range(5)]
    for k, piece in enumerate(pieces):
        assert 45 * k <= min(piece) <= 45 * k + 8 and 45 * k + 36 <= max(piece) < 45 * (k + 1)


def test_every_device_means_the_same_256_bytes_whatever_its_text(tmp_path: Path) -> None:
    sizes = set()
    for name, content in (("a.txt", b"ab" * 500), ("b.txt", "äöü€".encode() * 200)):
        (tmp_path / name).write_bytes(content)
        sizes.add(FlatModel(task_on(tmp_path / name).model()).size)
    assert sizes == {103_424}


def test_a_folder_with_one_text_and_a_packed_text_will_do(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of another kind")
    (tmp_path / "verse.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    batch = next(task_on(tmp_path, batch=3).batches("1/2", CPU))
    assert batch.shape == (3, 65) and batch.dtype == torch.int64
    assert bytes(batch[0].tolist()).decode() in TEXT


def test_batches_are_decided_by_the_devices_own_number(text: Path) -> None:
    def first(order: int) -> torch.Tensor:
        return next(load_task("characters", Settings(order=order, data=str(text))).batches(None, CPU))

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("dirichlet=0.1:0/2", "a text is cut into pieces, as in '3/8'; it has no labels"),
        ("speaker=theo", "a text is cut into pieces"),
        ("2/2", "parts count from 0"),
        ("0/100", "has 5200 bytes, too few for 100 pieces of more than 64; give it more text"),
    ],
)
def test_a_shard_it_cannot_have_is_refused(text: Path, shard: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        task_on(text).batches(shard, CPU)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "expected one .txt or .txt.gz, found none"),
        ({"a.txt": b"", "b.TXT": b""}, r"found a.txt, b.TXT; name the file with --data"),
        ({"a.txt": b""}, "a.txt has none of"),
        ({"a.txt": b"short"}, "a.txt has 5 bytes, too few"),
        ({"a.txt.gz": b"not packed"}, "a.txt.gz is cut short or garbled"),
        ({"a.txt.gz": gzip.compress(b"long" * 999)[:-9]}, "a.txt.gz is cut short or garbled"),
    ],
)
def test_what_is_wrong_with_a_text_is_said_with_its_name(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        task_on(tmp_path).batches(None, CPU)
    assert str(tmp_path) in str(caught.value)


def test_no_data_a_missing_file_and_bad_options_are_errors_with_advice(text: Path) -> None:
    with pytest.raises(DataError, match="needs --data, a text file or a folder with one"):
        task_on(None)
    with pytest.raises(DataError, match=r"nosuch.txt cannot be read: No such file.*; look at --data"):
        task_on(text.parent / "nosuch.txt").batches(None, CPU)
    with pytest.raises(DataError, match="option model is one of gru, transformer, not 'lstm'"):
        task_on(text, model="lstm")
    with pytest.raises(DataError, match="option context is a whole number"):
        task_on(text, context="4")
