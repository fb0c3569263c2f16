"""`peerd leave`: hand over, say goodbye."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.talk import converse, open_client

_HAND_OVER_S = 120.0  # of silence: a large model to a slow neighbor (guess)


@click.command(name="leave", short_help="Hand over, say goodbye.")
@click.argument("name")
@click.option("--forget", is_flag=True, help="Delete the checkpoint and the key, too.")
@at_place
def command(place: Place, name: str, forget: bool) -> None:
    """Leave the session called NAME: its share of the model goes to a neighbor, the checkpoint stays.

    Where scripts have trained through the system's service, their checkpoints are in the folder
    .local/state/peerd/scripts of whoever ran them, and stay there with --forget, too.
    """
    with open_client(place) as client:
        converse(client, {"op": "leave", "name": name, "forget": forget}, timeout_s=_HAND_OVER_S)
    kept = "checkpoint and key are deleted" if forget else "the checkpoint is kept"
    click.echo(f"left '{name}'; {kept}")
