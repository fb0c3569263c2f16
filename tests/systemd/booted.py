"""The service in booted Debian trees, from its installation to its removal: `make test-systemd`.

Needs root, systemd-nspawn and debootstrap, and a network the first time (a base tree, wheels of what peerd
depends on); all of that is kept in --cache. Prints what it does and what it finds (story.py), and ends with 1
at the first thing that is not as it should be. Takes some ten minutes: a watchdog's minute is a real one, and
so are the two of a learner that says nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from systemd.container import Device, FailedError, base_tree, own_folder_for_nspawn, raise_bridge
from systemd.story import Story, say

ROOT = Path(__file__).parents[2]
CACHE = Path("/var/tmp/peerd-systemd")


def wheelhouse(cache: Path, built: Path) -> None:
    """Everything that has to be installed in a tree without a network."""
    wheels = cache / "wheels"
    wheels.mkdir(exist_ok=True)
    for wheel in wheels.glob("peerd-*.whl"):
        wheel.unlink()
    alone = ("--no-deps", "--no-build-isolation", "--no-index")
    pip("wheel", *alone, "--wheel-dir", str(built), str(ROOT))
    [wheel] = built.glob("peerd-*.whl")
    torch = os.environ.get("PEERD_TORCH", "torch==2.13.0")
    pip("download", "--dest", str(wheels), "--find-links", str(wheels), torch, str(wheel))
    shutil.copy(wheel, wheels)
    shutil.copy(ROOT / "deploy" / "install.sh", wheels)
    shutil.copy(ROOT / "examples" / "plain_loop.py", wheels)


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "pip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise FailedError(f"pip {' '.join(words)}\n{done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    missing = [tool for tool in ("systemd-nspawn", "debootstrap", "nsenter") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"needs root {' and '.join(missing)}: apt install systemd-container debootstrap")
        return 1
    if not asked.inside:  # what is mounted and connected from here on is gone when this ends
        command = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-P", __file__]
        prepare(asked.cache, asked.suite)
        os.execvp(command[0], [*command, *sys.argv[1:], "--inside"])
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that the trees are taken down
    own_folder_for_nspawn()
    raise_bridge()
    with tempfile.TemporaryDirectory(prefix="run-", dir=asked.cache) as folder:
        return play(asked.cache, asked.suite, Path(folder))


def prepare(cache: Path, suite: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    base_tree(cache, suite)
    with tempfile.TemporaryDirectory() as built:
        wheelhouse(cache, Path(built))


def play(cache: Path, suite: str, folder: Path) -> int:
    base, wheels = base_tree(cache, suite), cache / "wheels"
    devices: list[Device] = []
    try:
        for number, name in enumerate(("pi-1", "pi-2"), 1):
            devices.append(Device(name, base, folder, f"10.98.0.{number}"))
            took = time.monotonic()
            devices[-1].boot(wheels)
            say(f"{name} has booted in {time.monotonic() - took:.0f} s")
        Story(devices[0], devices[1], wheels).tell()
    except FailedError as error:
        say(f"FAILED: {error}")
        for device in devices:
            journal = device.run(
                "journalctl", "-u", "peerd", "-n", "40", "-o", "cat", "--no-pager", check=False
            )
            print(f"--- {device.name}: journal\n{journal.stdout}", flush=True)
        return 1
    finally:
        for device in devices:
            device.stop()
    say("all as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
