"""`peerd service` on a system that is a folder: the programs it asks are scripts that write down what they
are asked. What systemd makes of it is shown by tests/systemd."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import service, service_state, talk, units
from peer import local, places

Run = Callable[..., Result]


class System:
    """`asked`: what its programs were asked. `fails`: a program and its first word that end with 1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "asked"
        self.log.touch()
        self.etc = folder / "etc"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.users = folder / "has-user"
        for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles", "userdel", "groupdel", "getent"):
            self.program(name)
        self.program("getent", f"test -e {self.users}")
        self.program("systemd-sysusers", f"touch {self.users}")
        self.program("groupdel", f"rm -f {self.users}")

    def program(self, name: str, does: str = ":") -> None:
        script = self.bin / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> {self.log}\n{does}\n')
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().replace(f"{self.etc}/", "").splitlines()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.etc)) for path in self.etc.rglob("*") if not path.is_dir())


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    found = System(tmp_path)
    monkeypatch.setenv("PATH", f"{found.bin}:/usr/bin:/bin")
    monkeypatch.setattr(units, "ETC", found.etc)
    monkeypatch.setattr(units, "_TEGRA", (tmp_path / "no", tmp_path / "no"))
    monkeypatch.setattr(service, "BOOTED", tmp_path)
    monkeypatch.setattr(service, "PACKAGED", (tmp_path / "packaged",))
    monkeypatch.setattr(service, "SYSTEM_STATE", tmp_path / "state")
    monkeypatch.setattr(service, "_check_interpreter", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return found


FILES = ["systemd/system/peerd.service", "sysusers.d/peerd.conf", "tmpfiles.d/peerd.conf"]
RESTART = "systemctl restart peerd.service"


def test_install_writes_makes_enables_and_starts_in_this_order(system: System, run: Run) -> None:
    done = run("service", "install")
    assert done.exit_code == 0, done.stderr
    assert system.files() == FILES
    assert system.asked == [
        "systemd-sysusers sysusers.d/peerd.conf",
        "systemd-tmpfiles --create tmpfiles.d/peerd.conf",
        "systemctl daemon-reload",
        "systemctl enable --quiet peerd.service",
        RESTART,
    ]
    unit = (system.etc / FILES[0]).read_text()
    assert f"ExecStart={units.quoted(sys.executable)} -P -m peer\n" in unit
    assert "usermod -aG peerd NAME" in done.stdout
    assert "may run code as user 'peerd'" in done.stdout.replace("\n", " ")


def test_install_again_is_an_upgrade(system: System, run: Run) -> None:
    run("service", "install", "--gpu")
    assert "systemd/system/peerd.service.d/gpu.conf" in system.files()
    again = run("service", "install")
    assert again.exit_code == 0, again.stderr
    assert system.files() == FILES
    assert system.asked.count(RESTART) == 2


def test_in_an_image_it_is_enabled_and_not_started(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "BOOTED", tmp_path / "not-booted")
    assert run("service", "install").exit_code == 78
    done = run("service", "install", "--no-start")
    assert done.exit_code == 0, done.stderr
    assert system.asked[-1] == "systemctl enable --quiet peerd.service"
    assert "systemctl daemon-reload" not in system.asked


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_who_is_not_root_is_told_to_be(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = run("service", verb)
    assert refused.exit_code == 73
    assert f"service {verb}'" in refused.stderr
    assert "run 'sudo " in refused.stderr
    assert system.asked == []


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_a_system_without_systemd_is_said(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    refused = run("service", verb)
    assert refused.exit_code == 78
    assert "not run by systemd" in refused.stderr


def test_a_unit_that_somebody_else_wrote_is_left_alone(system: System, run: Run) -> None:
    unit = system.etc / FILES[0]
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    for verb in ("install", "uninstall"):
        refused = run("service", verb)
        assert refused.exit_code == 78
        assert "was not written by 'peerd service install'" in refused.stderr
    assert (unit.read_text(), system.asked) == ("[Service]\nExecStart=/bin/true\n", [])


def test_a_masked_unit_is_said(system: System, run: Run) -> None:
    unit = system.etc / FILES[0]
    unit.parent.mkdir(parents=True)
    unit.symlink_to(os.devnull)
    refused = run("service", "install")
    assert refused.exit_code == 78
    assert "systemctl unmask peerd.service" in refused.stderr


def test_a_unit_that_a_package_brought_is_said(system: System, run: Run, tmp_path: Path) -> None:
    (tmp_path / "packaged").mkdir()
    (tmp_path / "packaged" / units.UNIT).touch()
    refused = run("service", "install")
    assert refused.exit_code == 78
    assert "comes with a package" in refused.stderr


def test_a_python_that_the_services_user_cannot_run_installs_nothing(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{system.bin}:/usr/bin:/bin")
    monkeypatch.setattr(units, "ETC", system.etc)
    monkeypatch.setattr(service, "BOOTED", system.folder)
    monkeypatch.setattr(service, "PACKAGED", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def refused_by_the_kernel(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    run_program = service.subprocess.run
    monkeypatch.setattr(
        service.subprocess,
        "run",
        lambda words, **how: refused_by_the_kernel() if "user" in how else run_program(words, **how),
    )
    own = system.etc / "systemd/system/peerd.service.d/override.conf"  # it was there before
    own.parent.mkdir(parents=True)
    own.touch()
    refused = run("service", "install", "--no-gpu")
    assert refused.exit_code == 78
    assert f"user 'peerd' cannot run the daemon with {sys.executable}: Permission denied" in refused.stderr
    assert system.files() == [str(own.relative_to(system.etc))]
    assert not system.users.exists()
    assert not any(line.startswith("systemctl enable") for line in system.asked)


def test_a_service_that_does_not_start_is_69_with_what_systemd_says(system: System, run: Run) -> None:
    system.program("systemctl", 'if [ "$1" = restart ]; then echo "Job for peerd failed." >&2; exit 1; fi')
    refused = run("service", "install")
    assert refused.exit_code == 69
    assert "Job for peerd failed." in refused.stderr
    assert "journalctl -u peerd" in refused.stderr


def test_uninstall_removes_all_but_the_state_and_gives_that_to_root(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    owners: dict[str, tuple[int, int]] = {}

    def chown(path: str, user: int, group: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        owners[str(Path(path).relative_to(tmp_path))] = (user, group)

    monkeypatch.setattr(os, "chown", chown)
    run("service", "install", "--gpu")
    (tmp_path / "state" / "sessions").mkdir(parents=True)
    (tmp_path / "state" / "sessions" / "key").touch()
    done = run("service", "uninstall")
    assert done.exit_code == 0, done.stderr
    assert system.files() == []
    assert not (system.etc / "systemd/system/peerd.service.d").exists()
    assert not (system.etc / "sysusers.d").exists()
    assert not system.users.exists()
    assert "systemctl disable --quiet --now peerd.service" in system.asked
    assert owners == {"state": (0, 0), "state/sessions": (0, 0), "state/sessions/key": (0, 0)}
    assert f"are kept in {tmp_path / 'state'}" in done.stdout
    again = run("service", "uninstall")
    assert (again.exit_code, again.stdout) == (0, "no service is installed here\n")


def test_uninstall_can_be_had_again_when_the_user_is_still_at_work(
    system: System, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Path] = []
    monkeypatch.setattr(os, "chown", lambda path, *_, **__: given.append(Path(path)))
    run("service", "install")
    (tmp_path / "state").mkdir()
    system.program("userdel", 'echo "userdel: user peerd is currently used by process 7" >&2; exit 8')
    refused = run("service", "uninstall")
    assert (refused.exit_code, "used by process 7" in refused.stderr) == (70, True)
    assert (system.files(), system.users.exists(), given) == (FILES, True, []), "nothing is removed yet"
    system.program("userdel")
    done = run("service", "uninstall")
    assert done.exit_code == 0, done.stderr
    assert (system.files(), system.users.exists(), given) == ([], False, [tmp_path / "state"])
    assert "the service is removed" in done.stdout


def test_changes_that_the_user_made_to_the_unit_outlive_it(system: System, run: Run) -> None:
    own = system.etc / "systemd/system/peerd.service.d/override.conf"  # of 'systemctl edit'
    own.parent.mkdir(parents=True)
    own.write_text("[Service]\nMemoryMax=1G\n")
    run("service", "install", "--gpu")
    done = run("service", "uninstall")
    assert done.exit_code == 0, done.stderr
    assert system.files() == [str(own.relative_to(system.etc))]
    assert f"are kept in {own.parent}" in done.stdout


SHOWN = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "FragmentPath": "/etc/systemd/system/peerd.service",
    "MainPID": "71",
    "NRestarts": "2",
    "Result": "success",
    "WatchdogUSec": "1min",
}


@pytest.fixture
def shows(system: System, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What `systemctl show` says."""

    def show(**changes: str) -> None:
        an_hour_ago = str(int(1e6 * (time.monotonic() - 3600)) if time.monotonic() > 3600 else 1)
        times = {"ActiveEnterTimestampMonotonic": an_hour_ago, "WatchdogTimestampMonotonic": an_hour_ago}
        lines = "\n".join(f"{key}={value}" for key, value in {**SHOWN, **times, **changes}.items())
        (system.folder / "shown").write_text(lines)
        system.program("systemctl", f"cat {system.folder / 'shown'}")

    return show


def test_status_says_what_systemd_knows_and_what_the_daemon_answers(
    shows: Callable[..., None], daemon: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows()
    monkeypatch.setattr(service_state, "SYSTEM_SOCKET", daemon.path)
    status = {"version": "9.9", "sessions": [{}, {}], "health": ["the clock is unset"]}
    daemon.answers["status"] = lambda _: [{"op": "done", "status": status}]
    done = run("service", "status")
    assert done.exit_code == 0
    first, second, third, fourth = done.stdout.splitlines()
    assert first.startswith("peerd.service: active (running) for ")
    assert first.endswith(", enabled, 2 restarts")
    assert second.startswith("watchdog: 1 min 0 s, fed ")
    assert third.endswith(f"peerd 9.9 answers on {daemon.path}, pid 71, 2 sessions") or "9.9" in third
    assert fourth == "! the clock is unset"
    found = json.loads(run("service", "status", "--json").stdout)
    assert (found["active"], found["enabled"], found["pid"], found["restarts"]) == (
        "active",
        "enabled",
        71,
        2,
    )
    assert (found["watchdog_s"], found["answers"], found["sessions"]) == (60.0, True, 2)
    assert found["since_s"] > 0


def test_status_of_a_service_that_failed_is_69_with_the_reason(
    shows: Callable[..., None], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shows(ActiveState="failed", SubState="failed", Result="watchdog", MainPID="0", WatchdogUSec="0")
    monkeypatch.setattr(service_state, "SYSTEM_SOCKET", tmp_path / "none")
    done = run("service", "status")
    assert done.exit_code == 69
    assert done.stdout.startswith("peerd.service: failed (failed), watchdog, enabled")
    assert f"daemon: no daemon answers on {tmp_path / 'none'}" in done.stdout


def test_status_without_a_service_is_69_and_says_how_to_get_one(shows: Callable[..., None], run: Run) -> None:
    shows(LoadState="not-found")
    done = run("service", "status")
    assert (done.exit_code, "sudo peerd service install" in done.stdout) == (69, True)
    assert json.loads(run("service", "status", "--json").stdout)["installed"] is False
    shows(LoadState="masked")
    assert "sudo systemctl unmask peerd.service" in run("service", "status").stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1min", 60.0), ("1min 30s", 90.0), ("500ms", 0.5), ("0", None), ("infinity", None)],
)
def test_spans_of_time_are_read_as_systemd_writes_them(text: str, expected: float | None) -> None:
    assert service_state.seconds(text) == expected


# --- who may use the service's socket ------------------------------------------------------------------


@pytest.fixture
def barred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service runs, and this user may not enter its folder. The user's own daemon does not."""
    folder = tmp_path / "run"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(places, "SYSTEM_SOCKET", folder / "peerd.sock")
    monkeypatch.setattr(
        os, "access", lambda path, mode: not Path(path).is_relative_to(folder) and access(path, mode)
    )
    monkeypatch.delenv("PEERD_STATE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(places, "_user_name", lambda uid: "'bob'")
    monkeypatch.setattr(places.grp, "getgrnam", lambda name: Group([]))
    return folder


class Group:
    gr_gid = 54321

    def __init__(self, members: list[str]) -> None:
        self.gr_mem = members


@pytest.mark.parametrize("words", [["status"], ["create", "home"], ["join", "home"]])
def test_who_is_not_in_the_group_is_told_how_to_be_and_starts_no_second_daemon(
    barred: Path, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it became a daemon"))
    refused = run(*words)
    assert refused.exit_code == 69
    assert "you are not in group 'peerd': 'sudo usermod -aG peerd bob'" in refused.stderr
    assert "may run code as user 'peerd'" in refused.stderr


def test_who_has_been_let_in_since_is_told_to_log_in_again(
    barred: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.grp, "getgrnam", lambda name: Group(["bob"]))
    assert "log in again" in run("status").stderr
    assert "usermod" not in run("status").stderr


def test_who_names_a_daemon_means_that_one(barred: Path, run: Run, tmp_path: Path) -> None:
    refused = run("status", "--socket", str(tmp_path / "mine"))
    assert refused.exit_code == 69
    assert f"no daemon answers on {tmp_path / 'mine'}" in refused.stderr


def test_a_service_between_two_lives_is_said_and_no_second_daemon_started(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PEERD_STATE")
    with socket.socket(socket.AF_UNIX) as listener:  # killed: its socket is still there
        listener.bind(str(tmp_path / "s"))
    for module in (places, talk):
        monkeypatch.setattr(module, "SYSTEM_SOCKET", tmp_path / "s")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it became a daemon"))
    refused = run("create", "home")
    assert refused.exit_code == 69
    assert "'peerd service status' says how it is" in refused.stderr


@pytest.mark.parametrize("words", [["status"], ["create", "home"], ["join", "home"]])
def test_a_socket_one_may_not_use_starts_no_second_daemon(
    nobody: Path, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Somebody else's, and the service's, which answers one who is not in the group."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(nobody))
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it became a daemon"))
    monkeypatch.setattr(local, "_reach", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    refused = run(*words)
    assert refused.exit_code == 69
    assert f"the daemon's socket {nobody} may not be used by you" in refused.stderr
    for module in (local, places, talk):
        monkeypatch.setattr(module, "SYSTEM_SOCKET", nobody)
    refused = run(*words)
    assert refused.exit_code == 69
    assert "usermod -aG peerd" in refused.stderr
    assert "restarting" not in refused.stderr


def test_the_folder_that_a_service_leaves_while_it_starts_again_is_no_missing_service(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit's RuntimeDirectoryPreserve=restart."""
    monkeypatch.delenv("PEERD_STATE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "service" / "peerd.sock")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it became a daemon"))
    (tmp_path / "service").mkdir()
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)  # a member of the group, not the service's user
    refused = run("create", "home")
    assert refused.exit_code == 69
    assert "it may be restarting" in refused.stderr
    assert "usermod" not in refused.stderr


def test_without_a_service_nothing_of_it_is_said(
    barred: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "nowhere" / "peerd.sock")
    assert "group" not in run("status").stderr


def test_a_socket_that_refuses_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        monkeypatch.setattr(local, "_reach", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
        with pytest.raises(local.NoDaemonError, match="name another with --socket"):
            local.connect(tmp_path / "s")
        monkeypatch.setattr(local, "SYSTEM_SOCKET", tmp_path / "s")
        with pytest.raises(local.NoDaemonError, match=r"group 'peerd'"):
            local.connect(tmp_path / "s")
    assert issubclass(talk.BarredDaemonError, talk.SilentDaemonError)
