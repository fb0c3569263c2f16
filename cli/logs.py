"""`peerd logs`: what the daemon or a session has to say."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.talk import ANSWER_S, converse, open_client
from cli.text import clean


@click.command(name="logs", short_help="What the daemon or a session says.")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@at_place
def command(place: Place, name: str | None, follow: bool) -> None:
    """The newest lines of the daemon, or of the session called NAME."""
    request = {"op": "logs", "name": name, "follow": follow}
    with open_client(place) as client:
        converse(client, request, lambda line: click.echo(clean(line)), None if follow else ANSWER_S)
