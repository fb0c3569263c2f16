"""`peerd status`: for people, for programs (--json), and as it changes (--watch)."""

from __future__ import annotations

import json
import select
import signal
import sys
from typing import Any

import click

from cli.arguments import Place, at_place
from cli.talk import converse, open_client
from cli.view import plain, rich_view
from peer.local import Client
from peer.status import DeviceStatus

WATCH_S = 1.0


@click.command(name="status", short_help="Who trains, and how well.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch, one line a second.")
@click.option("--watch", is_flag=True, help="Refresh in place every second, until Ctrl-C.")
@at_place
def command(place: Place, name: str | None, as_json: bool, watch: bool) -> None:
    """Who trains, how well, and how many bytes it takes: all sessions, or the one called NAME."""
    with open_client(place) as client:
        if watch and not as_json and sys.stdout.isatty():
            _watch(client, name)
        while True:
            status = _status(client, name)
            click.echo(json.dumps(status) if as_json else _for_people(status), color=True)
            if not watch:
                return
            if not as_json:
                click.echo()  # between two pictures in a file or a pipe
            _pause()


def _status(client: Client, name: str | None) -> dict[str, Any]:
    status: dict[str, Any] = converse(client, {"op": "status", "name": name})[0]["status"]
    return status


def _for_people(status: dict[str, Any]) -> str:
    record = DeviceStatus.from_dict(status)
    if not sys.stdout.isatty():
        return plain(record)
    from rich.console import Console  # honors NO_COLOR

    console = Console()
    with console.capture() as capture:
        console.print(rich_view(record, console.width))
    return capture.get().rstrip("\n")


def _watch(client: Client, name: str | None) -> None:
    """Refresh in place until interrupted, or until the daemon goes. What was on the terminal is there again
    then, however this ends."""
    from rich.live import Live

    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    with Live(auto_refresh=False, screen=True) as live:
        while True:
            record = DeviceStatus.from_dict(_status(client, name))
            live.update(rich_view(record, live.console.width), refresh=True)
            _pause()


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _pause() -> None:
    select.select([], [], [], WATCH_S)
