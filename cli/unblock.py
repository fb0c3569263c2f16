"""`peerd unblock`: let a blocked device in again."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.block import named
from cli.talk import ask


@click.command(name="unblock", short_help="Let a blocked device in again.")
@click.argument("peer")
@at_place
def command(place: Place, peer: str) -> None:
    """Let the blocked device PEER in again: its name or the beginning of its id, as 'peerd block --list'
    shows them."""
    done = ask(place, {"op": "unblock", "peer": peer})
    click.echo(f"{named(done)} is not blocked any more")
