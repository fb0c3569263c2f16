"""Finding peers by mDNS (RFC 6762) and DNS-SD (RFC 6763). An edge: sockets, and a task that watches
addresses.

Each session is one instance of `_peerd._tcp.local.`. Instance and host names are hashes of id and boot
nonce, and the TXT record holds a protocol version, the id, the nonce, and HMAC(beacon key, nonce), by which
members recognise their session and nobody else does. A sighting is a hint: it says neither who is there
(the transport checks the key) nor that anyone still is (a device that lost power stays in caches for up to
75 minutes). What it is good for is waking the dialer, so sightings repeat.

zeroconf takes its interfaces at start, so their addresses are looked at every few seconds and on a change the
sockets are updated and the instance announced anew. Names are unique by construction, so the probing of
RFC 6762 section 8.1 is left out: it costs 1.2 s before the first peer can see this device.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from peer.events import PeerId
from peer.mesh.channels import join_address
from peer.mesh.frames import MAX_ADDRESSES, PEER_ID
from peer.mesh.greeting import PROTOCOL_MAX
from peer.mesh.interfaces import Interface, by_reach, choose, hears_multicast, needs_scope, survey

log = logging.getLogger(__name__)

SERVICE_TYPE = "_peerd._tcp.local."
WATCH_S = 5.0  # how often addresses are looked at; a Wi-Fi roam takes about as long
BROWSE_S = (
    60.0  # how often the network is asked anew; at 50 % loss 2 of 90 pairs missed each other's first answers
)
RESOLVE_MS = 3000  # zeroconf's own default
MAX_IDS = 512  # members' ids reported at a time: twice a session's most; bounds what dialing hints may cost
FORGET_S = 10 * BROWSE_S  # an id not heard for so many browsings makes room for another (guess)
MAX_WAITING = 1024  # names heard and not yet resolved
RESOLVERS = 8
NONCE = re.compile(r"[0-9a-f]{32}")
BEACON_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sighting:
    """An announcement was heard. ours: it knows the session's key. nonce: new at each start over there."""

    peer: PeerId
    addresses: tuple[str, ...]
    ours: bool
    protocol: int
    nonce: str


class Discovery:
    """Announces one session and reports who else is there. `on_sighting` runs on the event loop and only
    enqueues.

    port: where the session is served; 0 announces nothing and only listens. interfaces: names or addresses;
    none is every usual one. on_moved: this device's reachable addresses
    (HOST:PORT, fit for its Record) after each change, the first time included.
    """

    def __init__(
        self,
        beacon_key: bytes,
        peer_id: PeerId,
        port: int,
        interfaces: tuple[str, ...],
        on_sighting: Callable[[Sighting], None],
        on_moved: Callable[[tuple[str, ...]], None] = lambda addresses: None,
        survey: Callable[[], tuple[Interface, ...]] = survey,
    ) -> None:
        self.last_heard: float | None = None  # of the loop's clock: any other peerd, of whatever session
        self.addresses: tuple[str, ...] = ()
        self._beacon_key = beacon_key
        self._peer_id = peer_id
        self._port = port
        self._asked = interfaces
        self._on_sighting = on_sighting
        self._on_moved = on_moved
        self._survey = survey
        self._nonce = secrets.token_bytes(16)
        digest = hashlib.sha256(peer_id.encode() + self._nonce).hexdigest()[:32]
        self._name, self._server = f"{digest}.{SERVICE_TYPE}", f"{digest}.local."
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._chosen: tuple[Interface, ...] | None = None
        self._deaf: str | None = None  # why nothing is announced
        self._blind: str | None = None  # why this device's own addresses are not known just now
        self._ours: dict[PeerId, float] = {}  # when last heard, in that order
        self._names: asyncio.Queue[str] = asyncio.Queue(MAX_WAITING)
        self._waiting: set[str] = set()
        self._announcing: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def problem(self) -> str | None:
        """Why finding peers does not work now, and what to do; None if it does."""
        return self._blind or self._deaf

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Those it announces and browses on, or would if it could."""
        return self._chosen or ()

    @property
    def port(self) -> int:
        return self._port

    @property
    def multicast_heard(self) -> bool:
        """Has any other peerd been heard? If not for long, multicast may be blocked; --peer helps then."""
        return self.last_heard is not None

    async def start(self) -> None:
        """Announce and browse. A network that cannot be used is not an error but `problem`, tried again and
        again.
        """
        await self.look()
        works = [self._watch(), *(self._resolve_all() for _ in range(RESOLVERS))]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Say goodbye and close the sockets."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close()

    async def look(self) -> None:
        """Look at this device's addresses now; on a change announce and browse on those there are."""
        try:
            up = self._survey()
        except OSError as error:
            self._trouble("cannot look at this device's network addresses", error)
            return
        self._blind = None
        chosen = choose(up, self._asked)
        if chosen == self._chosen and (self._zeroconf is not None or not chosen):
            return
        await self._close()
        self._chosen = chosen
        hosts = [address for interface in chosen for address in interface.addresses]
        try:
            await self._open(hosts)
            self._deaf = None
        except (OSError, Error) as error:
            self._deaf = (
                f"cannot find peers by mDNS: {error}; check the network, or name a member with --peer"
            )
            log.warning("%s", self._deaf)
            await self._close()
        addresses = tuple(join_address(host, self._port) for host in hosts)[:MAX_ADDRESSES]
        if addresses != self.addresses:
            self.addresses = addresses
            self._on_moved(addresses)

    def _trouble(self, what: str, error: Exception) -> None:
        """Something that the next look may find mended: say it once, and go on with what there is."""
        problem = f"{what}: {error}; it is tried again every {WATCH_S:.0f} s; or name a member with --peer"
        if problem != self._blind:
            log.warning("%s", problem)
        self._blind = problem

    # --- announcing ------------------------------------------------------------------------------------

    async def _open(self, hosts: list[str]) -> None:
        if not hosts:
            named = f" named {' or '.join(self._asked)}" if self._asked else ""
            raise OSError(f"no network interface{named} is up")
        usable = [
            host for host in hosts if hears_multicast(host)
        ]  # zeroconf leaks a socket where it fails itself
        if not usable:
            raise OSError(f"{', '.join(hosts)} cannot join multicast")
        four = [host for host in usable if ipaddress.ip_address(host).version == 4]
        version = IPVersion.V4Only if four else IPVersion.V6Only
        self._zeroconf = AsyncZeroconf(interfaces=four or usable, ip_version=version)
        await self._zeroconf.zeroconf.async_wait_for_start()
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            self._name,
            port=self._port,
            server=self._server,
            parsed_addresses=hosts[:MAX_ADDRESSES],
            properties={
                "v": str(PROTOCOL_MAX),
                "id": self._peer_id,
                "n": self._nonce.hex(),
                "h": beacon(self._beacon_key, self._nonce),
            },
        )
        if self._port:
            announcing = await self._zeroconf.async_register_service(info, cooperating_responders=True)
            self._announcing = asyncio.ensure_future(announcing)
        self._browse()

    def _browse(self) -> None:
        assert self._zeroconf is not None
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change])

    async def _close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
        if browser is not None:
            await browser.async_cancel()
        if zeroconf is not None:
            with suppress(OSError, Error):  # an interface that is gone cannot carry a goodbye
                await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        browsed = clock()
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self.look()
                if self._browser is not None and clock() - browsed > BROWSE_S:
                    browsed = clock()
                    await self._browser.async_cancel()
                    self._browse()
            except (OSError, Error) as error:  # of the network: this task must outlive it
                self._trouble("cannot browse for peers", error)

    # --- hearing ---------------------------------------------------------------------------------------

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Called by zeroconf. A goodbye is no news: only the transport knows who is gone."""
        if name == self._name or state_change is ServiceStateChange.Removed or name in self._waiting:
            return
        self.last_heard = asyncio.get_running_loop().time()
        with suppress(asyncio.QueueFull):  # a flood; the next browsing brings it again
            self._names.put_nowait(name)
            self._waiting.add(name)

    async def _resolve_all(self) -> None:
        while True:
            name = await self._names.get()
            self._waiting.discard(name)
            zeroconf = self._zeroconf
            if zeroconf is None:
                continue
            try:
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if await info.async_request(zeroconf.zeroconf, RESOLVE_MS):
                    self._report(info)
            except (Error, OSError, ValueError) as error:
                log.debug("resolving failed: %s", error, extra={"instance": name[:64]})

    def _report(self, info: AsyncServiceInfo) -> None:
        sighting = read(info, self._beacon_key, self._loopback_too())
        if sighting is None or sighting.peer == self._peer_id:
            return
        if sighting.ours and not self._admit(sighting.peer):
            return
        self._on_sighting(sighting)

    def _admit(self, peer: PeerId) -> bool:
        """May this member be reported? Not if it is one too many: a beacon that was overheard can be said
        again under any id. Strangers are not counted here, so they take nobody's place; who hears of them
        remembers a bounded number.
        """
        now = asyncio.get_running_loop().time()
        if self._ours.pop(peer, None) is None and len(self._ours) >= MAX_IDS:
            oldest = next(iter(self._ours))
            if now - self._ours[oldest] < FORGET_S:
                return False
            del self._ours[oldest]
        self._ours[peer] = now
        return True

    def _loopback_too(self) -> bool:
        return any(interface.loopback for interface in self._chosen or ())


def beacon(key: bytes, nonce: bytes) -> str:
    """What shows members, and nobody else, that an announcement is of their session."""
    return hmac.new(key, nonce, hashlib.sha256).digest()[:BEACON_BYTES].hex()


def read(info: AsyncServiceInfo, beacon_key: bytes, loopback_too: bool) -> Sighting | None:
    """What an announcement says; None if it is malformed or leads nowhere from here."""
    said = {name: value or "" for name, value in info.decoded_properties.items()}
    version, peer, nonce = said.get("v", ""), said.get("id", ""), said.get("n", "")
    if not (re.fullmatch(r"[1-9][0-9]{0,4}", version) and PEER_ID.fullmatch(peer) and NONCE.fullmatch(nonce)):
        return None
    hosts = [ipaddress.ip_address(packed) for packed in info.addresses_by_version(IPVersion.All)]
    fit = [
        host
        for host in sorted(hosts, key=by_reach)
        if not needs_scope(host) and (loopback_too or not host.is_loopback)
    ]
    if not fit or not info.port:
        return None
    addresses = tuple(join_address(str(host), info.port) for host in fit[:MAX_ADDRESSES])
    ours = hmac.compare_digest(said.get("h", "").encode(), beacon(beacon_key, bytes.fromhex(nonce)).encode())
    return Sighting(peer, addresses, ours, int(version), nonce)
