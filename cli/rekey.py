"""`peerd rekey`: a session's new key."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.join import given_key
from cli.talk import converse, open_client
from cli.text import clean

_HAND_OVER_S = 120.0  # of silence, as for `leave` (guess)


@click.command(name="rekey", short_help="A new key for a session, to keep a device out.")
@click.argument("name")
@click.option("--key", metavar="KEY", help="The new key, as the first device has shown it.")
@click.option("--key-file", metavar="F", help="A file with the new key; '-' is standard input.")
@at_place
def command(place: Place, name: str, key: str | None, key_file: str | None) -> None:
    """Give the session called NAME a new key: the way to keep a stolen device out, for who has a key is in.

    Run it on one device, which leaves the others, takes its model along and prints the new key; then with
    that key on every other one that is to stay. The checkpoints of all are kept; they train on with the
    model of the first that trains. Whoever has the old key alone stays behind, with what it has by now.
    """
    given = given_key(key, key_file) if key is not None or key_file is not None else None
    with open_client(place) as client:
        done, _ = converse(client, {"op": "rekey", "name": name, "key": given}, timeout_s=_HAND_OVER_S)
    if given is not None:
        click.echo(f"'{name}' has the new key on this device, too; 'peerd status {name}' shows who is there")
        return
    click.echo(clean(done["key"]))
    begins = (
        "goes on from its checkpoint in some ten seconds"
        if done.get("checkpoint")
        else "has no checkpoint, and begins anew"
    )
    click.echo(
        f"peerd: '{name}' has a new key. This device has left the others and {begins}. On each device that "
        f"is to stay run 'peerd rekey {name} --key-file F' with this key in F; 'peerd join {name}' takes it "
        "on a new one. Not on the device that is to be kept out: it knows the old key and the model so far",
        err=True,
    )
