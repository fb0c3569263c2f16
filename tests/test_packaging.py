"""What a user installs: the wheel holds the two packages and the data, and runs beside a user's own files."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from peer.version import VERSION

ROOT = Path(__file__).parents[1]


def pip(*args: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "pip", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(ROOT))
    [built] = folder.glob("peerd-*.whl")
    return built


def test_the_wheel_holds_the_packages_the_data_and_the_licenses(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"peer", "cli"}
    assert "peer/tasks/data/spoken_digits.npz" in names
    assert f"peerd-{VERSION}.dist-info/METADATA" in names
    licenses = {name.partition(".dist-info/licenses/")[2] for name in names} - {""}
    assert licenses == {"LICENSE", "peer/tasks/data/LICENSE"}


@dataclass(frozen=True)
class Installed:
    """The wheel in a folder of its own, and a user's folder with files that bear its modules' names.

    What it depends on is this interpreter's: nothing is downloaded.
    """

    site: Path
    here: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.here,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.here),
                "LANG": "C.UTF-8",
                "PYTHONPATH": str(self.site),
                "PEERD_SOCKET": str(self.here / "nobody.sock"),
            },
            capture_output=True,
            text=True,
        )

    def peerd(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.site / "bin" / "peerd"), *words)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    found = Installed(folder / "site", folder / "here")
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", str(found.site), str(wheel))
    found.here.mkdir()
    for name in ("cli", "peer", "click", "torch"):
        (found.here / f"{name}.py").write_text("raise SystemExit('the wrong file was imported')\n")
    return found


def test_the_installed_command_runs_where_a_user_has_files_of_the_same_names(installed: Installed) -> None:
    done = installed.peerd("--help")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "join" in done.stdout


def test_the_installed_command_says_that_no_daemon_answers(installed: Installed) -> None:
    done = installed.peerd("status")
    assert done.returncode == 69, done.stdout + done.stderr
    assert "nobody.sock" in done.stderr


def test_the_installed_task_reads_its_data_out_of_the_wheel(installed: Installed) -> None:
    done = installed.run(
        "-P", "-c",
        "import peer.tasks.spoken_digits as task\n"
        "print(task.__file__, len(task.load_clips(test=True).digits))",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(installed.site / "peer" / "tasks" / "spoken_digits.py"), "300"]


def test_the_source_distribution_names_files_that_are_there() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "/ARCHITECTURE.md" in named["include"]
    assert [path for path in named["include"] if not (ROOT / path.removeprefix("/")).exists()] == []


def test_lower_bounds_are_what_the_generated_code_asks_for() -> None:
    """peer/wire checks protobuf's version when it is imported (and grpc's, where stubs are generated)."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    checked = 0
    for path in sorted((ROOT / "peer" / "wire").glob("*_pb2*.py")):
        text = path.read_text()
        for mark, end, package in (
            ("Protobuf Python Version: ", "\n", "protobuf"),
            ("GRPC_GENERATED_VERSION = '", "'", "grpcio"),
        ):
            version = text.partition(mark)[2].partition(end)[0]
            if version:
                assert any(bound.startswith(f"{package}>={version}") for bound in wanted), (package, version)
                checked += 1
    assert checked, "peer/wire holds no generated code"
