from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from peer import places
from peer.errors import ConfigError


def test_a_services_folder_that_may_not_be_looked_into_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "peerd" / "peerd.sock"

    def barred(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(places, "SYSTEM_SOCKET", system)
    monkeypatch.setattr(places, "_service_uid", lambda: None)
    monkeypatch.setattr(Path, "stat", barred)  # root, who may run this, may look anywhere
    monkeypatch.setattr(Path, "exists", barred)
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    assert places.default_socket(None, {"XDG_RUNTIME_DIR": "/run/user/1"}) == Path(
        "/run/user/1/peerd/peerd.sock"
    )


@pytest.mark.parametrize("place", [places.own_socket, places.default_socket, places.state_folder])
@pytest.mark.parametrize("env", [{}, {"PEERD_SOCKET": "~nosuch/s", "PEERD_STATE": "~nosuch/s"}])
def test_a_home_that_is_nobodys_is_said(
    place: Callable[[str | None, Mapping[str, str]], Path], env: dict[str, str]
) -> None:
    flag = None if env else "~nosuch/s"
    with pytest.raises(ConfigError, match="is '~nosuch/s', and no home folder is known for '~nosuch'"):
        place(flag, env)


def test_a_services_folder_without_its_socket_bars_everybody_but_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts, commands and the doctor ask this one function."""
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "service" / "peerd.sock")
    assert not places.is_barred(None, {}), "no service"
    (tmp_path / "service").mkdir()
    assert not places.is_barred(None, {}), "it is this user's own to make"
    own = places.os.getuid()
    monkeypatch.setattr(places.os, "getuid", lambda: own + 1)
    assert places.is_barred(None, {})
    assert "it may be restarting" in places.why_barred()
    for flag, env, state in (("s", {}, None), (None, {}, "s"), (None, {"PEERD_STATE": "s"}, None)):
        assert not places.is_barred(flag, env, state), "the user has named another"
    places.SYSTEM_SOCKET.touch()
    assert not places.is_barred(None, {})


@pytest.mark.parametrize(
    ("inside", "members", "advice"),
    [
        (False, [], "'sudo usermod -aG peerd bob'"),
        (False, ["bob"], "log in again"),
        (True, [], "systemctl restart"),
    ],
)
def test_how_to_be_let_in_depends_on_the_group_of_this_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool, members: list[str], advice: str
) -> None:
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "peerd.sock")
    places.SYSTEM_SOCKET.touch()
    monkeypatch.setattr(places, "_user_name", lambda uid: "'bob'")
    monkeypatch.setattr(places.os, "getgroups", lambda: [54321] if inside else [])
    group = SimpleNamespace(gr_gid=54321, gr_mem=members)
    monkeypatch.setattr(places.grp, "getgrnam", lambda name: group)
    assert advice in places.why_barred()
    assert ("usermod" in places.why_barred()) == ("usermod" in advice)
