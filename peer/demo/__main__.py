"""`python -m peer.demo`: arguments, a limit on time, exit codes. `peerd demo` becomes this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from peer.demo import results
from peer.demo.progress import Progress
from peer.demo.story import tell
from peer.demo.terms import DemoError, Outcome
from peer.errors import PeerdError

LIMIT_S = 1800.0  # for 6 devices and 2400 steps, 1 to 4 minutes on two cores: it must not hang (guess)
LIMIT_STEPS = 6 * 2400
MAX_FOLDER = 60  # letters of the temporary folder: a socket's path has at most 100 (peer/places.py)
INTERRUPTED = 130


def main() -> int:
    arguments = _arguments()
    console = Console(highlight=False)
    began = time.monotonic()
    picture, json_file = Path(arguments.picture), Path(arguments.json) if arguments.json else None
    try:
        for path in [picture, *([json_file] if json_file else [])]:
            results.check_writable(path)
        with _folder(arguments.keep) as folder:
            outcomes = asyncio.run(_tell(arguments.devices, arguments.steps, folder, console))
        console.print(results.table(outcomes))
        if json_file is not None:
            results.write_json(outcomes, time.monotonic() - began, json_file)
            console.print(f"figures: {json_file}")
        if results.draw(outcomes, picture):
            console.print(f"learning curves: {picture}")
        else:
            console.print("no picture: matplotlib is not installed; 'pip install peerd[demo]' brings it")
    except PeerdError as error:
        sys.stderr.write(f"peerd: {error}\n")
        return error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("peerd: interrupted; every device is stopped\n")
        return INTERRUPTED
    console.print(f"{time.monotonic() - began:.0f} s in all")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m peer.demo", description="see 'peerd demo --help'")
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--json")
    parser.add_argument("--picture", default="peerd-demo.png")
    parser.add_argument("--keep", action="store_true")
    return parser.parse_args()


async def _tell(devices: int, steps: int, folder: Path, console: Console) -> list[Outcome]:
    """The story, with an end to it: on SIGTERM, and when time is up."""
    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    limit_s = LIMIT_S * max(1.0, devices * steps / LIMIT_STEPS)
    try:
        async with asyncio.timeout(limit_s):
            with Progress(console) as progress:
                return await tell(devices, steps, folder, progress)
    except TimeoutError as error:
        raise DemoError(
            f"the demo did not end within {limit_s:.0f} s; see the logs in {folder}; try fewer --devices"
        ) from error


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    """A folder for the devices; removed when all went well, kept with its logs when not."""
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="peerd-demo-", dir=base if len(base) <= MAX_FOLDER else "/tmp"))
    try:
        yield folder
    except DemoError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if keep:
        sys.stderr.write(f"the devices' folders and logs: {folder}\n")
    else:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
