"""The daemon's entry: `python -m peer [--socket PATH] [--state FOLDER] [--request-fd N]`.

SIGTERM or Ctrl-C pauses every session politely and ends with 0; a second one ends at once with 130.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
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
    path = own_socket(asked.socket, os.environ, asked.state)
    request = foreground.read_request(asked.request_fd) if asked.request_fd is not None else None
    store = Store(state_folder(asked.state, os.environ))
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


def _on_signals(daemon: Daemon) -> None:
    def ask() -> None:
        if daemon.stopping.is_set():
            os._exit(130)
        daemon.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # grpc's threads may outlive the loop, and nothing is left to write
