"""What the documentation tells a reader to type, typed: each page's `console` blocks in their order, on two
devices on one switch, every command with exit code 0. A block of Python that begins with `# NAME.py` is that
file, in the folder where the commands run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lan.bridge import Switch

pytestmark = [pytest.mark.lan]

DOCS = Path(__file__).parents[2] / "docs"
PROMPT = re.compile(r"(pi-\d)\$ (.+)")
KEY = re.compile(r"peerd1-\S+")
PLACEHOLDER = "peerd1-…"


def pages() -> dict[str, list[tuple[str, str]]]:
    """By name, of those with something to type: kind and text of each block."""
    found = {path.stem: list(blocks(path)) for path in sorted(DOCS.rglob("*.md"))}
    return {name: told for name, told in found.items() if any(kind == "console" for kind, _ in told)}


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info in ("console", "python"):
            yield token.info, token.content


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, lan: Switch) -> None:
        self._lan = lan
        self._key = ""

    def types(self, line: str) -> None:
        prompt = PROMPT.fullmatch(line)
        assert prompt, f"not a command at a prompt like 'pi-1$': {line}"
        name, command = prompt.groups()
        device = self._lan.devices.get(name) or self._lan.add(name)
        words = shlex.split(command.replace(PLACEHOLDER, self._key), comments=True)
        assert words[0] == "peerd", f"nothing but peerd is run here: {line}"
        if words == ["peerd", "daemon", "&"]:
            self._lan.start(device)
            return
        keys = KEY.findall(device.ok(*words[1:]).said)
        self._key = keys[0] if keys else self._key


@pytest.mark.parametrize("page", pages())
def test_what_the_page_tells_to_type_works(lan: Switch, page: str) -> None:
    reader = Reader(lan)
    for device in lan.devices.values():  # of the page before
        if device.daemon is not None:
            device.stop()
    for kind, text in pages()[page]:
        if kind == "console":
            for line in text.splitlines():
                reader.types(line)
        elif (first := text.partition("\n")[0]).startswith("# ") and first.endswith(".py"):
            (lan.folder / first[2:]).write_text(text, encoding="utf-8")


def test_the_pages_that_a_newcomer_reads_are_among_them() -> None:
    assert {"start", "tasks"} <= pages().keys()
