"""The systemd unit and its companions: what must stay true of them; tests/systemd shows the unit at work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cli import units

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"

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
