from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

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
