"""Bad input that is led by what decoders do with it: `PYTHONPATH=.:tests python tests/badinput/guided.py`.

The same decoders and the same ways to damage what they read as in fuzz.py, but what would be drawn at random
is read from bytes that libFuzzer changes (atheris, if it is installed), and changes again where that has
reached code that nothing had reached before. A process for each decoder, since libFuzzer ends with its own,
and a line for each. An input that is neither refused as declared nor sound is shown in hex, and the run ends
with 1 when all are through.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import warnings
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

LONGEST = 1024  # bytes that choices are read from: the longest cases make some hundred choices
REACHED = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)")


class Choices(Random):
    """Draws from given bytes, and zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        super().__init__(0)

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(53) / (1 << 53)


def one(name: str, runs: int) -> None:
    """Does not return."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["peer"]):
        decoders = importlib.import_module("badinput.decoders")
    decoding = importlib.import_module("badinput.decoding")
    decoder = decoders.DECODERS[name]()
    warnings.simplefilter("error")

    def attempt(data: bytes) -> None:
        case = decoder.case(Choices(data))
        try:
            decoder.accepts(case)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"[:500]
            raise decoding.BadInputError(f"{name}, guided: {what}\n{case}") from error

    words = [f"-runs={runs}", f"-max_len={LONGEST}", "-len_control=0", "-seed=1", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *words], attempt)
    with decoding.limited_memory():
        atheris.Fuzz()


def report(name: str, runs: int) -> tuple[str, str]:
    """A line of what was found, and what was wrong."""
    words = [sys.executable, "-P", os.path.abspath(__file__), "--one", name, "--runs", str(runs)]
    with tempfile.TemporaryDirectory() as folder:  # for libFuzzer's own files
        ended = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    found = REACHED.findall(ended.stderr)
    wrong = "" if ended.returncode == 0 and found else ended.stdout or ended.stderr  # a fault is on the first
    places, kept = found[-1] if found else ("0", "0")
    return f"{name:34} {runs:9} inputs {places:>6} places reached by {kept:>5} of them\n", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50_000, help="for each decoder")
    parser.add_argument("--only", default="", help="decoders whose name has this in it")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.runs)
    from badinput.decoders import DECODERS

    faults = 0
    for name in DECODERS:
        if arguments.only in name:
            line, wrong = report(name, arguments.runs)
            faults += bool(wrong)
            sys.stdout.write(line)
            sys.stdout.flush()
            sys.stderr.write(f"{wrong}\n" if wrong else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
