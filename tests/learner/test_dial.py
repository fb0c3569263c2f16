"""Where a learner keeps its checkpoints: with the daemon, unless that is a service whose folder is shut."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peer.config import NONCE_BYTES, Descriptor, JoinOptions
from peer.errors import StateError
from peer.learner.dial import attachment, folder_for_checkpoints


def test_the_daemons_folder_is_used_where_it_may_be_entered(tmp_path: Path) -> None:
    assert folder_for_checkpoints(tmp_path, "id", {"PEERD_STATE": "/nowhere"}) == tmp_path


def test_a_script_keeps_its_own_beside_a_service_whose_folder_is_shut_across_a_new_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may enter any
    monkeypatch.setenv("PEERD_STATE", str(tmp_path))
    session = Descriptor("home", "00" * NONCE_BYTES)
    first, second = (
        attachment(None, {  # type: ignore[arg-type]
            "life": 1, "descriptor": session.to_dict(), "options": JoinOptions().to_dict(),
            "folder": f"/var/lib/peerd/{of_a_key}"
        })
        for of_a_key in ("0123", "4567")
    )  # fmt: skip
    assert first.folder == second.folder == tmp_path / "scripts" / session.id
    assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700


def test_a_state_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot write"):
        folder_for_checkpoints(Path("/s/0123"), "id", {"PEERD_STATE": str(tmp_path / "file")})
