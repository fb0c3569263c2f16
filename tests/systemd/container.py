"""Debian trees that boot: systemd as process 1 in namespaces of their own, on a network that is only theirs.

A tree is an overlay on one base, made by debootstrap and kept. systemd-nspawn boots it, without a systemd
outside (--keep-unit --register=no); nsenter goes in. All of it runs in the network and mount namespaces of
the program that uses this file, so that nothing is left when that ends, and no other daemon is heard.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,acl,iproute2,ca-certificates"
BRIDGE = "br-peerd"
REBOOTED = 133  # what nspawn ends with where, by --keep-unit, another program is to boot the tree again
PATIENCE_S = 600.0  # for anything that must come true on a machine that is busy
POLL_S = 0.5


class FailedError(Exception):
    """Something did not come true, or a command failed."""


def base_tree(cache: Path, suite: str) -> Path:
    """The base, made if it is not there yet: a minute or two, and 300 MB."""
    base = cache / f"{suite}-{zlib.crc32(PACKAGES.encode()):08x}"
    if not base.exists():
        part = base.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(part), MIRROR],
            check=True,
        )
        part.rename(base)
    return base


def raise_bridge() -> None:
    """The switch that the devices hang on, in this program's network."""
    for words in ("link set lo up", f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up"):
        subprocess.run(["ip", *words.split()], check=True)


def own_folder_for_nspawn() -> None:
    """What it keeps of the machines that run, out of the sight of other programs."""
    folder = Path("/run/systemd/nspawn")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)


class Device:
    """One booted tree with an address of its own. `address`: of the interface that the devices share."""

    def __init__(self, name: str, base: Path, folder: Path, address: str) -> None:
        self.name, self.address = name, address
        self.tree = folder / name / "tree"
        self._log = folder / name / "console.log"
        upper, work = folder / name / "upper", folder / name / "work"
        for each in (self.tree, upper, work):
            each.mkdir(parents=True)
        layers = f"lowerdir={base},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.tree)], check=True)
        self._write("etc/hostname", f"{name}\n")
        self._write("etc/machine-id", f"{os.urandom(16).hex()}\n")
        self._write(
            "etc/systemd/network/10-host0.network", f"[Match]\nName=host0\n[Network]\nAddress={address}/24\n"
        )
        wants = self.tree / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []

    def boot(self, *bound: Path) -> None:
        """Start it, and wait until systemd says that it runs. bound: folders to be seen inside, read-only."""
        command = ["systemd-nspawn", "-q", "-D", str(self.tree), "-b", "--register=no", "--keep-unit"]
        command += [f"--network-bridge={BRIDGE}", "-M", self.name]
        self._command = command + [f"--bind-ro={folder}" for folder in bound]
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.until_booted()

    def until_booted(self) -> None:
        wanted = ("running", "degraded")
        until(
            f"{self.name} boots", lambda: self.output("systemctl", "is-system-running", check=False) in wanted
        )

    def reboot(self) -> None:
        """As a user would: by systemctl. Returns when it is up again."""
        assert self._process is not None
        self.run("systemctl", "reboot", check=False)  # what asked may be gone before it is answered
        process = self._process
        until(f"{self.name} goes down", lambda: process.poll() is not None)
        if process.returncode != REBOOTED:
            raise FailedError(f"{self.name} ended with {process.returncode} instead of booting again")
        self._start()

    def leader(self) -> int | None:
        """The pid, outside, of its process 1."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise FailedError(f"{self.name} is gone: {self._log.read_text(errors='replace')[-2000:]}")
        for child in _children(self._process.pid):
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except FileNotFoundError:
                continue
            pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if pids[-1] == "1":
                return child
        return None

    def run(
        self, *words: str, user: str = "root", check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command inside. Raises FailedError unless it ends with 0, or `check` is off."""
        leader = self.leader()
        if leader is None:
            return subprocess.CompletedProcess(words, 255, "", "not booted")
        command = ["nsenter", "-t", str(leader), "-a", "env", "-i", "LANG=C.UTF-8"]
        command += ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        command += [f"{name}={value}" for name, value in environment.items()]
        if user != "root":
            command += ["runuser", "-u", user, "--"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise FailedError(f"{self.name}$ {' '.join(words)}\n{done.stdout}{done.stderr}".rstrip())
        return done

    def output(self, *words: str, user: str = "root", check: bool = True) -> str:
        return self.run(*words, user=user, check=check).stdout.strip()

    def files(self) -> set[str]:
        """Every path but those of logs, of what is in memory, and of what programs keep in a cache."""
        gone = (
            "/proc",
            "/sys",
            "/run",
            "/dev",
            "/tmp",
            "/var/tmp",
            "/var/log",
            "/var/cache",
            "/var/lib/systemd",
        )
        prune = " -o ".join(f"-path {path}" for path in gone)
        return set(self.output("sh", "-c", f"find / -xdev \\( {prune} \\) -prune -o -print").splitlines())

    def copy_from(self, other: Device, *paths: str) -> None:
        """The same files at the same places as in another tree."""
        for path in paths:
            (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--reflink=auto", other.tree / path, self.tree / path], check=True)

    def stop(self) -> None:
        """End it, polite or not, and let go of its tree."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        subprocess.run(["umount", "-l", str(self.tree)], check=False)

    def _write(self, path: str, text: str) -> None:
        target = self.tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def until(what: str, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait until it is true; the seconds it took. Raises FailedError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience_s:
            raise FailedError(f"not within {patience_s:.0f} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found
