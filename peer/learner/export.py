"""The model as safetensors, with where it comes from: what `peerd export` writes.

    python -m peer.learner.export CHECKPOINT OUT.safetensors PROVENANCE

when no learner runs; CHECKPOINT: a file, or a session's folder (its newest whole one); PROVENANCE: what the
daemon knows of the model, as a JSON object of strings.

Exported are the tensors devices share (flat.py): load them with `load_state_dict(…, strict=False)` when the
model has frozen parameters or counters besides. The file's metadata:

    session, session_id, task, task_digest    which session; the digest is that of a task file
    algorithm, round                          how far the model is
    members                                   ids of the devices in the session then, with commas
    peerd, written                            the version, and when (UTC), where the clock was set
    digest                                    "sha256:" and the digest of all that comes after the header

What is not known is left out. The digest tells whether the numbers are the ones that were exported, not who
wrote them: nothing here is signed.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from peer.errors import DataError, PeerdError, StateError, UsageError
from peer.files import atomic_write
from peer.learner.checkpoint import Checkpoint, CheckpointFolder, read_file
from peer.learner.flat import Signature, unflatten

_LENGTH = struct.Struct("<Q")  # of the header, in a safetensors file
_ALIGNED = 8  # bytes that the tensors of a safetensors file begin at a multiple of


def exported(model: Tensor, signature: Signature, provenance: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """A safetensors file of the flat `model` in two parts: its header, with this metadata and the digest, and
    the numbers."""
    whole = memoryview(safetensors.torch.save(unflatten(model, signature)))
    [length] = _LENGTH.unpack_from(whole)
    numbers = whole[_LENGTH.size + length :]
    header = json.loads(bytes(whole[_LENGTH.size : _LENGTH.size + length]))
    header["__metadata__"] = {**provenance, "digest": f"sha256:{hashlib.sha256(numbers).hexdigest()}"}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return _LENGTH.pack(len(text)) + text, numbers


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, or the newest whole one in a folder. Raises DataError."""
    if path.is_dir():
        checkpoint, problems = CheckpointFolder(path).load()
        if checkpoint is None:
            raise DataError("; ".join([f"{path} holds no checkpoint that can be read", *problems]))
        return checkpoint
    try:
        return read_file(path)[0]
    except OSError as error:
        raise DataError(f"the checkpoint {path} cannot be read: {error.strerror}") from error


def main(arguments: list[str]) -> int:
    """Write the export; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise UsageError("expected CHECKPOINT OUT.safetensors PROVENANCE")
        source, target = Path(arguments[0]), Path(arguments[1])
        found = read_checkpoint(source)
        origin = {**json.loads(arguments[2]), "algorithm": found.algorithm, "round": str(found.round)}
        data = exported(found.model, found.signature, origin)
        try:
            atomic_write(target, data, 0o644)
        except OSError as error:
            raise StateError(f"{target} cannot be written: {error.strerror}") from error
    except PeerdError as error:
        sys.stderr.write(f"peerd export: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
