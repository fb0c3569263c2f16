"""`peerd service`: the daemon as a systemd service of this device, under the interpreter that runs this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click

from cli import units
from cli.service_state import ServiceState, look
from peer.errors import ConfigError, NoDaemonError, PeerdError, StateError
from peer.places import SERVICE_USER, SYSTEM_STATE

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
_PROBE = "import peer.daemon.app"


@click.group(name="service", short_help="Run the daemon as a service of this device.")
def command() -> None:
    """Run the daemon as a service: from boot on, as user 'peerd', in a sandbox, watched by systemd.

    Members of the group 'peerd' may use it: 'sudo usermod -aG peerd NAME'. They may run code as user 'peerd',
    for a task is code.
    """


@command.command(name="install")
@click.option("--gpu/--no-gpu", default=None, help="Let it use a GPU's devices; on a Jetson it does anyway.")
@click.option("--no-start", is_flag=True, help="Enable only: for an image that is not booted yet.")
def install(gpu: bool | None, no_start: bool) -> None:
    """Write the unit, make the user, enable and start the service. Again, after an upgrade, restarts it.

    The service runs the Python that runs this command, so that has to be where user 'peerd' may read it:
    in /opt/peerd, where deploy/install.sh puts it.
    """
    _check_root("install")
    _check_systemd(booted=not no_start)
    where = units.places()
    _check_free(where)
    fresh = not where.sysusers.exists()
    texts = units.texts(sys.executable, units.is_jetson() if gpu is None else gpu)
    for path in where.all:
        _put(path, texts.get(path))
    _run("systemd-sysusers", str(where.sysusers))
    try:
        _check_interpreter()
    except PeerdError:
        if fresh:
            _remove_user()
            _remove(where)
        raise
    _run("systemd-tmpfiles", "--create", str(where.tmpfiles))
    if not no_start:
        _run("systemctl", "daemon-reload")
    _run("systemctl", "enable", "--quiet", units.UNIT)
    if no_start:
        click.echo("the service is installed and enabled; it starts with the next boot")
        return
    try:
        _run("systemctl", "restart", units.UNIT)
    except PeerdError as error:
        raise NoDaemonError(
            f"the service is installed and does not start: {error}; 'journalctl -u peerd -n 20' says why"
        ) from error
    click.echo(f"the service runs and starts with every boot; state in {SYSTEM_STATE}")
    click.echo(
        "who is to use it: sudo usermod -aG peerd NAME, then log in again (members may run code as user "
        "'peerd')"
    )


@command.command(name="uninstall")
def uninstall() -> None:
    """Stop the service and remove it and its user. Keys and checkpoints stay, in a folder of root's; drop-ins
    of your own stay, too."""
    _check_root("uninstall")
    _check_systemd(booted=False)
    where = units.places()
    if not any(os.path.lexists(path) for path in where.all):
        click.echo("no service is installed here")
        return
    _check_free(where)
    if BOOTED.is_dir() and where.unit.exists():
        _run("systemctl", "disable", "--quiet", "--now", units.UNIT)
    _remove_user()  # the files last: while they are there, what failed can be had again
    kept = SYSTEM_STATE.exists()
    if kept:
        _give_to_root(SYSTEM_STATE)
    _remove(where)
    if kept:
        click.echo(
            f"the service is removed; keys and checkpoints are kept in {SYSTEM_STATE}, which is root's now: "
            f"'sudo rm -r {SYSTEM_STATE}' deletes them, installing again takes them up"
        )
    else:
        click.echo("the service is removed; it had no keys and checkpoints")
    if where.own.exists():
        click.echo(
            f"changes to the unit that you have made are kept in {where.own}, for when it is installed again"
        )


@command.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> int:
    """Whether the service runs, starts with every boot, gives signs of life, and answers. Ends with 0 if it
    answers, else with 69."""
    _check_systemd(booted=True)
    found = look()
    click.echo(json.dumps(found.to_dict()) if as_json else _for_people(found))
    return 0 if found.answers else NoDaemonError.exit_code


def _for_people(found: ServiceState) -> str:
    return "\n".join(found.lines())


# --- what may go wrong beforehand ----------------------------------------------------------------------


def _check_root(verb: str) -> None:
    if os.geteuid() != 0:
        peerd = shutil.which("peerd") or "peerd"
        raise StateError(f"{units.ETC} cannot be written by you; run 'sudo {peerd} service {verb}'")


def _check_systemd(*, booted: bool) -> None:
    if shutil.which("systemctl") is None or (booted and not BOOTED.is_dir()):
        raise ConfigError(
            "this system is not run by systemd, and the service is one of systemd's; run 'peerd daemon' from "
            "what starts programs here (in an image that is not booted: install --no-start)"
        )


def _check_free(where: units.Places) -> None:
    """Raises ConfigError where the unit is masked, or was not written by this command."""
    if where.unit.is_symlink():
        if os.readlink(where.unit) == os.devnull:
            raise ConfigError(f"{units.UNIT} is masked; 'sudo systemctl unmask {units.UNIT}' first")
        raise ConfigError(f"{where.unit} is a link that is not ours; remove it first")
    if where.unit.exists() and not where.unit.read_text(encoding="utf-8", errors="replace").startswith(
        units.MARK
    ):
        raise ConfigError(
            f"{where.unit} is there and was not written by 'peerd service install'; move it away first"
        )
    for folder in PACKAGED:
        if (folder / units.UNIT).exists():
            raise ConfigError(
                f"the service comes with a package here ({folder}/{units.UNIT}): 'sudo systemctl enable "
                f"--now {units.UNIT}' starts it, and the package's removal removes it"
            )


def _check_interpreter() -> None:
    """Raises ConfigError unless the service's user can run this Python and load the daemon."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            user=SERVICE_USER, group=SERVICE_USER, extra_groups=[], cwd="/", env={"PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except OSError as error:
        said = [error.strerror or str(error)]
    if said is not None:
        raise ConfigError(
            f"user '{SERVICE_USER}' cannot run the daemon with {sys.executable}: {' '.join(said)}; install "
            "peerd where everybody may read it, as deploy/install.sh does in /opt/peerd"
        )


# --- what is done --------------------------------------------------------------------------------------


def _put(path: Path, text: str | None) -> None:
    """Write the file, or see to it that there is none."""
    try:
        if text is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}; is the disk read-only?") from error


def _remove_user() -> None:
    """And its group. Raises PeerdError where processes of it run."""
    for tool, database in (("userdel", "passwd"), ("groupdel", "group")):
        if (
            subprocess.run(["getent", database, SERVICE_USER], capture_output=True, check=False).returncode
            == 0
        ):
            _run(tool, SERVICE_USER)


def _remove(where: units.Places) -> None:
    """Files; what systemd remembers of them."""
    for path in where.all:
        _put(path, None)
    for folder in (where.own, where.sysusers.parent):  # Debian comes without the second
        with suppress(OSError):  # others have files in it
            folder.rmdir()
    if BOOTED.is_dir():
        _run("systemctl", "daemon-reload")
        subprocess.run(["systemctl", "reset-failed", units.UNIT], capture_output=True, check=False)


def _give_to_root(folder: Path) -> None:
    """The next user that is made may get the number of the one that is gone, and is not to get the keys."""
    for path, folders, names in os.walk(folder):
        for entry in (path, *(os.path.join(path, name) for name in (*folders, *names))):
            os.chown(entry, 0, 0, follow_symlinks=False)


def _run(*words: str) -> None:
    """Raises PeerdError with what the program says."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{words[0]} is not installed here, and the service needs it") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise PeerdError(f"'{' '.join(words)}' failed: {said}")
