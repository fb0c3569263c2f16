"""The script that has started this daemon, and that it ends with.

A socket pair is all there is between the two: the daemon says "ready" on it when its sessions are taken up,
and reads the script's end in its being closed for writing, however the script ended. Another script may have
found the daemon meanwhile: it says "stays" then, and ends with the last one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

from peer.daemon.app import Daemon
from peer.local import READY, STAYS

log = logging.getLogger(__name__)

ENDS_S = 1.0  # for the connection of a script that ends to be seen ending, too (guess)


class Owner:
    """fd: this end of the pair."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    async def serve(self, daemon: Daemon) -> None:
        """Say that the daemon is ready, and return when no script needs it any more or it is to stop."""
        told = asyncio.create_task(daemon.stopping.wait())
        gone = asyncio.create_task(self._watch(daemon))
        try:
            await asyncio.wait((told, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
        finally:
            told.cancel()
            gone.cancel()
            await asyncio.wait((told, gone))
            self._socket.close()

    async def _watch(self, daemon: Daemon) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # the script is gone already
            await loop.sock_sendall(self._socket, READY)
            while await loop.sock_recv(self._socket, 64):
                log.warning("the script that has started this daemon says something unexpected")
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDS_S):
                await daemon.no_script.wait()
        if not daemon.no_script.is_set():
            log.info("the script that has started this daemon ends; another one trains through it")
            with suppress(OSError):  # nobody may be waiting for it
                await loop.sock_sendall(self._socket, STAYS)
        await daemon.no_script.wait()
        log.info("the script that has started this daemon is gone")
