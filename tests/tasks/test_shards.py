"""Shards: the same on every device, disjoint, complete."""

from collections import Counter

import pytest

from peer.errors import DataError
from peer.tasks.shards import select

LABELS = [i % 10 for i in range(600)]
SPEAKERS = [("ann", "bob", "cleo")[i // 200] for i in range(600)]


def shard(text: str | None, seed: int = 0) -> list[int]:
    return select(text, LABELS, SPEAKERS, seed)


@pytest.mark.parametrize(
    "form", ["{}/7", "natural:{}/7", "dirichlet=0.01:{}/7", "dirichlet=0.1:{}/7", "dirichlet=10:{}/7"]
)
def test_the_parts_are_disjoint_and_make_the_whole(form: str) -> None:
    parts = [shard(form.format(k)) for k in range(7)]
    assert sorted(i for part in parts for i in part) == list(range(600))
    assert {len(part) for part in parts} <= {85, 86}


def test_the_seed_decides_the_parts() -> None:
    assert shard("3/8") == shard("3/8")
    assert shard("3/8") != shard("3/8", seed=1)
    assert shard("dirichlet=0.1:3/8") == shard("dirichlet=0.1:3/8")


def test_a_small_dirichlet_parameter_gives_few_labels() -> None:
    def kinds(alpha: str) -> list[int]:
        return [len(Counter(LABELS[i] for i in shard(f"dirichlet={alpha}:{k}/4"))) for k in range(3)]

    assert max(kinds("0.01")) < min(kinds("100"))


def test_natural_parts_follow_the_speakers() -> None:
    assert [{SPEAKERS[i] for i in shard(f"natural:{k}/3")} for k in range(3)] == [{"ann"}, {"bob"}, {"cleo"}]


def test_a_speaker_by_name() -> None:
    assert shard("speaker=bob") == list(range(200, 400))
    assert shard(None) == list(range(600))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speaker=dan", "no speaker is called 'dan'; there are ann, bob, cleo"),
        ("8/8", "parts count from 0"),
        ("half", "write '3/8', 'dirichlet=0.1:3/8' or 'speaker=NAME'"),
        ("0/700", "600 examples cannot be cut into 700 parts"),
    ],
)
def test_what_is_not_known_is_said(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        shard(text)
