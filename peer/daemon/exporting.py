"""The model of a session that no learner answers for: its newest checkpoint, made into safetensors by a
process of its own, since the daemon computes nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from peer.daemon.learner_end import printable
from peer.daemon.supervisor import environment
from peer.errors import DataError, StateError, by_exit_code
from peer.shared_buffer import SharedBuffer

CONVERT_S = 80.0  # torch loads within 30 s on a Pi (guess); the command line gives up after 120 s of silence


async def from_checkpoint(name: str, folder: Path) -> SharedBuffer:
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
            await _convert(name, folder, target)
            return await asyncio.to_thread(_into_memory, target)
    except OSError as error:
        raise StateError(
            f"the model of '{name}' cannot be written in {tempfile.gettempdir()}: {error.strerror}; free "
            "some space there, or name another folder with TMPDIR"
        ) from error


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("ckpt-*"))


async def _convert(name: str, folder: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "peer.learner.export", str(folder), str(target), name,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(os.environ, 1),
        cwd="/",
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(CONVERT_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise DataError(
            f"the checkpoint of '{name}' was not written as safetensors within {CONVERT_S:.0f} s; try again"
        ) from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        text = f"the checkpoint of '{name}' cannot be exported: {printable(lines[-1])}"
        raise by_exit_code(process.returncode, text)


def _into_memory(path: Path) -> SharedBuffer:
    with path.open("rb") as file:
        buffer = SharedBuffer.create(path.stat().st_size)
        try:
            file.readinto(buffer.view())
        except BaseException:
            buffer.close()
            raise
    return buffer
