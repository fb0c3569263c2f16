"""Where Prometheus scrapes this daemon: `GET /metrics`, one answer per connection, on the daemon's own loop.

The snapshot is taken on the loop, as `peerd status --json` gets it, and made text on another thread, where
nothing else is looked at. Nobody proves anything here: what is served holds no key and no address, and the
endpoint is on loopback unless the user names another address. There a web page in a browser of this machine
must not read it under a name of its own (DNS rebinding), so it answers to numbers and "localhost" alone.

A port that is taken, or an address that is not there yet, is a health sentence, and tried again."""

from __future__ import annotations

import asyncio
import http
import importlib
import ipaddress
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from urllib.parse import urlsplit

from peer.config import check_address
from peer.errors import ConfigError, UsageError
from peer.status import DeviceStatus

log = logging.getLogger(__name__)

VARIABLE = "PEERD_METRICS"
LOOPBACK = "127.0.0.1"
PATH = "/metrics"
END = b"\r\n\r\n"  # of a head
AGAIN_S = 30.0  # until a port that was taken is tried again (guess)
CLIENT_S = 10.0  # for a request and its answer: Prometheus gives up after 10 s by default
CLIENTS = 8  # at a time; guess: two servers that scrape and a person who looks
HEAD_BYTES = 1 << 14  # of a request; guess: a browser's cookies for localhost are the most of it

Address = tuple[str, int]


def address(asked: str | None, environment: Mapping[str, str]) -> Address | None:
    """Where metrics are to be served: as asked for, else as the environment says; None for nowhere. Raises
    UsageError, or ConfigError for what the environment says."""
    said = environment.get(VARIABLE, "") if asked is None else asked
    if not said:
        return None
    try:
        host, port = check_address(said if ":" in said else f":{said}")
    except UsageError as error:
        if asked is None:
            raise ConfigError(f"{VARIABLE}: {error}, or the port alone for {LOOPBACK}") from error
        raise UsageError(f"--metrics: {error}, or the port alone for {LOOPBACK}") from error
    return host or LOOPBACK, port


class MetricsServer:
    """snapshot(): what to show, called on the loop. `listening` is set as soon as it does."""

    def __init__(self, where: Address, snapshot: Callable[[], DeviceStatus]) -> None:
        self._host, self._port = where
        self._snapshot = snapshot
        self._server: asyncio.Server | None = None
        self._again: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.listening = asyncio.Event()
        self._problem = ""
        self._on_loopback = True

    def sentences(self) -> Iterator[str]:
        """For the health of this device."""
        if self._problem:
            yield self._problem

    @property
    def ports(self) -> list[int]:
        """Where it listens; none while it cannot."""
        return [] if self._server is None else [sock.getsockname()[1] for sock in self._server.sockets]

    async def start(self) -> None:
        """Listen, or go on trying."""
        importlib.import_module("peer.daemon.metrics")  # 6 MiB, and not while the loop has rounds to keep
        if not await self._listen():
            self._again = asyncio.create_task(self._until_it_listens())

    async def stop(self) -> None:
        """End every connection and listen no more. Safe to call twice."""
        if self._server is not None:
            self._server.close()
        ending = [*self._clients, *([] if self._again is None else [self._again])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _until_it_listens(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            if await self._listen():
                return

    async def _listen(self) -> bool:
        try:
            server = await asyncio.start_server(self._serve, self._host, self._port, limit=HEAD_BYTES)
        except OSError as error:
            told = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            problem = (
                f"no metrics are served on port {self._port} of {self._host}: {told}; name another "
                f"with --metrics or {VARIABLE} (this one is tried again)"
            )
            if problem != self._problem:
                log.warning("%s", problem)
            self._problem = problem
            return False
        self._server, self._problem = server, ""
        self._on_loopback = all(
            ipaddress.ip_address(sock.getsockname()[0]).is_loopback for sock in server.sockets
        )
        self.listening.set()
        log.info("metrics are served", extra={"host": self._host, "port": self.ports[0]})
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            async with asyncio.timeout(CLIENT_S):
                writer.write(await self._answer(reader))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a client of the metrics went: %r", error)
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        from peer.daemon import metrics

        try:
            head = await reader.readuntil(END)
            request, _, rest = head.partition(b"\r\n")
            method, target, version = request.decode("ascii").split()
            path = urlsplit(target).path
            headers = metrics.headers(rest)
        except (asyncio.LimitOverrunError, ValueError):
            return _reply(400, "this is no request of HTTP/1.1")
        reply = await self._reply_to(method, path, version, headers)
        return reply if method != "HEAD" else reply[: reply.index(END) + len(END)]

    async def _reply_to(self, method: str, path: str, version: str, headers: Message) -> bytes:
        from peer.daemon import metrics

        if not version.startswith("HTTP/1."):
            return _reply(505, "HTTP/1.1 is spoken here")
        if method not in ("GET", "HEAD"):
            return _reply(405, "there is nothing to do but GET", allow="GET, HEAD")
        if self._on_loopback and not _is_number_or_localhost(headers.get("Host", LOOPBACK)):
            return _reply(403, "a server on loopback is named by its number, or localhost")
        if path != PATH:
            return _reply(404, f"metrics are at {PATH}")
        accept = ",".join(map(str, headers.get_all("Accept", [])))  # no str where it has bytes above 127
        return _reply(200, *await asyncio.to_thread(metrics.text, self._snapshot(), accept))


def _is_number_or_localhost(said: str) -> bool:
    """What a Host header names: nobody but this machine can make these lead here."""
    try:
        name = urlsplit(f"//{said}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _reply(
    status: int, body: bytes | str, content_type: str = "text/plain; charset=utf-8", **more: str
) -> bytes:
    said = f"{body}\n".encode() if isinstance(body, str) else body
    headers = {
        "content-type": content_type,
        "content-length": str(len(said)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "connection": "close",
        **more,
    }
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + said
