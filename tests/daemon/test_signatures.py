"""The first difference between two models, in words."""

from __future__ import annotations

import json

import pytest

from peer.daemon.signatures import first_difference

CONV = ["conv1.weight", [16, 1, 3, 3], "float32"]
BIAS = ["conv1.bias", [16], "float32"]


def text(*entries: object) -> bytes:
    return json.dumps(entries).encode()


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ([CONV], [["conv1.weight", [8, 1, 3, 3], "float32"]], "here (16, 1, 3, 3) float32, session has (8,"),
        ([CONV], [["conv1.weight", [16, 1, 3, 3], "float64"]], "session has (16, 1, 3, 3) float64"),
        ([CONV, BIAS], [CONV], "'conv1.bias': here (16,) float32, not in the session's"),
        ([CONV], [CONV, BIAS], "'conv1.bias': not here, session has (16,) float32"),
        ([CONV], [BIAS], "'conv1.weight': the session has 'conv1.bias' in its place"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named_with_both_sides(
    here: list[object], there: list[object], words: str
) -> None:
    said = first_difference(text(*here), text(*there))
    assert words in said
    assert said.endswith("use the same task file")


@pytest.mark.parametrize("foreign", [b"", b"{", b"[" * 100_000, b"[1]", b'[["a",3,"x"]]', b"null"])
def test_what_is_no_list_of_tensors_is_still_a_difference(foreign: bytes) -> None:
    assert "differs" in first_difference(text(CONV), foreign)
