"""The daemon's entry: `python -m peer [--socket PATH] [--state FOLDER] [--request-fd N]`.

SIGTERM, SIGHUP (a closed terminal) or Ctrl-C pauses every session politely and ends with 0; a second one ends
at once with 130.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys

from peer.daemon import foreground, logs
from peer.daemon.app import Daemon
from peer.daemon.control import ControlServer
from peer.daemon.notify import notify
from peer.daemon.store import Store
from peer.errors import PeerdError
from peer.places import own_socket, state_folder

log = logging.getLogger("peer.daemon")

OPEN_FILES = 65_536  # guess: far above what 256 members and a flood that is cut after 5 s take


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon to its end; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peer", description="The peerd daemon.")
    parser.add_argument("--socket", help="control socket to listen on")
    parser.add_argument("--state", help="state folder")
    parser.add_argument("--request-fd", type=int, help="descriptor with one create or join request")
    asked = parser.parse_args(arguments)
    try:
        asyncio.run(serve(asked))
    except PeerdError as error:
        sys.stderr.write(f"peerd: {error}\n")
        return error.exit_code
    return 0


async def serve(asked: argparse.Namespace) -> None:
    """Open the store, listen, take up the sessions, and run until told to end."""
    _allow_open_files()
    path = own_socket(asked.socket, os.environ, asked.state)
    request = foreground.read_request(asked.request_fd) if asked.request_fd is not None else None
    store = Store(state_folder(asked.state, os.environ))
    store.lock(path)
    recent = logs.start(store.folder / "log", stderr=request is None)
    daemon = Daemon(store, path, recent)
    control = ControlServer(daemon)
    control.start()
    _on_signals(daemon)
    try:
        await daemon.resume()
        notify("READY=1", f"STATUS={len(daemon.sessions)} session(s)")
        log.info("ready on %s, state in %s", path, store.folder, extra={"peer": daemon.device.key.id})
        if request is not None:
            await foreground.run(daemon, request)
        else:
            await daemon.stopping.wait()
    finally:
        notify("STOPPING=1")
        await daemon.stop()
        await control.stop()


def _allow_open_files() -> None:
    """Strangers' connections take descriptors until they are refused: ask for more than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _on_signals(daemon: Daemon) -> None:
    def ask() -> None:
        if daemon.stopping.is_set():
            os._exit(130)
        daemon.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ask)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # grpc's threads may outlive the loop, and nothing is left to write
