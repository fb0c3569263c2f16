"""How a user writes a compression, an option's value and a shard. Standard library only.

What is written well and not built is an error that says what exists. Which names there are, and which go
together, is peer/catalogue.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.errors import UsageError

ShardKind = Literal["part", "dirichlet", "natural", "speaker"]


# --- compression -------------------------------------------------------------------------------------

PartKind = Literal["sparsifier", "value type", "transform"]


@dataclass(frozen=True, slots=True)
class Part:
    """One word of a compression. amount: what a number after it means, "" for none; from least to most.

    alone: goes with nothing else. What makes the bytes has the same names: peer/compression/compressor.py.
    """

    kind: PartKind
    about: str
    amount: Literal[
        "", "share of the entries", "number of groups", "rank", "number of bits per parameter"
    ] = ""
    example: str = ""
    least: float = 0.0
    most: float = 1.0
    whole: bool = False
    alone: bool = False


MAX_BITS = 8.0  # beyond that int8 is smaller and simpler
MAX_GROUPS = 1024  # rounds until an entry travels again (guess)
MAX_RANK = 64  # beyond that factors are hardly smaller than what they stand for (guess)
PARTS: dict[str, Part] = {
    "topk": Part("sparsifier", "the largest entries of each tensor", "share of the entries", "1%"),
    "globaltopk": Part("sparsifier", "the largest entries of all", "share of the entries", "1%"),
    "randomk": Part("sparsifier", "other entries in each round", "share of the entries", "1%"),
    "grouped": Part(
        "sparsifier", "every G-th entry, all in turn", "number of groups", "8", 2, MAX_GROUPS, whole=True
    ),
    "fp32": Part("value type", "4 bytes each"),
    "fp16": Part("value type", "2 bytes each, 11 bits of precision"),
    "bf16": Part("value type", "2 bytes each, 8 bits of precision"),
    "int8": Part("value type", "1 byte each, in blocks of 64 that have a scale each"),
    "int4": Part("value type", "half a byte each, in blocks of 64 that have a scale each"),
    "sign": Part("value type", "1 bit each, times the mean of the tensor's magnitudes"),
    "lowrank": Part("transform", "tensors as products of thin matrices", "rank", "2", 1, MAX_RANK, True),
    "bits": Part(
        "transform", "a budget, within which entries and values are chosen",
        "number of bits per parameter", "1", 0, MAX_BITS, alone=True,
    ),
    "auto": Part("transform", "for each link what is there before the next local steps are done", alone=True),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sized:
    """A sparsifier or transform, and the number that goes with it: a share, groups, a rank, bits."""

    name: str
    amount: float


@dataclass(frozen=True, slots=True)
class Compression:
    """How messages are made small. sparsifier: which entries travel, None for all. values: the type of those
    that do, "" for the session's own. transform: what makes others of them first, or takes all in hand.
    """

    sparsifier: Sized | None = None
    values: str = ""
    transform: Sized | None = None

    @property
    def bits(self) -> float | None:
        """The budget in bits per parameter, if that is what it is."""
        return self.transform.amount if self.transform and self.transform.name == "bits" else None

    @property
    def is_auto(self) -> bool:
        """Is it chosen link by link?"""
        return self.transform is not None and self.transform.name == "auto"


def written(name: str) -> str:
    """The part of that name as a user may write it."""
    return f"{name}={PARTS[name].example}" if PARTS[name].amount else name


def written_all(kind: PartKind) -> str:
    return ", ".join(written(name) for name, part in PARTS.items() if part.kind == kind)


def _explained(kind: PartKind) -> str:
    words = [f"{written(name)} ({part.about})" for name, part in PARTS.items() if part.kind == kind]
    return f"one {kind}: {', '.join(words)};"


COMPRESSIONS = (
    f"'none', or one sparsifier ({written_all('sparsifier')}), one value type ({written_all('value type')}) "
    f"and one transform ({written_all('transform')}), as in 'topk=1%,fp16'"
)
COMPRESSION_HELP = (
    f"none, or {_explained('sparsifier')} {_explained('value type')} {_explained('transform')} as far as "
    "they go together, as in topk=1%,fp16; the algorithm's own by default."
)


def parse_compression(text: str) -> Compression:
    """A compression in the grammar of `--compression`. Raises UsageError."""
    if text.strip() == "none":
        return Compression()
    found: dict[PartKind, Sized] = {}
    for word in (part.strip() for part in text.split(",")):
        name, equals, value = word.partition("=")
        if name not in PARTS:
            raise UsageError(f"no compression is called '{word}'; there is {COMPRESSIONS}")
        kind = PARTS[name].kind
        if kind in found:
            raise UsageError(
                f"compression '{text}' names two of a kind; it has one sparsifier, one value type, "
                "one transform"
            )
        found[kind] = Sized(name, _amount(name, equals, value))
    _check_together(found)
    values = found.get("value type")
    return Compression(found.get("sparsifier"), values.name if values else "", found.get("transform"))


def _check_together(found: Mapping[PartKind, Sized]) -> None:
    transform = found.get("transform")
    if transform is None:
        return
    if PARTS[transform.name].alone and len(found) > 1:
        raise UsageError(f"'{transform.name}' stands alone: it chooses entries and values itself")
    if "sparsifier" in found:
        raise UsageError(f"'{transform.name}=' goes with a value type, and with no sparsifier")


def _amount(name: str, equals: str, text: str) -> float:
    part = PARTS[name]
    if not part.amount:
        if equals:
            raise UsageError(f"compression '{name}' takes no value, and has '{text}'")
        return 0.0
    is_share = part.amount == "share of the entries"
    percent = is_share and text.endswith("%")
    number = _number(text.removesuffix("%") if is_share else text)
    if number is not None and part.whole and not re.fullmatch("[0-9]+", text.strip()):
        number = None
    amount = None if number is None else number / 100 if percent else number
    if amount is None or not 0 < amount <= part.most or amount < part.least:
        limits = f"from {part.least:g} to {part.most:g}" if part.least else f"above 0 to {part.most:g}"
        limits = "above 0 to 100 %" if is_share else limits
        raise UsageError(f"{name} has a {part.amount}, {limits}, as in '{written(name)}', not '{text}'")
    return amount


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
