"""`peerd daemon`: run the daemon in the foreground."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.talk import become_daemon


@click.command(name="daemon", short_help="Run the daemon in the foreground.")
@at_place
def command(place: Place) -> None:
    """Run this user's daemon here, until Ctrl-C. It takes up the sessions it knows."""
    become_daemon(place)
