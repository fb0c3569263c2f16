"""What a decoder is to the tests of bad input, and how one is tried: many inputs, each refused in the way it
should be or accepted and sound, and none taking more memory than its size warrants.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

EVERY = 50  # of so many inputs the memory of one is measured
HEADROOM = 1 << 29  # bytes of address space an attempt may add to the process: torch's own are not traced


@dataclass(frozen=True, slots=True)
class Case:
    """An input. about: what the decoder knows besides, such as the model's layout."""

    data: tuple[bytes, ...]
    about: Any = None

    def __str__(self) -> str:
        return f"{self.about if self.about is not None else ''} {' '.join(part.hex() for part in self.data)}"

    @property
    def size(self) -> int:
        return sum(map(len, self.data))


class Decoder:
    """case: one more input. accepts: whether it was accepted; raises for anything but a refusal in the way
    declared and a sound acceptance. most_bytes: what accepting may take at its peak. close: raises if
    something was left behind."""

    def case(self, random: Random) -> Case:
        raise NotImplementedError

    def accepts(self, case: Case) -> bool:
        raise NotImplementedError

    def most_bytes(self, case: Case) -> int:
        return (1 << 18) + 64 * case.size

    def close(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Outcome:
    examples: int
    accepted: int
    seconds: float
    peak: int  # bytes, the most that was traced

    @property
    def refused(self) -> int:
        return self.examples - self.accepted


def check_shown(error: Exception, most: int = 400) -> None:
    """A refusal's words are fit for a terminal and a log, whatever is in them."""
    assert_short(error, most)
    assert str(error).isprintable(), f"not fit to be shown: {error!r}"


def assert_short(error: Exception, most: int) -> None:
    assert len(str(error)) < most, f"{len(str(error))} characters: {error!r}"


class BadInputError(AssertionError):
    """An input that was neither refused as it should be nor accepted and sound."""


def attempt(name: str, make: Callable[[], Decoder], examples: int, seed: int = 0) -> Outcome:
    """Try so many inputs, the same ones for the same seed. Raises BadInputError with the input in hex."""
    random = Random(f"{name}/{seed}")
    decoder = make()
    began, accepted, peak = time.process_time(), 0, 0
    with limited_memory(), warnings.catch_warnings(), closing(decoder):
        warnings.simplefilter("error")
        for at in range(examples):
            case = decoder.case(random)
            try:
                if at % EVERY:
                    accepted += decoder.accepts(case)
                else:
                    most = decoder.most_bytes(case)
                    took, fine = _traced(partial(decoder.accepts, case))
                    accepted += fine
                    peak = max(peak, took)
                    assert took <= most, f"{took} bytes of memory, and at most {most} for {case.size} bytes"
            except Exception as error:
                what = f"{type(error).__name__}: {error}"[:500]
                raise BadInputError(f"{name}, input {at} of seed {seed}: {what}\n{case}") from error
    return Outcome(examples, accepted, time.process_time() - began, peak)


def _traced(accepts: Callable[[], bool]) -> tuple[int, bool]:
    tracemalloc.start()
    try:
        fine = accepts()
        return tracemalloc.get_traced_memory()[1], fine
    finally:
        tracemalloc.stop()


@contextmanager
def limited_memory() -> Iterator[None]:
    """Whoever asks for memory by a length it was told, and not by what is there, fails here and now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
