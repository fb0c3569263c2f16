"""The systemd unit and its companions: what must stay true of them, and that systemd reads them as meant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import units

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
SCORE = 2.0  # what `systemd-analyze security` is to stay below

Settings = dict[str, list[str]]


def settings(name: str) -> tuple[Settings, list[tuple[str, str]]]:
    """The assignments of a unit file, and each of them with the comment right above its block."""
    found: Settings = {}
    reasons: list[tuple[str, str]] = []
    reason = ""
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("#"):
            reason = line
        elif "=" in line:
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
            reasons.append((line, reason))
        else:
            reason = ""
    return found, reasons


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("WatchdogSec", "60"),
        ("Restart", "on-failure"),
        ("KillMode", "mixed"),
        ("User", "peerd"),
        ("Group", "peerd"),
        ("StateDirectory", "peerd"),
        ("RuntimeDirectory", "peerd"),
        ("RuntimeDirectoryMode", "0750"),
        ("OOMPolicy", "continue"),
        ("LimitCORE", "0"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX AF_NETLINK"),
        ("StartLimitIntervalSec", "0"),
    ],
)
def test_what_the_daemon_relies_on_is_in_its_unit(key: str, value: str) -> None:
    assert settings("peerd.service")[0][key] == [value]


def test_what_torch_and_mdns_do_not_survive_is_not_in_it() -> None:
    found, _ = settings("peerd.service")
    assert not {"MemoryDenyWriteExecute", "PrivateNetwork", "IPAddressDeny", "ProcSubset"} & found.keys()
    assert found["ProtectHome"] == ["read-only"], "--data may be in a home"


@pytest.mark.parametrize("name", ["peerd.service", "jetson.conf"])
def test_every_line_of_the_sandbox_has_its_reason(name: str) -> None:
    _, reasons = settings(name)
    plain = {"Description", "After", "ExecStart", "WantedBy"}
    assert [line for line, reason in reasons if not reason and line.partition("=")[0] not in plain] == []


def test_the_watchdog_is_fed_before_the_learner_is_taken_for_silent() -> None:
    """A daemon is ended after a minute; a learner has longer, for the daemon has to be there to see it."""
    from peer.daemon import learning
    from peer.learner import link

    assert float(settings("peerd.service")[0]["WatchdogSec"][0]) < learning.SILENT_S
    assert 5 * link.BEAT_S < learning.SILENT_S


def test_the_unit_runs_this_python_and_says_who_wrote_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(units, "ETC", tmp_path)
    texts = units.texts("/opt/my peerd/bin/python", gpu=False)
    where = units.places()
    assert set(texts) == {where.unit, where.sysusers, where.tmpfiles}
    assert all(text.startswith(units.MARK) for text in texts.values())
    assert 'ExecStart="/opt/my peerd/bin/python" -P -m peer\n' in texts[where.unit]
    assert "/opt/peerd/venv/bin/python" not in texts[where.unit]


def test_a_gpus_groups_are_those_that_the_system_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(units, "ETC", tmp_path)

    def known(name: str) -> None:
        if name != "video":
            raise KeyError(name)

    monkeypatch.setattr(units.grp, "getgrnam", known)
    text = units.texts(sys.executable, gpu=True)[units.places().gpu]
    assert "SupplementaryGroups=video\n" in text
    assert "SupplementaryGroups=render" not in text
    assert "PrivateDevices=no\n" in text


def test_a_tegra_is_known_by_its_release_file_or_its_device_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release, tree = tmp_path / "nv_tegra_release", tmp_path / "compatible"
    monkeypatch.setattr(units, "_TEGRA", (release, tree))
    assert not units.is_jetson()
    tree.write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    assert not units.is_jetson()
    tree.write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    assert units.is_jetson()
    tree.unlink()
    release.write_text("# R35")
    assert units.is_jetson()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unit as it is installed here, under a path that systemd takes it from."""
    monkeypatch.setattr(units, "ETC", tmp_path)
    for path, text in units.texts(sys.executable, gpu=False).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return units.places().unit


def analyzed(*words: str) -> str:
    """What systemd-analyze says of it; it must be content. Where there is none, the tests above are all that
    can be said here, and `make test-systemd` says the rest."""
    if shutil.which("systemd-analyze") is None:
        return ""
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_nothing_to_say_of_it(written: Path) -> None:
    assert analyzed("verify", "--man=no", str(written)) == ""


def test_systemd_finds_it_little_exposed(written: Path) -> None:
    said = analyzed(
        "security",
        "--offline=true",
        "--no-pager",
        "--json=short",
        f"--threshold={10 * SCORE:.0f}",
        str(written),
    )
    exposed = {row["name"] for row in json.loads(said or "[]") if row["exposure"]}
    assert not {"UserOrDynamicUser", "CapabilityBoundingSet_CAP_SYS_ADMIN", "NoNewPrivileges"} & exposed
