"""Every compression there is, with each value type: made from the registry, so that none is forgotten.
WORDS has "auto" too, which is one of the others for each link."""

from __future__ import annotations

from peer.grammar import PARTS, written


def _all() -> list[str]:
    types = [name for name, part in PARTS.items() if part.kind == "value type"]
    found = ["none", *types]
    for name, part in PARTS.items():
        if part.kind != "value type":
            found += [written(name)] if part.alone else [f"{written(name)}{t}" for t in ("", *_after(types))]
    return found


def _after(types: list[str]) -> list[str]:
    return [f",{name}" for name in types]


WORDS = _all()
SPECS = [words for words in WORDS if words != "auto"]
