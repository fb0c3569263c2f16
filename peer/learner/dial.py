"""The learner's first words to its daemon: which session it takes part in, and what that session is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.config import Descriptor, JoinOptions
from peer.errors import NoDaemonError, PeerdError
from peer.files import cannot_write
from peer.local import Client, connect, state_folder

ANSWER_S = 60.0  # for the learner whose place this one takes to hand its mass over and end (guess)


@dataclass(frozen=True)
class Attachment:
    """What the daemon answered to `attach`. folder: this session's state on this device, or what a script
    keeps that may not look at that. owned: a script has started the daemon, and so may another once it is
    gone."""

    client: Client
    life: int
    descriptor: Descriptor
    options: JoinOptions
    folder: Path
    task_file: Path | None
    owned: bool = False


def dial(socket: Path, session: str, *, child: bool) -> Attachment:
    """Attach to a session of the daemon on `socket`. Raises NoDaemonError, UnknownSessionError,
    ConfigError."""
    client = connect(socket, role="learner")
    try:
        asked = {"op": "attach", "session": session, "child": child, "pid": os.getpid()}
        try:
            answer, _ = client.ask(asked, ANSWER_S)
        except TimeoutError as error:
            raise NoDaemonError(
                f"the daemon on {socket} did not attach session '{session}': {error}"
            ) from error
        return attachment(client, answer)
    except BaseException:
        client.close()
        raise


def folder_for_checkpoints(daemons: Path, session_id: str, env: Mapping[str, str]) -> Path:
    """The daemon's own folder of the session; one in this user's state folder where that is shut, as the
    service's is to those of its group. That one goes by the session's id, which a new key does not change.
    Raises StateError."""
    if os.access(daemons, os.X_OK):
        return daemons
    own = state_folder(None, env) / "scripts" / session_id
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(own, error) from error
    return own


def attachment(client: Client, frame: dict[str, Any]) -> Attachment:
    """The "attached" frame, checked. Raises PeerdError."""
    try:
        task_file = frame.get("task_file")
        descriptor = Descriptor.from_dict(frame["descriptor"])
        return Attachment(
            client,
            int(frame["life"]),
            descriptor,
            JoinOptions.from_dict(frame["options"]),
            folder_for_checkpoints(Path(frame["folder"]), descriptor.id, os.environ),
            Path(task_file) if task_file else None,
            frame.get("owned") is True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PeerdError(
            f"the daemon's answer to 'attach' lacks something ({error!r}); restart it"
        ) from error
