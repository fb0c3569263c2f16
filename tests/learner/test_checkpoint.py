"""Whatever happens while a checkpoint is written, one generation that loads is left."""

import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peer.errors import DataError, StateError
from peer.learner.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    CheckpointKeeper,
    _Sink,
    load_plain,
    pack,
    unpack,
)

SIGNATURE = [("w", [4], "float32")]


def at(round_: int, session: str = "s") -> Checkpoint:
    return Checkpoint(
        session, "sgp", round_, 1.0, list(SIGNATURE), torch.full((4,), float(round_)), b"optimizer"
    )


def newest(folder: Path) -> Tensor | None:
    found, _ = CheckpointFolder(folder).load()
    return None if found is None else found.model


class PowerCut(BaseException):
    """Not an Exception: nothing may tidy up after it in a way a power cut would not allow."""


def test_what_is_packed_is_unpacked() -> None:
    found, serial = unpack(pack(at(7), 3), "here")
    assert serial == 3
    assert torch.equal(found.model, at(7).model)
    assert (found.session, found.round, found.signature, found.optimizer) == ("s", 7, SIGNATURE, b"optimizer")


def test_what_an_algorithm_has_besides_the_model_is_kept_with_it() -> None:
    e = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found, _ = unpack(pack(replace(at(7), own={"e": e}), 3), "here")
    assert torch.equal(found.own["e"], e)
    assert unpack(pack(at(7), 3), "here")[0].own == {}


def test_a_checkpoint_without_anything_besides_is_one_that_an_older_peerd_reads() -> None:
    data = pack(at(7), 3)
    payload = data[len(data) - struct.unpack_from(">Q", data, 20)[0] :]
    assert set(load_plain(payload, "here")) == {
        "session", "algorithm", "round", "weight", "signature", "model", "optimizer", "rng"
    }  # fmt: skip


@pytest.mark.parametrize(
    "vector",
    [torch.ones(3), torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, float("nan")]), "e"],
)
def test_what_does_not_fit_the_model_is_left_out_and_said(vector: object, tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(replace(at(7), own={"e": vector}))  # type: ignore[dict-item]
    keeper = CheckpointKeeper(tmp_path, "s", list(SIGNATURE))
    assert keeper.found is not None
    assert keeper.found.own == {} and torch.equal(keeper.found.model, at(7).model)
    assert "besides its model does not fit it" in keeper.problems[0]


@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
def test_a_power_cut_leaves_the_old_generation(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(at(1))
    leave_everything_as_it_is(monkeypatch)
    monkeypatch.setattr(os, place, cut_at(getattr(os, place), part=place == "write"))
    with pytest.raises(PowerCut):
        folder.save(at(2))
    monkeypatch.undo()
    model = newest(tmp_path)
    assert model is not None
    assert model[0] == 1
    assert not list(tmp_path.glob(".*")), "the leftover of the cut write is removed"


def test_a_power_cut_after_the_rename_leaves_the_new_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(at(1))
    rename = os.rename

    def rename_and_cut(source: Path, target: Path) -> None:
        rename(source, target)
        raise PowerCut

    leave_everything_as_it_is(monkeypatch)
    monkeypatch.setattr(os, "rename", rename_and_cut)
    with pytest.raises(PowerCut):
        folder.save(at(2))
    monkeypatch.undo()
    model = newest(tmp_path)
    assert model is not None
    assert model[0] == 2


def test_the_new_name_is_on_the_disk_before_the_old_generation_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename is in the folder's own blocks: without its fsync a power cut may leave neither generation."""
    folder = CheckpointFolder(tmp_path)
    folder.save(at(1))
    folder.save(at(2))
    done: list[str] = []
    fsync, rename, unlink = os.fsync, os.rename, Path.unlink

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("sync folder" if path == tmp_path else f"sync {path.suffix}")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append(f"rename to {target.name}")
        rename(source, target)

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        done.append(f"unlink {path.name}")
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    folder.save(at(3))
    assert done == ["sync .tmp", "rename to ckpt-3.peerd", "sync folder", "unlink ckpt-1.peerd"]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from peer.learner.checkpoint import Checkpoint, CheckpointFolder

def limit(more_mb):
    has = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + (more_mb << 20), resource.RLIM_INFINITY))

folder, more_mb = CheckpointFolder(Path(sys.argv[1])), int(sys.argv[2])
"""
SAVES = """
w = torch.zeros(16 << 20, requires_grad=True)  # 64 MB
optimizer = torch.optim.Adam([w])
w.grad = torch.ones_like(w)
optimizer.step()
model, state = w.detach(), optimizer.state_dict()
own = {"e": torch.ones_like(model)}
checkpoint = Checkpoint("s", "sgp", 1, 1.0, [("w", [w.numel()], "float32")], model, state, own=own)
limit(more_mb)
folder.save(checkpoint)
"""
LOADS = """
limit(more_mb)
assert folder.load()[0].round == 1
"""


def said_by(what: str, folder: Path, more_mb: int) -> str:
    """A process that may have so much more memory of its own for that."""
    command = [sys.executable, "-P", "-c", LIMITED + what, str(folder), str(more_mb)]
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_saving_takes_hardly_any_memory_and_reading_no_more_than_there_is(tmp_path: Path) -> None:
    """A model of 64 MB, Adam's state and one vector more: 256 MB, which is what it takes to read them."""
    assert said_by(SAVES, tmp_path, 24) == ""
    assert said_by(LOADS, tmp_path, 256 + 24) == ""
    found, problems = CheckpointFolder(tmp_path).load()
    assert found is not None and not problems
    assert not isinstance(found.optimizer, dict)
    state = load_plain(found.optimizer, "here")["state"][0]
    assert torch.equal(state["exp_avg"], torch.full((16 << 20,), 0.1)) and len(found.own["e"]) == 16 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-1.peerd"]


class Fault(Exception):
    """Anything a disk, a signal or a bug may raise."""


class Failing:
    """The n-th call raises that, once."""

    def __init__(self, call: Callable[..., object], nth: int, fault: BaseException) -> None:
        self.call, self.nth, self.fault, self.calls = call, nth, fault, 0

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        if self.calls == self.nth + 1:
            raise self.fault
        return self.call(*arguments)

    def is_met(self, folder: Path) -> BaseException:
        """What comes out of saving; of what was there before nothing is missing, and nothing is added."""
        stepped = torch.optim.Adam([torch.ones(4, requires_grad=True)])
        with pytest.raises(BaseException) as met:
            CheckpointFolder(folder).save(replace(at(2), optimizer=stepped.state_dict()))
        assert [path.name for path in folder.iterdir()] == ["ckpt-1.peerd"]
        model = newest(folder)
        assert model is not None and model[0] == 1
        return met.value


@pytest.mark.parametrize("nth", [0, 1, 2, 3, 5, 8, 13, 21])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), PowerCut(), Fault()])
def test_whatever_write_fails_the_old_one_stays_and_the_process_lives(
    nth: int, fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch writes in C++, where what a write raises must not meet another exception."""
    CheckpointFolder(tmp_path).save(at(1))
    failing = Failing(os.write, nth, fault)
    monkeypatch.setattr(os, "write", failing)
    met = failing.is_met(tmp_path)
    assert isinstance(met, StateError if isinstance(fault, OSError) else type(fault))
    assert failing.calls == nth + 1, "nothing more is written"


@pytest.mark.parametrize("nth", range(0, 70, 3))
def test_what_a_signals_handler_raises_in_the_middle_comes_out_as_it_is(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes while torch computes is called before the first line of what torch calls back."""
    CheckpointFolder(tmp_path).save(at(1))
    failing = Failing(_Sink.write, nth, KeyboardInterrupt())

    def interrupted(sink: _Sink, data: bytes) -> object:  # a function, to be a method
        return failing(sink, data)

    monkeypatch.setattr(_Sink, "write", interrupted)
    assert isinstance(failing.is_met(tmp_path), KeyboardInterrupt)


def test_a_sparse_state_and_one_of_no_extent_are_saved_and_come_back(tmp_path: Path) -> None:
    sparse = torch.sparse_coo_tensor([[1, 2]], [1.0, 2.0], (4,), check_invariants=True).coalesce()
    wide = torch.ones(1).expand(1 << 40)
    state: dict[str, Any] = {"sparse": sparse, "wide": wide}
    state["itself"] = state
    CheckpointFolder(tmp_path).save(replace(at(1), optimizer=state))
    found, _ = CheckpointFolder(tmp_path).load()
    assert found is not None and not isinstance(found.optimizer, dict)
    back = load_plain(found.optimizer, "here")
    assert torch.equal(back["sparse"].to_dense(), sparse.to_dense()) and back["wide"].shape == wide.shape


def test_where_files_cannot_be_mapped_it_is_saved_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    stepped = torch.optim.Adam([torch.ones(4, requires_grad=True)], lr=0.25)
    CheckpointFolder(tmp_path).save(replace(at(2), optimizer=stepped.state_dict()))
    found, _ = CheckpointFolder(tmp_path).load()
    assert found is not None and not isinstance(found.optimizer, dict)
    assert load_plain(found.optimizer, "here")["param_groups"][0]["lr"] == 0.25


def leave_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead processes remove no files."""
    monkeypatch.setattr(os, "unlink", lambda path: None)


def cut_at(call: Callable[..., object], part: bool) -> Callable[..., object]:
    def cut(*arguments: object) -> object:
        if part:
            fd, data = arguments
            assert isinstance(data, memoryview)
            call(fd, data[: len(data) // 2])
        raise PowerCut

    return cut


@pytest.mark.parametrize("offset", [0, 10, 20, 40, 200, -1])
def test_one_flipped_byte_falls_back_to_the_generation_before(offset: int, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(at(1))
    folder.save(at(2))
    damaged = bytearray((tmp_path / "ckpt-2.peerd").read_bytes())
    damaged[offset] ^= 1
    (tmp_path / "ckpt-2.peerd").write_bytes(damaged)
    found, problems = CheckpointFolder(tmp_path).load()
    assert found is not None
    assert found.round == 1
    assert len(problems) <= 1  # none when the flip made it look older than the other
    assert all("ckpt-2.peerd" in problem for problem in problems)


@pytest.mark.parametrize("length", [0, 7, 40, 100])
def test_a_truncated_file_falls_back_too(length: int, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(at(1))
    folder.save(at(2))
    os.truncate(tmp_path / "ckpt-2.peerd", length)
    model = newest(tmp_path)
    assert model is not None
    assert model[0] == 1


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for round_ in (1, 5, 9, 12):
        CheckpointFolder(tmp_path).save(at(round_))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-12.peerd", "ckpt-9.peerd"]


def test_the_newest_is_the_last_written_even_if_its_round_is_lower(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for round_ in (100, 101, 3):
        folder.save(at(round_))
    model = newest(tmp_path)
    assert model is not None
    assert model[0] == 3


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(at(1))
    assert (tmp_path / "ckpt-1.peerd").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "cannot be written")],
)
def test_a_disk_that_refuses_keeps_the_old_one_and_says_why(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = CheckpointKeeper(tmp_path, "s", list(SIGNATURE))
    keeper.save(at(1))
    assert keeper.problem == ""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    keeper.save(at(2))
    assert words in keeper.problem
    monkeypatch.undo()
    assert keeper.round == 1
    assert not keeper.due(), "the next try is a minute away"
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-1.peerd"]


def test_nothing_is_written_when_little_space_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
    with pytest.raises(StateError, match="free at least 16 MiB"):
        CheckpointFolder(tmp_path).save(at(1))
    assert not list(tmp_path.iterdir())


def test_another_format_is_named() -> None:
    with pytest.raises(DataError, match="has checkpoint format 9; this peerd reads format 1"):
        unpack(of_format_9(at(1), 1), "here")


def of_format_9(checkpoint: Checkpoint, serial: int) -> bytes:
    """As a later peerd would write it."""
    data = bytearray(pack(checkpoint, serial))
    data[11], header = 9, 28
    digest = hashlib.sha256(data[:header] + data[header + 32 :]).digest()
    return bytes(data[:header]) + digest + bytes(data[header + 32 :])


def test_what_a_later_peerd_wrote_is_not_used_and_not_lost(tmp_path: Path) -> None:
    """After a downgrade; and training with the older one does not push it out."""
    later = tmp_path / "ckpt-9.peerd"
    later.write_bytes(of_format_9(at(9), 3))
    folder = CheckpointFolder(tmp_path)
    found, problems = folder.load()
    assert found is None
    assert "format 9" in problems[0]
    for round_ in (1, 2, 3):
        folder.save(at(round_))
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt-9.peerd", "ckpt-3.peerd", "ckpt-2.peerd"}
    found, _ = folder.load()
    assert found is not None
    assert found.round == 3


def test_a_checkpoint_of_another_model_is_not_used(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(at(4))
    keeper = CheckpointKeeper(tmp_path, "s", [("w", [2, 2], "float32")])
    assert keeper.found is None
    assert "of another model" in keeper.problems[0]


def test_optimizer_and_random_state_come_back(tmp_path: Path) -> None:
    w = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    w.sum().backward()
    optimizer.step()
    saved = Checkpoint("s", "sgp", 1, 1.0, list(SIGNATURE), w.detach(), optimizer.state_dict())
    drawn = torch.rand(3)
    CheckpointFolder(tmp_path).save(saved)
    fresh = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    assert CheckpointKeeper(tmp_path, "s", list(SIGNATURE)).restore(fresh) == ""
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(fresh.state_dict()["state"][0]["momentum_buffer"], torch.ones(4))


def test_an_optimizer_state_that_does_not_load_is_a_sentence(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).save(at(1))
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    assert "the optimizer starts anew" in CheckpointKeeper(tmp_path, "s", list(SIGNATURE)).restore(optimizer)


def test_a_restored_optimizer_keeps_what_it_is_made_with(tmp_path: Path) -> None:
    w = torch.ones(4, requires_grad=True)
    before = torch.optim.SGD([w], lr=0.5, momentum=0.9)
    w.sum().backward()
    before.step()
    saved = Checkpoint("s", "sgp", 1, 1.0, list(SIGNATURE), w.detach(), before.state_dict())
    CheckpointFolder(tmp_path).save(saved)
    after = torch.optim.SGD([w], lr=0.01, momentum=0.5)
    assert CheckpointKeeper(tmp_path, "s", list(SIGNATURE)).restore(after) == ""
    assert (after.param_groups[0]["lr"], after.param_groups[0]["momentum"]) == (0.01, 0.5)
    assert torch.equal(after.state[w]["momentum_buffer"], torch.ones(4))
