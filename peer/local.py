"""The local protocol: how the CLI and a learner talk to the daemon of their device. Stdlib and msgpack only.

The client speaks first: {"op": "hello", "protocol": 2, "role": "cli" | "learner"}; the daemon answers "hello"
or "error" {code, message}. From a learner's "attach" on, frames are events both ways.

`connect(path)` gives the blocking end, `Connection` is the daemon's; neither knows what the frames mean.
Beside this file: peer/framing.py (bytes and descriptors), peer/event_frames.py (events as frames),
peer/shared_buffer.py (payloads), peer/places.py (which socket, which state folder, who may own them). Their
names may be taken from here; those of event_frames load late, since the CLI has no use for events.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from peer.errors import NoDaemonError, PeerdError, by_exit_code
from peer.framing import MAX_FRAME, MAX_LARGE, Frame, FrameReader, pack, receive_into
from peer.places import (
    SYSTEM_SOCKET,
    check_listener,
    check_owner,
    check_path,
    credentials,
    default_socket,
    is_barred,
    own_socket,
    restarting,
    state_folder,
    why_barred,
)
from peer.shared_buffer import SharedBuffer

if TYPE_CHECKING:  # the daemon's end is handed its loop: importing asyncio would cost the CLI 45 ms
    from asyncio import AbstractEventLoop, Future

    from peer.event_frames import Event, EventAssembler, from_frame, to_frame

PROTOCOL = 3
READY, STAYS = b"ready\n", b"stays\n"  # of a daemon to the script that has started it (daemon/owner.py)
MAX_UNSENT = 1 << 23  # bytes waiting for a client that does not read, then it is dropped (guess)
MAX_UNREAD = 64  # frames read ahead of the daemon before the socket is left alone (guess)
KNOCK_S = 0.05  # between attempts while the queue of a listening socket is full (guess)

__all__ = [
    "MAX_FRAME",
    "MAX_LARGE",
    "PROTOCOL",
    "READY",
    "STAYS",
    "SYSTEM_SOCKET",
    "Client",
    "Connection",
    "Event",
    "EventAssembler",
    "ForbiddenSocketError",
    "Frame",
    "FrameReader",
    "HungDaemonError",
    "SharedBuffer",
    "check_owner",
    "check_path",
    "connect",
    "default_socket",
    "error_frame",
    "error_of",
    "from_frame",
    "is_barred",
    "nobody_answers",
    "own_socket",
    "pack",
    "restarting",
    "state_folder",
    "to_frame",
    "why_barred",
]


def __getattr__(name: str) -> object:
    if name in ("Event", "EventAssembler", "from_frame", "payload_of", "to_frame"):
        return getattr(import_module("peer.event_frames"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- the blocking end -------------------------------------------------------------------------------


class HungDaemonError(NoDaemonError):
    """A daemon has the control socket and does not answer: to start another one would not help."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the daemon on {path} does not answer, it is stopped or hung; restart it: end it, then run "
            "'peerd daemon' ('systemctl restart peerd' if it is the system's)"
        )


class ForbiddenSocketError(NoDaemonError):
    """A daemon is there, and this user may not use its socket: another one beside it would not help. Or the
    service has none just now."""

    def __init__(self, path: Path) -> None:
        if path == SYSTEM_SOCKET:
            super().__init__(f"{why_barred()}; or run one of your own, with --socket and --state")
        else:
            super().__init__(
                f"the daemon's socket {path} may not be used by you; name another with --socket, or run your "
                "own daemon with 'peerd daemon'"
            )


class Client:
    """One connection to the daemon, for one thread. `fileno` may be waited on beside other descriptors."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._sock = sock
        self._path = path
        self._reader = FrameReader()
        self._ready: deque[tuple[Frame, int | None]] = deque()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Send one frame; `fd` stays the caller's. Raises NoDaemonError if the daemon is gone."""
        data, large = pack(frame, fd)
        carried = large.fileno() if large is not None else fd
        try:
            sent = socket.send_fds(self._sock, [data], [carried] if carried is not None else [])
            if sent < len(data):
                self._sock.sendall(data[sent:])
        except OSError as error:
            raise self._gone() from error
        finally:
            if large is not None:
                large.close()

    def send_event(self, event: Event) -> None:
        """Send an event and its payload, which stays the caller's and may be closed at once."""
        from peer.event_frames import payload_of, to_frame

        payload = payload_of(event)
        try:
            self.send(to_frame(event), payload.fileno() if payload is not None else None)
        finally:
            if payload is not None and payload is not getattr(event, "payload", None):
                payload.close()

    def begin_event(self, event: Event, payload: SharedBuffer) -> None:
        """Send an event whose payload is yet to be filled; `progress` says how far it is."""
        from peer.event_frames import begin_frame

        self.send(begin_frame(event), payload.fileno())

    def progress(self, payload: SharedBuffer, filled: int) -> None:
        from peer.event_frames import progress_frame

        self.send(progress_frame(payload.memory, filled))

    def receive(self, timeout_s: float | None = None) -> tuple[Frame, int | None]:
        """The next frame and its descriptor. Raises TimeoutError, or NoDaemonError at the end."""
        while not self._ready:
            if not select.select([self._sock], [], [], timeout_s)[0]:
                raise TimeoutError(f"no answer from the daemon on {self._path} within {timeout_s} s")
            self._pull()
        return self._ready.popleft()

    def receive_ready(self) -> list[tuple[Frame, int | None]]:
        """Every frame that is there already; never waits. Raises NoDaemonError at the connection's end."""
        while select.select([self._sock], [], [], 0)[0]:
            try:
                self._pull()
            except NoDaemonError:
                if not self._ready:
                    raise
                break  # what came before the end is still worth having; the end is told next time
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def _pull(self) -> None:
        try:
            more = receive_into(self._reader, self._sock)
        except OSError as error:
            raise self._gone() from error
        if not more:
            raise self._gone()
        self._ready.extend(self._reader.frames())

    def _gone(self) -> NoDaemonError:
        return NoDaemonError(f"the daemon on {self._path} closed the connection; 'peerd logs' may say why")

    def ask(self, frame: Frame, timeout_s: float | None = None) -> tuple[Frame, int | None]:
        """Send a request and return its first answer; an "error" answer is raised as the class it was."""
        self.send(frame)
        answer, fd = self.receive(timeout_s)
        if answer["op"] == "error":
            raise error_of(answer)
        return answer, fd

    def close(self) -> None:
        self._sock.close()
        self._reader.close()
        for _, fd in self._ready:
            if fd is not None:
                os.close(fd)
        self._ready.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(path: Path | str, role: str = "cli", timeout_s: float = 10.0) -> Client:
    """Connect, check who owns the socket, and exchange hellos (`role`: "cli" or "learner").

    timeout_s: for connecting, and again for the daemon's hello. Raises NoDaemonError when nobody is there,
    HungDaemonError when nothing is said in time, ConfigError when the owner is a stranger.
    """
    path = check_path(Path(path))
    check_owner(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _reach(sock, path, timeout_s)
        check_listener(sock, path)
    except PermissionError as error:
        sock.close()
        raise ForbiddenSocketError(path) from error
    except TimeoutError as error:
        sock.close()
        raise HungDaemonError(path) from error
    except OSError as error:
        sock.close()
        raise nobody_answers(path) from error
    except BaseException:
        sock.close()
        raise
    client = Client(sock, path)
    try:
        client.ask({"op": "hello", "protocol": PROTOCOL, "role": role}, timeout_s)
    except TimeoutError as error:
        client.close()
        raise HungDaemonError(path) from error
    except BaseException:
        client.close()
        raise
    return client


def _reach(sock: socket.socket, path: Path, timeout_s: float) -> None:
    """Connect. Raises TimeoutError when the listener's queue stays full, since nobody takes anyone from it.

    A blocking connect would wait for room in it forever, a socket's own timeout not at all (connect(2),
    EAGAIN), and nothing tells when there is room: so it is tried again.
    """
    deadline = time.monotonic() + timeout_s
    sock.setblocking(False)
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the queue of {path} is full") from error
            select.select([], [], [], KNOCK_S)
        else:
            break
    sock.setblocking(True)


def nobody_answers(path: Path) -> NoDaemonError:
    return NoDaemonError(
        f"no daemon answers on {path}; start one with 'peerd daemon', or name another socket with --socket"
    )


def error_frame(error: PeerdError) -> Frame:
    """An error as the daemon reports it."""
    return {"op": "error", "code": error.exit_code, "message": str(error)}


def error_of(frame: Frame) -> PeerdError:
    """The error an "error" frame reports."""
    return by_exit_code(int(frame.get("code", 70)), str(frame.get("message", "the daemon gave no reason")))


# --- the daemon's end -------------------------------------------------------------------------------


class Connection:
    """One client of the daemon, on its event loop: what the client does not take yet waits here."""

    def __init__(self, sock: socket.socket, loop: AbstractEventLoop) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._reader = FrameReader()
        self._arrived: deque[tuple[Frame, int | None]] = deque()
        self._waiting: Future[None] | None = None
        self._out: deque[tuple[memoryview, int | None]] = deque()  # with a descriptor of our own each
        self._unsent = 0
        self._end: Exception | None = None  # why nothing more comes
        self._at_end: list[Callable[[], object]] = []
        loop.add_reader(sock, self._on_readable)
        self._reading = True

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def credentials(self) -> tuple[int, int]:
        """(pid, uid) of the process that connected."""
        return credentials(self._sock)

    async def receive(self) -> tuple[Frame, int | None]:
        """The next frame and its descriptor. Raises EOFError at the end, PeerdError after nonsense."""
        while not self._arrived:
            if self._end is not None:
                raise self._end
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if not self._reading and self._end is None:
            self._loop.add_reader(self._sock, self._on_readable)
            self._reading = True
        return self._arrived.popleft()

    def send(self, frame: Frame, fd: int | None = None) -> None:
        """Queue one frame; `fd` is duplicated and stays the caller's. Silent when the client is gone."""
        if self.closed:
            return
        data, large = pack(frame, fd)
        carried = large.fileno() if large is not None else fd
        self._out.append((memoryview(data), os.dup(carried) if carried is not None else None))
        self._unsent += len(data)
        if large is not None:
            large.close()
        if len(self._out) == 1:
            self._on_writable()
        if self._unsent > MAX_UNSENT:
            self._finish(EOFError("the client does not read what it is sent"))
            self.close()

    def send_event(self, event: Event) -> None:
        """Queue an event and its payload, which stays the caller's."""
        from peer.event_frames import payload_of, to_frame

        payload = payload_of(event)
        self.send(to_frame(event), payload.fileno() if payload is not None else None)
        if payload is not None and payload is not getattr(event, "payload", None):
            payload.close()

    @property
    def unsent(self) -> int:
        """Bytes the client has not taken yet."""
        return self._unsent

    def _on_readable(self) -> None:
        try:
            more = receive_into(self._reader, self._sock)
            self._arrived.extend(self._reader.frames())
            if not more:
                self._finish(EOFError("the client closed the connection"))
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, PeerdError) as error:
            self._finish(error if isinstance(error, PeerdError) else EOFError(str(error)))
        if self._end is not None or len(self._arrived) >= MAX_UNREAD:
            self._stop_reading()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _on_writable(self) -> None:
        try:
            while self._out:
                data, fd = self._out[0]
                sent = socket.send_fds(self._sock, [data], [fd] if fd is not None else [])
                self._unsent -= sent
                if fd is not None:
                    os.close(fd)
                if sent < len(data):
                    self._out[0] = (data[sent:], None)
                    break
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            pass  # the kernel's buffer is full: the loop calls again when it is not
        except OSError as error:
            self._finish(EOFError(str(error)))
            self.close()
            return
        if self._out:
            self._loop.add_writer(self._sock, self._on_writable)
        else:
            self._loop.remove_writer(self._sock)

    def on_end(self, call: Callable[[], object]) -> None:
        """Call this, once, when the client is gone; at once if it is already."""
        if self._end is not None:
            call()
        else:
            self._at_end.append(call)

    def _finish(self, end: Exception) -> None:
        self._end = self._end or end
        calls, self._at_end = self._at_end, []
        for call in calls:
            call()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _stop_reading(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._sock)
            self._reading = False

    def close(self) -> None:
        """Close; a `receive` under way ends with EOFError. Closing twice is fine."""
        if self.closed:
            return
        self._finish(EOFError("the connection was closed"))
        self._stop_reading()
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._reader.close()
        for fd in [fd for _, fd in (*self._arrived, *self._out) if fd is not None]:
            os.close(fd)
        self._arrived.clear()
        self._out.clear()
