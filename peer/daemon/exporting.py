"""The model of a session as a file, where that takes torch: of its newest checkpoint when no learner answers
for it, or as ONNX. A process of its own makes it, since the daemon computes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peer.daemon import clocks
from peer.daemon.learner_end import printable
from peer.daemon.store import SessionFolder
from peer.daemon.supervisor import environment
from peer.errors import DataError, StateError, by_exit_code
from peer.events import PeerId
from peer.shared_buffer import SharedBuffer
from peer.version import VERSION

CONVERT_S = 80.0  # torch loads within 30 s on a Pi (guess); the command line gives up after 120 s of silence
ONNX_S = 280.0  # torch.onnx takes some 10 s on a desktop (measured), ten times that on a Pi (guess)


def provenance(folder: SessionFolder, members: Sequence[PeerId]) -> dict[str, str]:
    """What the daemon knows of a session's model (peer/learner/export.py has the names). members: who is in
    the session, [] for those who were when this device's part in it ended."""
    session = folder.descriptor
    known = {
        "session": folder.note.name,
        "members": ",".join(members or folder.members()),
        "peerd": VERSION,
        "written": clocks.written() or "",
    }
    if session is not None:
        known |= {"session_id": session.id, "task": session.task, "task_digest": session.task_digest}
    return {name: value for name, value in known.items() if value}


async def from_checkpoint(name: str, folder: Path, known: dict[str, str]) -> SharedBuffer:
    """A safetensors file of the newest whole checkpoint in `folder`; the buffer is the caller's.

    Raises DataError when there is none, StateError when there is no room for the file.
    """
    if not await asyncio.to_thread(_has_checkpoint, folder):
        raise DataError(
            f"session '{name}' has no model to export yet: nothing was trained here; try again when "
            "'peerd status' shows a round"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="peerd-export-") as made:
            target = Path(made) / "model.safetensors"
            command = ["peer.learner.export", str(folder), str(target), json.dumps(known)]
            await _run(f"the checkpoint of '{name}' cannot be exported", command, CONVERT_S)
            return await asyncio.to_thread(_into_memory, target)
    except OSError as error:
        raise _no_room(name, error) from error


async def as_onnx(name: str, folder: Path, model: SharedBuffer) -> SharedBuffer:
    """An ONNX file of what a safetensors file holds; the buffer is the caller's. Raises UsageError when onnx
    is not installed, DataError when the model cannot be written so, StateError when there is no room."""
    try:
        with tempfile.TemporaryDirectory(prefix="peerd-export-") as made:
            source, target = Path(made) / "model.safetensors", Path(made) / "model.onnx"
            await asyncio.to_thread(source.write_bytes, model.view())
            command = ["peer.learner.onnx_export", str(source), str(target), str(folder)]
            await _run(f"the model of '{name}' cannot be exported as ONNX", command, ONNX_S)
            return await asyncio.to_thread(_into_memory, target)
    except OSError as error:
        raise _no_room(name, error) from error


def _no_room(name: str, error: OSError) -> StateError:
    return StateError(
        f"the model of '{name}' cannot be written in {tempfile.gettempdir()}: {error.strerror}; free some "
        "space there, or name another folder with TMPDIR"
    )


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("ckpt-*"))


async def _run(what: str, command: Sequence[str], limit_s: float) -> None:
    """`python -m COMMAND` to its end. Raises the error that it ends with, which begins with `what`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(os.environ, 1),
        cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(limit_s):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise DataError(f"{what}: it took more than {limit_s:.0f} s; try again") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        why = printable(lines[-1]).removeprefix("peerd export: ")
        raise by_exit_code(process.returncode, f"{what}: {why}")


def _into_memory(path: Path) -> SharedBuffer:
    with path.open("rb") as file:
        buffer = SharedBuffer.create(path.stat().st_size)
        try:
            file.readinto(buffer.view())
        except BaseException:
            buffer.close()
            raise
    return buffer
