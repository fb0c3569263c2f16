"""`peerd daemon`: run the daemon in the foreground."""

from __future__ import annotations

import click

from cli.arguments import Place, at_place
from cli.talk import become_daemon


@click.command(name="daemon", short_help="Run the daemon in the foreground.")
@click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Serve Prometheus at http://HOST:PORT/metrics, 127.0.0.1 unless a HOST is named; nowhere by "
    "default. Also PEERD_METRICS. A port that is taken is said in 'peerd status', and tried again.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Of what goes to standard error: lines, or one JSON object each. Also PEERD_LOG_FORMAT. By default "
    "text, and entries with fields where systemd's journal takes it.",
)
@at_place
def command(place: Place, metrics: str | None, log_format: str | None) -> None:
    """Run this user's daemon here, until Ctrl-C. It takes up the sessions it knows."""
    options = {"--metrics": metrics, "--log-format": log_format}
    become_daemon(place, options=[f"{name}={value}" for name, value in options.items() if value is not None])
