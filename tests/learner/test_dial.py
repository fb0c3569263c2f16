"""Where a learner keeps its checkpoints: with the daemon, unless that is a service whose folder is shut."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peer.errors import StateError
from peer.learner.dial import folder_for_checkpoints


def test_the_daemons_folder_is_used_where_it_may_be_entered(tmp_path: Path) -> None:
    assert folder_for_checkpoints(tmp_path, {"PEERD_STATE": "/nowhere"}) == tmp_path


def test_a_script_keeps_its_own_beside_a_service_whose_folder_is_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may enter any
    daemons = Path("/var/lib/peerd/sessions/0123")
    own = folder_for_checkpoints(daemons, {"XDG_STATE_HOME": str(tmp_path)})
    assert own == tmp_path / "peerd" / "scripts" / "0123"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert folder_for_checkpoints(daemons, {"XDG_STATE_HOME": str(tmp_path)}) == own


def test_a_state_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot write"):
        folder_for_checkpoints(Path("/s/0123"), {"PEERD_STATE": str(tmp_path / "file")})
