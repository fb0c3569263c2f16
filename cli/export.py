"""`peerd export`: write the model as safetensors or ONNX. The file is whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click

from cli.arguments import Place, at_place
from cli.talk import converse, open_client
from cli.text import size
from peer.errors import PeerdError, StateError, UsageError

_MODEL_S = 120.0  # of silence: the learner answers after its local step (guess)
_ONNX_S = 300.0  # on top: torch.onnx takes its time on a Pi (peer/daemon/exporting.py)


@click.command(name="export", short_help="Write the model as safetensors or ONNX.")
@click.argument("name")
@click.option("-o", "--output", metavar="FILE", help="Where to; ONNX if its name ends in .onnx.")
@click.option("--onnx", metavar="FILE.onnx", help="Write ONNX, for which onnx and onnxscript are needed.")
@at_place
def command(place: Place, name: str, output: str | None, onnx: str | None) -> None:
    """Write the model of the session called NAME, at any time, as safetensors, ONNX or both.

    A file that is there is replaced. Session, round, members, algorithm and a digest are in its metadata.
    What a script trains through the system's service can be written while it runs: its checkpoints are in
    the folder .local/state/peerd/scripts of whoever ran it, out of the service's sight.
    """
    if output is None and onnx is None:
        raise UsageError("name the file to write with -o FILE.safetensors, or with --onnx FILE.onnx")
    wanted = [(path, path == onnx or path.endswith(".onnx")) for path in (output, onnx) if path is not None]
    for path, as_onnx in dict.fromkeys(wanted):
        with open_client(place) as client:
            request = {"op": "export", "name": name, "onnx": as_onnx}
            patience = _MODEL_S + (_ONNX_S if as_onnx else 0)
            answer, fd = converse(client, request, timeout_s=patience)
        if fd is None:
            raise PeerdError("the daemon answered without a model; see 'peerd logs'")
        if as_onnx and answer.get("format") != "onnx":
            os.close(fd)
            raise PeerdError("the daemon is older and writes no ONNX; stop it, then run 'peerd daemon'")
        click.echo(f"wrote {path}, {size(write_whole(fd, Path(path)))}")


def write_whole(fd: int, path: Path) -> int:
    """Copy what `fd` holds into a new file at `path` and close it; its size. Raises StateError."""
    temporary: Path | None = None
    try:
        with os.fdopen(fd, "rb") as source:
            source.seek(0)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as target:
                temporary = Path(target.name)
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fchmod(target.fileno(), 0o666 & ~_umask())
                os.fsync(target.fileno())
                length = target.tell()
        temporary.replace(path)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}; name another file with -o") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return length


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
