"""Data that the daemon's user may not read: said when it is asked for, with whom to let do what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.conftest import Home, here, session
from peer.daemon import readable
from peer.daemon.readable import check_readable
from peer.errors import DataError
from peer.keys import format_key, new_key

Shut = Callable[[Path, int], None]


@pytest.fixture
def barred(monkeypatch: pytest.MonkeyPatch) -> Shut:
    """Tests may run as root, who may read anything: these paths are shut for these modes."""
    shut: dict[Path, int] = {}
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not shut.get(Path(path), 0) & mode and access(path, mode)
    )
    monkeypatch.setattr(readable, "user_name", lambda: "peerd")
    return shut.__setitem__


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "pi" / "data"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as found:
        check_readable(str(path))
    assert found.value.exit_code == 65
    return str(found.value)


def test_what_may_be_read_is_fine(data: Path, barred: Shut) -> None:
    check_readable(str(data))
    check_readable(str(data / "a.txt"))


def test_a_home_that_is_shut_is_named_with_what_opens_it(data: Path, barred: Shut) -> None:
    barred(data.parent, os.X_OK)
    said = refusal(data)
    assert f"runs as user 'peerd' and may not enter {data.parent}, a part of {data}" in said
    assert f"'sudo setfacl -m u:peerd:x {data.parent}'" in said
    assert f"'sudo chmod o+x {data.parent}'" in said


@pytest.mark.parametrize("what", ["", "a.txt"])
def test_data_that_are_shut_are_named_with_what_opens_them(data: Path, barred: Shut, what: str) -> None:
    barred(data / what, os.R_OK)
    said = refusal(data)
    assert f"may not read {data / what}" in said
    assert f"'sudo setfacl -R -m u:peerd:rX {data}'" in said
    assert f"'sudo chmod -R o+rX {data}'" in said


def test_a_link_that_leads_nowhere_is_nothing_to_be_read(data: Path, barred: Shut) -> None:
    (data / "gone").symlink_to(data / "nothing")
    check_readable(str(data))
    barred(data / "link", os.R_OK)
    (data / "link").symlink_to(data / "a.txt")
    assert f"may not read {data / 'link'}" in refusal(data)


def test_what_is_hidden_is_nobodys_data(data: Path, barred: Shut) -> None:
    (data / ".cache").mkdir()
    barred(data / ".cache", os.R_OK)
    check_readable(str(data))


def test_a_folder_that_is_not_there_for_the_daemon_is_said(
    tmp_path: Path, barred: Shut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readable, "OWN_TMP", ("/nowhere",))
    assert refusal(tmp_path / "no" / "data").endswith("look at --data")
    monkeypatch.setattr(readable, "OWN_TMP", (str(tmp_path),))
    assert "a service has a /tmp of its own; move the data elsewhere" in refusal(tmp_path / "data")


async def test_create_and_join_refuse_it_before_anything_is_made(
    home: Callable[[str], Home], data: Path, barred: Shut
) -> None:
    a = home("a")
    barred(data, os.R_OK)
    with pytest.raises(DataError, match="setfacl"):
        await a.daemon.create(session(), here(data=str(data)))
    with pytest.raises(DataError, match="setfacl"):
        await a.daemon.join("home", format_key(new_key()), here(data=str(data)), lambda text: None)
    assert a.daemon.store.sessions() == []
    assert a.daemon.status(None).sessions == ()
