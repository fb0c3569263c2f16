"""`python -m peer.rehearsal REQUEST`, which `peerd rehearse` becomes. REQUEST is JSON, made by
cli/rehearse.py and read by plan.py. What is mistyped is said before torch is loaded."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from peer.errors import PeerdError
from peer.rehearsal import plot
from peer.rehearsal.plan import Plan
from peer.rehearsal.progress import Progress

if TYPE_CHECKING:
    from peer.rehearsal.play import Play

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Rehearse, and return the exit code."""
    (request,) = sys.argv[1:] if arguments is None else arguments
    try:
        return _rehearse(json.loads(request))
    except PeerdError as error:
        sys.stderr.write(f"peerd: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("peerd: interrupted before the first round\n")
        return INTERRUPTED


def _rehearse(request: Mapping[str, Any]) -> int:
    began = time.monotonic()
    plan = Plan.from_request(request)
    json_target, picture = request["json"], request["plot"]
    if picture is not None:
        plot.check_drawable()
    _load_torch()
    from peer.rehearsal import report
    from peer.rehearsal.play import Play
    from peer.rehearsal.trainer import Trainer

    for target in (json_target, picture):
        if target not in (None, "-"):
            report.check_writable(Path(target))
    trainer = Trainer(plan)
    with Progress(Console(stderr=True), plan.session.rounds) as progress:
        play = Play(plan, trainer, progress.show)
        try:
            play.play()
        except KeyboardInterrupt:
            sys.stderr.write(f"peerd: interrupted; {_reached(play)}\n")
            return INTERRUPTED
    found = report.figures(play, time.monotonic() - began)
    if json_target != "-":
        console = Console(highlight=False)
        console.print(report.title(found["arguments"]))
        console.print(report.table(found))
    if json_target is not None:
        report.write_json(found, json_target)
    if picture is not None:
        plot.draw(found, Path(picture))
    return 0


def _load_torch() -> None:
    """One thread, unless OMP_NUM_THREADS says otherwise: small models are no faster with more. A task file
    that draws from the global generators gets the same numbers each time."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from peer.learner.devices import use_threads

    use_threads()
    torch.manual_seed(0)


def _reached(play: Play) -> str:
    known = [at for at in sorted(play.tally.points) if at > 0]
    last = ""
    if known:
        values = list(play.tally.points[known[-1]].values())
        last = f"; at round {known[-1]} the peers watched were at {sum(values) / len(values):.4g} in the mean"
    return f"{play.front} of {play.rounds} rounds, {play.rehearsal.now:.1f} virtual seconds{last}"


if __name__ == "__main__":
    sys.exit(main())
