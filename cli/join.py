"""`peerd join`: find a session's members, take part, return at the first link."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from cli.arguments import Place, TaskChoice, at_place, choose_task, join_options, options_from
from cli.talk import Frame, ask, become_daemon, converse, open_client, show_progress
from cli.text import clean, span
from peer import catalogue
from peer.config import JoinOptions, check_name
from peer.errors import NobodyFoundError, NoDaemonError, UnknownSessionError, UsageError
from peer.keys import format_key, parse_key
from peer.local import Client

_FIRST_WORD_S = 60.0  # on top of --timeout, for a learner of an earlier join to end (guess)


@click.command(name="join", short_help="Join a session on this network.")
@click.argument("name")
@click.option(
    "--key", metavar="KEY", help="The join key; PEERD_KEY, --key-file or a prompt keep it out of 'ps'."
)
@click.option("--key-file", metavar="F", help="A file with the join key; '-' is standard input.")
@join_options
@at_place
def command(
    place: Place, name: str, key: str | None, key_file: str | None, task: str | None, **arguments: Any
) -> None:
    """Join the session called NAME; returns at the first link, or when --timeout is over.

    The session stays and goes on looking after that. No key is needed for a session this device knows
    already. Without a daemon, runs one in the foreground, which ends with its last session.
    """
    check_name(name)
    chosen = choose_task(task) if task is not None else None
    options = options_from(chosen, arguments)
    given = given_key(key, key_file)
    try:
        client = open_client(place)
    except NoDaemonError:
        if given is None and at_a_terminal():
            given = prompt_key(optional=True)
        become_daemon(place, join_request(name, given, options))
    with client:
        answer = _join(client, name, given, options)
    if chosen is not None:
        _compare_task(place, name, chosen)
    if answer.get("waiting"):
        raise nobody_found(name, options)
    first = answer.get("first_link_s")
    after = f" after {span(first)}" if isinstance(first, (int, float)) else ""
    if answer.get("paused"):
        click.echo(f"joined '{clean(answer.get('name', name))}', and paused: {clean(answer['paused'])}")
        return
    click.echo(f"joined '{clean(answer.get('name', name))}', first link{after}")


def nobody_found(name: str, options: JoinOptions) -> NobodyFoundError:
    asked = f", nor at {', '.join(options.peers)}" if options.peers else ""
    return NobodyFoundError(
        f"no member of '{name}' was found here in {span(options.timeout_s)}{asked}; the session stays "
        "and looks on, as 'peerd status' shows; a member elsewhere is named with --peer HOST:PORT"
    )


def at_a_terminal() -> bool:
    """Is there a person to ask?"""
    return sys.stdin.isatty()


def join_request(name: str, key: str | None, options: JoinOptions) -> Frame:
    return {"op": "join", "name": name, "key": key, "options": options.to_dict()}


def given_key(key: str | None, key_file: str | None) -> str | None:
    """The key from flag, environment or file, checked and in its usual form. Raises UsageError."""
    if key is not None and key_file is not None:
        raise UsageError("--key and --key-file are given both; one of them, please")
    text = key
    if key_file is not None:
        try:
            text = sys.stdin.read() if key_file == "-" else Path(key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the key file {key_file} cannot be read: {error}") from error
    elif key is None:
        text = os.environ.get("PEERD_KEY")
    return format_key(parse_key(text)) if text is not None else None


def prompt_key(optional: bool) -> str | None:
    """Ask for the key without showing it; None for an empty answer if `optional`. Raises UsageError."""
    hint = " (empty if this device knows the session)" if optional else ""
    default = "" if optional else None
    text = click.prompt(f"Join key{hint}", hide_input=True, default=default, show_default=False, err=True)
    return format_key(parse_key(text)) if text.strip() else None


def _join(client: Client, name: str, key: str | None, options: JoinOptions) -> Frame:
    """Ask to join; if this device does not know the session, ask the user for the key and once more."""
    patience = options.timeout_s + _FIRST_WORD_S
    try:
        return converse(client, join_request(name, key, options), show_progress, patience)[0]
    except UnknownSessionError as error:
        if key is not None:
            raise
        if not at_a_terminal():
            raise UnknownSessionError(
                f"this device does not know '{name}' yet; give its key with --key-file or PEERD_KEY, "
                "'peerd key' on a member shows it"
            ) from error
    request = join_request(name, prompt_key(optional=False), options)
    return converse(client, request, show_progress, patience)[0]


def _compare_task(place: Place, name: str, chosen: TaskChoice) -> None:
    """Say so if the session's task is another than the one the user named."""
    sessions = ask(place, {"op": "status", "name": name})["status"].get("sessions") or [{}]
    task = sessions[0].get("task")
    if task is not None and chosen.name != task and (chosen.name != "file" or task in catalogue.TASKS):
        click.echo(
            f"peerd: the task of '{name}' is '{clean(task)}', as the session says, not '{chosen.name}'",
            err=True,
        )
