"""The files of the systemd service: where their text comes from, where they go, what is this device's own.

deploy/systemd/ holds them; the wheel brings them along as cli/deploy/.
"""

from __future__ import annotations

import grp
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

UNIT = "peerd.service"
ETC = Path("/etc")
MARK = "# Written by 'peerd service install', removed by 'peerd service uninstall'.\n"
_PYTHON = "/opt/peerd/venv/bin/python"  # in deploy/systemd/peerd.service
_TEGRA = (Path("/etc/nv_tegra_release"), Path("/proc/device-tree/compatible"))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files go. `own`: the folder of drop-ins, ours and the user's."""

    unit: Path
    own: Path
    gpu: Path
    sysusers: Path
    tmpfiles: Path

    @property
    def all(self) -> tuple[Path, ...]:
        return self.unit, self.gpu, self.sysusers, self.tmpfiles


def places() -> Places:
    system = ETC / "systemd" / "system"
    own = system / f"{UNIT}.d"
    return Places(
        system / UNIT,
        own,
        own / "gpu.conf",
        ETC / "sysusers.d" / "peerd.conf",
        ETC / "tmpfiles.d" / "peerd.conf",
    )


def texts(python: str, gpu: bool) -> dict[Path, str]:
    """What each file is to hold, where the daemon runs under this interpreter. gpu: let it use one."""
    where = places()
    found = {
        where.unit: _read("peerd.service").replace(_PYTHON, quoted(python)),
        where.sysusers: _read("sysusers.conf"),
        where.tmpfiles: _read("tmpfiles.conf"),
    }
    if gpu:
        found[where.gpu] = _with_known_groups(_read("jetson.conf"))
    return {path: MARK + text for path, text in found.items()}


def quoted(path: str) -> str:
    """The path as a word of ExecStart= (systemd.service(5), "Command lines")."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w/.+-]+", path) else f'"{text}"'


def is_jetson() -> bool:
    """Is this a Tegra, which computes on its GPU?"""
    release, compatible = _TEGRA
    return release.exists() or (compatible.exists() and b"nvidia,tegra" in compatible.read_bytes())


def _with_known_groups(text: str) -> str:
    """Without groups that this system has not: a unit that names one does not start."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("SupplementaryGroups=") or _is_known(line))


def _is_known(line: str) -> bool:
    try:
        grp.getgrnam(line.partition("=")[2].strip())
    except KeyError:
        return False
    return True


def _read(name: str) -> str:
    return (_folder() / name).read_text(encoding="utf-8")


def _folder() -> Traversable:
    """Of an installed wheel, else of a checkout."""
    package = files("cli")
    inside = package / "deploy"
    return inside if inside.is_dir() else Path(str(package)).parent / "deploy" / "systemd"
