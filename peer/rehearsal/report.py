"""What a rehearsal ends with: figures for programs, and a table for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from peer.errors import StateError
from peer.events import PeerId
from peer.rehearsal.play import Play

# Figures of which less is better, by a word in their name; of all others more is
LESS_IS_BETTER = ("loss", "distance", "error", "perplexity", "bits")

Figures = dict[str, Any]


def figures(play: Play, wall_s: float) -> Figures:
    """The report of a rehearsal that is over. The same for the same plan, but for `wall_s`."""
    alive = {device.peer: device for device in play.there()}
    models = {
        peer: model
        for peer, device in alive.items()
        if (model := play.final.get(peer, device.model)) is not None
    }
    weights = [device.exchange.algorithm.weight for device in alive.values()]
    alone = play.tally.rounds_alone + sum(
        device.node.rounds.alone_total for device in play.rehearsal.devices.values()
    )
    return {
        "arguments": play.plan.arguments(),
        "seed": play.plan.session.seed,
        "virtual_s": play.rehearsal.now,
        "wall_s": wall_s,
        "parameters": play.trainer.parameters,
        "metric": _metric(play, models),
        "metric_before_decay": _metric(play, play.before_decay) if play.before_decay else None,
        "metric_before_final_rounds": _metric(play, play.before_final) if play.before_final else None,
        "curve": _curve(play),
        "bytes": _bytes(play),
        "mass_error": play.books.error(),
        "weight_min": min(weights),
        "weight_max": max(weights),
        "consensus_distance": _consensus_distance(list(models.values())),
        "messages_lost": play.rehearsal.frames_lost,
        "generations": len(play.tally.generations),
        "rounds_alone": alone,
    }


def _metric(play: Play, models: Mapping[PeerId, Tensor]) -> Figures:
    """Over peers; averaged_model: of the one model that is the mean of theirs."""
    found = [play.trainer.evaluate(model) for _, model in sorted(models.items())]
    known = [value for value in found if value is not None]
    mean_model = play.trainer.evaluate(_mean_model(list(models.values())))
    if not known or mean_model is None:
        return dict.fromkeys(("name", "mean", "worst", "best", "averaged_model"))
    name, values = known[0][0], [value for _, value in known]
    return {
        "name": name,
        "mean": sum(values) / len(values),
        "worst": worst(name, values),
        "best": -worst(name, [-value for value in values]),
        "averaged_model": mean_model[1],
    }


def worst(name: str | None, values: Iterable[float]) -> float:
    """The worst of them, by what the figure is called."""
    lower = name is not None and any(word in name.lower() for word in LESS_IS_BETTER)
    return max(values) if lower else min(values)


def _curve(play: Play) -> list[list[float]]:
    """[round, mean, worst] over the peers watched."""
    found = play.trainer.evaluate(play.trainer.initial)
    name = found[0] if found is not None else None
    points = ((at, list(by_peer.values())) for at, by_peer in sorted(play.tally.points.items()))
    return [[at, sum(values) / len(values), worst(name, values)] for at, values in points]


def _bytes(play: Play) -> Figures:
    tally, peers = play.tally, play.plan.peers
    return {
        "sent_per_peer": tally.sent / peers,
        "dense_per_peer": tally.dense / peers,
        "dense_exchanges_per_peer": tally.dense_exchanges / peers,
        "reduction": tally.dense / tally.sent if tally.sent and tally.dense else None,
    }


def _mean_model(models: list[Tensor]) -> Tensor:
    return torch.stack(models).double().mean(dim=0).to(models[0].dtype)


def _consensus_distance(models: list[Tensor]) -> float:
    """Root mean square, over peers, of the Euclidean distance from the mean of all models."""
    mean = torch.stack(models).double().mean(dim=0)
    squares = [float((model - mean).square().sum()) for model in models]
    return float((sum(squares) / len(squares)) ** 0.5)


# --- for people ----------------------------------------------------------------------------------------


def table(report: Figures) -> Table:
    """The figures that matter, in a few lines."""
    metric, sent = report["metric"], report["bytes"]
    made = Table(show_header=False)
    made.add_column("figure")
    made.add_column("value", justify="right")
    name = metric["name"] or "metric"
    for what, key in (("mean peer", "mean"), ("worst peer", "worst"), ("best peer", "best")):
        made.add_row(f"{name}, {what}", _number(metric[key]))
    made.add_row(f"{name}, averaged model", _number(metric["averaged_model"]))
    if report["metric_before_decay"] is not None:
        made.add_row(f"{name} before the first decay, mean", _number(report["metric_before_decay"]["mean"]))
    if report["metric_before_final_rounds"] is not None:
        before = report["metric_before_final_rounds"]
        made.add_row(f"{name} before the final rounds, mean", _number(before["mean"]))
        made.add_row(f"{name} before the final rounds, worst", _number(before["worst"]))
    made.add_row("consensus distance", _number(report["consensus_distance"]))
    made.add_row("sent by a peer", _megabytes(sent["sent_per_peer"]))
    made.add_row("whole models each local step", _megabytes(sent["dense_per_peer"]))
    made.add_row("reduction", f"{sent['reduction']:.3g}x" if sent["reduction"] is not None else "–")
    made.add_row("frames lost", str(report["messages_lost"]))
    made.add_row("rounds closed with nobody heard", str(report["rounds_alone"]))
    made.add_row("virtual time", f"{report['virtual_s']:.1f} s")
    made.add_row("time it took", f"{report['wall_s']:.1f} s")
    return made


def title(arguments: Figures) -> str:
    """What was rehearsed, in a line."""
    steps = arguments["local_steps"]
    what = f"{arguments['algorithm']} on {arguments['topology']}, {arguments['task']}, {arguments['split']}"
    length = f"{arguments['rounds']} rounds of {steps} local step{'' if steps == 1 else 's'}"
    return f"{what}: {arguments['peers']} peers, {length}"


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None else "–"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.3g} MB"


# --- files ---------------------------------------------------------------------------------------------


def write_json(report: Figures, target: str) -> None:
    """To a file, or to standard output for "-". Raises StateError."""
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StateError(f"{target} cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Before minutes of work: can this file be written? Raises StateError."""
    folder = path.absolute().parent
    target = path if path.exists() else folder
    if not folder.is_dir() or path.is_dir() or not os.access(target, os.W_OK):
        raise StateError(f"{path} cannot be written; name another file, in a folder that is there")
