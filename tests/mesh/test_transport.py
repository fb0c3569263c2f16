"""Two members over mutual TLS on real loopback sockets, and everybody who is none."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import socket
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import xxhash
from cryptography.hazmat.primitives.asymmetric import ec

from peer.errors import NobodyFoundError, PeerdError, PortError, RemoteError, UsageError, WrongKeyError
from peer.events import (
    Ack,
    Control,
    Direction,
    Farewell,
    FrameHeard,
    Goodbye,
    Key,
    Met,
    Open,
    Opened,
    Parcel,
    PeerId,
    Probe,
    Progress,
    Record,
    Refuse,
    SponsorMe,
    StreamDown,
    StreamUp,
    Told,
)
from peer.keys import new_key
from peer.mesh import channels, service
from peer.mesh import greeting as greetings
from peer.mesh.channels import (
    COMMON_OPTIONS,
    HELLO,
    LINK,
    TELL,
    Dialer,
    every_address,
    join_address,
    split_address,
)
from peer.mesh.chunks import CHUNK_BYTES, LONG_CHUNK_BYTES
from peer.mesh.contacts import Contact
from peer.mesh.frames import (
    Begin,
    Chunk,
    End,
    WireFrame,
    control_to_wire,
    frame_to_wire,
    parse,
    record_from_wire,
    record_to_wire,
)
from peer.mesh.greeting import Greeting, Introduction, Signature, VersionError, greeting_to_wire
from peer.mesh.identity import Device, SessionIdentity
from peer.mesh.interfaces import choose, survey
from peer.mesh.service import attach
from peer.mesh.stream import Buffer, Intake
from peer.mesh.transport import Event, Transport
from peer.wire import peer_pb2 as pb

LIMIT = 4 << 20
LOOPBACK = "127.0.0.1:0"


class Memory:
    """An incoming parcel's buffer, as the daemon's shared memory is one."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(length)
        self.closed = False

    def __len__(self) -> int:
        return len(self.data)

    def part(self, at: int, size: int) -> memoryview:
        return memoryview(bytes(self.data[at : at + size]))

    def write(self, at: int, data: memoryview) -> None:
        self.data[at : at + len(data)] = data

    def close(self) -> None:
        self.closed = True


@dataclass
class Member:
    """A transport, with all that came out of it."""

    key: bytes
    device: Device = field(default_factory=lambda: Device(ec.generate_private_key(ec.SECP256R1())))
    insecure: bool = False
    events: list[Event] = field(default_factory=list)
    buffers: list[Memory] = field(default_factory=list)
    on_told: Callable[[Told], None] = lambda told: None
    port: int = 0

    def __post_init__(self) -> None:
        self.identity = SessionIdentity(self.key, self.device)
        self.introduction = Introduction(Record(self.device.id, boot=1, incarnation=1))
        self.transport = Transport(
            self.identity,
            lambda: self.introduction,
            self.hear,
            Intake(lambda: LIMIT, self.allocate),
            random.Random(1),
            insecure=self.insecure,
        )
        self.changed = asyncio.Condition()

    @property
    def id(self) -> PeerId:
        return self.device.id

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def allocate(self, length: int) -> Buffer:
        self.buffers.append(Memory(length))
        return self.buffers[-1]

    def hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Told):
            self.on_told(event)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, wanted: object, times: int = 1) -> None:
        """Return when an equal event has been heard so often."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.events.count(wanted) >= times)

    async def until_down(self, peer: PeerId, direction: Direction) -> None:
        """Return when a stream of this link has ended, for whatever reason."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: any(
                    isinstance(e, StreamDown) and (e.peer, e.direction) == (peer, direction)
                    for e in self.events
                )
            )

    async def parcel(self) -> Parcel:
        async with self.changed:
            await self.changed.wait_for(lambda: bool(self.parcels()))
        return self.parcels()[0]

    def parcels(self) -> list[Parcel]:
        return [e.frame for e in self.events if isinstance(e, FrameHeard) and isinstance(e.frame, Parcel)]

    def rejections(self) -> dict[PeerId, str]:
        return {c.peer: c.last_rejection for c in self.transport.contacts if c.rejected}


@asynccontextmanager
async def serving(*members: Member) -> AsyncIterator[None]:
    async with asyncio.timeout(30):
        for member in members:
            member.port = await member.transport.start(LOOPBACK)
        try:
            yield
        finally:
            for member in members:
                await member.transport.stop()


@asynccontextmanager
async def pair(insecure: bool = False) -> AsyncIterator[tuple[Member, Member]]:
    """Two members that have met."""
    key = new_key()
    a, b = Member(key, insecure=insecure), Member(key, insecure=insecure)
    async with serving(a, b):
        assert await a.transport.hello(b.address) == b.id
        b.transport.learn(a.id, [a.address])
        yield a, b


def parcel(payload: bytes, number: int = 1) -> Parcel:
    return Parcel(epoch=3, number=number, key=Key(1, 7, 1), payload=payload, delivery="latest")


def content(found: Parcel) -> bytes:
    assert isinstance(found.payload, Memory)
    return bytes(found.payload.data)


# --- what members do -----------------------------------------------------------------------------------


async def test_both_ends_of_a_hello_have_met() -> None:
    async with pair() as (a, b):
        await a.until(Met(b.introduction.record))
        await b.until(Met(a.introduction.record))


async def test_hello_carries_descriptor_and_model_signature() -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    signature = Signature(hashlib.sha256(b"model").digest(), b"[]")
    b.introduction = replace(b.introduction, session="0f" * 16, descriptor=b"{}", signature=signature)
    async with serving(a, b):
        await a.transport.hello(b.address)
        assert a.transport.introduction(b.id) == b.introduction
        b.introduction = replace(b.introduction, features=5)
        await a.transport.refresh(b.id)
        assert a.transport.introduction(b.id) == b.introduction


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("dialer_sends", [True, False])
async def test_a_parcel_of_3_mb_arrives_whole_whoever_dials(insecure: bool, dialer_sends: bool) -> None:
    payload = random.Random(2).randbytes(3_000_001)
    async with pair(insecure) as (a, b):
        if dialer_sends:
            a.transport.connect(b.id, "out")
        else:
            b.transport.connect(a.id, "in")
        await a.until(StreamUp(b.id, "out"))
        await b.until(StreamUp(a.id, "in"))
        assert a.transport.send(b.id, "out", Open(life=5, epoch=3))
        assert a.transport.send(b.id, "out", parcel(payload))
        await b.until(FrameHeard(a.id, "in", Open(life=5, epoch=3)))
        heard = await b.parcel()
        assert content(heard) == payload
        assert replace(heard, payload=payload) == parcel(payload)
        assert b.transport.send(a.id, "in", Opened(life=6, epoch=3, applied=0, bases=(b"digest",)))
        assert b.transport.send(a.id, "in", Ack(epoch=3, number=1))
        assert b.transport.send(a.id, "in", Refuse(epoch=3, number=2, reason="no \x1b[31mbase"))
        await a.until(FrameHeard(b.id, "out", Opened(life=6, epoch=3, applied=0, bases=(b"digest",))))
        await a.until(FrameHeard(b.id, "out", Refuse(epoch=3, number=2, reason="no [31mbase")))
        assert Progress(b.id, "out") in a.events
        assert Progress(a.id, "in") in b.events


async def test_parcels_cross_in_both_directions_on_streams_of_their_own() -> None:
    payload = bytes(3_000_000)
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        a.transport.connect(b.id, "in")
        await a.until(StreamUp(b.id, "out"))
        await b.until(StreamUp(a.id, "out"))
        a.transport.send(b.id, "out", parcel(payload))
        b.transport.send(a.id, "out", parcel(payload))
        assert content(await a.parcel()) == content(await b.parcel()) == payload


async def test_bytes_of_both_ends_agree() -> None:
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))
        a.transport.send(b.id, "out", parcel(bytes(1_000_000)))
        await b.parcel()
        sent, received = a.transport.contacts.of(b.id), b.transport.contacts.of(a.id)
        assert 1_000_000 < sent.bytes_sent < 1_002_000
        assert received.bytes_received > 1_000_000
        assert sent.rtt_s is not None


async def test_a_link_that_both_ends_dial_settles_on_one_stream() -> None:
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        b.transport.connect(a.id, "in")
        await a.until(StreamUp(b.id, "out"))
        await b.until(StreamUp(a.id, "in"))
        opened = FrameHeard(a.id, "in", Open(life=1, epoch=1))
        while (
            opened not in b.events
        ):  # a frame on the stream that gives way is lost, and sent again as a node would
            ups = a.events.count(StreamUp(b.id, "out"))
            a.transport.send(b.id, "out", Open(life=1, epoch=1))
            replaced = asyncio.ensure_future(a.until(StreamUp(b.id, "out"), ups + 1))
            heard = asyncio.ensure_future(b.until(opened))
            await asyncio.wait([replaced, heard], return_when=asyncio.FIRST_COMPLETED)
            replaced.cancel()
            heard.cancel()
        links = [c for c in (a, b) for e in c.events if isinstance(e, StreamUp)]
        assert 2 <= len(links) <= 4


async def test_a_stream_comes_back_after_the_other_end_was_away() -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a):
        async with serving(b):
            await a.transport.hello(b.address)
            a.transport.connect(b.id, "out")
            await a.until(StreamUp(b.id, "out"))
        returned = Member(key, device=b.device)  # a new leaf of the same key, on another port
        async with serving(returned):
            a.transport.learn(b.id, [returned.address])
            await a.until(StreamUp(b.id, "out"), times=2)
            assert [type(e) for e in a.events if isinstance(e, StreamUp | StreamDown)] == [
                StreamUp,
                StreamDown,
                StreamUp,
            ]


async def test_disconnect_ends_the_stream_at_both_ends() -> None:
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))
        await b.until(StreamUp(a.id, "in"))
        a.transport.disconnect(b.id, "out")
        await a.until(StreamDown(b.id, "out", "disconnected"))
        async with b.changed:
            await b.changed.wait_for(lambda: any(isinstance(event, StreamDown) for event in b.events))
        assert not a.transport.send(b.id, "out", Open(1, 1))


async def test_disconnect_all_ends_streams_of_both_dialers_and_dials_no_more() -> None:
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        b.transport.connect(a.id, "out")
        await a.until(StreamUp(b.id, "out"))
        await a.until(StreamUp(b.id, "in"))
        b.transport.disconnect(a.id, "out")  # or it would dial again, as it should
        await a.until_down(b.id, "in")
        b.transport.connect(a.id, "out")
        await a.until(StreamUp(b.id, "in"), times=2)
        a.transport.disconnect_all()
        assert not a.transport.send(b.id, "out", Open(1, 1))
        assert not a.transport.send(b.id, "in", Ack(1, 1))
        await a.until(StreamDown(b.id, "out", "disconnected"))
        await a.until(StreamDown(b.id, "in", "disconnected"))
        await a.until(StreamUp(b.id, "in"), times=3)  # whoever dials from there is welcome
        assert a.events.count(StreamUp(b.id, "out")) == 1
        assert a.transport.introduction(b.id) is not None


async def test_a_long_parcel_is_in_memory_once_at_either_end_and_a_chunk_at_a_time_between() -> None:
    reads, writes = [], []

    class Read(Memory):
        def part(self, at: int, size: int) -> memoryview:
            data = super().part(at, size)
            reads.append((at, len(data)))
            return data

    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))
        payload = Read(LIMIT)
        payload.data[:] = bytes(range(256)) * (LIMIT // 256) + bytes(LIMIT % 256)
        write = Memory.write

        def noting(self: Memory, at: int, data: memoryview) -> None:
            writes.append((at, len(data)))
            write(self, at, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Memory, "write", noting)
            a.transport.send(b.id, "out", replace(parcel(b""), payload=payload))
            async with b.changed:
                await b.changed.wait_for(lambda: b.parcels() != [])
        cuts = [(at, min(CHUNK_BYTES, LIMIT - at)) for at in range(0, LIMIT, CHUNK_BYTES)]
        assert reads == writes == cuts
        assert [memory.data for memory in b.buffers] == [payload.data]


async def test_memory_that_runs_out_in_a_parcel_ends_the_stream_and_is_nobodys_fault() -> None:
    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))

        def full(self: Memory, at: int, data: memoryview) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Memory, "write", full)
            a.transport.send(b.id, "out", parcel(b"lost"))
            await a.until(StreamUp(b.id, "out"), times=2)
        assert b.parcels() == []
        assert b.rejections() == {}
        assert all(memory.closed for memory in b.buffers)


async def test_a_payload_closed_while_it_is_sent_ends_the_stream_and_nothing_worse() -> None:
    class Closed(Memory):
        def part(self, at: int, size: int) -> memoryview:
            raise PeerdError("this shared buffer is closed")

    async with pair() as (a, b):
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))
        a.transport.send(b.id, "out", replace(parcel(b""), payload=Closed(9)))
        await a.until(StreamUp(b.id, "out"), times=2)
        assert b.parcels() == []


async def test_a_probe_told_while_one_is_heard_is_its_answer() -> None:
    async with pair() as (a, b):
        asked, answer = Probe(b"a"), Probe(b"b", (b.introduction.record,))
        b.on_told = lambda told: b.transport.tell(told.peer, answer)
        a.transport.tell(b.id, asked)
        await b.until(Told(a.id, asked))
        await a.until(Told(b.id, answer))
        b.on_told = lambda told: None
        a.transport.tell(b.id, SponsorMe(life=9))
        await b.until(Told(a.id, SponsorMe(life=9)))


async def test_what_did_not_get_through_is_the_answer_to_the_peers_own_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As to a device behind a firewall: the last of each kind, once."""
    async with pair() as (a, b):

        async def shut(contact: Contact, message: Control) -> None:
            raise NobodyFoundError("no way through")

        monkeypatch.setattr(b.transport, "_tell_once", shut)
        for life in (8, 9):
            b.transport.tell(a.id, SponsorMe(life))
        b.transport.tell(a.id, Probe(b"p"))
        await asyncio.gather(*b.transport._tellers.values())
        a.transport.tell(b.id, Probe(b"a"))
        await a.until(Told(b.id, SponsorMe(9)))
        assert Progress(b.id, "out") not in a.events
        a.transport.tell(b.id, Probe(b"a"))
        await a.until(Progress(b.id, "out"))
        assert [e for e in a.events if isinstance(e, Told)] == [Told(b.id, SponsorMe(9))]


async def test_a_goodbye_goes_out_before_the_transport_stops() -> None:
    async with pair() as (a, b):
        goodbye = Goodbye(replace(a.introduction.record, state="left"), Farewell(4, 1, 2, 3))
        a.transport.tell(b.id, goodbye)
        await a.transport.stop()
        await b.until(Told(a.id, goodbye))


async def test_a_call_that_got_through_is_a_sign_of_life_though_nothing_is_answered() -> None:
    async with pair() as (a, b):
        assert Progress(b.id, "out") not in a.events
        a.transport.tell(b.id, SponsorMe(life=9))
        await a.until(Progress(b.id, "out"))
        assert Told(a.id, SponsorMe(life=9)) in b.events


async def test_telling_nobody_is_silence() -> None:
    async with pair() as (a, b):
        before = list(a.events)
        stranger = Device(ec.generate_private_key(ec.SECP256R1())).id
        a.transport.tell(stranger, Probe(b""))
        a.transport.learn(stranger, [b.address])
        a.transport.tell(stranger, Probe(b""))
        a.transport.tell(b.id, Probe(b"x"))
        await b.until(Told(a.id, Probe(b"x")))
        assert [e for e in a.events if e not in before and not isinstance(e, Met)] == []


async def test_a_blocked_member_is_cut_off_with_its_streams() -> None:
    async with pair() as (a, b):
        b.transport.connect(a.id, "out")
        await a.until(StreamUp(b.id, "in"))
        a.transport.block(b.id)
        await a.until(StreamDown(b.id, "in", "blocked on this device"))
        with pytest.raises(RemoteError):
            await b.transport.hello(a.address)
        with pytest.raises(RemoteError, match="blocked"):
            await a.transport.hello(b.address)


# --- where they listen ---------------------------------------------------------------------------------


async def test_every_address_that_is_announced_answers() -> None:
    key = new_key()
    a = Member(key)
    a.port = await a.transport.start(None)
    announced = [
        host for one in (*choose(survey(), ()), *choose(survey(), ("lo",))) for host in one.addresses
    ]
    assert any(":" in host for host in announced) or not socket.has_dualstack_ipv6() or not has_ipv6()
    try:
        for host in announced:
            caller = Member(key)
            async with serving(caller):
                said = replace(caller.introduction.record, addresses=(caller.address,))
                caller.introduction = Introduction(said)
                await caller.transport.hello(join_address(host, a.port))
                caller.transport.connect(a.id, "out")
                await caller.until(StreamUp(a.id, "out"))
                learned = a.transport.contacts.of(caller.id).addresses
                assert caller.address in learned
                assert [address for address in learned if "::ffff" in address] == []
    finally:
        await a.transport.stop()


async def test_without_tls_both_loopback_addresses_answer_and_no_other() -> None:
    key = new_key()
    a = Member(key, insecure=True)
    a.port = await a.transport.start(None)
    try:
        for interface in survey():
            for host in interface.addresses:
                if interface.loopback:
                    caller = Member(key, insecure=True)
                    async with serving(caller):
                        await caller.transport.hello(join_address(host, a.port))
                else:
                    with pytest.raises(ConnectionRefusedError):
                        await asyncio.open_connection(host, a.port)
    finally:
        await a.transport.stop()


async def test_a_host_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    key = new_key()
    a, b = Member(key), Member(key)
    assert every_address() == "0.0.0.0"
    async with serving(b):
        a.port = await a.transport.start(None)
        await b.transport.hello(a.address)
        await a.transport.stop()


@pytest.mark.parametrize("host", ["", "[::]"])
async def test_a_port_that_ipv4_alone_has_taken_is_taken(host: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(1)
        port = bound.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} is taken"):
            await Member(new_key()).transport.start(f"{host}:{port}")


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe, suppress(OSError):
        probe.bind(("::1", 0))
        return True
    return False


# --- how a stream ends when nobody ends it -------------------------------------------------------------

MEMBER = """
import asyncio, random, sys
from cryptography.hazmat.primitives.asymmetric import ec
import peer.daemon.app  # as a daemon imports it
from peer.errors import PeerdError
from peer.events import Record
from peer.mesh.greeting import Introduction
from peer.mesh.identity import Device, SessionIdentity
from peer.mesh.stream import Intake
from peer.mesh.transport import Transport

async def main():
    device = Device(ec.generate_private_key(ec.SECP256R1()))
    me = Introduction(Record(device.id, 1, 1))
    identity = SessionIdentity(bytes.fromhex(sys.argv[1]), device)
    intake = Intake(lambda: 0, bytearray)
    transport = Transport(identity, lambda: me, lambda event: None, intake, random.Random(1))
    print(await transport.start("127.0.0.1:0"), flush=True)
    async for address in lines():
        try:
            print(await transport.hello(address), flush=True)
        except PeerdError as error:
            print(type(error).__name__, flush=True)

async def lines():
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line.strip()

asyncio.run(main())
"""


@dataclass
class Elsewhere:
    """A member in a process of its own, as a daemon is one: it says Hello where it is told to."""

    process: asyncio.subprocess.Process
    address: str

    async def hello(self, address: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{address}\n".encode())
        return await self.line()

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def elsewhere(key: bytes) -> AsyncIterator[Elsewhere]:
    command = (sys.executable, "-c", MEMBER, key.hex())
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    member = Elsewhere(process, "")
    try:
        member.address = f"127.0.0.1:{await member.line()}"
        yield member
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_peer_that_is_killed_is_noticed_at_once() -> None:
    """Within less than a keepalive ping, which is what would find it otherwise."""
    a = Member(new_key())
    async with serving(a), elsewhere(a.key) as member:
        peer = await a.transport.hello(member.address)
        a.transport.connect(peer, "out")
        a.transport.connect(peer, "in")
        await a.until(StreamUp(peer, "out"))
        await a.until(StreamUp(peer, "in"))
        member.process.kill()
        async with asyncio.timeout(dict(COMMON_OPTIONS)["grpc.keepalive_time_ms"] / 2000):
            await a.until_down(peer, "out")
            await a.until_down(peer, "in")


class Middle:
    """A TCP proxy that can fall silent: connections stay, and nothing goes through any more."""

    def __init__(self, port: int) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, there[1]), (there[0], writer)):
            self._tasks.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    await self.flows.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.transport.abort()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def middle(member: Member) -> AsyncIterator[tuple[Middle, str]]:
    between = Middle(member.port)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    async with server:
        yield between, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await between.stop()


def sooner(options: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same with pings 50 times as often and as impatient: 1.4 s for what takes 70 s."""
    return [
        (name, value // 50 if "keepalive_t" in name or "ping_" in name else value) for name, value in options
    ]


async def test_a_peer_that_goes_silent_on_an_open_connection_is_noticed_at_both_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "CHANNEL_OPTIONS", sooner(channels.CHANNEL_OPTIONS))
    monkeypatch.setattr(service, "SERVER_OPTIONS", sooner(service.SERVER_OPTIONS))
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a, b), middle(b) as (between, address):
        await a.transport.hello(address)
        a.transport.connect(b.id, "out")
        await a.until(StreamUp(b.id, "out"))
        await b.until(StreamUp(a.id, "in"))
        between.flows.clear()
        await a.until_down(b.id, "out")
        await b.until_down(a.id, "in")


# --- who is none ---------------------------------------------------------------------------------------


async def test_another_key_is_refused_and_reaches_no_handler() -> None:
    member, stranger = Member(new_key()), Member(new_key())
    async with serving(member, stranger):
        with pytest.raises(WrongKeyError, match="does not know this key"):
            await stranger.transport.hello(member.address)
        with pytest.raises(WrongKeyError):
            await member.transport.hello(stranger.address)
        for method in (HELLO, TELL):
            async with raw_channel(stranger, member) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(method)(b"\x08", metadata=stranger_metadata(stranger))
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert member.events == stranger.events == []
        assert list(member.transport.contacts) == list(stranger.transport.contacts) == []


@pytest.mark.parametrize("plaintext", [True, False])
async def test_a_caller_without_a_certificate_reaches_no_handler(plaintext: bool) -> None:
    member = Member(new_key())
    async with serving(member):
        if plaintext:
            channel = grpc.aio.insecure_channel(member.address)
        else:
            trusting = grpc.ssl_channel_credentials(member.identity.ca_pem)
            name = ("grpc.ssl_target_name_override", member.id)
            channel = grpc.aio.secure_channel(member.address, trusting, options=[name])
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(HELLO)(b"\x08", metadata=stranger_metadata(member))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert member.events == []
        assert list(member.transport.contacts) == []


def tls_context(member: Member, side: int, version: ssl.TLSVersion, folder: Path) -> ssl.SSLContext:
    """OpenSSL in the name of a member, at this version of TLS alone."""
    context = ssl.SSLContext(side)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    pem = folder / "leaf.pem"
    pem.write_bytes(member.identity.leaf_key_pem + member.identity.leaf_pem)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_3_is_spoken_and_nothing_older(version: ssl.TLSVersion, tmp_path: Path) -> None:
    """A member's own certificate does not help. In a process of its own: gRPC takes its suites once."""
    a = Member(new_key())
    spoken: list[str | None] = []

    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spoken.append(writer.get_extra_info("ssl_object").version())
        writer.close()

    calling = tls_context(a, ssl.PROTOCOL_TLS_CLIENT, version, tmp_path)
    called = tls_context(a, ssl.PROTOCOL_TLS_SERVER, version, tmp_path)
    async with asyncio.timeout(30), elsewhere(a.key) as member:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=called)
        async with server:
            result = await member.hello(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        host, port = split_address(member.address)
        if version is ssl.TLSVersion.TLSv1_3:
            assert set(spoken) == {"TLSv1.3"}
            _, writer = await asyncio.open_connection(host, port, ssl=calling)
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.transport.abort()
        else:
            assert spoken == []
            assert result == "NobodyFoundError"
            with pytest.raises(OSError):
                await asyncio.open_connection(host, port, ssl=calling)


async def test_another_key_is_refused_without_tls_too() -> None:
    member, stranger = Member(new_key(), insecure=True), Member(new_key(), insecure=True)
    async with serving(member, stranger):
        with pytest.raises(NobodyFoundError, match="no member of this session"):
            await stranger.transport.hello(member.address)
        assert member.events == []


async def test_nobody_and_not_peerd_are_told_apart() -> None:
    member = Member(new_key())
    async with serving(member):
        with socket.socket() as bound:  # and not listening: nobody else gets its port meanwhile
            bound.bind(("127.0.0.1", 0))
            with pytest.raises(NobodyFoundError, match="nobody answers"):
                await member.transport.hello(f"127.0.0.1:{bound.getsockname()[1]}")
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(NobodyFoundError, match="is not peerd"):
                await member.transport.hello(f"127.0.0.1:{port}")
        with pytest.raises(UsageError, match="HOST:PORT"):
            await member.transport.hello("nowhere")


async def test_hello_to_oneself_is_noticed() -> None:
    member = Member(new_key())
    async with serving(member):
        with pytest.raises(RemoteError, match="this device itself"):
            await member.transport.hello(member.address)


@pytest.mark.parametrize("listen", ["127.0.0.1:{}", ":{}"])
async def test_an_occupied_port_is_named_with_the_remedy(listen: str) -> None:
    first, second = Member(new_key()), Member(new_key(), insecure=True)
    async with serving(first):
        with pytest.raises(PortError, match=rf"port {first.port} is taken.*--listen"):
            await second.transport.start(listen.format(first.port))
        with pytest.raises(PortError, match="no address of this device"):
            await second.transport.start("203.0.113.9:0")


async def test_plaintext_never_leaves_the_device() -> None:
    member = Member(new_key(), insecure=True)
    with pytest.raises(UsageError, match="loopback"):
        await member.transport.start("0.0.0.0:0")
    with pytest.raises(UsageError, match="loopback"):
        await member.transport.hello("192.0.2.1:7000")


async def test_two_sessions_of_one_key_do_not_mix() -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    a.introduction = replace(a.introduction, session="aa")
    b.introduction = replace(b.introduction, session="bb")
    async with serving(a, b):
        with pytest.raises(PeerdError):
            await a.transport.hello(b.address)
        assert a.events == b.events == []
        assert "another session" in b.rejections()[a.id]


async def test_disjoint_versions_are_named_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a, b):
        newer = Greeting(a.id, 1, a.identity.leaf_der, a.introduction, protocol_min=8, protocol_max=9)
        message = greeting_to_wire(newer, a.identity.seal).SerializeToString()
        async with raw_channel(a, b) as channel:
            answer = await channel.unary_unary(HELLO)(message, metadata=Dialer(a.identity, False).metadata)
        assert f"speaks protocol 8 to 9, this device {greetings.PROTOCOL_MAX}" in b.rejections()[a.id]
        assert b.events == []
        ours = greetings.PROTOCOL_MAX
        monkeypatch.setattr(greetings, "PROTOCOL_MIN", 8)
        monkeypatch.setattr(greetings, "PROTOCOL_MAX", 8)
        with pytest.raises(VersionError, match=f"speaks protocol {ours}, this device 8"):
            greetings.greeting_from_wire(greetings.pb.HelloMessage.FromString(answer), a.identity.seal)


# --- members that break rules --------------------------------------------------------------------------


def stranger_metadata(member: Member) -> grpc.aio.Metadata:
    return Dialer(member.identity, False).metadata


def raw_channel(src: Member, dst: Member, insecure: bool = False) -> grpc.aio.Channel:
    """A channel as `src` opens it, for saying what its transport would not."""
    return Dialer(src.identity, insecure).to_any_member(dst.address)


async def test_a_member_cannot_speak_for_another() -> None:
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    async with serving(a, b, mallory):
        await a.transport.hello(b.address)
        before = list(b.events)
        claims = grpc.aio.Metadata(("peerd-id", a.id))
        said = Goodbye(replace(a.introduction.record, state="left"), Farewell(0, 0, 0, 0))
        goodbye = control_to_wire(said, a.identity.seal).SerializeToString()
        async with raw_channel(mallory, b) as channel:
            for metadata, request in ((claims, goodbye), (stranger_metadata(mallory), goodbye)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(TELL)(request, metadata=metadata)
            hello = Greeting(a.id, 1, a.identity.leaf_der, a.introduction)
            forged = greeting_to_wire(hello, a.identity.seal).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(HELLO)(forged, metadata=stranger_metadata(mallory))
        assert b.events == before
        assert "in the name of" in b.rejections()[mallory.id] or "another" in b.rejections()[mallory.id]


def as_heard(record: Record, owner: Member, by: Member) -> Record:
    """With the owner's signature, as another member has it from the network."""
    return record_from_wire(record_to_wire(record, owner.identity.seal), by.identity.seal)


@pytest.mark.parametrize("insecure", [False, True])
async def test_records_are_passed_on_with_their_owners_signature_and_never_without(insecure: bool) -> None:
    """c hears of b through a, and believes no word of b's that b has not signed."""
    key = new_key()
    a, b, c = (Member(key, insecure=insecure) for _ in range(3))
    async with serving(a, b, c):
        await a.transport.hello(b.address)
        await a.transport.hello(c.address)
        [of_b] = [e.record for e in a.events if isinstance(e, Met) and e.record.peer == b.id]
        a.transport.tell(c.id, Probe(b"1", (of_b,)))
        await c.until(Told(a.id, Probe(b"1", (of_b,))))
        [heard] = [e.message.records[0] for e in c.events if isinstance(e, Told)]  # type: ignore[union-attr]
        assert heard.proof == of_b.proof != b""
        lies = [
            ("false signature", pb.Record(peer=b.id, boot=1, incarnation=9, state=pb.LEFT, phase=pb.IDLE)),
            ("another's key", pb.Record(peer=b.id, boot=1, incarnation=9, state=pb.ALIVE, phase=pb.IDLE)),
        ]
        before = list(c.events)
        for said, lie in lies:
            key_of_b = parse(pb.SignedRecord, of_b.proof).key
            mine, signature = a.identity.seal.sign(lie.SerializeToString())
            shown = key_of_b if said == "false signature" else mine
            forged = pb.SignedRecord(record=lie.SerializeToString(), key=shown, signature=signature)
            told = pb.ControlMessage(probe=pb.Probe(view=b"2", records=[forged]))
            async with raw_channel(a, c, insecure) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(TELL)(
                        told.SerializeToString(), metadata=Dialer(a.identity, insecure).metadata
                    )
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert said in c.rejections()[a.id]
        assert c.events == before


async def test_a_member_cannot_answer_with_anothers_leaf() -> None:
    """The CA-rooted channel would believe it; the channel that pins the leaf does not."""
    key = new_key()
    a, b, mallory = Member(key), Member(key), Member(key)
    mallory.identity.peer_id, mallory.identity.leaf_der = b.id, b.identity.leaf_der
    mallory.introduction = Introduction(as_heard(b.introduction.record, b, mallory))
    async with serving(a, mallory):
        with pytest.raises(PeerdError):
            await a.transport.hello(mallory.address)
        assert [event for event in a.events if isinstance(event, Met) and event.record.peer == b.id] == []


async def test_another_member_on_a_known_address_is_not_taken_for_the_peer() -> None:
    key = new_key()
    a, b, c = Member(key), Member(key), Member(key)
    async with serving(a, c):
        async with serving(b):
            await a.transport.hello(b.address)
        a.transport.learn(b.id, [c.address])
        a.transport.tell(b.id, Probe(b"for b alone"))
        a.transport.tell(c.id, Probe(b"for c"))
        a.transport.learn(c.id, [c.address])
        await c.until(Told(a.id, Probe(b"for c")))
        assert Told(a.id, Probe(b"for b alone")) not in c.events


DATA = bytes(range(256)) * 2000
BEGIN = Begin(1, 1, Key(), "mass", len(DATA))
CHUNKS = [Chunk(DATA[at : at + CHUNK_BYTES]) for at in range(0, len(DATA), CHUNK_BYTES)]
END = End(xxhash.xxh3_128_digest(DATA))


def wire(*frames: WireFrame) -> list[bytes]:
    return [frame_to_wire(frame).SerializeToString() for frame in frames]


BROKEN: dict[str, tuple[list[bytes], str]] = {
    "tampered": (wire(BEGIN, CHUNKS[0], Chunk(CHUNKS[1].data[::-1]), END), "checksum"),
    "truncated": (wire(BEGIN, CHUNKS[0], END), "ends after"),
    "too much": (wire(BEGIN, *CHUNKS, Chunk(b"x")), "a chunk of 1 bytes"),
    "oversized": (wire(replace(BEGIN, length=LIMIT + 1)), "allows"),
    "chunk too long": (wire(BEGIN, Chunk(bytes(LONG_CHUNK_BYTES + 1))), "a chunk of"),
    "empty chunk": (wire(BEGIN, Chunk(b"")), "a chunk of 0"),
    "empty parcel": (wire(replace(BEGIN, length=0)), "empty parcel"),
    "interleaved": (wire(BEGIN, CHUNKS[0], replace(BEGIN, number=2)), "before 1 has ended"),
    "frame within": (wire(BEGIN, CHUNKS[0], Open(1, 1)), "in the middle"),
    "chunk alone": (wire(Chunk(b"x")), "outside"),
    "end alone": (wire(END), "outside"),
    "wrong way": (wire(Ack(1, 1)), "on the in-stream"),
    "empty message": ([b""], "empty frame"),
    "garbage": ([b"\xff" * 40], "no LinkFrame"),
    "long round": (wire(replace(BEGIN, key=Key(round=2**32))), "round 4294967296"),
    "long number": (wire(replace(BEGIN, number=2**63)), "number 9223372036854775808"),
    "long epoch": (wire(Open(1, 2**64 - 1)), "epoch 18446744073709551615"),
    "bad phase": ([b"\x22\x02\x28\x09"], "phase 9"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_frame_drops_the_stream_and_delivers_nothing(case: str) -> None:
    messages, reason = BROKEN[case]
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a, b), raw_channel(a, b) as channel:
        call = channel.stream_stream(LINK)(metadata=stranger_metadata(a))
        await call.write(attach("out", b.id))
        await call.read()
        for message in messages:
            await call.write(message)
        assert await call.code() == grpc.StatusCode.ABORTED
        assert reason in b.rejections()[a.id]
        async with b.changed:
            await b.changed.wait_for(lambda: any(isinstance(event, StreamDown) for event in b.events))
        assert [event for event in b.events if isinstance(event, FrameHeard)] == []
        assert all(memory.closed for memory in b.buffers)
        assert b.buffers == [] or case not in ("oversized", "empty parcel")


async def test_a_stream_that_ends_within_a_parcel_delivers_nothing() -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a, b), raw_channel(a, b) as channel:
        for end in ("done", "cancel"):
            call = channel.stream_stream(LINK)(metadata=stranger_metadata(a))
            await call.write(attach("out", b.id))
            await call.read()
            for message in wire(BEGIN, *CHUNKS):
                await call.write(message)
            downs = sum(isinstance(event, StreamDown) for event in b.events)
            if end == "done":
                await call.done_writing()
            else:
                call.cancel()
            async with b.changed:
                await b.changed.wait_for(lambda n=downs: sum(isinstance(e, StreamDown) for e in b.events) > n)
        assert b.parcels() == []
        [done, _] = [event.reason for event in b.events if isinstance(event, StreamDown)]
        came = sum(len(chunk.data) for chunk in CHUNKS)
        assert done.endswith(f"; {came} of {BEGIN.length} bytes of parcel {BEGIN.number} had come")
        assert all(memory.closed for memory in b.buffers)


@pytest.mark.parametrize("direction", ["out", "in"])
async def test_a_stream_meant_for_another_is_refused(direction: Direction) -> None:
    key = new_key()
    a, b = Member(key), Member(key)
    async with serving(a, b), raw_channel(a, b) as channel:
        call = channel.stream_stream(LINK)(metadata=stranger_metadata(a))
        await call.write(attach(direction, a.id))
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert b.events == []
