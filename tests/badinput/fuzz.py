"""Bad input by the million: `PYTHONPATH=tests python tests/badinput/fuzz.py --examples 1000000 --workers 2`.

The same decoders as in test_decoders.py, other inputs for each seed. A line for each decoder. An input that
is neither refused as declared nor sound is shown in hex, and the run ends with 1 when all are through.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from badinput.decoders import DECODERS
from badinput.decoding import BadInputError, Outcome, attempt

PORTION = 50_000  # inputs with one seed


def portion(name: str, examples: int, seed: int) -> Outcome:
    return attempt(name, DECODERS[name], examples, seed)


def portions(examples: int, seed: int) -> Iterator[tuple[int, int]]:
    """How many inputs, and the seed they are made from; 0 is that of the tests."""
    for at in range(0, examples, PORTION):
        yield min(PORTION, examples - at), 1_000_000 * seed + at // PORTION


def line(name: str, parts: list[Outcome]) -> str:
    examples, accepted = sum(one.examples for one in parts), sum(one.accepted for one in parts)
    seconds, peak = sum(one.seconds for one in parts), max((one.peak for one in parts), default=0)
    return (
        f"{name:34} {examples:9} inputs {examples - accepted:9} refused {accepted:9} accepted "
        f"{seconds:8.1f} s {peak / 1024:8.0f} KiB at most\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000, help="for each decoder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="decoders whose name has this in it")
    arguments = parser.parse_args()
    names = [name for name in DECODERS if arguments.only in name]
    faults = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        jobs: dict[str, list[Future[Outcome]]] = {
            name: [pool.submit(portion, name, *one) for one in portions(arguments.examples, arguments.seed)]
            for name in names
        }
        for name, parts in jobs.items():
            done: list[Outcome] = []
            for part in parts:
                try:
                    done.append(part.result())
                except BadInputError as error:
                    faults += 1
                    sys.stderr.write(f"{error}\n")
            sys.stdout.write(line(name, done))
            sys.stdout.flush()
    if faults:
        sys.stderr.write(f"{faults} inputs were neither refused as they should be nor sound\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
