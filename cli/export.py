"""`peerd export`: write the model as safetensors. The file is whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click

from cli.arguments import Place, at_place
from cli.talk import converse, open_client
from cli.text import size
from peer.errors import PeerdError, StateError

_MODEL_S = 120.0  # of silence: the learner answers after its local step (guess)


@click.command(name="export", short_help="Write the model as safetensors.")
@click.argument("name")
@click.option(
    "-o", "--output", required=True, metavar="FILE.safetensors", help="Where to; replaced if it is there."
)
@at_place
def command(place: Place, name: str, output: str) -> None:
    """Write the model of the session called NAME, at any time."""
    with open_client(place) as client:
        _, fd = converse(client, {"op": "export", "name": name}, timeout_s=_MODEL_S)
    if fd is None:
        raise PeerdError("the daemon answered without a model; see 'peerd logs'")
    click.echo(f"wrote {output}, {size(write_whole(fd, Path(output)))}")


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
