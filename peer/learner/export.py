"""The model as safetensors: what `peerd export` writes.

    python -m peer.learner.export CHECKPOINT OUT.safetensors      when no learner runs; CHECKPOINT: a file,
    or a
                                                                 session's folder (its newest whole one)

Exported are the tensors devices share (flat.py): load them with `load_state_dict(…, strict=False)` when the
model has frozen parameters or counters besides.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
from torch import Tensor

from peer.errors import DataError, PeerdError, StateError, UsageError
from peer.files import atomic_write
from peer.learner.checkpoint import Checkpoint, CheckpointFolder, unpack
from peer.learner.flat import Signature, unflatten


def exported(model: Tensor, signature: Signature, session: str, round_: int, algorithm: str) -> bytes:
    """A safetensors file of the flat `model`, with metadata session, round and algorithm."""
    metadata = {"session": session, "round": str(round_), "algorithm": algorithm}
    data: bytes = safetensors.torch.save(unflatten(model, signature), metadata=metadata)
    return data


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, or the newest whole one in a folder. Raises DataError."""
    if path.is_dir():
        checkpoint, problems = CheckpointFolder(path).load()
        if checkpoint is None:
            raise DataError("; ".join([f"{path} holds no checkpoint that can be read", *problems]))
        return checkpoint
    try:
        return unpack(path.read_bytes(), str(path))[0]
    except OSError as error:
        raise DataError(f"the checkpoint {path} cannot be read: {error.strerror}") from error


def main(arguments: list[str]) -> int:
    """Write the export; returns the exit code."""
    try:
        if len(arguments) != 3:
            raise UsageError("expected CHECKPOINT OUT.safetensors SESSION")
        source, target, session = Path(arguments[0]), Path(arguments[1]), arguments[2]
        found = read_checkpoint(source)
        data = exported(found.model, found.signature, session, found.round, found.algorithm)
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
