"""`peerd rehearse`: becomes `python -m peer.rehearsal`, which may load torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from cli.arguments import check_data, choose_task
from cli.create import describe
from peer import catalogue
from peer.config import MAX_MEMBERS
from peer.errors import UsageError

WARMUP = 20  # steps; all runs of the comparisons on Fashion-MNIST were made so
LATENCY = "2ms..10ms"  # a home's Wi-Fi on a good day (guess)
_WORDS = ("latency", "bandwidth", "loss", "churn", "slow", "partition")
_TRAINING = ("schedule", "warmup", "lr_decay")


@click.command(name="rehearse", short_help="Many devices in virtual time, on this one.")
@click.option(
    "--task",
    metavar="TASK",
    default=catalogue.DEFAULT_TASK,
    show_default=True,
    help="A built-in task, or a Python file.",
)
@click.option(
    "--algorithm",
    metavar="A",
    default=catalogue.DEFAULT_ALGORITHM,
    show_default=True,
    help=f"One of {', '.join(catalogue.ALGORITHMS)}.",
)
@click.option(
    "--topology",
    metavar="G",
    help=f"One of {', '.join(catalogue.TOPOLOGIES)}; {catalogue.DEFAULT_TOPOLOGY} by default, or the first "
    "that the algorithm runs on.",
)
@click.option(
    "--peers",
    type=click.IntRange(2, MAX_MEMBERS),
    default=8,
    show_default=True,
    metavar="N",
    help="How many devices.",
)
@click.option("--rounds", type=click.IntRange(1, 1 << 30), metavar="R", help="How many exchanges.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1 << 30),
    metavar="S",
    help="Instead: SGD steps of each peer, rounded up to whole rounds.",
)
@click.option(
    "--local-steps",
    type=click.IntRange(1, 1_000_000),
    metavar="H",
    help=f"SGD steps in a round; {catalogue.DEFAULT_LOCAL_STEPS} by default.",
)
@click.option(
    "--pace",
    type=click.Choice(("lockstep", "overlap")),
    default="lockstep",
    show_default=True,
    help="Wait for a round's exchange, or take the next round's steps meanwhile.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1 << 20),
    metavar="B",
    help="Examples per step; the task's own by default.",
)
@click.option("--lr", type=float, metavar="L", help="Learning rate; the task's own by default.")
@click.option(
    "--momentum", type=click.FloatRange(0, 1, max_open=True), metavar="M", help="The task's own by default."
)
@click.option(
    "--schedule",
    type=click.Choice(catalogue.TRAINING_OPTIONS["schedule"].choices),
    help="Of the learning rate; constant by default.",
)
@click.option("--warmup", metavar="STEPS", help=f"Steps of rising learning rate; {WARMUP} by default.")
@click.option(
    "--lr-decay",
    metavar="PART:FACTOR,…",
    help=f"Of --schedule step; {catalogue.TRAINING_OPTIONS['lr-decay'].default} by default.",
)
@click.option(
    "--compression",
    metavar="C",
    default="",
    help=catalogue.COMPRESSION_HELP,
)
@click.option(
    "--split",
    metavar="SPLIT",
    default="iid",
    show_default=True,
    help="Of the data: iid, dirichlet=ALPHA or natural.",
)
@click.option(
    "--option",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of algorithm or task; repeatable.",
)
@click.option(
    "--latency", metavar="TIME..TIME", default=LATENCY, show_default=True, help="Of a message, each way."
)
@click.option("--bandwidth", metavar="RATE", help="Of each device's link: 20mbit; unlimited by default.")
@click.option("--loss", metavar="SHARE", help="Of messages: 5%; none by default.")
@click.option(
    "--churn",
    metavar="SHARE/ROUNDS",
    help="20%/100: so many peers go in every so many rounds, and come back.",
)
@click.option("--slow", metavar="N:FACTORx", help="2:3x: two peers take three times as long for their steps.")
@click.option(
    "--partition",
    metavar="FROM-TO:half",
    help="100-200:half: between these rounds one half does not hear the other.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, (1 << 63) - 1),
    default=0,
    show_default=True,
    metavar="S",
    help="Of everything random.",
)
@click.option(
    "--final-rounds",
    is_flag=True,
    help="End as a session with an end does, with some rounds of averaging alone.",
)
@click.option("--data", metavar="PATH", help="Folder with the task's data; a text for characters.")
@click.option(
    "--json", "json_file", metavar="FILE", help="Write the figures for programs; - is standard output."
)
@click.option("--plot", metavar="FILE.png", help="Draw the learning curve.")
def command(**arguments: Any) -> None:
    """Many devices in virtual time: the daemon's own code, by seed.

    Tries an algorithm, a topology or a bad network before any device does. All peers begin at once with the
    same model; each takes its local steps on its own part of the data. Local steps take 50 ms each of virtual
    time.
    """  # fmt: skip
    request = request_of(arguments)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "peer.rehearsal", json.dumps(request)])


def request_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """What peer/rehearsal/plan.py reads. Raises UsageError, DataError."""
    if (arguments["rounds"] is None) == (arguments["steps"] is None):
        raise UsageError("how long? give --rounds or --steps, one of them")
    task = choose_task(arguments["task"])
    if task.name == catalogue.SCRIPT:
        raise UsageError("--task script leaves training to scripts, and nothing to rehearse; name another")
    terms = {
        **{name: arguments[name] for name in ("algorithm", "topology", "local_steps", "compression")},
        **{name: arguments[name] for name in ("pace", "lr", "batch", "momentum", "seed")},
        "pairs": _pairs(arguments),
        "rounds": arguments["rounds"] or arguments["steps"],
    }
    session = describe("rehearsal", task, terms).to_dict()
    if arguments["steps"] is not None:
        session["rounds"] = -(-arguments["steps"] // session["local_steps"])
    if arguments["data"] is not None:
        check_data(arguments["data"])
    return {
        "session": session,
        "task_file": str(Path(arguments["task"]).absolute()) if task.name == "file" else None,
        "data": arguments["data"],
        "json": arguments["json_file"],
        **{name: arguments[name] for name in ("peers", "split", "plot", "final_rounds")},
        "words": {name: arguments[name] for name in _WORDS},
    }


def _pairs(arguments: dict[str, Any]) -> list[str]:
    """The learning rate's options are flags here; what is not given has defaults of its own."""
    given = {name.replace("_", "-"): arguments[name] for name in _TRAINING if arguments[name] is not None}
    pairs = [*arguments["pairs"], *(f"{key}={value}" for key, value in given.items())]
    named = {pair.partition("=")[0] for pair in pairs}
    defaults = {"schedule": "constant", "warmup": str(WARMUP)}
    return [*pairs, *(f"{key}={value}" for key, value in defaults.items() if key not in named)]
