"""The daemon's entry:

    python -m peer [--socket PATH] [--state FOLDER] [--request-fd N] [--metrics [HOST:]PORT] [--log-format F]

A script that finds no daemon starts one with --owner-fd and --awaits (peer/learner/own_daemon.py).

SIGTERM, SIGHUP (a closed terminal) or Ctrl-C pauses every session politely and ends with 0; a second one ends
at once with 130.
"""

from __future__ import annotations

import peer.lean  # noqa: F401 - first: it decides what asyncio and hashlib bring along

# isort: split

import argparse
import asyncio
import faulthandler
import importlib
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from peer.errors import PeerdError
from peer.places import own_socket, state_folder

if TYPE_CHECKING:
    from peer.daemon.app import Daemon

log = logging.getLogger("peer.daemon")

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
INTERNAL = 70  # sysexits.h: EX_SOFTWARE
OPEN_FILES = 65_536  # guess: far above what 256 members and a flood that is cut after 5 s take


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon to its end; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peer", description="The peerd daemon.")
    parser.add_argument("--socket", help="control socket to listen on")
    parser.add_argument("--state", help="state folder")
    parser.add_argument("--request-fd", type=int, help="descriptor with one create or join request")
    parser.add_argument("--owner-fd", type=int, help="socket to the script that this daemon ends with")
    parser.add_argument("--awaits", metavar="NAME", help="session in which that script is to train")
    parser.add_argument("--metrics", metavar="[HOST:]PORT", help="serve Prometheus there")
    parser.add_argument("--log-format", choices=("text", "json"), help="of what goes to standard error")
    asked = parser.parse_args(arguments)
    try:
        importlib.import_module("peer.daemon.app")  # grpc takes a while, in which Ctrl-C is no traceback
        asyncio.run(serve(asked))
    except PeerdError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:  # before serve() listens to signals: nothing has begun
        return _say("interrupted", INTERRUPTED)
    except Exception as error:  # the last one there is
        log.critical("internal error", exc_info=error)
        where = "its traceback is in the log" if logging.getLogger().handlers else "see above"
        return _say(f"internal error, a bug: {type(error).__name__}: {error}; {where}", INTERNAL)
    return 0


def _say(text: str, code: int) -> int:
    with suppress(OSError):  # nobody reads it any more, and the code says it as well
        sys.stderr.write(f"peerd: {' '.join(text.split())}\n")
    return code


async def serve(asked: argparse.Namespace) -> None:
    """Open the store, listen, take up the sessions, and run until told to end."""
    from peer.daemon import foreground, logs, structured, watchdog
    from peer.daemon.app import Daemon
    from peer.daemon.control import ControlServer
    from peer.daemon.metrics_server import MetricsServer, address
    from peer.daemon.notify import notify
    from peer.daemon.owner import Owner
    from peer.daemon.store import Store

    _allow_open_files()
    metrics_at = address(asked.metrics, os.environ)
    path = own_socket(asked.socket, os.environ, asked.state)
    owner = Owner(asked.owner_fd) if asked.owner_fd is not None else None
    request = foreground.read_request(asked.request_fd) if asked.request_fd is not None else None
    store = Store(state_folder(asked.state, os.environ))
    store.lock(path)
    quiet = request is not None or owner is not None
    stderr = None if quiet else structured.to_stderr(asked.log_format, os.environ)
    recent = logs.start(store.folder / "log", stderr=stderr)
    daemon = Daemon(store, path, recent, asked.awaits)
    control = ControlServer(daemon)
    control.start()
    _on_signals(daemon)
    fed = watchdog.interval_s(os.environ)
    feeding = asyncio.create_task(watchdog.feed(fed, daemon.in_short)) if fed is not None else None
    try:
        if metrics_at is not None:
            daemon.metrics = MetricsServer(metrics_at, lambda: daemon.status(None))
            await daemon.metrics.start()
        await daemon.pacing.start()
        await daemon.resume()
        notify("READY=1", f"STATUS={daemon.in_short()}")
        log.info("ready on %s, state in %s", path, store.folder, extra={"peer": daemon.device.key.id})
        if request is not None:
            await foreground.run(daemon, request)
        elif owner is not None:
            await owner.serve(daemon)
        else:
            await daemon.stopping.wait()
    finally:
        notify("STOPPING=1")
        await daemon.pacing.stop()
        await daemon.stop()
        if daemon.metrics is not None:
            await daemon.metrics.stop()
        await control.stop()
        if feeding is not None:
            feeding.cancel()


def _allow_open_files() -> None:
    """Strangers' connections take descriptors until they are refused: ask for more than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _on_signals(daemon: Daemon) -> None:
    def ask() -> None:
        if daemon.stopping.is_set():
            os._exit(INTERRUPTED)
        daemon.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ask)


if __name__ == "__main__":
    faulthandler.enable()  # a watchdog's SIGABRT then shows where the loop was
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # what a closed pipe did not take
            stream.flush()
    os._exit(code)  # grpc's threads may outlive the loop, and nothing is left to write
