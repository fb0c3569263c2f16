"""The daemon's end of the local socket: who may connect, and one coroutine per request.

    request -> any number of {"op": "progress", "text"} -> {"op": "done", …} or {"op": "error", code, message}

A connection may ask one thing after another. After "attach" it belongs to a learner until it ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from peer.config import Descriptor, JoinOptions
from peer.daemon import blocking
from peer.daemon.app import Daemon
from peer.daemon.store import make_folder
from peer.errors import ConfigError, PeerdError, UsageError
from peer.files import cannot_write
from peer.local import PROTOCOL, Connection, Frame, check_path, error_frame
from peer.places import SYSTEM_SOCKET
from peer.version import VERSION

log = logging.getLogger(__name__)

BACKLOG = 16
ACCEPT_AGAIN_S = 1.0  # after one that failed; guess
HELLO_S = 10.0  # for a client's first frame
UNBROKEN = frozenset({"leave", "rekey"})  # requests that are done and answered before the daemon ends
UNBROKEN_S = 15.0  # and for no longer than this: a leave gives up on its hand-over after 10 s
MAX_UNSENT_LOG = 1 << 20  # bytes of log lines a follower may be behind

Answer = tuple[Frame, int | None]


class ControlServer:
    """Serves `daemon` on its socket."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._path = daemon.socket
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._clients: dict[asyncio.Task[None], Connection] = {}
        self._unbroken: set[asyncio.Future[None]] = set()
        self._requests: dict[str, Callable[[Frame, Connection], Awaitable[Answer]]] = {
            "create": self._create,
            "join": self._join,
            "leave": self._leave,
            "key": self._key,
            "rekey": self._rekey,
            "block": self._block,
            "unblock": self._unblock,
            "blocked": self._blocked,
            "status": self._status,
            "sessions": self._sessions,
            "network": self._network,
            "logs": self._logs,
            "export": self._export,
            "stop": self._stop,
        }

    def start(self) -> None:
        """Bind and listen. Raises ConfigError if another daemon answers there, StateError if the folder is
        off."""
        check_path(self._path)
        ours = self._path == SYSTEM_SOCKET
        if not self._path.parent.exists():
            make_folder(self._path.parent, 0o750 if ours else 0o700)
        _remove_stale(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o117 if ours else 0o177)  # the socket is never wider open, not even for a moment
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise cannot_write(self._path, error) from error
        finally:
            os.umask(mask)
        self._inode = self._path.stat().st_ino
        listener.listen(BACKLOG)
        self._listener = listener
        self._loop.add_reader(listener, self._accept)

    async def stop(self) -> None:
        """Stop listening, end every connection, remove the socket (if still ours). Safe to call twice.

        Who leaves the last session ends a daemon in the foreground, and is to be told that it is done."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if self._unbroken:
            await asyncio.wait(self._unbroken, timeout=UNBROKEN_S)
        for task, connection in list(self._clients.items()):
            connection.close()
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors or memory: the client stays in line
            log.warning("no client of the control socket is let in for a moment: %s", error.strerror)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_AGAIN_S, self._listen_again)
            return
        connection = Connection(sock, self._loop)
        task = self._loop.create_task(self._serve(connection))
        self._clients[task] = connection
        task.add_done_callback(lambda done: self._clients.pop(done, None))

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept)

    async def _serve(self, connection: Connection) -> None:
        """One connection to its end. What it does wrong, it is told."""
        try:
            async with asyncio.timeout(HELLO_S):
                hello, _ = await connection.receive()
            _check_hello(hello)
            connection.send({"op": "hello", "protocol": PROTOCOL, "version": VERSION, "pid": os.getpid()})
            while True:
                request, fd = await connection.receive()
                if fd is not None:
                    os.close(fd)
                if request["op"] == "attach":
                    await self._daemon.attach(connection, request)
                    return
                await self._answer(request, connection)
        except EOFError:
            return
        except TimeoutError:
            log.info("a client of the control socket said nothing")
        except PeerdError as error:
            connection.send(error_frame(error))
        except Exception as error:
            log.exception("a request on the control socket failed")
            connection.send(error_frame(PeerdError(f"internal error: {error!r}; 'peerd logs' says more")))
            raise
        finally:
            await _flush(connection)

    async def _answer(self, request: Frame, connection: Connection) -> None:
        fd, answered = None, self._loop.create_future()
        if request["op"] in UNBROKEN:
            self._unbroken.add(answered)
        try:
            handle = self._requests.get(request["op"])
            if handle is None:
                raise PeerdError(f"the daemon knows no request {request['op']!r}; are both of one version?")
            answer, fd = await handle(request, connection)
            connection.send({"op": "done", **answer}, fd)
        except PeerdError as error:
            connection.send(error_frame(error))
        finally:
            self._unbroken.discard(answered)
            answered.set_result(None)
            if fd is not None:
                os.close(fd)

    # --- requests ----------------------------------------------------------------------------------------

    async def _create(self, request: Frame, connection: Connection) -> Answer:
        descriptor = Descriptor.from_dict(_map(request, "descriptor"))
        options = JoinOptions.from_dict(_map(request, "options"))
        return {"key": await self._daemon.create(descriptor, options), "name": descriptor.name}, None

    async def _join(self, request: Frame, connection: Connection) -> Answer:
        options = JoinOptions.from_dict(_map(request, "options"))
        key = request.get("key")

        def say(text: str) -> None:
            connection.send({"op": "progress", "text": text})

        name = _text(request, "name")
        driver = await self._daemon.join(name, str(key) if key is not None else None, options, say)
        status = driver.status()
        paused = status.pace_reason if status.state == "paused" else None
        waiting = not driver.linked.is_set() and paused is None  # the daemon was told to end meanwhile
        first = driver.first_link_s
        return {"name": driver.name, "first_link_s": first, "waiting": waiting, "paused": paused}, None

    async def _leave(self, request: Frame, connection: Connection) -> Answer:
        await self._daemon.leave(_text(request, "name"), bool(request.get("forget")))
        return {}, None

    async def _key(self, request: Frame, connection: Connection) -> Answer:
        return {"key": self._daemon.key(_text(request, "name"))}, None

    async def _rekey(self, request: Frame, connection: Connection) -> Answer:
        key = request.get("key")
        made, kept = await self._daemon.rekey(_text(request, "name"), str(key) if key is not None else None)
        return {"key": made, "checkpoint": kept}, None

    async def _block(self, request: Frame, connection: Connection) -> Answer:
        peer = blocking.block(self._daemon, _text(request, "peer"))
        return {"peer": peer, "device": self._daemon.blocked.peers[peer]}, None

    async def _unblock(self, request: Frame, connection: Connection) -> Answer:
        before = dict(self._daemon.blocked.peers)
        peer = blocking.unblock(self._daemon, _text(request, "peer"))
        return {"peer": peer, "device": before[peer]}, None

    async def _blocked(self, request: Frame, connection: Connection) -> Answer:
        rows = [
            {"peer": peer, "device": device} for peer, device in sorted(self._daemon.blocked.peers.items())
        ]
        return {"blocked": rows}, None

    async def _status(self, request: Frame, connection: Connection) -> Answer:
        name = request.get("name")
        return {"status": self._daemon.status(str(name) if name is not None else None).to_dict()}, None

    async def _sessions(self, request: Frame, connection: Connection) -> Answer:
        return {"sessions": await self._daemon.known_and_seen()}, None

    async def _network(self, request: Frame, connection: Connection) -> Answer:
        return {"network": self._daemon.network()}, None

    async def _logs(self, request: Frame, connection: Connection) -> Answer:
        """Kept lines, and with "follow" every later one until the client has gone."""
        name = str(request["name"]) if request.get("name") is not None else None
        if name is not None:
            self._daemon.check_known(name)
        recent = self._daemon.recent
        queue = recent.follow(name)
        try:
            for line in recent.lines(name):
                connection.send({"op": "progress", "text": line})
            if request.get("follow"):
                following = self._loop.create_task(_follow(queue, connection))
                connection.on_end(following.cancel)
                await asyncio.wait([following])
        finally:
            recent.unfollow(queue)
        return {}, None

    async def _export(self, request: Frame, connection: Connection) -> Answer:
        onnx = bool(request.get("onnx"))
        with await self._daemon.export(_text(request, "name"), onnx=onnx) as buffer:
            kind = "onnx" if onnx else "safetensors"
            return {"size": len(buffer), "format": kind}, os.dup(buffer.fileno())

    async def _stop(self, request: Frame, connection: Connection) -> Answer:
        self._daemon.stopping.set()
        return {}, None


def _check_hello(hello: Frame) -> None:
    if hello["op"] != "hello" or hello.get("role") not in ("cli", "learner"):
        raise PeerdError("a connection begins with a hello that says whether it is of a CLI or a learner")
    if hello.get("protocol") != PROTOCOL:
        raise PeerdError(
            f"the daemon is peerd {VERSION} and speaks protocol {PROTOCOL}, you "
            f"{hello.get('protocol')!r}; after an upgrade restart it: stop it, then run 'peerd daemon'"
        )


def _remove_stale(path: Path) -> None:
    """Remove a socket nobody answers on. Raises ConfigError if somebody does, or if it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is there and is no socket; remove it, or name another with --socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            log.debug("the socket is in use: %s", error)
    raise ConfigError(
        f"a daemon answers on {path} already; stop it first, or name another socket with --socket"
    )


async def _flush(connection: Connection) -> None:
    """Let the client take what was sent, within reason, then close."""
    for _ in range(100):
        if connection.closed or not connection.unsent:
            break
        await asyncio.sleep(0.01)
    connection.close()


async def _follow(queue: asyncio.Queue[str], connection: Connection) -> None:
    """Pass lines on as they come, without end; a client that is slow misses some."""
    while True:
        line = await queue.get()
        if connection.unsent < MAX_UNSENT_LOG:
            connection.send({"op": "progress", "text": line})


def _map(request: Frame, key: str) -> Frame:
    value = request.get(key)
    if not isinstance(value, dict):
        raise UsageError(f"the request {request['op']!r} lacks its {key}")
    return value


def _text(request: Frame, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the request {request['op']!r} lacks its {key}")
    return value
