"""`peerd block`: have nothing to do with a device."""

from __future__ import annotations

import json

import click

from cli.arguments import Place, at_place
from cli.talk import Frame, ask
from cli.text import clean
from cli.view import columns
from peer.errors import UsageError


@click.command(name="block", short_help="Have nothing to do with a device.")
@click.argument("peer", required=False)
@click.option("--list", "listed", is_flag=True, help="Show who is blocked.")
@click.option("--json", "as_json", is_flag=True, help="With --list: for programs.")
@at_place
def command(place: Place, peer: str | None, listed: bool, as_json: bool) -> None:
    """Cut the device PEER off from this one, at once and over restarts: it is not dialed, not let in and
    given no model. PEER is its name or the beginning of its id, as 'peerd status' shows them.

    This concerns this device alone: the others go on training with it. What was on its way there when it was
    blocked may be lost. Where all members agree on one graph (relay-sum, d-psgd and others) it stays on it:
    rounds do not wait for it, a spanning tree goes around the pair, and another graph lacks their link as
    long as the block lasts. 'peerd rekey NAME' keeps a device out of a session for everybody.
    """
    if listed:
        if peer is not None:
            raise UsageError("--list shows all who are blocked; leave PEER out")
        _show(ask(place, {"op": "blocked"}), as_json)
        return
    if peer is None or as_json:
        raise UsageError("name the device to block, or give --list" + (" with --json" if as_json else ""))
    done = ask(place, {"op": "block", "peer": peer})
    click.echo(f"blocked {named(done)}; 'peerd unblock {clean(done['peer'])}' lets it in again")


def _show(answer: Frame, as_json: bool) -> None:
    rows = answer["blocked"]
    if as_json:
        click.echo(json.dumps({"blocked": rows}))
    elif not rows:
        click.echo("nobody is blocked")
    else:
        for line in columns([(clean(row["device"] or "–"), clean(row["peer"])) for row in rows]):
            click.echo(line)


def named(answer: Frame) -> str:
    """The device that an answer is about."""
    device = clean(answer.get("device") or "")
    return f"{device} ({clean(answer['peer'])})" if device else clean(answer["peer"])
