"""What lies beside the installer names what is there, and what is known of wheels covers what is needed."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PYTHONS = ("3.11", "3.13")


def needed() -> dict[str, Requirement]:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return {str(canonicalize_name(one.name)): one for one in map(Requirement, wanted)}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "wheels.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_a_wheel_for_a_64_bit_arm_device(known: dict[str, Any], python: str) -> None:
    """As the package index had them when wheels.json was written; `make wheels` asks it again."""
    wheels = dict(known[python]["wheels"])
    wheels["torch"] = known[python]["torch"]["package index, newest"]["wheel"]
    for name, wanted in needed().items():
        assert name in wheels, f"{name} is new here: run 'make wheels'"
        found, version, _, tags = parse_wheel_filename(wheels[name])
        assert found == name
        assert version in wanted.specifier, f"{wanted}, but wheels.json has {version}: run 'make wheels'"
        assert any(
            (tag.platform == "any" or tag.platform.endswith("_aarch64"))
            and (tag.abi in ("none", "abi3") or tag.abi == "cp" + python.replace(".", ""))
            for tag in tags
        ), wheels[name]


def test_the_installer_wants_the_torch_that_the_package_wants() -> None:
    [said] = re.findall(r"^requirement='(.*?)'", (DEPLOY / "install.sh").read_text(), re.MULTILINE)
    assert Requirement(said).specifier == needed()["torch"].specifier


@pytest.mark.parametrize("name", ["install.sh", "deb/postinst", "deb/prerm", "deb/postrm"])
def test_the_scripts_are_executable_and_parse(name: str) -> None:
    script = DEPLOY / name
    assert script.stat().st_mode & 0o111 == 0o111
    shell = script.read_text().partition("\n")[0].rpartition("/")[2].rpartition(" ")[2]
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "word", "options"),
    [
        ("postinst", "configure", ""),
        ("prerm", "remove", "--uninstall "),
        ("prerm", "deconfigure", "--uninstall "),
    ],
)
def test_the_package_is_removed_from_where_it_was_installed(
    tmp_path: Path, name: str, word: str, options: str
) -> None:
    """The installer writes down what it is asked."""
    installer, defaults, script = tmp_path / "install.sh", tmp_path / "default", tmp_path / name
    installer.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
    installer.chmod(0o755)
    defaults.write_text('INSTALL_OPTIONS="--prefix /srv/peerd --no-index"\n')
    text = (DEPLOY / "deb" / name).read_text()
    for packaged, here in (("/usr/share/peerd/install.sh", installer), ("/etc/default/peerd", defaults)):
        text = text.replace(packaged, str(here))
    script.write_text(text)
    subprocess.run(["sh", str(script), word], check=True)
    asked = (tmp_path / "asked").read_text()
    assert asked == f"{options}--bin-dir none --prefix /srv/peerd --no-index\n"


def test_the_package_and_the_container_take_files_that_are_there() -> None:
    package = re.findall(r"src: (\S+)", (DEPLOY / "deb" / "nfpm.yaml").read_text())
    package += re.findall(r"(?:install|remove): (\S+)", (DEPLOY / "deb" / "nfpm.yaml").read_text())
    container = re.findall(r"^COPY (?!--)(.+) \S+$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    named = {path for path in package if path.startswith("deploy/")} | {
        path for line in container for path in line.split()
    }
    assert {"deploy/install.sh", "deploy/deb/postinst", "peer", "pyproject.toml"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
