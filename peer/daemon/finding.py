"""Finding members of one session: sightings and --peer addresses are dialed until Hello succeeds.

What is learnt on the way is kept for the user: which peerd devices are about that do not know this key, which
addresses do not answer and why. The other half, where this device announces itself, is `announced_on`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from peer.config import JoinOptions
from peer.errors import NobodyFoundError, PeerdError, WrongKeyError
from peer.events import PeerId
from peer.mesh.channels import NoSuchHostError
from peer.mesh.discovery import Sighting
from peer.mesh.greeting import PROTOCOL_MAX, VersionError

log = logging.getLogger(__name__)

REDIAL_FIRST_S, REDIAL_MOST_S = 0.5, 10.0  # of a --peer address, doubling; guess
LOOK_AGAIN_S = 5.0  # how often it is looked whether a --peer that was met is still there; guess
MAX_FOREIGN = 256  # strangers remembered, and members that were seen and not met


class Greeter(Protocol):
    """The part of the transport that finding needs."""

    async def hello(self, address: str) -> PeerId: ...


class Finder:
    """One session's search. met(peer): is this peer a live member? `strangers`: whose announcements are not
    of this session, by their nonce. `unmet`: members that were seen and did not answer Hello, and why.
    `unanswered`: by address, why a --peer is not met. `wrong_key`: addresses that refused the key."""

    def __init__(
        self,
        greeter: Greeter,
        peers: tuple[str, ...],
        met: Callable[[PeerId], bool],
        learn: Callable[..., None],
    ) -> None:
        self.strangers: dict[str, PeerId] = {}
        self.other_versions: dict[PeerId, int] = {}
        self.unmet: dict[PeerId, str] = {}
        self.unanswered: dict[str, str] = {}
        self.wrong_key: set[str] = set()
        self._greeter = greeter
        self._peers = peers
        self._met = met
        self._learn = learn
        self._hellos: dict[PeerId, asyncio.Task[None]] = {}
        self._dialers: list[asyncio.Task[None]] = []

    @property
    def foreign(self) -> set[PeerId]:
        """The peerd devices that announce something else than this session."""
        return set(self.strangers.values())

    def start(self) -> None:
        self._dialers = [asyncio.create_task(self._keep_dialing(address)) for address in self._peers]

    async def stop(self) -> None:
        tasks = [*self._dialers, *self._hellos.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def sighted(self, sighting: Sighting) -> None:
        """An announcement was heard: say Hello to a member not met yet, remember a stranger."""
        peer = sighting.peer
        if not sighting.ours:
            if sighting.nonce not in self.strangers and len(self.strangers) >= MAX_FOREIGN:
                del self.strangers[next(iter(self.strangers))]  # the one that is known longest
            self.strangers[sighting.nonce] = peer
            return
        if sighting.protocol > PROTOCOL_MAX:
            self.other_versions[peer] = sighting.protocol  # Hello may still find a version in common
        self._learn(peer, sighting.addresses)
        if not self._met(peer) and peer not in self._hellos:
            task = asyncio.create_task(self._say_hello(peer, sighting.addresses))
            self._hellos[peer] = task
            task.add_done_callback(lambda _: self._hellos.pop(peer, None))

    async def _say_hello(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        problem = ""
        for address in addresses:
            try:
                await self._greeter.hello(address)
            except VersionError as error:
                self.other_versions.setdefault(peer, 0)
                log.warning("%s", error, extra={"peer": peer})
                return
            except PeerdError as error:
                log.info("seen and not met: %s", error, extra={"peer": peer, "address": address})
                problem = problem or f"{address}: {error}"
            else:
                self.unmet.pop(peer, None)
                self.other_versions.pop(peer, None)
                return
        self._not_met(peer, problem)

    def _not_met(self, peer: PeerId, problem: str) -> None:
        if peer not in self.unmet and len(self.unmet) >= MAX_FOREIGN:
            del self.unmet[next(iter(self.unmet))]
        self.unmet[peer] = problem

    async def _keep_dialing(self, address: str) -> None:
        pause = REDIAL_FIRST_S
        peer: PeerId | None = None
        while True:
            if peer is None or not self._met(peer):
                peer = await self._dial(address)
                pause = min(2 * pause, REDIAL_MOST_S) if peer is None else REDIAL_FIRST_S
            await asyncio.sleep(LOOK_AGAIN_S if peer is not None else pause)

    async def _dial(self, address: str) -> PeerId | None:
        """One attempt at a --peer address."""
        try:
            peer = await self._greeter.hello(address)
        except WrongKeyError as error:
            self.wrong_key.add(address)
            self._problem(address, str(error))
        except NobodyFoundError as error:
            known = isinstance(error, NoSuchHostError)
            nobody = "nobody answers there; is peerd running, and the port open?"
            self._problem(address, str(error) if known else nobody)
        except PeerdError as error:
            self._problem(address, str(error))
        except Exception:
            self._problem(address, "dialing it failed, by a bug of peerd; 'peerd logs' says more")
            log.exception("--peer %s", address)
        else:
            self.wrong_key.discard(address)
            self.unanswered.pop(address, None)
            return peer
        return None

    def _problem(self, address: str, problem: str) -> None:
        if self.unanswered.get(address) != problem:
            log.warning("--peer %s: %s", address, problem)
            self.unanswered[address] = problem


def announced_on(options: JoinOptions) -> tuple[str, ...]:
    """Where to announce: as asked, or the one address listened on, or loopback for a session without
    TLS."""
    host = (options.listen or "").rpartition(":")[0].strip("[]")
    if options.interfaces or options.insecure:
        return options.interfaces or ("lo",)
    if host in ("", "0.0.0.0", "::"):
        return ()
    try:  # of a name, which was resolved a moment ago to listen there
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("where the name %s leads is not known, so every interface is used: %s", host, error)
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
