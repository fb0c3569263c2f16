"""Does this device's model fit the session's? Lists of [name, shape, dtype] are compared, and the first
difference told."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

REMEDY = "use the same task file"


def first_difference(here: bytes, there: bytes) -> str:
    """A sentence about two differing signatures, as canonical JSON; either may be b"" where it was too long
    to send."""
    mine, theirs = _entries(here), _entries(there)
    if mine is None or theirs is None:
        return f"the model differs from the session's in names, shapes or dtypes; {REMEDY}"
    for ours, its in zip_longest(mine, theirs):
        if ours == its:
            continue
        if ours is None:
            return f"model differs at '{its[0]}': not here, session has {_words(its)}; {REMEDY}"
        if its is None:
            return f"model differs at '{ours[0]}': here {_words(ours)}, not in the session's; {REMEDY}"
        if ours[0] != its[0]:
            return f"model differs at '{ours[0]}': the session has '{its[0]}' in its place; {REMEDY}"
        return f"model differs at '{ours[0]}': here {_words(ours)}, session has {_words(its)}; {REMEDY}"
    return f"the model differs from the session's in how it is described; {REMEDY}"


def _entries(text: bytes) -> list[tuple[str, tuple[int, ...], str]] | None:
    """The list, or None if what came is none: it may be a neighbor's."""
    try:
        listed: Any = json.loads(text) if text else None
        return [(_name(name), tuple(int(n) for n in shape), _name(dtype)) for name, shape, dtype in listed]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _name(text: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text))[:200]


def _words(entry: tuple[str, tuple[int, ...], str]) -> str:
    return f"{entry[1]} {entry[2].removeprefix('torch.')}"
