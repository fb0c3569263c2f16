"""`peerd sessions`: known to this device, and seen on the network."""

from __future__ import annotations

import json

import click

from cli.arguments import Place, at_place
from cli.talk import ask
from cli.text import UNKNOWN, clean
from cli.view import columns


@click.command(name="sessions", short_help="Sessions known or seen.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@at_place
def command(place: Place, as_json: bool) -> None:
    """Sessions this device knows, and those it sees on the network.

    A session seen and not known has no name here: names travel only between members.
    """
    sessions = ask(place, {"op": "sessions"})["sessions"]
    if as_json:
        click.echo(json.dumps({"sessions": sessions}))
        return
    if not sessions:
        click.echo("no sessions; 'peerd create NAME' makes one, 'peerd join NAME' joins one")
        return
    rows = [
        (
            clean(session.get("name") or UNKNOWN),
            clean(session.get("id") or UNKNOWN)[:12],
            clean(session.get("state") or UNKNOWN),
            clean(UNKNOWN if session.get("members") is None else session["members"]),
            "known here" if session.get("known") else "needs its key",
            "seen" if session.get("seen") else "not seen",
        )
        for session in sessions
    ]
    for line in columns([("name", "id", "state", "members", "key", "network"), *rows]):
        click.echo(line)
