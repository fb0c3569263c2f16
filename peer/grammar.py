"""How a user writes a compression, an option's value and a shard. Standard library only.

What is written well and not built is an error that says what exists. Which names there are, and which go
together, is peer/catalogue.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from peer.errors import UsageError

Values = Literal["fp32", "fp16", "int8"]
ShardKind = Literal["part", "dirichlet", "natural", "speaker"]


# --- compression -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compression:
    """How messages are made small. top_k: fraction of entries kept, None for all. values: type of those kept,
    None for the session's own. bits: budget in bits per parameter of the dead-zone quantizer, which chooses
    entries and values itself.
    """

    top_k: float | None = None
    values: Values | None = None
    bits: float | None = None


_VALUES: dict[str, Values] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
_PLANNED = ("auto", "bf16", "int4", "lowrank", "randomk", "sign")
_BUILT = "'none', 'topk=1%', 'fp16', 'int8', 'bits=1', or one topk and one value type as in 'topk=1%,fp16'"
MAX_BITS = 8.0  # beyond that int8 is smaller and simpler


def parse_compression(text: str) -> Compression:
    """A compression in the grammar of `--compression`. Raises UsageError."""
    if text.strip() == "none":
        return Compression()
    parts: dict[str, str] = {}
    for word in (part.strip() for part in text.split(",")):
        name, _, value = word.partition("=")
        kind = "values" if name in _VALUES else name
        if name in _PLANNED:
            raise UsageError(f"compression '{name}' is not built yet; there are {_BUILT}")
        if kind not in ("values", "topk", "bits"):
            raise UsageError(f"no compression is called '{word}'; there are {_BUILT}")
        if kind in parts:
            raise UsageError(
                f"compression '{text}' names two of a kind; it has one sparsifier, one value type"
            )
        if kind == "values" and value:
            raise UsageError(f"compression '{name}' takes no value, and has '{value}'")
        parts[kind] = name if kind == "values" else value
    if "bits" in parts and len(parts) > 1:
        raise UsageError("'bits=' stands alone: it chooses entries and values itself")
    return Compression(
        top_k=_fraction(parts["topk"]) if "topk" in parts else None,
        values=_VALUES.get(parts.get("values", "")),
        bits=_bits(parts["bits"]) if "bits" in parts else None,
    )


def _fraction(text: str) -> float:
    number = _number(text.removesuffix("%"))
    share = None if number is None else number / 100 if text.endswith("%") else number
    if share is None or not 0 < share <= 1:
        raise UsageError(f"topk is a share of the entries, as in 'topk=1%' or 'topk=0.01', not '{text}'")
    return share


def _bits(text: str) -> float:
    number = _number(text)
    if number is None or not 0 < number <= MAX_BITS:
        raise UsageError(
            f"bits is a budget per parameter, above 0 to {MAX_BITS:g}, as in 'bits=1', not '{text}'"
        )
    return number


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", text.strip()) else None


# --- options of algorithms and tasks ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One `--option key=value`: one of `choices`, or a number from `least` to `most`, or one of `words`.

    form: instead, a regular expression the whole value must match, of which the default is an example.
    """

    default: str
    about: str
    choices: tuple[str, ...] = ()
    least: float = 0.0
    most: float = 1.0
    whole: bool = False
    words: tuple[str, ...] = ()
    form: str = ""

    def check(self, key: str, value: str) -> str:
        """The value, if it is allowed. Raises UsageError."""
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"option {key} is one of {', '.join(self.choices)}, not '{value}'")
            return value
        if self.form:
            if not re.fullmatch(self.form, value):
                raise UsageError(f"option {key} is written as in '{self.default}', not '{value}'")
            return value
        if value in self.words:
            return value
        number = float(value) if self.whole and re.fullmatch("[0-9]+", value) else None
        if not self.whole:
            number = _number(value)
        if number is None or not self.least <= number <= self.most:
            kind, form = ("a whole number, in digits,", ".0f") if self.whole else ("a number", "g")
            other = "".join(f" or '{word}'" for word in self.words)
            raise UsageError(
                f"option {key} is {kind} from {self.least:{form}} to {self.most:{form}}{other}, not '{value}'"
            )
        return value


# --- shards ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """This device's data: part `index` of `count`, by `kind`; alpha: skew of "dirichlet"."""

    kind: ShardKind
    index: int = 0
    count: int = 1
    alpha: float = 0.0
    speaker: str = ""


MAX_PARTS = 4096  # devices one data set is split among (guess)


def parse_shard(text: str) -> Shard:
    """`3/8` (fourth of eight), `dirichlet=0.1:3/8`, `natural:3/8`, `speaker=jackson`. Raises UsageError."""
    if text.startswith("speaker="):
        return Shard("speaker", speaker=text.removeprefix("speaker="))
    kind: ShardKind = "part"
    alpha, part = 0.0, text
    if text.startswith("natural:"):
        kind, part = "natural", text.removeprefix("natural:")
    if text.startswith("dirichlet="):
        kind = "dirichlet"
        skew, _, part = text.removeprefix("dirichlet=").partition(":")
        alpha = _number(skew) or 0.0
        if not 1e-3 <= alpha <= 1e6:
            raise UsageError(
                f"a Dirichlet shard has a skew from 0.001, as in 'dirichlet=0.1:3/8', not '{text}'"
            )
    if not re.fullmatch(r"[0-9]{1,4}/[0-9]{1,4}", part):
        raise UsageError(f"no shard is written '{text}'; write '3/8', 'dirichlet=0.1:3/8' or 'speaker=NAME'")
    index, count = (int(number) for number in part.split("/"))
    if not 0 <= index < count <= MAX_PARTS:
        raise UsageError(
            f"shard '{text}': parts count from 0, so the last of {count} is {max(count - 1, 0)}/{count}"
        )
    return Shard(kind, index, count, alpha)


# --- budgets -----------------------------------------------------------------------------------------

_SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_MINUTES = {"min": 1, "h": 60, "day": 24 * 60, "month": 30 * 24 * 60}
MOST_BUDGET = 10**12  # bytes per minute: no network has more (guess)
LEAST_BUDGET = 10_000  # bytes per minute: what one of two to four idle members tells the others (measured)


def parse_budget(text: str) -> int | None:
    """`2MB/min` in bytes per minute; also per h, day and month (of 30 days); `none` is None. Raises
    UsageError."""
    if text.strip() == "none":
        return None
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(kb|mb|gb) ?/ ?(min|h|day|month)", text.strip().lower())
    if not found:
        raise UsageError(
            "a budget is written '2MB/min': a number, kB, MB or GB, per min, h, day or month; 'none' lifts "
            f"it; not '{text}'"
        )
    per_minute = float(found[1]) * _SIZES[found[2]] / _MINUTES[found[3]]
    if not LEAST_BUDGET <= per_minute <= MOST_BUDGET:
        raise UsageError(
            f"a budget of '{text}' is {per_minute:.4g} bytes per minute, and may be from {LEAST_BUDGET} to "
            f"{MOST_BUDGET:.0e}: what members tell each other of themselves takes some 10 kB per minute "
            "before anything is learnt; give 2MB/min, say, or 20GB/month"
        )
    return int(per_minute)
