"""Decoders of what the mesh hears: control messages, records, Hello and its certificate, frames of a link and
streams of them, announcements, and what a record says of links."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import xxhash
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from google.protobuf.descriptor import Descriptor as Kind
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from badinput.damage import Field, bytes_of, damaged, damaged_fields, damaged_plain, fields_of
from badinput.decoding import Case, Decoder, check_shown
from peer.config import MAX_MEMBERS, Descriptor
from peer.daemon.signatures import first_difference
from peer.errors import ConfigError, RemoteError
from peer.events import (
    Ack,
    Farewell,
    FrameHeard,
    Generation,
    Goodbye,
    Key,
    Open,
    Opened,
    Parcel,
    Probe,
    ProbeFor,
    Progress,
    Record,
    Refuse,
    Reunion,
    ShowMe,
    Sketch,
    SponsorMe,
    Suspicion,
    Vouch,
)
from peer.graphs import KNOWN
from peer.mesh import frames, graphs, membership
from peer.mesh.chunks import CHUNK_BYTES
from peer.mesh.contacts import Contact
from peer.mesh.discovery import SERVICE_TYPE, beacon, read
from peer.mesh.frames import Attach, Begin, Chunk, Control, End, WireFrame
from peer.mesh.greeting import Greeting, Introduction, Signature, greeting_from_wire, greeting_to_wire
from peer.mesh.identity import Device, SessionIdentity, load_certificate, peer_id_of
from peer.mesh.stream import Intake, LinkStream
from peer.sketch import pack, spread, unpack
from peer.wire import peer_pb2 as pb

SESSION_KEY = b"k" * 16
# of the second of the identities, and of the fourth, as they sign one: signatures are random numbers
LEAF = base64.b64decode(
    "MIIBoTCCAUigAwIBAgIUAZCiu7KoQahSrjgdMEW9y0nLvhwwCgYIKoZIzj0EAwIwJzElMCMGA1UEAwwccy0yaHdxNmVqYzU0NWF1Ynh0"
    "enNocTQ0ZWF0NDAgFw03MDAxMDEwMDAwMDBaGA85OTk5MTIzMTIzNTk1OVowJzElMCMGA1UEAwwccC0zcWdvbW02M3pzaXQzbDVwdXM0"
    "anZyY25ydDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABHzyexiNA09+ilI4AwS1GsPAiWnid/IbNaYLSPxHZpl4B3dVENuO0EApPZrG"
    "n3Qw27p9reY86YIpngS3nSJ4c9GjUDBOMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMC4GA1UdEQQnMCWCHHAtM3Fnb21tNjN6"
    "c2l0M2w1cHVzNGp2cmNucnSCBXBlZXJkMAoGCCqGSM49BAMCA0cAMEQCIDsiJRHHebAkMjMXmUomU7ubTY6JtuG9ZYHllhxA61eFAiAl"
    "reC5sXkZW3hydvvComjCeAz5tDEUm3C9d+HOfZdSqg=="
)
STRANGERS = base64.b64decode(
    "MIIBojCCAUigAwIBAgIUUkjL1VtuG+E2+AZYfJ0cs0WzG7swCgYIKoZIzj0EAwIwJzElMCMGA1UEAwwccy0zdzZ0NzNtaGxrZ2FheXp4"
    "cGlwaW4ybzJwaTAgFw03MDAxMDEwMDAwMDBaGA85OTk5MTIzMTIzNTk1OVowJzElMCMGA1UEAwwccC1oMnZ0N29zcWUyM2IyYWQ0eDVh"
    "cnhlaHR6YzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOJTSjUy0I+7oC3eZZ7mK9ADH+LbeFWW71CTAkRrAwhS4PFXWkxjPMcZ3+5f"
    "2oYtdk78lsPzDuAFXELCPxhO2MajUDBOMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMC4GA1UdEQQnMCWCHHAtaDJ2dDdvc3Fl"
    "MjNiMmFkNHg1YXJ4ZWh0emOCBXBlZXJkMAoGCCqGSM49BAMCA0gAMEUCIFMMaeKtfWE9LycdgGYskULUnyfhP9zEGrAqf2PeyoHKAiEA"
    "iEHSbbwU0gJQJw2D4rfrB/pC3i6srZqjdJl2P5xUCNU="
)
COUNTS = (0, 1, 7, 1 << 31, (1 << 63) - 1)


@cache
def identities() -> tuple[SessionIdentity, ...]:
    """Three members, and one that knows another session's key."""
    devices = [Device(ec.derive_private_key(number, ec.SECP256R1())) for number in (1, 2, 3, 4)]
    keys = (SESSION_KEY, SESSION_KEY, SESSION_KEY, b"o" * 16)
    return tuple(SessionIdentity(key, device) for key, device in zip(keys, devices, strict=True))


class Believing:
    """A seal for which every signature holds: members may sign what they like."""

    def __init__(self) -> None:
        self.peer_id = identities()[0].peer_id

    def sign(self, record: bytes) -> tuple[bytes, bytes]:
        return identities()[0].seal.sign(record)

    def check(self, owner: str, record: bytes, key: bytes, signature: bytes) -> None:
        return


def ids() -> tuple[str, ...]:
    return tuple(one.peer_id for one in identities())


def a_record(random: Random, peer: str) -> Record:
    count = random.choice
    return Record(
        peer,
        count(COUNTS),
        count(COUNTS),
        random.choice(list(frames.STATES)),
        random.choice(list(frames.PHASES)),
        count(COUNTS),
        random.choice((-1, 0, 5, (1 << 32) - 1)),
        random.choice((0.0, 0.125, 1.0, frames.MAX_WEIGHT)),
        random.choice(("", "pi 4", "häuschen")),
        tuple(random.sample(["10.0.0.1:7000", "[fd00::7]:1", "[fe80::1%eth0]:9", "pi.local:80"], 2)),
        random.choice((b"", b"t" * 32)),
        graphs.pack_costs({one: random.randrange(graphs.UNKNOWN) for one in ids()}),
        count(COUNTS),
    )


def control_messages(random: Random) -> list[Control | None]:
    """From the first of the identities."""
    me, *others = ids()
    records = tuple(a_record(random, me) for _ in range(2))
    rumors = tuple(Suspicion(peer, random.choice(COUNTS), me) for peer in others)
    return [
        None,
        Probe(b"v" * 32, records, rumors, pull=True),
        Probe(b"", records[:1], ()),
        Probe(b"", sketch=Sketch(random.choice(COUNTS), 7, b"l" * 8, pack([random.random()] * 64) or b"")),
        ProbeFor(others[0]),
        Vouch(others[1]),
        SponsorMe(3),
        Goodbye(records[0], Farewell(1, 2, 3, 4)),
        Generation(5, me, ids(), (0, 0, 1, 1)),
        Generation(6, me, ids(), ()),
        ShowMe(),
        Reunion((others[0], me)),
    ]


def link_frames(random: Random) -> list[WireFrame]:
    key = Key(random.choice(COUNTS), random.randrange(1 << 32), random.randrange(2))
    return [
        Open(random.choice(COUNTS), 2, random.random() < 0.5),
        Opened(1, 2, 3, (b"a" * 16, b"b" * 16), False, Farewell(1, 2, 3, 4)),
        Ack(random.choice(COUNTS), 5),
        Refuse(1, 2, "why not"),
        Begin(1, 2, key, "mass", 60),
        Begin(1, 2, key, "latest", 1 << 40),
        Chunk(random.randbytes(30)),
        End(random.randbytes(16)),
        Attach("in", ids()[0]),
    ]


def greetings(random: Random) -> list[Greeting]:
    me = identities()[0]
    signature = Signature(b"s" * 32, b'[["w",[3,4],"torch.float32"]]')
    record = a_record(random, me.peer_id)
    said = [Introduction(record), Introduction(record, "session", b'{"name":"x"}', signature, 3)]
    return [Greeting(me.peer_id, 7, LEAF, one) for one in (None, *said)]


# --- protobuf ------------------------------------------------------------------------------------------


def _inside(name: str) -> Kind | None:
    return pb.Record.DESCRIPTOR if name == "peerd.v1.SignedRecord.record" else None


class Wire(Decoder):
    """Messages of protobuf, damaged field by field and byte by byte. make: good ones, each time with other
    numbers in them. read: raises RemoteError. back: what was read as bytes again, and read."""

    def __init__(
        self,
        kind: type[pb.ControlMessage] | type[pb.LinkFrame] | type[pb.HelloMessage] | type[pb.SignedRecord],
        make: Callable[[Random], Sequence[bytes]],
        read: Callable[[bytes], object],
        check: Callable[[object], None],
    ) -> None:
        random = Random(0)
        self.data = [data for _ in range(8) for data in make(random)]
        self.fields: list[list[Field]] = [fields_of(data, kind.DESCRIPTOR, _inside) for data in self.data]
        assert [bytes_of(fields) for fields in self.fields] == self.data
        self.read, self.check = read, check

    def case(self, random: Random) -> Case:
        at = random.randrange(len(self.data))
        if random.random() < 0.2:
            return Case((damaged(random, self.data[at], [random.choice(self.data)]),))
        data = bytes_of(damaged_fields(random, self.fields[at], self.fields))
        if random.random() < 0.1:
            data = damaged(random, data)
        return Case((data,))

    def accepts(self, case: Case) -> bool:
        try:
            found = self.read(case.data[0])
        except RemoteError as error:
            check_shown(error)
            return False
        self.check(found)
        return True


def control_decoder() -> Wire:
    seal = Believing()

    def read_one(data: bytes) -> object:
        return frames.control_from_wire(frames.parse(pb.ControlMessage, data), ids()[0], seal)

    def check(found: object) -> None:
        if isinstance(found, Probe):
            assert len(found.records) <= MAX_MEMBERS and len(found.suspicions) <= frames.MAX_SUSPICIONS
            for record in found.records:
                check_record(record)
            if found.sketch is not None:
                assert all(map(math.isfinite, unpack(found.sketch.body)))
                assert math.isfinite(spread([unpack(found.sketch.body), (0.0,) * 64]))
        if isinstance(found, Goodbye):
            check_record(found.record)
        if isinstance(found, Generation):
            use_generation(found)
        if not isinstance(found, Probe | Goodbye):  # others' records go on as they came
            assert found is None or isinstance(found, Control)
            assert read_one(frames.control_to_wire(found, seal).SerializeToString()) == found

    return Wire(
        pb.ControlMessage,
        lambda random: [
            frames.control_to_wire(one, seal).SerializeToString() for one in control_messages(random)
        ],
        read_one,
        check,
    )


def record_decoder() -> Wire:
    """With signatures, as they are."""
    seal, reader = identities()[0].seal, identities()[1].seal

    def make(random: Random) -> list[bytes]:
        return [frames.record_to_wire(a_record(random, ids()[0]), seal).SerializeToString()]

    def check(found: object) -> None:
        assert isinstance(found, Record) and found.peer == ids()[0]
        check_record(found)
        again = frames.record_to_wire(found, reader)
        assert frames.record_from_wire(again, reader) == found

    return Wire(
        pb.SignedRecord,
        make,
        lambda data: frames.record_from_wire(frames.parse(pb.SignedRecord, data), reader),
        check,
    )


def check_record(record: Record) -> None:
    """Whoever merges it, passes it on, shows it and makes trees of it finds nothing unforeseen."""
    membership.check(record)
    assert record.device.isprintable() and all(frames.is_address(address) for address in record.addresses)
    assert math.isfinite(record.weight) and len(record.proof) <= frames.MAX_SIGNED
    try:
        costs = graphs.unpack_costs(record.costs, ids())
    except RemoteError:
        return
    assert all(0 <= cost < graphs.UNKNOWN for cost in costs.values()) and costs.keys() <= set(ids())


def use_generation(found: Generation) -> None:
    """As mesh/generations.py does."""
    for spec in KNOWN:
        try:
            graphs.check_graph(spec, found.view, found.parents)
        except RemoteError:
            continue
        if len(found.view) > 8:
            continue
        for me in found.view:
            place = graphs.graph_of(spec, found.view, me, found.parents if spec == "spanning-tree" else ())
            assert place.n == len(found.view) and 0 <= sum(place.out.values()) <= 1 + 1e-9


def frame_decoder() -> Wire:
    def read_one(data: bytes) -> object:
        return frames.frame_from_wire(frames.parse(pb.LinkFrame, data))

    def check(found: object) -> None:
        assert isinstance(found, WireFrame)
        assert read_one(frames.frame_to_wire(found).SerializeToString()) == found

    return Wire(
        pb.LinkFrame,
        lambda random: [frames.frame_to_wire(one).SerializeToString() for one in link_frames(random)],
        read_one,
        check,
    )


def hello_decoder() -> Wire:
    seal = Believing()

    def read_one(data: bytes) -> object:
        return greeting_from_wire(frames.parse(pb.HelloMessage, data), seal)

    def check(found: object) -> None:
        assert isinstance(found, Greeting) and found.agree() > 0
        if found.introduction is not None:
            check_record(found.introduction.record)
            assert found.introduction.session.isprintable()
        assert read_one(greeting_to_wire(found, seal).SerializeToString()) == found

    return Wire(
        pb.HelloMessage,
        lambda random: [greeting_to_wire(one, seal).SerializeToString() for one in greetings(random)],
        read_one,
        check,
    )


# --- a stream ------------------------------------------------------------------------------------------


class Silent:
    """A pipe on which nothing comes of itself."""

    async def read(self) -> object:
        raise AssertionError("the frames are handed to the stream")

    async def write(self, message: bytes, /) -> None:
        raise AssertionError("nothing is sent")


class Taken:
    """A buffer, and how many of them have not been given back."""

    open = 0

    def __init__(self, length: int) -> None:
        self.memory = bytearray(length)
        Taken.open += 1

    def __len__(self) -> int:
        return len(self.memory)

    def write(self, at: int, data: bytes | memoryview) -> None:
        assert at + len(data) <= len(self.memory), "written past its end"
        self.memory[at : at + len(data)] = data

    def view(self) -> memoryview:
        return memoryview(self.memory)

    def close(self) -> None:
        Taken.open -= 1


class Stream(Decoder):
    """Frames one after the other on an in-link: parcels whole, or nothing."""

    LIMIT = 3 * CHUNK_BYTES

    def __init__(self) -> None:
        random = Random(0)
        self.loop = asyncio.new_event_loop()
        self.frames = [
            frames.frame_to_wire(one).SerializeToString() for _ in range(4) for one in link_frames(random)
        ]
        self.fields = [fields_of(data, pb.LinkFrame.DESCRIPTOR, _inside) for data in self.frames]

    def case(self, random: Random) -> Case:
        """Some parcels; a frame damaged, lost, repeated, moved, or one from elsewhere."""
        said = [frames.frame_to_wire(Open(1, 1)).SerializeToString()]
        for number in range(1, random.randrange(1, 4)):
            said += self._parcel(random, number)
        if random.random() < 0.6:
            at = random.randrange(len(said))
            fields = fields_of(said[at], pb.LinkFrame.DESCRIPTOR, _inside)
            said[at] = bytes_of(damaged_fields(random, fields, self.fields))
        for _ in range(random.choice((0, 0, 1, 2))):
            at = random.randrange(len(said))
            match random.randrange(4):
                case 0:
                    said[at : at + 1] = []
                case 1:
                    said.insert(at, random.choice(said))
                case 2:
                    said.insert(at, random.choice(self.frames))
                case _:
                    said[at] = damaged(random, said[at], [random.choice(self.frames)])
            said = said or [b""]
        return Case(tuple(said))

    def _parcel(self, random: Random, number: int) -> list[bytes]:
        payload = random.randbytes(random.choice((1, 30, 200)))
        step = random.choice((1, 7, 100)) if len(payload) < 99 else 100
        chunks = [Chunk(payload[at : at + step]) for at in range(0, len(payload), step)][:8]
        payload = b"".join(chunk.data for chunk in chunks)
        begin = Begin(1, number, Key(0, number, 0), "mass", len(payload))
        whole: list[WireFrame] = [begin, *chunks, End(xxhash.xxh3_128_digest(payload))]
        return [frames.frame_to_wire(one).SerializeToString() for one in whole]

    def accepts(self, case: Case) -> bool:
        return self.loop.run_until_complete(self._accepts(case))

    async def _accepts(self, case: Case) -> bool:
        heard: list[object] = []
        before, made = Taken.open, []

        def make(length: int) -> Taken:
            assert length <= self.LIMIT
            made.append(Taken(length))
            return made[-1]

        stream = LinkStream(
            Contact("p-" + "a" * 26), "in", Silent(), Intake(lambda: self.LIMIT, make), dialed=True
        )
        stream._on_event = heard.append
        try:
            for data in case.data:
                stream._take(frames.frame_from_wire(frames.parse(pb.LinkFrame, data)))
            fine = True
        except RemoteError as error:
            check_shown(error)
            fine = False
        stream.close("that is all")
        parcels = [
            one.frame for one in heard if isinstance(one, FrameHeard) and isinstance(one.frame, Parcel)
        ]
        assert all(isinstance(one, FrameHeard | Progress) for one in heard)
        chunks = b"".join(
            one.chunk
            for one in map(_frame, case.data)
            if one is not None and one.WhichOneof("body") == "chunk"
        )
        for parcel in parcels:
            assert isinstance(parcel.payload, Taken) and bytes(parcel.payload.memory) in chunks
            parcel.payload.close()
        assert Taken.open == before, "a buffer was not given back"
        return fine

    def most_bytes(self, case: Case) -> int:
        return self.LIMIT + (1 << 18) + 64 * case.size

    def close(self) -> None:
        self.loop.close()


def _frame(data: bytes) -> pb.LinkFrame | None:
    try:
        return frames.parse(pb.LinkFrame, data)
    except RemoteError:
        return None


# --- certificates, announcements, costs, descriptors -----------------------------------------------------


class Leaf(Decoder):
    """A certificate that is to be pinned: the very one, and no other."""

    def __init__(self) -> None:
        self.me, self.other = identities()[:2]
        self.leaf, self.strangers = LEAF, STRANGERS
        pem = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % base64.b64encode(self.leaf)
        self.good = [self.leaf, self.strangers, pem, self.other.ca_pem]
        self.tags = _tags(self.leaf, 0, len(self.leaf))

    def case(self, random: Random) -> Case:
        if random.random() < 0.5:
            raw, at = bytearray(self.leaf), random.choice(self.tags)
            change = random.randrange(4)
            if change == 0:
                raw[at] = random.choice((0, 1, 2, 3, 4, 5, 6, 12, 19, 23, 24, 48, 49, *range(0x80, 0xA9)))
            elif change == 1:
                raw[at + 1] = (raw[at + 1] + random.choice((-1, 1, 2, 128))) % 256
            else:
                raw[at + 2 : at + 2 + raw[at + 1]] = damaged(random, raw[at + 2 : at + 2 + raw[at + 1]])
            return Case((bytes(raw),))
        data = self.leaf if random.random() < 0.7 else random.choice(self.good)
        return Case((damaged(random, data, self.good),))

    def accepts(self, case: Case) -> bool:
        (data,) = case.data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # of what is still accepted
            for look in (peer_id_of, load_certificate):
                try:
                    look(data)
                except RemoteError:
                    continue
            try:
                pem = self.me.check_leaf(data, self.other.peer_id)
            except RemoteError:
                return False
        assert load_certificate(pem) == load_certificate(self.leaf), "a forged certificate"
        return True


def _tags(der: bytes, at: int, end: int) -> list[int]:
    """Where the values of a DER begin, those inside others included."""
    found = []
    while at < end:
        found.append(at)
        tag, size, inner = der[at], der[at + 1], at + 2
        if size & 0x80:
            inner += size & 0x7F
            size = int.from_bytes(der[at + 2 : inner], "big")
        if tag & 0x20 or (tag == 4 and der[inner] == 0x30):  # extensions are values in strings
            found += _tags(der, inner, inner + size)
        at = inner + size
    return found


class Announcement(Decoder):
    """The TXT record, addresses and port of an instance."""

    def __init__(self) -> None:
        self.key, nonce = b"h" * 32, b"n" * 16
        said = {"v": "2", "id": ids()[1], "n": nonce.hex(), "h": beacon(self.key, nonce)}
        self.good = [_txt(said), _txt({**said, "h": ""}), _txt({**said, "v": "99999"}), _txt({"a": "b"})]

    def case(self, random: Random) -> Case:
        addresses = [random.choice((b"\x7f\0\0\1", b"\x0a\0\0\7", random.randbytes(4), random.randbytes(16)))]
        addresses *= random.choice((0, 1, 1, 1, 9, 99))
        port = random.choice((0, 1, 7000, 65535)).to_bytes(2, "big")
        if random.random() < 0.5:  # lengths that fit
            strings = [s for s in _strings(random.choice(self.good)) if random.random() < 0.95]
            at = random.randrange(len(strings) + 1)
            strings[at : at + 1] = [damaged(random, s)[:255] for s in strings[at : at + 1]]
            txt = b"".join(bytes([len(s)]) + s for s in strings)
        else:
            txt = damaged(random, random.choice(self.good), self.good)
        return Case((txt, port, *addresses))

    def accepts(self, case: Case) -> bool:
        txt, port, *addresses = case.data
        name = f"{'0' * 32}.{SERVICE_TYPE}"
        info = AsyncServiceInfo(
            SERVICE_TYPE, name, addresses=addresses, port=int.from_bytes(port, "big"), properties=txt
        )
        seen = read(info, self.key, loopback_too=True)
        if seen is None:
            return False
        assert frames.PEER_ID.fullmatch(seen.peer) and 0 < seen.protocol < 100_000
        assert 0 < len(seen.addresses) <= frames.MAX_ADDRESSES and all(map(frames.is_address, seen.addresses))
        assert len(info.addresses_by_version(IPVersion.All)) >= len(set(seen.addresses))
        return True


def _txt(said: dict[str, str]) -> bytes:
    strings = [f"{key}={value}".encode() for key, value in said.items()]
    return b"".join(bytes([len(s)]) + s for s in strings)


def _strings(txt: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(txt):
        found.append(txt[at + 1 : at + 1 + txt[at]])
        at += 1 + txt[at]
    return found


class Costs(Decoder):
    """What a record says of its owner's links."""

    def case(self, random: Random) -> Case:
        classes = {peer: random.randrange(graphs.UNKNOWN) for peer in ids()}
        return Case((damaged(random, graphs.pack_costs(classes))[: random.choice((20, 400))],))

    def accepts(self, case: Case) -> bool:
        try:
            costs = graphs.unpack_costs(case.data[0], ids())
        except RemoteError:
            return False
        assert costs.keys() <= set(ids()) and all(0 <= cost < graphs.UNKNOWN for cost in costs.values())
        view = ids()
        parents = graphs.spanning_tree(view, {view[0]: costs})
        graphs.check_parents(parents)
        return True


class Trees(Decoder):
    """Views and parents of a generation, of any number of members; as bytes: a spec, then places."""

    def case(self, random: Random) -> Case:
        n = random.choice((1, 2, 3, 5, 8, 20))
        parents = [random.randrange(max(place, 1)) for place in range(n)]
        for _ in range(random.choice((0, 1, 1, 2))):
            parents[random.randrange(n)] = random.choice((0, n - 1, n, random.randrange(n), (1 << 32) - 1))
        if random.random() < 0.1:
            parents = parents[: random.randrange(n + 1)]
        view = [random.randrange(n) if random.random() < 0.05 else place for place in range(n)]
        spec = random.choice(KNOWN) if random.random() < 0.3 else "spanning-tree"
        return Case((json.dumps([spec, view, parents]).encode(),))

    def accepts(self, case: Case) -> bool:
        spec, places, parents = json.loads(case.data[0])
        view = tuple(f"member {place}" for place in places)
        try:
            graphs.check_graph(spec, view, parents)
        except RemoteError:
            return False
        place = graphs.graph_of(spec, view, view[-1], tuple(parents))
        assert place.n == len(view) and math.isfinite(place.mean_delay) and place.diameter < len(view)
        return True


DESCRIPTORS = [
    Descriptor(name="home", nonce="0" * 32),
    Descriptor(
        name="home",
        nonce="1" * 32,
        task="file",
        task_digest="a" * 64,
        algorithm="relay-sum",
        topology="spanning-tree",
        options={"relay-sum.fill": "x0", "task.lr": "0.1"},
        compression="int8",
        lr=0.5,
        batch=3,
    ),
]


class SessionDescriptor(Decoder):
    """The JSON that says what is trained, as daemon/joining.py reads it from whoever it meets first."""

    def __init__(self) -> None:
        self.good = [one.to_dict() for one in DESCRIPTORS]
        self.text = [one.canonical() for one in DESCRIPTORS]
        self.words = [
            "sgp",
            "difference-push",
            "ring",
            "double-tree",
            "topk=1%,int8",
            "bits=0.1",
            "free",
            "file",
        ]

    def case(self, random: Random) -> Case:
        if random.random() < 0.3:
            return Case((damaged(random, random.choice(self.text), self.text),))
        value = damaged_plain(random, random.choice(self.good), self.good, self.words)
        return Case((json.dumps(value).encode(),))

    def accepts(self, case: Case) -> bool:
        try:
            found = Descriptor.from_dict(json.loads(case.data[0]))
        except (ValueError, TypeError, RecursionError, ConfigError):
            return False
        assert Descriptor.from_dict(json.loads(found.canonical())) == found
        assert len(found.id) == 32
        return True

    def most_bytes(self, case: Case) -> int:
        return (1 << 19) + 64 * case.size


class ModelSignature(Decoder):
    """Names, shapes and dtypes that are compared with the own model's."""

    def __init__(self) -> None:
        self.good = [[["w", [3, 4], "torch.float32"], ["b", [3], "torch.float32"]], [["w", [], "x"]], []]
        self.text = [json.dumps(one).encode() for one in self.good]

    def case(self, random: Random) -> Case:
        if random.random() < 0.3:
            return Case((damaged(random, random.choice(self.text), self.text),))
        return Case((json.dumps(damaged_plain(random, random.choice(self.good), self.good)).encode(),))

    def accepts(self, case: Case) -> bool:
        sentence = first_difference(self.text[0], case.data[0])
        assert sentence.isprintable() and len(sentence) < 40_000
        return "in names, shapes or dtypes" not in sentence


DECODERS: dict[str, Callable[[], Decoder]] = {
    "control messages": control_decoder,
    "signed records": record_decoder,
    "costs of links": Costs,
    "generations": Trees,
    "hello": hello_decoder,
    "certificates": Leaf,
    "session descriptors": SessionDescriptor,
    "model signatures": ModelSignature,
    "frames of a link": frame_decoder,
    "streams of frames": Stream,
    "announcements": Announcement,
}
