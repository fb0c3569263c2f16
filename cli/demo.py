"""`peerd demo`: becomes `python -m peer.demo`, which may load torch."""

from __future__ import annotations

import os
import sys

import click


@click.command(name="demo", short_help="Several devices on this machine.")
@click.option(
    "--devices",
    type=click.IntRange(2, 32),
    default=6,
    show_default=True,
    metavar="N",
    help="How many, 2 to 32, one speaker's voice each.",
)
@click.option(
    "--steps",
    type=click.IntRange(16),
    default=2400,
    show_default=True,
    metavar="STEPS",
    help="Local steps of each device.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the figures for programs.")
@click.option(
    "--picture", metavar="FILE.png", default="peerd-demo.png", show_default=True, help="Learning curves."
)
@click.option("--keep", is_flag=True, help="Keep the devices' folders and logs.")
def command(devices: int, steps: int, json_file: str | None, picture: str, keep: bool) -> None:
    """Several devices on this machine learn spoken digits, each alone and then together.

    Each device is a daemon of its own with one speaker's voice; they find each other by mDNS and speak
    gRPC over mutual TLS, as on a real network. Ends with a table and a picture of the learning curves.
    """  # fmt: skip
    arguments = ["--devices", str(devices), "--steps", str(steps), "--picture", picture]
    arguments += ["--json", json_file] if json_file is not None else []
    arguments += ["--keep"] if keep else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "peer.demo", *arguments])
