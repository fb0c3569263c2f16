"""What a node needs of its session's descriptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Terms:
    """rounds: 0 is forever. founder: this device made the session. graph: what the algorithm exchanges on;
    one without direction all members agree on (generations.py).
    """

    topology: str
    seed: int
    lockstep: bool = True
    rounds: int = 0
    founder: bool = False
    graph: Literal["directed", "undirected", "tree"] = "directed"
