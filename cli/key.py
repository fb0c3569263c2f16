"""`peerd key`: show the join key again."""

from __future__ import annotations

import importlib
import sys

import click

from cli.arguments import Place, at_place
from cli.talk import ask
from cli.text import clean
from peer.errors import ConfigError


@click.command(name="key", short_help="Show the join key again.")
@click.argument("name")
@click.option("--qr", is_flag=True, help="Show it as a QR code, too: whoever sees it may join.")
@at_place
def command(place: Place, name: str, qr: bool) -> None:
    """Show the join key of the session called NAME. Who has it can join."""
    key = clean(ask(place, {"op": "key", "name": name})["key"])
    click.echo(key)
    if qr:
        _draw(key)
        click.echo("peerd: whoever sees this code may join; clear the screen when it is read", err=True)


def _draw(key: str) -> None:
    """In capitals, which keys may have, a QR code holds it in fewer modules. Raises ConfigError."""
    try:
        segno = importlib.import_module("segno")
    except ModuleNotFoundError as error:
        raise ConfigError(f"drawing it takes the Python package {error.name}: 'pip install segno'") from error
    segno.make(key.upper(), error="m", micro=False).terminal(out=sys.stdout, compact=True)
