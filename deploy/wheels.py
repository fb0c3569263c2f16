"""Which wheels a 64-bit ARM device gets, for each Python: asks pip, so needs the network, and writes
wheels.json.

Ends with 1 where a dependency has none. torch is asked for by itself, since pip takes the markers of what it
depends on for this machine's: what it would bring along on a device is worked out from its metadata.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "deploy" / "wheels.json"
PYTHONS = ("3.11", "3.13")  # Raspberry Pi OS bookworm's and trixie's
GLIBC = 35  # 2.35: Ubuntu 22.04, JetPack 6; bookworm has 2.36
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WITHOUT_CUDA = "torch>=2.5,<2.10"  # newer ones from the package index ask for CUDA on aarch64 too


class NoWheelError(Exception):
    """pip found no wheel, or reached no index; the text is its last lines."""


def runtime() -> list[str]:
    return list(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    )


def resolve(python: str, requirements: list[str], *more: str) -> list[dict[str, Any]]:
    """What pip would install on the device. Raises NoWheelError."""
    tag = "cp" + python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC, 16, -1)] + ["manylinux2014_aarch64"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [
                sys.executable, "-P", "-m", "pip", "install", "--quiet", "--retries", "1", "--dry-run",
                "--ignore-installed", "--report", str(report), "--target", folder, "--only-binary=:all:",
                "--implementation", "cp", "--python-version", python,
                *(word for abi in (tag, "abi3", "none") for word in ("--abi", abi)),
                *(word for platform in platforms for word in ("--platform", platform)),
                *more, *requirements,
            ],
            # this machine's own wheels and bounds are not a device's
            env={k: v for k, v in os.environ.items() if k not in ("PIP_FIND_LINKS", "PIP_CONSTRAINT")}
            | {"PIP_CONFIG_FILE": os.devnull},
            capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode:
            raise NoWheelError("\n".join(done.stderr.strip().splitlines()[-3:]))
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return found


def files(found: list[dict[str, Any]]) -> dict[str, str]:
    """The wheel of each distribution."""
    named = {
        str(canonicalize_name(one["metadata"]["name"])): one["download_info"]["url"].rpartition("/")[2]
        for one in found
    }
    return {name: file.replace("%2B", "+") for name, file in sorted(named.items())}


def applies(requirement: Requirement, python: str) -> bool:
    """To an aarch64 device with that Python?"""
    device = {
        "platform_machine": "aarch64", "platform_system": "Linux", "sys_platform": "linux",
        "os_name": "posix", "python_version": python, "python_full_version": f"{python}.0", "extra": "",
    }  # fmt: skip
    return requirement.marker is None or requirement.marker.evaluate(device)


def torch(python: str, requirement: str, *index: str) -> tuple[dict[str, Any], list[str]]:
    """The wheel of torch and how many packages of CUDA it brings to a device; what else it asks for."""
    [found] = resolve(python, [requirement], "--no-deps", *index)
    asked = [Requirement(text) for text in found["metadata"].get("requires_dist", [])]
    asked = [one for one in asked if applies(one, python)]
    cuda = [one for one in asked if re.match(r"(nvidia|cuda)-", one.name)]
    others = [f"{one.name}{one.specifier}" for one in asked if one not in cuda]
    [file] = files([found]).values()
    return {"wheel": file, "cuda_packages": len(cuda)}, others


def look() -> dict[str, Any]:
    wanted = runtime()
    [of_torch] = [one for one in wanted if Requirement(one).name == "torch"]
    others = [one for one in wanted if one != of_torch]
    report: dict[str, Any] = {}
    for python in PYTHONS:
        newest, its = torch(python, of_torch)
        plain, _ = torch(python, WITHOUT_CUDA)
        try:
            of_cpu, _ = torch(python, of_torch, "--index-url", CPU_INDEX)
        except NoWheelError as error:
            print(f"PyTorch's CPU index, Python {python}: {error}", file=sys.stderr)
            of_cpu = {}
        report[python] = {
            "wheels": files(resolve(python, [*others, *its])),
            "torch": {
                "package index, newest": newest,
                f"package index, {WITHOUT_CUDA}": plain,
                "PyTorch's CPU index": of_cpu,
            },
        }
    return report


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path, default=WRITTEN, metavar="FILE")
    where = options.parse_args().json
    try:
        report = look()
    except NoWheelError as error:
        print(f"no wheel for some device, or no package index: {error}", file=sys.stderr)
        return 1
    where.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for python, found in report.items():
        print(f"Python {python}, aarch64, glibc 2.{GLIBC}: {len(found['wheels'])} wheels, all there")
        for where_from, one in found["torch"].items():
            said = f"{one['wheel']}, {one['cuda_packages']} packages of CUDA" if one else "not reached"
            print(f"  torch, {where_from}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
