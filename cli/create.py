"""`peerd create`: make a session and join it; prints the join key."""

from __future__ import annotations

import secrets
from typing import Any

import click

from cli.arguments import Place, TaskChoice, at_place, choose_task, join_options, options_from
from cli.talk import become_daemon, converse, open_client
from cli.text import clean
from peer import catalogue
from peer.config import NONCE_BYTES, Descriptor, check_name
from peer.errors import ConfigError, NoDaemonError, UsageError


@click.command(name="create", short_help="Make a session and join it.")
@click.argument("name")
@click.option(
    "--algorithm",
    metavar="A",
    default=catalogue.DEFAULT_ALGORITHM,
    show_default=True,
    help=f"One of {', '.join(catalogue.ALGORITHMS)}.",
)
@click.option(
    "--topology",
    metavar="T",
    help=f"One of {', '.join(catalogue.TOPOLOGIES)}; by default {catalogue.DEFAULT_TOPOLOGY}, or the first "
    "that the algorithm runs on.",
)
@click.option(
    "--local-steps",
    type=click.IntRange(1, 1_000_000),
    metavar="H",
    help=f"Local steps between exchanges; {catalogue.DEFAULT_LOCAL_STEPS} by default.",
)
@click.option(
    "--rounds",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="End after so many exchanges; never by default.",
)
@click.option(
    "--pace",
    type=click.Choice(catalogue.PACES),
    default=catalogue.PACES[0],
    show_default=True,
    help="Wait for neighbors each round, wait while the next round's steps go on (overlap), or never.",
)
@click.option(
    "--compression",
    metavar="C",
    default="",
    help=catalogue.COMPRESSION_HELP,
)
@click.option("--lr", type=float, metavar="L", help="Learning rate; the task's own by default.")
@click.option(
    "--batch",
    type=click.IntRange(1, 1 << 20),
    metavar="B",
    help="Examples per local step; the task's own by default.",
)
@click.option(
    "--momentum", type=click.FloatRange(0, 1, max_open=True), metavar="M", help="The task's own by default."
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=0,
    metavar="S",
    help="Of the initial model and the shards.",
)
@click.option(
    "--option",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of algorithm or task; repeatable.",
)
@join_options
@at_place
def command(place: Place, name: str, task: str | None, **arguments: Any) -> None:
    """Make a session called NAME and join it; prints the join key.

    Without a daemon, runs one in the foreground, which ends with its last session.
    """  # fmt: skip
    chosen = choose_task(task or catalogue.DEFAULT_TASK)
    options = options_from(chosen, arguments)
    request = {
        "op": "create",
        "descriptor": describe(name, chosen, arguments).to_dict(),
        "options": options.to_dict(),
    }
    try:
        client = open_client(place)
    except NoDaemonError:
        become_daemon(place, request)
    with client:
        answer, _ = converse(client, request, timeout_s=None)
    key = clean(answer["key"])
    click.echo(f"session '{name}' is made and this device is in it; on each other device:", err=True)
    click.echo(f"    peerd join {name} --key {key}")


def describe(name: str, task: TaskChoice, arguments: dict[str, Any]) -> Descriptor:
    """The session a user asks for, with what a preset stands for filled in. Raises UsageError."""
    check_name(name)
    algorithm = arguments["algorithm"]
    entry = catalogue.algorithm(algorithm)
    topology = catalogue.check_topology(arguments["topology"] or entry.topologies[0], algorithm)
    catalogue.check_pace(algorithm, arguments["pace"])
    options = catalogue.resolve_options(algorithm, task.name, arguments["pairs"])
    catalogue.check_schedule(options, arguments["rounds"])
    momentum = catalogue.momentum_of(algorithm, arguments["momentum"])
    catalogue.check_optimizer(options, momentum)
    preset = entry.presets.get(options.get("algorithm.preset", ""))
    compression = arguments["compression"] or (preset.compression if preset else "")
    catalogue.compression_of(algorithm, compression)
    usual_steps = preset.local_steps if preset else catalogue.DEFAULT_LOCAL_STEPS
    if arguments["lr"] is not None and not 0 < arguments["lr"] <= 1000:
        raise UsageError(f"--lr is above 0 and at most 1000, not {arguments['lr']:g}")
    descriptor = Descriptor(
        name=name,
        nonce=secrets.token_hex(NONCE_BYTES),
        task=task.name,
        task_digest=task.digest,
        algorithm=algorithm,
        options=options,
        local_steps=arguments["local_steps"] or usual_steps,
        compression=compression,
        topology=topology,
        momentum=momentum,
        **{key: arguments[key] for key in ("rounds", "pace", "lr", "batch", "seed")},
    )
    try:
        descriptor.check()
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return descriptor
