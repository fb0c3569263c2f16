"""Devices of a test's network: a real daemon each, with a state folder and a socket of its own.

    network.add("a").start().peerd("create", "home", "--interface", "lo")
    network.wait("a trains", lambda: a.session("home")["state"] == "training")

What a user sees goes through the `peerd` command; waiting asks the daemon's socket directly, since a process
per look would take the cores from the learners under test.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lan.namespace import Namespace
from peer.errors import NoDaemonError, PeerdError
from peer.local import connect

Value = TypeVar("Value")
Json = dict[str, Any]

LOOK_EVERY_S = 0.25
PATIENCE_S = 120.0  # far above what a loaded 2-core machine needs: only a failure waits so long


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `said` is both streams, for messages; `out` alone is what programs read."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Device:
    """One device. Its daemon runs between `start` and `stop` or `kill`; its folder stays."""

    def __init__(self, name: str, folder: Path, namespace: Namespace, script: str) -> None:
        self.name = name
        self.state = folder / name
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self._namespace = namespace
        self._script = script
        self.daemon: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.socket.parent),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",  # several learners share this machine's cores
            "PEERD_MANNERS": "off",  # or each would make way for the others, and for whatever else runs here
            "PEERD_STATE": str(self.state),
            "PEERD_SOCKET": str(self.socket),
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        }

    def spawn(self, *args: str, **streams: Any) -> subprocess.Popen[Any]:
        """`peerd ARGS` as a process in this device's network, not waited for."""
        command = self._namespace.command([self._script, *args])
        return subprocess.Popen(command, env=self.environment(), cwd=self.socket.parent, **streams)

    def peerd(self, *args: str, timeout_s: float = PATIENCE_S) -> Outcome:
        """Run `peerd ARGS` to its end."""
        process = self.spawn(
            *args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{self.name}: peerd {' '.join(args)} hangs\n{out}{err}") from None
        return Outcome(process.returncode, out, err)

    def ok(self, *args: str) -> Outcome:
        """Run `peerd ARGS`, which must end with 0."""
        outcome = self.peerd(*args)
        assert outcome.code == 0, (
            f"{self.name}: peerd {' '.join(args)} ended with {outcome.code}:\n{outcome.said}"
        )
        return outcome

    def start(self) -> Device:
        """Start the daemon; `Network.start` waits until they answer."""
        assert self.daemon is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.daemon = self.spawn("daemon", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def stop(self) -> int:
        """SIGTERM, as systemd stops a service; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: the device is gone without a word."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        assert self.daemon is not None, f"{self.name} does not run"
        self.daemon.send_signal(how)
        try:
            code = self.daemon.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end on {how.name}") from None
        self.daemon = None
        return code

    def ask(self, op: str, **fields: Any) -> Json:
        """One request over the daemon's socket; its last answer. Raises the PeerdError it reports."""
        with connect(self.socket) as client:
            answer, descriptor = client.ask({"op": op, **fields}, PATIENCE_S)
            while answer["op"] == "progress":
                answer, descriptor = client.receive(PATIENCE_S)
            if descriptor is not None:
                os.close(descriptor)
            return answer

    def answers(self) -> bool:
        try:
            self.status()
        except NoDaemonError:
            return False
        return True

    def status(self) -> Json:
        """The object of `peerd status --json`."""
        status: Json = self.ask("status", name=None)["status"]
        return status

    @property
    def peer(self) -> str:
        return str(self.status()["peer"])

    def session(self, name: str) -> Json:
        """Its part of the status; {} if this device has none of that name."""
        return next((s for s in self.status()["sessions"] if s["name"] == name), {})

    def link_states(self, name: str, peer: str) -> set[str]:
        """The states of this device's links with one peer."""
        return {link["state"] for link in self.session(name).get("links", ()) if link["peer"] == peer}

    def log_tail(self, lines: int = 60) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Network:
    """A namespace and the devices in it."""

    def __init__(self, loopback: bool = True) -> None:
        script = shutil.which("peerd", path=str(Path(sys.executable).parent))
        assert script, f"no peerd beside {sys.executable}; run 'make venv', then use .venv/bin/python"
        self._script = script
        self.namespace = Namespace(loopback)
        self.folder = Path(tempfile.mkdtemp(prefix="peerd-"))  # short: a socket's path has 100 bytes
        for name in ("cli", "peer", "torch", "msgpack"):  # daemons run here: what a user has must not matter
            trap = f"raise SystemExit('{name}.py of the current folder was imported')\n"
            (self.folder / f"{name}.py").write_text(trap)
        self.devices: dict[str, Device] = {}
        self._checks: list[Callable[[], None]] = []

    def add(self, name: str) -> Device:
        self.devices[name] = Device(name, self.folder, self.namespace, self._script)
        return self.devices[name]

    def start(self, *devices: Device) -> None:
        """Start these daemons and wait until each answers."""
        for device in devices:
            device.start()
        for device in devices:
            self.wait(f"{device.name} answers", device.answers)

    def power_cut(self) -> None:
        """SIGKILL to everything that runs here, at once: nobody has time to write a last checkpoint."""
        self.namespace.kill_all()
        for device in self.devices.values():
            if device.daemon is not None:
                device.daemon.wait(PATIENCE_S)
                device.daemon = None

    def wait(self, what: str, look: Callable[[], Value], timeout_s: float = PATIENCE_S) -> Value:
        """Look until there is something to see, and return that. Fails at once when a daemon dies."""
        deadline = time.monotonic() + timeout_s
        running = {d.name: d.daemon.pid for d in self.devices.values() if d.daemon is not None}
        ends = {os.pidfd_open(pid): name for name, pid in running.items()}
        try:
            while True:
                for check in self._checks:
                    check()
                if seen := look():
                    return seen
                assert time.monotonic() < deadline, f"not seen within {timeout_s:.0f} s: {what}"
                dead = select.select(list(ends), [], [], LOOK_EVERY_S)[0]
                assert not dead, f"the daemon of {[ends[d] for d in dead]} died while waiting until {what}"
        finally:
            for descriptor in ends:
                os.close(descriptor)

    @contextmanager
    def throughout(self, check: Callable[[], None]) -> Iterator[None]:
        """In here every look of `wait` checks this first; it raises AssertionError where it does not hold."""
        self._checks.append(check)
        try:
            yield
        finally:
            self._checks.remove(check)

    def close(self) -> None:
        self.namespace.close()
        for device in self.devices.values():
            if device.daemon is not None:
                device.daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def summary(self) -> str:
        """What every running device says of itself, one line per session."""
        lines = []
        for device in self.devices.values():
            if device.daemon is None:
                lines.append(f"{device.name}: not running")
                continue
            try:
                status = device.status()
            except (PeerdError, TimeoutError) as error:
                lines.append(f"{device.name}: {error}")
                continue
            lines.append(f"{device.name}: {status['peer']} health={status['health']}")
            for s in status["sessions"]:
                links = [f"{k['direction']} {k['peer'][:8]} {k['state']}" for k in s["links"]]
                keys = ("name", "state", "round", "members", "weight", "loss", "metrics")
                lines.append("    " + " ".join(f"{k}={s[k]}" for k in keys) + f" links={links}")
        return "\n".join(lines)
