"""A network of its own for one test: network and mount namespaces kept open by a holder process.

Tests never hear each other's mDNS, ports never collide, and a test may mount or unplug what it likes. As root
the namespaces are made directly, otherwise inside a user namespace. This file is also run as a script, in two
roles: `hold` keeps the namespaces open until its standard input ends; `enter PID COMMAND...` moves into the
holder's namespaces and becomes the command, so the pid that was started is the pid of the command.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # netdevice(7)
CLONE_NEWNET = 0x40000000  # unshare(2)
REFUSED = (
    "the tests run in network namespaces of their own, and this kernel refused one ({reason}). Run them as "
    "root, or allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0)"
)


class NamespaceRefusedError(Exception):
    """The kernel, a container or a policy allows no network namespace."""


class Namespace:
    """Network and mount namespaces, alive until `close`. `loopback`: bring lo up."""

    def __init__(self, loopback: bool = True) -> None:
        flags = ["-nm"] if os.geteuid() == 0 else ["-Urnm"]
        self._user = "-Urnm" in flags
        role = "hold" if loopback else "hold-down"
        try:
            self._holder = subprocess.Popen(
                ["unshare", *flags, sys.executable, "-I", __file__, role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError as error:
            raise NamespaceRefusedError("tests/lan needs `unshare`; install util-linux") from error
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            reason = self._holder.communicate()[1].strip().splitlines()[-1:]
            raise NamespaceRefusedError(REFUSED.format(reason=" ".join(reason)))
        self.pid = self._holder.pid
        self._net = os.readlink(f"/proc/{self.pid}/ns/net")

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in here."""
        role = "enter-user" if self._user else "enter"
        return [sys.executable, "-I", "-S", __file__, role, str(self._holder.pid), *argv]

    def run(self, *argv: str) -> None:
        """Run a command in here to its end. Raises CalledProcessError."""
        subprocess.run(self.command(argv), check=True, timeout=60)

    def read(self, *argv: str) -> str:
        """What a command in here prints. Raises CalledProcessError."""
        command = self.command(argv)
        return subprocess.run(command, check=True, timeout=60, stdout=subprocess.PIPE, text=True).stdout

    def processes(self) -> Iterator[int]:
        """Pids of everything that runs in here, but for the holder."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self._holder.pid:
                continue
            try:
                if os.readlink(entry / "ns" / "net") == self._net:
                    yield int(entry.name)
            except OSError:
                continue  # gone meanwhile, or somebody else's

    def signal_all(self, how: signal.Signals) -> None:
        """A signal to everything that runs in here, by pid."""
        for pid in list(self.processes()):
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue

    def kill_all(self) -> None:
        """SIGKILL to everything that runs in here."""
        self.signal_all(signal.SIGKILL)

    def close(self) -> None:
        """Kill what still runs in here, and let the namespaces go. Safe to call twice."""
        if self._holder.returncode is None:
            self.kill_all()
            self._holder.communicate()


def leave_the_network() -> None:
    """Move this thread, and what it starts from now on, to a new network with nothing but a loopback.

    Raises NamespaceRefusedError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise NamespaceRefusedError(REFUSED.format(reason=os.strerror(ctypes.get_errno())))
    raise_loopback()


def as_root_of_a_user_namespace(command: Sequence[str]) -> None:
    """Become `command` as root of new user, network and mount namespaces. Raises NamespaceRefusedError."""
    trial = subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise NamespaceRefusedError(REFUSED.format(reason=trial.stderr.strip()))
    os.execvp("unshare", ["unshare", "-Urnm", *command])


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def hold(loopback: bool) -> None:
    if loopback:
        raise_loopback()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


def enter(holder: int, argv: Sequence[str], user: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.getcwd()
    kinds = (["user"] if user else []) + ["net", "mnt"]
    descriptors = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for kind, descriptor in zip(kinds, descriptors, strict=True):
        if libc.setns(descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), f"setns to the {kind} namespace of {holder}")
    os.chdir(here)  # entering a mount namespace moves a process to its root
    os.execvp(argv[0], list(argv))


if __name__ == "__main__":
    if sys.argv[1].startswith("hold"):
        hold(loopback=sys.argv[1] == "hold")
    else:
        enter(int(sys.argv[2]), sys.argv[3:], user=sys.argv[1] == "enter-user")
