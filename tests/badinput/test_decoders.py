"""Bad input, 20,000 times for each decoder, the same ones each time: refused in the way declared, or sound;
no crash, no memory beyond its size, and what is refused changes nothing. `make fuzz` tries 10^6."""

from __future__ import annotations

import inspect
from contextlib import closing
from random import Random

import pytest

from badinput.algorithms import ALGORITHMS
from badinput.decoders import DECODERS
from badinput.decoding import BadInputError, Case, Decoder, attempt
from badinput.guided import Choices
from peer import catalogue
from peer.compression import codec
from peer.compression.packing import KINDS
from peer.compression.values import VALUE_TYPES

EXAMPLES = 20_000


@pytest.mark.parametrize("name", DECODERS)
def test_bad_input_is_refused_or_sound(name: str) -> None:
    outcome = attempt(name, DECODERS[name], EXAMPLES)
    assert outcome.refused > EXAMPLES // 20, "the inputs are hardly damaged"
    assert outcome.accepted > EXAMPLES // 200, "nothing gets past the first check"


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, bytes(range(256))], ids=["none", "ones", "all"])
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_damaged_and_how_can_be_read_from_bytes(name: str, data: bytes) -> None:
    with closing(DECODERS[name]()) as decoder:
        first, again = decoder.case(Choices(data)), decoder.case(Choices(data))
        assert first.data == again.data
        decoder.accepts(first)


def test_no_decoder_is_forgotten() -> None:
    assert {kind.__name__ for kind in KINDS} == {
        "Empty", "Dense", "Sparse", "Strided", "Drawn", "LowRank", "Quantized", "Recalled", "Pair", "Portion"
    }  # fmt: skip
    assert sum(name.startswith("body: ") for name in DECODERS) == len(KINDS)
    assert all(f"values: {name}" in DECODERS for name in VALUE_TYPES)
    assert {name for name, *_ in ALGORITHMS.values()} == catalogue.ALGORITHMS.keys()
    functions = inspect.getmembers(codec, inspect.isfunction)
    readers = {
        name for name, made in functions if next(iter(inspect.signature(made).parameters), "") == "data"
    }
    assert readers == {"decode", "coming"}, "coming.py tries the latter"


class Careless(Decoder):
    """Takes memory by the length it is told."""

    def case(self, random: Random) -> Case:
        return Case((random.randbytes(3),))

    def accepts(self, case: Case) -> bool:
        return bool(bytearray(int.from_bytes(case.data[0], "big")))


class Greedy(Careless):
    """By far too much of it."""

    def accepts(self, case: Case) -> bool:
        return bool(bytearray(1 << 40))


class Crashing(Careless):
    """Fails in a way of its own."""

    def accepts(self, case: Case) -> bool:
        return case.data[0][3] > 0


@pytest.mark.parametrize(
    ("made", "what"), [(Careless, "bytes of memory"), (Greedy, "MemoryError"), (Crashing, "IndexError")]
)
def test_what_is_careless_is_found_and_shown_in_hex(made: type[Decoder], what: str) -> None:
    with pytest.raises(BadInputError, match=rf"(?s){what}.*\n [0-9a-f]{{6}}$"):
        attempt(what, made, 100)
