"""A daemon for a script that finds none: its child, which ends with it.

Socket and state are those that the command line would take. Scripts that start at once agree by a lock in the
state folder: one starts a daemon, the others find it. The daemon ends with the last script that trains
through it (peer/daemon/owner.py). None is started where one is there already that hangs or may not be used,
nor in the place of the system's service.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from peer.config import JoinOptions
from peer.errors import NoDaemonError, UnknownSessionError, UsageError, by_exit_code
from peer.files import cannot_write
from peer.keys import format_key, parse_key
from peer.learner.dial import Attachment, dial
from peer.local import STAYS, ForbiddenSocketError, Frame, HungDaemonError, connect, error_of
from peer.places import SYSTEM_SOCKET, default_socket, is_barred, state_folder

log = logging.getLogger("peerd.learner")

START_S = 60.0  # for a daemon to be ready: it loads within 5 s on a Pi (guess)
ENDING_S = 45.0  # for a daemon that was told to end: leaving takes 30 s at the most (daemon/session.py)
TRIES = 4  # a daemon that was found may end before it is asked, and so may the next (guess)
JOIN_S = 60.0  # on top of the time to look for members, for the daemon's answer (guess)
NOT_ITS = (
    "PEERD_KEY", "PEERD_METRICS",
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS",
)  # fmt: skip
_T = TypeVar("_T")


@dataclass(frozen=True)
class Where:
    """The daemon's socket, and the state folder of one that would have to be started. barred: it would take
    the place of the system's service (places.is_barred)."""

    socket: Path
    state: Path
    barred: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, socket: str | Path | None, state: str | Path | None) -> Where:
        """As the command line finds them. Raises ConfigError."""
        flag, folder = (None if given is None else str(given) for given in (socket, state))
        return cls(
            default_socket(flag, os.environ, folder),
            state_folder(folder, os.environ),
            lambda: is_barred(flag, os.environ, folder),
        )


class OwnDaemon:
    """What `reach` has started, if it had to and may. `close` ends it."""

    def __init__(self, where: Where, session: str, *, may_start: bool = True) -> None:
        self.where, self._session, self._may_start = where, session, may_start
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: socket.socket | None = None

    def reach(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives, which is asked again once there is a daemon. Raises what it raises, or why no
        daemon can be started."""
        for tried in range(TRIES):
            try:
                return ask()
            except (HungDaemonError, ForbiddenSocketError):
                raise
            except NoDaemonError:  # none, or one that has just ended
                if tried == TRIES - 1 or not self._may_start or self.where.socket == SYSTEM_SOCKET:
                    raise
            if self.where.barred():
                raise ForbiddenSocketError(SYSTEM_SOCKET)
            with _alone(self.where.state):
                self._start_unless_there()
        raise AssertionError("the last try returns or raises")

    @property
    def runs(self) -> bool:
        """Has a daemon been started here that this script's end would end, whatever became of it?"""
        return self._process is not None

    def close(self) -> None:
        """Let it end, and wait until it has, or says that another script needs it. Safe to call twice."""
        process, self._process = self._process, None
        owner, self._owner = self._owner, None
        if process is None or owner is None:
            return
        with owner:
            stays = _told_to_end(owner)
        if stays:
            # it is this process's child nevertheless
            threading.Thread(target=process.wait, name="peerd-reaper", daemon=True).start()
            log.info("the daemon (pid %d) that this script has started stays for another one", process.pid)
            return
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            log.warning("the daemon (pid %d) that this script has started does not end; killed", process.pid)
            process.kill()
            process.wait()

    def _start_unless_there(self) -> None:
        try:
            connect(self.where.socket).close()  # another script was first
        except (HungDaemonError, ForbiddenSocketError):
            raise
        except NoDaemonError:
            _wait_for_end(self.where)
            self._start()

    def _start(self) -> None:
        """Raises the PeerdError that the daemon ends with."""
        self.close()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "peer", "--socket", str(self.where.socket)]
        command += ["--state", str(self.where.state), "--awaits", self._session]
        with theirs, tempfile.TemporaryFile() as said:
            self._owner = ours
            self._process = subprocess.Popen(
                [*command, "--owner-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={name: value for name, value in os.environ.items() if name not in NOT_ITS},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is the script's; the daemon ends after it
            )
            theirs.close()
            try:
                self._wait_ready(ours, self._process, said)
            except BaseException:
                self.close()
                raise
        log.info("no daemon ran: started one (pid %d) on %s", self._process.pid, self.where.socket)

    def _wait_ready(self, ours: socket.socket, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        if not select.select([ours], [], [], START_S)[0]:
            raise NoDaemonError(
                f"the daemon that this script needs was not ready within {START_S:.0f} s; start one with "
                "'peerd daemon' and see what it says"
            )
        if ours.recv(64):
            return
        code = process.wait(START_S)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines() or [f"it ended with code {code}"]
        why = lines[-1].removeprefix("peerd: ")
        raise by_exit_code(code, f"no daemon runs, and the one that this script needs did not start: {why}")


def _told_to_end(owner: socket.socket) -> bool:
    """Tell the daemon at the other end of the pair that its script ends. Does it stay?"""
    deadline, said = time.monotonic() + ENDING_S, b""
    with suppress(OSError):  # it has ended
        owner.shutdown(socket.SHUT_WR)
        while select.select([owner], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = owner.recv(64)
            said += part
            if not part or STAYS in said:
                break
    return STAYS in said


def attach_to(own: OwnDaemon, session: str, key: str | None) -> Attachment:
    """Attach to the session, through a daemon that is started if there is none and `own` may. With a key, or
    else that in PEERD_KEY, the session is joined if this device does not know it yet."""
    key = key if key is not None else os.environ.get("PEERD_KEY")
    given = format_key(parse_key(key)) if key else None

    def ask() -> Attachment:
        try:
            return dial(own.where.socket, session, child=False)
        except UnknownSessionError as error:
            if given is None:
                raise UnknownSessionError(
                    f"{error}; make it here with 'peerd create {session} --task script', or give attach the "
                    "key that 'peerd key' shows on a member: attach(…, key=…), or PEERD_KEY"
                ) from error
        except UsageError:  # it may be known and have met nobody yet; what else it is, is said again
            if given is None:
                raise
        join(own.where.socket, session, given)
        return dial(own.where.socket, session, child=False)

    return own.reach(ask)


def join(path: Path, session: str, key: str) -> None:
    """Join a session as 'peerd join' does; returns when a member is found. Raises the PeerdError of the
    daemon."""
    options = JoinOptions()
    request: Frame = {"op": "join", "name": session, "key": key, "options": options.to_dict()}
    with connect(path) as client:
        client.send(request)
        while True:
            try:
                answer, fd = client.receive(options.timeout_s + JOIN_S)
            except TimeoutError as error:
                raise NoDaemonError(f"{error}; see 'peerd logs', or start it again") from error
            if fd is not None:
                os.close(fd)
            if answer["op"] == "error":
                raise error_of(answer)
            if answer["op"] == "done":
                return
            log.info("%s", answer.get("text", ""))


def _wait_for_end(where: Where) -> None:
    """Of the daemon that listened on our socket and still holds our state folder, if there is one."""
    try:
        lock = os.open(where.state / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # no daemon has run here; one that is started says what is wrong
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = re.fullmatch(r"with pid (\d+) on (.*)", os.pread(lock, 4096, 0).decode("utf-8", "replace"))
        if holder is not None and holder[2] == str(where.socket):
            _wait_for_process(int(holder[1]))
    finally:
        os.close(lock)


def _wait_for_process(pid: int) -> None:
    try:
        ends = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([ends], [], [], ENDING_S)
    finally:
        os.close(ends)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """No other script starts a daemon for this state folder meanwhile. Raises StateError."""
    path = state / "starting"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
