"""`peerd key`: show the join key again."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.talk import ask
from cli.text import clean


@click.command(name="key", short_help="Show the join key again.")
@click.argument("name")
@at_place
def command(place: Place, name: str) -> None:
    """Show the join key of the session called NAME. Who has it can join."""
    click.echo(clean(ask(place, {"op": "key", "name": name})["key"]))
