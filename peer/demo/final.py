"""How good exported models are: `python -m peer.demo.final FILE…`.

Prints one JSON line per safetensors file that `peerd export` wrote of a session of the demo's task, in their
order: {"round", "accuracy"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from safetensors import safe_open

from peer.demo.terms import METRIC, SEED, TASK
from peer.learner.task import Settings, load_task, seeded_model


def evaluate(files: Sequence[str]) -> None:
    """Evaluate each file's model on the task's test clips."""
    torch.set_num_threads(1)
    task = load_task(TASK, Settings(seed=SEED))
    model = seeded_model(task, SEED)
    for name in files:
        with safe_open(name, framework="pt") as file:
            round_ = int(file.metadata()["round"])
            model.load_state_dict({tensor: file.get_tensor(tensor) for tensor in file.keys()})  # noqa: SIM118
        model.eval()
        accuracy = task.evaluate(model)[METRIC]
        sys.stdout.write(json.dumps({"round": round_, "accuracy": accuracy}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    evaluate(sys.argv[1:])
