"""The state folder: what is kept, who may read it, and what is said when it cannot be written."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from peer.config import Descriptor, JoinOptions
from peer.daemon import store as stores
from peer.daemon.store import Note, SessionFolder, Store, check_task
from peer.errors import ConfigError, DataError, StateError
from peer.events import Farewell

KEY = bytes(range(16))
SESSION = Descriptor(name="home", nonce="0" * 32, task="quadratic", algorithm="sgp")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_boots_are_counted_across_daemons(tmp_path: Path) -> None:
    assert [Store(tmp_path / "s").next_boot() for _ in range(3)] == [1, 2, 3]


def test_a_boot_count_that_is_damaged_is_not_started_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "boot").write_text("x")
    with pytest.raises(StateError, match="boot"):
        store.next_boot()


def test_a_session_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    folder = Store(tmp_path).session(KEY, "home")
    options = JoinOptions(peers=("10.0.0.9:7000",), shard="3/8", task_file_text="x = 1\n")
    folder.save_options(options)
    folder.save_descriptor(SESSION)
    folder.mark(founder=True)
    [again] = Store(tmp_path).sessions()
    assert (again.key, again.note, again.descriptor) == (KEY, Note("home", founder=True), SESSION)
    assert again.options == replace(options, task_file_text=None)
    assert again.task_file is not None
    assert again.task_file.read_text() == "x = 1\n"


def test_farewells_come_back_and_damaged_ones_name_their_file(tmp_path: Path) -> None:
    folder = Store(tmp_path).session(KEY, "home")
    assert folder.farewells() == {}
    folder.save_farewells({"p-a": Farewell(3, 7, 1, 2)})
    assert folder.farewells() == {"p-a": Farewell(by=3, life=7, epoch=1, applied=2)}
    far = '{"p-a": [-1, 1, 1, 1]}', '{"p-a": [1e30, 1, 1, 1]}', '{"p-a": [Infinity, 1, 1, 1]}'
    for damage in ("[1]", '{"p-a": [1]}', '{"p-a": 1}', "{", *far):
        (folder.path / "farewells.json").write_text(damage)
        with pytest.raises(StateError, match=r"farewells\.json is damaged"):
            folder.farewells()


def test_nobody_else_may_read_keys_options_and_tasks(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    folder = store.session(KEY, "home")
    folder.save_options(JoinOptions(task_file_text="x = 1"))
    folder.save_descriptor(SESSION)
    assert mode(store.folder) == 0o700
    assert mode(folder.path) == 0o700
    assert {p.name: mode(p) for p in folder.path.iterdir()} == dict.fromkeys(
        ("key", "session.json", "descriptor.json", "options.json", "task.py"), 384
    )


def test_a_folder_that_is_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    Store(tmp_path / "state")
    assert mode(tmp_path / "state") == 0o700


def test_a_folder_of_all_users_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(StateError, match="--state"):
        Store(tmp_path / "shared")
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StateError, match="belongs to user"):
        Store(tmp_path)


def test_one_key_is_one_folder_whatever_the_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.session(KEY, "home").path == store.session(KEY, "house").path
    assert store.session(b"\xff" * 16, "home").path != store.session(KEY, "home").path
    assert KEY.hex() not in str(store.session(KEY, "home").path)


def test_forgetting_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.session(KEY, "home")
    (folder.path / "checkpoint").write_bytes(b"x")
    folder.forget()
    assert store.sessions() == []
    assert not folder.path.exists()


def test_a_folder_that_was_cut_off_while_being_made_is_no_session(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.session(KEY, "home")
    (folder.path / "session.json").unlink()
    assert store.sessions() == []


def test_a_session_that_cannot_be_understood_is_told_and_not_taken_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.session(KEY, "home")
    (folder.path / "options.json").write_text("{")
    [found] = store.sessions()
    assert found.note.over
    assert "--forget" in found.problem


def test_a_full_disk_names_the_file_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "atomic_write", full)
    with pytest.raises(StateError, match=r"boot.*No space left.*free some space"):
        store.next_boot()


def test_a_file_where_the_folder_should_be_is_73(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="--state"):
        Store(tmp_path / "state")


def test_a_task_file_that_this_device_lacks_is_asked_for(tmp_path: Path) -> None:
    folder: SessionFolder = Store(tmp_path).session(KEY, "home")
    session = replace(SESSION, task="file", task_digest="ab" * 32)
    with pytest.raises(DataError, match="--task FILE"):
        check_task(session, folder)
    folder.save_options(JoinOptions(task_file_text="x = 1"))
    check_task(session, folder)


def test_two_daemons_cannot_share_a_state_folder(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.lock(Path("/run/one.sock"))
    with pytest.raises(ConfigError, match=rf"daemon with pid {os.getpid()} on /run/one.sock"):
        second.lock(Path("/run/two.sock"))
    first.unlock()
    second.lock(Path("/run/two.sock"))
    second.unlock()
