"""What one check of the doctor has found. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """check: which one. seen: what is the case, a sentence; advice: what to do about it, empty where nothing
    is. data: the same for programs, whose names are a contract: add, do not rename."""

    check: str
    verdict: Verdict
    seen: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "verdict": self.verdict,
            "seen": self.seen,
            "advice": self.advice,
            "data": dict(self.data),
        }


def listed(names: Iterable[object], most: int = 6) -> str:
    """`a, b and 3 more`."""
    every = [str(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
