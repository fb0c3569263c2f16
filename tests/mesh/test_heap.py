"""Memory of chunks stays at hand, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MOVING = """
import os, resource
from peer.mesh.chunks import CHUNK_BYTES
from peer.mesh.heap import keep_chunks

assert keep_chunks() is {told}

def move(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        held = [b"x" * CHUNK_BYTES for _ in range(4)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

move(3)
print(move(50))
"""


def faults(told: bool, before: str = "") -> int:
    """Pages taken from the system anew while 200 chunks come and go, each of which has over 100."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", before + MOVING.format(told=told)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout)


def test_memory_of_chunks_that_come_and_go_is_not_taken_anew() -> None:
    assert faults(told=True) < 200


@pytest.mark.parametrize("missing", ["no such function", "refused"])
def test_a_library_that_cannot_be_told_does_as_it_does(missing: str) -> None:
    library = "object()" if missing == "no such function" else "type('L', (), {'mallopt': lambda *_: 0})"
    assert faults(told=False, before=f"import ctypes; ctypes.CDLL = lambda _: {library}\n") > 200
