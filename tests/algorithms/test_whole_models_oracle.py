"""Trajectories of an independent numpy program, which follows the authors' own code to 4e-16.

whole_models.json holds its problems f_i(x) = |A_i x - b_i|^2 / 2 and its models after some rounds at learning
rate 0.1, momentum 0.9 where a run says so (Nesterov's), and with some messages lost. Of double trees each
relays half of the coordinates; the messages lost there are of the first tree, of the second, and of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.trees import F64, Grove
from peer.algorithms import make
from peer.algorithms.whole_model import WholeModel
from peer.compression.bodies import Layout

FOUND: dict[str, Any] = json.loads(Path(__file__).with_name("whole_models.json").read_text())
RUNS = [(case, run) for case, found in FOUND.items() for run in found["runs"]]
LR, MOMENTUM = 0.1, 0.9


class Problem:
    """The quadratics, with every node's momentum."""

    def __init__(self, found: dict[str, Any], momentum: float = 0.0) -> None:
        self.A, self.b = torch.tensor(found["A"], dtype=F64), torch.tensor(found["b"], dtype=F64)
        self.x0, self.optimum = (torch.tensor(found[key], dtype=F64) for key in ("x0", "optimum"))
        self.momentum, self.v = momentum, torch.zeros_like(self.b)

    def update(self, i: int, x: Tensor, t: int) -> Tensor:
        g = self.A[i].T @ (self.A[i] @ x - self.b[i])
        self.v[i] = self.momentum * self.v[i] + g
        return -LR * (g + self.momentum * self.v[i])


def grove(case: str, run: str, seed: int = 0) -> Grove:
    found, words = FOUND[case], run.split()
    options = {"fill": words[1]} if words[0] == "relay-sum" else {}
    n, layout = len(found["A"]), Layout((len(found["x0"]),))
    nodes = [make(words[0], options, layout, F64) for _ in range(n)]
    drops = {int(t): [(i, j) for i, j in lost] for t, lost in found["drops"].items()}
    swarm = Grove(
        [node for node in nodes if isinstance(node, WholeModel)],
        layout,
        [[(a, b) for a, b in edges] for edges in found["trees"]],
        W=torch.tensor(found["W"], dtype=F64) if words[0] == "d-psgd" else None,
        seed=seed,
        drops=drops if "drops" in words else {},
    )
    return swarm.begin([torch.tensor(found["x0"], dtype=F64)] * n)


@pytest.mark.parametrize(("case", "run"), RUNS)
def test_models_are_those_of_the_oracle(case: str, run: str) -> None:
    problem = Problem(FOUND[case], MOMENTUM if "momentum" in run else 0.0)
    models = grove(case, run).run(8, problem.update)
    for t, expected in FOUND[case]["runs"][run].items():
        torch.testing.assert_close(
            models[int(t) - 1], torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    ("case", "run"), [("heap7", "relay-sum prev drops"), ("double7", "relay-sum half drops")]
)
def test_the_order_in_which_messages_come_makes_no_difference(case: str, run: str) -> None:
    ends = [grove(case, run, seed).run(8, Problem(FOUND[case]).update)[-1] for seed in range(5)]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["chain6", "heap7", "epfl7"])
def test_unlike_data_is_no_bias_at_a_constant_rate_and_it_is_one_for_d_psgd(case: str) -> None:
    optimum = Problem(FOUND[case]).optimum
    relayed = grove(case, "relay-sum prev").run(600, Problem(FOUND[case]).update)[-1]
    averaged = grove(case, "d-psgd").run(300, Problem(FOUND[case]).update)[-1]
    assert float((relayed - optimum).abs().max()) < 1e-4
    assert float((averaged - optimum).abs().max()) > 0.1
