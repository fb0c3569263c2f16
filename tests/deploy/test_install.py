"""deploy/install.sh, run for real into a folder of the test: the wheel of this tree, the packages of this
Python, no network. The service is left alone here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from peer.version import VERSION

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "install.sh"
NEXT = "99.1"


@dataclass(frozen=True)
class Place:
    """Where a test's peerd goes, and its state."""

    folder: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "opt"

    @property
    def command(self) -> Path:
        return self.folder / "bin" / "peerd"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def run(self, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(
            SCRIPT, "--prefix", self.prefix, "--bin-dir", self.command.parent, "--state", self.state,
            "--no-service", *options, **environment,
        )  # fmt: skip

    def version(self) -> str:
        """What the command says that is installed, run where nothing of this tree is importable."""
        done = run(self.command, "--version")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def releases(self) -> list[Path]:
        return list((self.prefix / "releases").iterdir())


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(
        [str(word) for word in words], cwd="/", env=env | environment, capture_output=True, text=True
    )


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(
        sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "-w", folder, ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("peerd-*.whl")
    return built


def next_version(wheel: Path, folder: Path, **changed: Callable[[str], str]) -> Path:
    """A wheel of version NEXT, with other texts in modules of these names."""
    other = folder / f"peerd-{NEXT}-py3-none-any.whl"
    changed["version"] = lambda text: text.replace(VERSION, NEXT)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            body = old.read(name)
            if ".dist-info/" in name:
                name = name.replace(VERSION, NEXT, 1)
                body = body.replace(f"Version: {VERSION}".encode(), f"Version: {NEXT}".encode())
                body = body.replace(f"peerd-{VERSION}.".encode(), f"peerd-{NEXT}.".encode())
            elif (module := Path(name).stem) in changed:
                body = changed[module](body.decode()).encode()
            new.writestr(name, body)
    return other


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("installed"))
    place.state.mkdir()
    (place.state / "key").write_text("a key")
    done = place.run("--wheel", wheel, "--no-index", "--torch", sysconfig.get_path("purelib"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"peerd {VERSION} is installed" in done.stdout
    return place


def test_it_makes_an_environment_and_a_command_that_are_usable_by_anybody(installed: Place) -> None:
    assert installed.version() == f"peerd {VERSION}"
    assert installed.command.resolve().is_relative_to(installed.prefix)
    for path in (
        installed.prefix / "venv",
        *installed.prefix.glob("venv/lib/python3*/site-packages/peer/*.py"),
    ):
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_the_torch_that_is_there_is_used_and_no_second_one_installed(installed: Place) -> None:
    found = run(
        installed.prefix / "venv" / "bin" / "python", "-I", "-c",
        "import importlib.util as u; print(u.find_spec('torch').origin, u.find_spec('peer').origin)",
    ).stdout.split()  # fmt: skip
    assert Path(found[0]).is_relative_to(sysconfig.get_path("purelib"))
    assert Path(found[1]).is_relative_to(installed.prefix)
    assert list(installed.prefix.rglob("site-packages/torch")) == []


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("wheel", ("what was in hand", "the new installation does not run", "as it was")),
        ("network", ("no network", "--find-links", "as it was")),
    ],
)
def test_an_upgrade_that_fails_leaves_the_old_one(
    installed: Place, wheel: Path, tmp_path: Path, broken: str, words: tuple[str, ...]
) -> None:
    before = installed.version(), installed.releases(), (installed.prefix / "venv").readlink()
    if broken == "wheel":
        bad = next_version(wheel, tmp_path, app=lambda _: "raise ValueError('what was in hand')")
        done = installed.run("--wheel", bad, "--no-index")
    else:
        nobody = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
        done = installed.run("--wheel", wheel, "--torch", "torch==2.5.1", **nobody)
    refused(done, *words)
    assert (installed.version(), installed.releases(), (installed.prefix / "venv").readlink()) == before
    assert not (installed.prefix / "tmp").exists()


def test_an_upgrade_takes_over_what_is_there_and_leaves_one_release(
    installed: Place, wheel: Path, tmp_path: Path
) -> None:
    [old] = installed.releases()
    newer = next_version(wheel, tmp_path)
    done = installed.run("--wheel", newer, "--no-index")  # and its torch where it was
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed.version() == f"peerd {NEXT}"
    assert old not in installed.releases()
    assert len(installed.releases()) == 1
    assert len(list(installed.prefix.rglob("peerd-*.dist-info"))) == 1


def test_uninstalling_leaves_the_state_alone_and_says_so(installed: Place) -> None:
    """Last: it takes away what the tests before looked at."""
    bystander = installed.command.with_name("other")
    bystander.write_text("not ours")
    done = installed.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert f"left {installed.state}" in done.stdout
    assert sorted(path.name for path in installed.folder.rglob("*")) == ["bin", "key", "other", "state"]

    done = installed.run("--uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert "nothing is installed" in done.stdout
    assert not installed.state.exists()


# --- refusals ------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def odd_python(folder: Path, name: str, **shown: object) -> Path:
    """This Python, except for what it says about itself."""
    path = folder / name
    lines = [f"#!{sys.executable}", "import sys", *(f"sys.{key} = {value!r}" for key, value in shown.items())]
    path.write_text("\n".join([*lines, "exec(sys.argv[sys.argv.index('-c') + 1])\n"]))
    path.chmod(0o755)
    return path


def path_without_python(folder: Path) -> Path:
    """All programs but Python."""
    programs = folder / "programs"
    programs.mkdir()
    for source in ("/usr/local/bin", "/usr/bin", "/bin"):
        for program in Path(source).iterdir():
            here = programs / program.name
            if not program.name.startswith("python") and not os.path.lexists(here):
                here.symlink_to(program)
    return programs


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--frobnicate"], "'--frobnicate'"),
        (["--wheel"], "--wheel needs a value"),
        (["--purge"], "goes with --uninstall"),
        (["--prefix", "/opt"], "/opt is no folder for peerd alone"),
        (["--prefix", "here"], "not an absolute path"),
        (["--uninstall", "--purge", "--state", "/var/lib"], "/var/lib is no folder"),
    ],
)
def test_misuse_ends_with_2_and_points_to_the_help(place: Place, options: list[str], word: str) -> None:
    refused(place.run(*options), word, "--help", code=2)


def test_the_help_names_every_option_that_there_is() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    taken = set(re.findall(r"^ +(--[a-z-]+)\)", text, re.MULTILINE))
    both = {
        word
        for words in re.findall(r"^ +(--.* \| --.*)\)$", text, re.MULTILINE)
        for word in words.split(" | ")
    }
    assert {"--wheel", "--no-index", "--purge"} <= taken | both
    shown = run(SCRIPT, "--help").stdout
    assert [option for option in taken | both if option not in shown] == []


def test_a_wheel_that_is_not_there(place: Place) -> None:
    refused(place.run("--wheel", place.folder / "none.whl"), "no such wheel")


def test_a_python_that_is_too_old(place: Place, wheel: Path) -> None:
    old = odd_python(place.folder, "python3", version_info=(3, 10, 12))
    refused(place.run("--wheel", wheel, "--python", old), "older than 3.11", "--python")
    programs = path_without_python(place.folder)
    shutil.copy(old, programs)
    refused(place.run("--wheel", wheel, PATH=str(programs)), "no Python 3.11 or newer found")


def test_a_32_bit_system(place: Place, wheel: Path) -> None:
    narrow = odd_python(place.folder, "python3", maxsize=2**31 - 1, version_info=(3, 9, 2))
    programs = path_without_python(place.folder)
    shutil.copy(narrow, programs)
    refused(place.run("--wheel", wheel, PATH=str(programs)), "32-bit", "64-bit")


def test_a_disk_that_is_too_full(place: Place, wheel: Path) -> None:
    programs = place.folder / "programs"
    programs.mkdir()
    df = programs / "df"
    df.write_text(
        "#!/bin/sh\nprintf 'Filesystem blocks Used Available\\n/dev/mmcblk0p2 14000 13900 100 100%% /\\n'\n"
    )
    df.chmod(0o755)
    done = place.run("--wheel", wheel, PATH=f"{programs}:{os.environ['PATH']}")
    refused(done, "needs some", "there are 100")
    assert not list(place.prefix.rglob("*"))


def test_without_root(place: Place) -> None:
    """The script comes by standard input: another user does not see this folder."""
    with SCRIPT.open() as script:
        done = subprocess.run(
            ["bash", "-s", "--", "--no-service", "--prefix", str(place.prefix)],
            stdin=script,
            cwd="/",
            user="nobody" if os.geteuid() == 0 else None,
            capture_output=True,
            text=True,
        )
    refused(done, "cannot be written", "sudo", "--prefix")


def test_a_folder_of_somebody_else_is_neither_taken_nor_removed(place: Place, wheel: Path) -> None:
    place.prefix.mkdir()
    (place.prefix / "thesis.tex").write_text("mine")
    refused(place.run("--wheel", wheel), "not made by this script", "--prefix")
    refused(place.run("--uninstall"), "not made by this script")
    assert (place.prefix / "thesis.tex").read_text() == "mine"


def test_a_command_of_somebody_else_is_not_replaced(place: Place, wheel: Path) -> None:
    place.command.parent.mkdir()
    place.command.write_text("mine")
    refused(place.run("--wheel", wheel), "--bin-dir")
    assert place.command.read_text() == "mine"
