"""The data plane of one session: a gRPC server, streams that are kept up, control calls. An edge: asyncio
and sockets.

    Node effects --connect, disconnect, send, tell, learn--> Transport --events of peer.events--> Node

Nothing of a caller is parsed before its key is known: mutual TLS admits members of the session alone, and
each call's id must be the hash of the key seen in that handshake. Hello is in peer/mesh/hello.py, one
stream in peer/mesh/stream.py, channels and their options in peer/mesh/channels.py.

Events come one after another on the event loop, never from within another event or from within a method
called here. The one exception in order, not in nesting: a Probe that is told to a peer while its own call
is being heard (`on_event(Told(...))`) is the answer to that call and costs no call of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from peer.errors import NobodyFoundError, PeerdError, RemoteError
from peer.events import (
    Control,
    Direction,
    Frame,
    FrameHeard,
    Met,
    PeerId,
    Probe,
    Progress,
    StreamDown,
    StreamUp,
    Told,
)
from peer.mesh.channels import CALL_TIMEOUT_S, GONE, LINK, TELL, Dialer
from peer.mesh.contacts import Contact, Contacts
from peer.mesh.frames import (
    control_from_wire,
    control_to_wire,
    parse,
    peer_id,
)
from peer.mesh.greeting import Introduction
from peer.mesh.hello import Introducer
from peer.mesh.identity import SessionIdentity
from peer.mesh.service import OTHER_END, Service, attach, check_attach
from peer.mesh.stream import Intake, LinkStream
from peer.wire import peer_pb2 as pb

log = logging.getLogger(__name__)

Event = Met | StreamUp | StreamDown | FrameHeard | Progress | Told
Link = tuple[PeerId, Direction]
REDIAL_FIRST_S, REDIAL_MOST_S = 0.2, 3.0  # of the first and the longest pause between attempts
HEALTHY_S = 3.0  # a stream that lived this long starts the pauses anew
TELL_TIMEOUT_S = 3.0  # a Wi-Fi stall takes up to 1 s
MAX_TOLD = 16  # control messages that wait for one peer; the oldest is dropped
UNDELIVERED_S = 10.0  # a message that did not get through is the answer to the peer's own call; guess
FAREWELL_S = 1.0  # how long stop() waits for the last control messages


class Transport:
    """One session's connections to the other members.

    me: what this device says of itself in Hello, asked for anew each time. rng: for the jitter of redialing.
    """

    def __init__(
        self,
        identity: SessionIdentity,
        me: Callable[[], Introduction],
        on_event: Callable[[Event], None],
        intake: Intake,
        rng: random.Random,
        insecure: bool = False,
    ) -> None:
        self.peer_id, self._seal = identity.peer_id, identity.seal
        self.contacts = Contacts()
        self._on_event = on_event
        self._intake = intake
        self._rng = rng
        self._dialer = Dialer(identity, insecure)
        self._introducer = Introducer(self._dialer, self.contacts, me, self._emit)
        self._service = Service(identity, self.contacts, self._introducer, intake, self)
        self._streams: dict[Link, LinkStream] = {}
        self._keepers: dict[Link, asyncio.Task[None]] = {}
        self._pokes: dict[PeerId, asyncio.Event] = {}
        self._tellers: dict[PeerId, asyncio.Task[None]] = {}
        self._to_tell: dict[PeerId, deque[Control]] = {}
        self._answering: dict[PeerId, Control | None] = {}
        self._undelivered: dict[PeerId, dict[type, tuple[float, Control]]] = {}
        self._events: deque[Event] = deque()
        self._emitting = False
        self._stopped = False

    # --- for the driver --------------------------------------------------------------------------------

    async def start(self, listen: str | None = None) -> int:
        """Serve on HOST:PORT (None: any free port) and return the port. PortError says what is in the way."""
        return await self._service.start(listen)

    async def stop(self) -> None:
        """Send the control messages that wait, then end streams, channels, server. No event comes after."""
        if self._tellers:
            await asyncio.wait(list(self._tellers.values()), timeout=FAREWELL_S)
        self._stopped = True
        tasks = [*self._keepers.values(), *self._tellers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in list(self._streams.values()):
            stream.close("this end stops")
        await self._introducer.close()
        await self._service.stop()

    async def hello(self, address: str) -> PeerId:
        """Meet the member at HOST:PORT; Met has been reported when this returns.

        NobodyFoundError: nobody there, or not peerd. WrongKeyError: peerd of another session. RemoteError:
        a member that breaks a rule; VersionError among them: it speaks another protocol.
        """
        peer = await self._introducer.hello(address)
        self.poke(peer)
        return peer

    def learn(self, peer: PeerId, addresses: Iterable[str], listed: bool = False) -> None:
        """Candidates for reaching a peer, from a sighting or (listed) all that its own record names now.
        Wakes its dialer."""
        if peer != self.peer_id:
            contact = self.contacts.of(peer_id(peer))
            if listed:
                contact.lists(addresses)
            else:
                contact.learn(addresses)
            self.poke(peer)

    def poke(self, peer: PeerId) -> None:
        """Something suggests that the peer can be reached now: dial at once, not at the next attempt."""
        if peer in self._pokes:
            self._pokes[peer].set()

    async def refresh(self, peer: PeerId) -> None:
        """Say Hello to a known peer again, because what we say of ourselves has changed. Never raises."""
        contact = self.contacts.of(peer)
        try:
            await self._introducer.reach(contact)
            await self._introducer.introduce(contact)
        except (RemoteError, NobodyFoundError) as error:
            log.debug("saying Hello again failed: %s", error, extra={"peer": peer})

    def introduction(self, peer: PeerId) -> Introduction | None:
        """What the peer said of itself in its last Hello: record, descriptor, model signature."""
        contact = self.contacts.get(peer)
        return contact.introduction if contact is not None else None

    def connect(self, peer: PeerId, direction: Direction) -> None:
        """Keep a stream for this directed link up until `disconnect`: "out" sends on it, "in" asks the peer
        to.
        """
        link = (peer, direction)
        if link not in self._keepers and not self._stopped:
            self._keepers[link] = asyncio.create_task(self._keep(link))
            self._keepers[link].add_done_callback(_surface)

    def disconnect(self, peer: PeerId, direction: Direction) -> None:
        """Stop dialing and end the stream, whoever dialed it."""
        keeper = self._keepers.pop((peer, direction), None)
        if keeper is not None:
            keeper.cancel()
        stream = self._streams.get((peer, direction))
        if stream is not None:
            self._drop(stream, "disconnected")

    def disconnect_all(self) -> None:
        """`disconnect` every link, whoever dialed it: a new node begins with none."""
        for peer, direction in {*self._keepers, *self._streams}:
            self.disconnect(peer, direction)

    def send(self, peer: PeerId, direction: Direction, frame: Frame) -> bool:
        """Queue a frame on the link's stream. False if there is none: the frame is dropped."""
        stream = self._streams.get((peer, direction))
        if stream is None:
            log.debug("dropped a %s: no stream", type(frame).__name__, extra={"peer": peer})
            return False
        stream.send(frame)
        return not stream.closed

    def tell(self, peer: PeerId, message: Control) -> None:
        """Call the peer with a control message; its answer comes as Told. Failure is silence, until the peer
        calls: one that cannot be dialed is told what failed as the answer to its own call.
        """
        if self._answering.get(peer, message) is None:
            self._answering[peer] = message
            return
        waiting = self._to_tell.setdefault(peer, deque(maxlen=MAX_TOLD))
        waiting.append(message)
        if peer not in self._tellers and not self._stopped:
            self._tellers[peer] = asyncio.create_task(self._tell_all(peer, waiting))
            self._tellers[peer].add_done_callback(_surface)

    def block(self, peer: PeerId) -> None:
        """Cut this member off, live streams included, until `unblock`. What is connected stays wanted."""
        self.contacts.of(peer).blocked = True
        for direction in OTHER_END:
            stream = self._streams.get((peer, direction))
            if stream is not None:
                self._drop(stream, "blocked on this device")

    def unblock(self, peer: PeerId) -> None:
        self.contacts.of(peer).blocked = False
        self.poke(peer)

    # --- events ----------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        """One at a time: what an event's listener causes here is reported after that event."""
        self._events.append(event)
        if self._emitting:
            return
        self._emitting = True
        try:
            while self._events and not self._stopped:
                self._on_event(self._events.popleft())
        finally:
            self._emitting = False

    def _emit_soon(self, event: Event) -> None:
        asyncio.get_running_loop().call_soon(self._emit, event)

    def heard(self, src: PeerId, message: Control) -> Control | None:
        """Report a control call; the first message that is told to the caller meanwhile is the answer to it,
        else one that did not get through to it before.
        """
        self._answering[src] = None
        try:
            self._emit(Told(src, message))
        finally:
            answer = self._answering.pop(src)
        return answer if answer is not None else self._take_undelivered(src)

    def _keep_undelivered(self, peer: PeerId, message: Control) -> None:
        """The last of each kind. A Probe says nothing that the next does not say better."""
        if not isinstance(message, Probe):
            now = asyncio.get_running_loop().time()
            self._undelivered.setdefault(peer, {})[type(message)] = (now, message)

    def _take_undelivered(self, peer: PeerId) -> Control | None:
        since = asyncio.get_running_loop().time() - UNDELIVERED_S
        waiting = self._undelivered.pop(peer, {})
        fresh = {kind: kept for kind, kept in waiting.items() if kept[0] >= since}
        if not fresh:
            return None
        _, message = fresh.pop(next(iter(fresh)))
        self._undelivered[peer] = fresh
        return message

    # --- streams ---------------------------------------------------------------------------------------

    def adopt(self, stream: LinkStream) -> bool:
        """Make this the stream of its link. False if one that both ends agree on is there already."""
        link = (stream.peer, stream.direction)
        old = self._streams.get(link)
        if self._stopped or (old is not None and not old.yields_to(stream)):
            return False
        if old is not None:
            self._drop(old, "replaced by a newer stream")
        self._streams[link] = stream
        self._emit_soon(StreamUp(*link))
        return True

    def _drop(self, stream: LinkStream, reason: str) -> None:
        stream.close(reason)
        link = (stream.peer, stream.direction)
        if self._streams.get(link) is stream:
            del self._streams[link]
            self._emit_soon(StreamDown(*link, stream.reason))

    async def run(self, stream: LinkStream) -> None:
        try:
            await stream.run(self._emit)
        finally:
            self._drop(stream, stream.reason)
            log.info(
                "stream ended: %s", stream.reason, extra={"peer": stream.peer, "direction": stream.direction}
            )

    async def _keep(self, link: Link) -> None:
        """Dial until told otherwise, with growing pauses; a poke cuts a pause short."""
        peer, direction = link
        poke = self._pokes.setdefault(peer, asyncio.Event())
        clock = asyncio.get_running_loop().time
        pause = REDIAL_FIRST_S
        while True:
            began = clock()
            try:
                if link in self._streams:
                    await self._streams[link].ended.wait()
                else:
                    await self._dial(self.contacts.of(peer), direction)
            except (PeerdError, TimeoutError, *GONE) as error:
                log.debug("dialing failed: %s", error, extra={"peer": peer})
            except asyncio.CancelledError:  # grpc.aio raises it too when the other end cancels a call
                if _cancelled_here():
                    raise
            pause = REDIAL_FIRST_S if clock() - began > HEALTHY_S else min(1.6 * pause, REDIAL_MOST_S)
            poke.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * self._rng.uniform(0.8, 1.2)):
                    await poke.wait()

    async def _dial(self, contact: Contact, direction: Direction) -> None:
        """One attempt; returns when the stream it led to has ended."""
        if contact.blocked:
            raise RemoteError("blocked on this device")
        await self._introducer.reach(contact)
        async with self._introducer.new_channel(contact) as channel:
            call = channel.stream_stream(LINK, bytes, bytes)(None, metadata=self._dialer.metadata)
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await call.write(attach(direction, contact.peer))
                    data: object = await call.read()
            except (TimeoutError, *GONE):
                await self._introducer.forget(contact)
                raise
            try:
                check_attach(data, contact, self.peer_id, OTHER_END[direction])
                contact.unreached = ""
                stream = LinkStream(contact, direction, call, self._intake, dialed=True)
                if self.adopt(stream):
                    await self.run(stream)
            finally:
                call.cancel()

    # --- control ---------------------------------------------------------------------------------------

    async def _tell_all(self, peer: PeerId, waiting: deque[Control]) -> None:
        contact = self.contacts.of(peer)
        try:
            while waiting:
                message = waiting.popleft()
                try:
                    await self._tell_once(contact, message)
                except (PeerdError, *GONE) as error:
                    log.debug("telling failed: %s", error, extra={"peer": peer})
                    self._keep_undelivered(peer, message)
                except asyncio.CancelledError:  # see _keep
                    if _cancelled_here():
                        raise
        finally:
            del self._tellers[peer]

    async def _tell_once(self, contact: Contact, message: Control) -> None:
        if contact.blocked:
            return
        await self._introducer.reach(contact)
        request = control_to_wire(message, self._seal).SerializeToString()
        call = self._introducer.control_channel(contact).unary_unary(TELL, bytes, bytes)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            answer: bytes = await call(request, timeout=TELL_TIMEOUT_S, metadata=self._dialer.metadata)
        except GONE:
            await self._introducer.forget(contact)
            raise
        contact.time(clock() - began)
        contact.unreached = ""
        contact.bytes_sent += len(request)
        contact.bytes_received += len(answer)
        try:
            heard = control_from_wire(parse(pb.ControlMessage, answer), contact.peer, self._seal)
        except RemoteError as error:
            contact.reject(str(error))
            raise
        self._emit(Told(contact.peer, heard) if heard is not None else Progress(contact.peer, "out"))


def _surface(task: asyncio.Task[None]) -> None:
    """A bug in a background task is shown when it happens, not when the task is forgotten."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "a transport task failed", "exception": error})


def _cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
