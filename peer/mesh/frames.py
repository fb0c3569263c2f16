"""Between protobuf messages (peer/wire) and the dataclasses of peer/events.py, with every rule checked.

Protobuf checks little: an empty message parses, an enum may be any number, a string may be long and hold
terminal escapes. What comes out of here has known lengths, known enum values, numbers within bounds and
printable strings; what breaks a rule is a RemoteError. Unknown fields are ignored and never relayed, because
messages are built anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from peer.config import MAX_MEMBERS
from peer.errors import RemoteError
from peer.events import (
    Ack,
    Control,
    Delivery,
    Direction,
    Farewell,
    Generation,
    Goodbye,
    Key,
    MemberPhase,
    MemberState,
    Open,
    Opened,
    Parcel,
    PeerId,
    Probe,
    ProbeFor,
    Record,
    Refuse,
    Reunion,
    ShowMe,
    Sketch,
    SponsorMe,
    Suspicion,
    Vouch,
)
from peer.sketch import TAG_BYTES, is_body
from peer.wire import peer_pb2 as pb

PEER_ID = re.compile(r"p-[a-z2-7]{26}")
ADDRESS = re.compile(
    r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?\]):([1-9][0-9]{0,4})"
)
MAX_ADDRESSES = 8
MAX_BASES = 64
MAX_SUSPICIONS = 64
MAX_SIGNED = 2048  # bytes of a signed record; the longest that the bounds below allow has some 1500
MAX_DIGEST = 64
MAX_DEVICE_NAME = 64
MAX_REASON = 300
MAX_WEIGHT = 1e6  # a session's weights sum to 1 for each time it was begun; far above that, a guess
MAX_COSTS = 320  # 64 measured links of 5 bytes; a record stays within a packet
ROUNDS = 1 << 32  # of a round and of a generation's epoch; peer/compression/codec.py packs the former as u32
COUNTS = 1 << 63  # boot, incarnation, life, epoch, number, generation; as membership bounds them

STATES: dict[MemberState, pb.MemberState] = {
    "alive": pb.ALIVE,
    "dead": pb.DEAD,
    "left": pb.LEFT,
    "paused": pb.PAUSED,
}
PHASES: dict[MemberPhase, pb.MemberPhase] = {
    "idle": pb.IDLE,
    "seeking": pb.SEEKING,
    "training": pb.TRAINING,
    "leaving": pb.LEAVING,
    "finished": pb.FINISHED,
}
DELIVERIES: dict[Delivery, pb.Delivery] = {"mass": pb.MASS, "latest": pb.LATEST}
DIRECTIONS: dict[Direction, pb.Direction] = {"out": pb.OUT, "in": pb.IN}

SmallFrame = Open | Opened | Ack | Refuse


@dataclass(frozen=True, slots=True)
class Begin:
    """The head of a parcel: `length` bytes follow in chunks."""

    epoch: int
    number: int
    key: Key
    delivery: Delivery
    length: int


@dataclass(frozen=True, slots=True)
class Chunk:
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class End:
    digest: bytes


@dataclass(frozen=True, slots=True)
class Attach:
    """The first frame of a stream, from either end. direction: as seen from whoever says it."""

    direction: Direction
    to: PeerId


WireFrame = SmallFrame | Begin | Chunk | End | Attach


class Seal(Protocol):
    """Signs this device's records and checks others' (seal.py)."""

    peer_id: PeerId

    def sign(self, record: bytes) -> tuple[bytes, bytes]: ...
    def check(self, owner: PeerId, record: bytes, key: bytes, signature: bytes) -> None: ...


class _Message(Protocol):
    def ParseFromString(self, serialized: bytes, /) -> int: ...


M = TypeVar("M", bound=_Message)
Word = TypeVar("Word", bound=str)
Number = TypeVar("Number", bound=int)


def parse(kind: type[M], data: bytes) -> M:
    """A message from bytes of the network. RemoteError if they are none."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RemoteError(f"{len(data)} bytes are no {kind.__name__}") from error
    return message


def clean(text: str, limit: int) -> str:
    """A foreign string, fit to be shown: control and formatting characters dropped, cut to `limit`."""
    return "".join(letter for letter in text[: 4 * limit] if letter.isprintable())[:limit]


def _word(table: dict[Word, Number], number: Number, what: str) -> Word:
    for word, known in table.items():
        if known == number:
            return word
    raise RemoteError(f"{what} {number} is unknown")


def peer_id(text: str) -> PeerId:
    """`text`, if it has the form of a peer's id. RemoteError otherwise."""
    if not PEER_ID.fullmatch(text):
        raise RemoteError(f"{clean(text, 40)!r} is no peer id")
    return text


def _below(limit: int, number: int, what: str) -> int:
    if not number < limit:
        raise RemoteError(f"{what} {number} is out of bounds")
    return number


def _count(number: int, what: str) -> int:
    return _below(COUNTS, number, what)


def _digest(data: bytes, what: str, limit: int = MAX_DIGEST) -> bytes:
    if len(data) > limit:
        raise RemoteError(f"{what} of {len(data)} bytes; at most {limit}")
    return data


# --- records and control messages ----------------------------------------------------------------------


def record_to_wire(record: Record, seal: Seal) -> pb.SignedRecord:
    """This device's own is signed, another's goes on as it came. RemoteError if that one was never signed."""
    if record.peer != seal.peer_id:
        if not record.proof:
            raise RemoteError(f"the record of {record.peer} bears no signature")
        return parse(pb.SignedRecord, record.proof)
    written = _written(record).SerializeToString(deterministic=True)
    key, signature = seal.sign(written)
    return pb.SignedRecord(record=written, key=key, signature=signature)


def record_from_wire(message: pb.SignedRecord, seal: Seal) -> Record:
    """RemoteError names the rule a record breaks; the signature of its owner is one."""
    if message.ByteSize() > MAX_SIGNED:
        raise RemoteError(f"a record of {message.ByteSize()} bytes; at most {MAX_SIGNED}")
    written = parse(pb.Record, message.record)
    record = _record(written)
    seal.check(record.peer, message.record, message.key, message.signature)
    proof = pb.SignedRecord(record=message.record, key=message.key, signature=message.signature)
    return replace(record, proof=proof.SerializeToString())


def _written(record: Record) -> pb.Record:
    return pb.Record(
        peer=record.peer,
        boot=record.boot,
        incarnation=record.incarnation,
        state=STATES[record.state],
        phase=PHASES[record.phase],
        life=record.life,
        round=record.round,
        weight=record.weight,
        device=clean(record.device, MAX_DEVICE_NAME),
        addresses=record.addresses[:MAX_ADDRESSES],
        task_digest=record.task_digest,
        costs=record.costs[:MAX_COSTS],
        instance=record.instance,
    )


def _record(message: pb.Record) -> Record:
    addresses = tuple(message.addresses)
    if len(addresses) > MAX_ADDRESSES or not all(is_address(address) for address in addresses):
        raise RemoteError(
            f"the record of {clean(message.peer, 40)!r} has too many addresses, or a malformed one"
        )
    if not 0 <= message.weight <= MAX_WEIGHT:  # which no NaN is
        raise RemoteError(f"the record of {clean(message.peer, 40)!r} has the weight {message.weight}")
    if message.round < -1:
        raise RemoteError(f"the record of {clean(message.peer, 40)!r} has the round {message.round}")
    return Record(
        peer=peer_id(message.peer),
        boot=_count(message.boot, "boot"),
        incarnation=_count(message.incarnation, "incarnation"),
        state=_word(STATES, message.state, "member state"),
        phase=_word(PHASES, message.phase, "member phase"),
        life=_count(message.life, "life"),
        round=_below(ROUNDS, message.round, "round"),
        weight=message.weight,
        device=clean(message.device, MAX_DEVICE_NAME),
        addresses=addresses,
        task_digest=_digest(message.task_digest, "task digest"),
        costs=_digest(message.costs, "link costs", MAX_COSTS),
        instance=_count(message.instance, "instance"),
    )


def is_address(text: str) -> bool:
    """HOST:PORT with a name, an IPv4 address, or an IPv6 address in brackets."""
    match = ADDRESS.fullmatch(text)
    return match is not None and int(match[3]) < 65536


def control_to_wire(control: Control | None, seal: Seal) -> pb.ControlMessage:
    """None becomes Nothing, the answer of whoever has nothing to say."""
    match control:
        case Probe():
            return pb.ControlMessage(probe=_probe_to_wire(control, seal))
        case ProbeFor(target):
            return pb.ControlMessage(probe_for=pb.ProbeFor(target=target))
        case Vouch(target):
            return pb.ControlMessage(vouch=pb.Vouch(target=target))
        case SponsorMe(life):
            return pb.ControlMessage(sponsor_me=pb.SponsorMe(life=life))
        case Goodbye(record, last):
            goodbye = pb.Goodbye(record=record_to_wire(record, seal), last=_farewell_to_wire(last))
            return pb.ControlMessage(goodbye=goodbye)
        case Generation(epoch, proposer, view, parents):
            generation = pb.Generation(epoch=epoch, proposer=proposer, view=view, parents=parents)
            return pb.ControlMessage(generation=generation)
        case ShowMe():
            return pb.ControlMessage(show_me=pb.ShowMe())
        case Reunion(yields):
            return pb.ControlMessage(reunion=pb.Reunion(yields=yields))
        case None:
            return pb.ControlMessage(nothing=pb.Nothing())


def control_from_wire(message: pb.ControlMessage, src: PeerId, seal: Seal) -> Control | None:
    """What `src` said; None for Nothing. Only its own record may be in its Goodbye."""
    match message.WhichOneof("body"):
        case "probe":
            return _probe(message.probe, seal)
        case "probe_for":
            return ProbeFor(peer_id(message.probe_for.target))
        case "vouch":
            return Vouch(peer_id(message.vouch.target))
        case "sponsor_me":
            return SponsorMe(_count(message.sponsor_me.life, "life"))
        case "goodbye":
            return _goodbye(message.goodbye, src, seal)
        case "generation":
            return _generation(message.generation)
        case "show_me":
            return ShowMe()
        case "reunion":
            if len(message.reunion.yields) > MAX_MEMBERS:
                raise RemoteError(f"{len(message.reunion.yields)} members are to start over")
            return Reunion(tuple(map(peer_id, message.reunion.yields)))
        case "nothing":
            return None
        case _:
            raise RemoteError("an empty control message")


def _probe(said: pb.Probe, seal: Seal) -> Probe:
    if len(said.records) > MAX_MEMBERS or len(said.suspicions) > MAX_SUSPICIONS:
        raise RemoteError(
            f"a probe with {len(said.records)} records and {len(said.suspicions)} suspicions; at most "
            f"{MAX_MEMBERS} and {MAX_SUSPICIONS}"
        )
    records = tuple(record_from_wire(record, seal) for record in said.records)
    suspicions = tuple(
        Suspicion(peer_id(s.peer), _count(s.incarnation, "incarnation"), peer_id(s.by))
        for s in said.suspicions
    )
    sketch = _sketch(said.sketch) if said.HasField("sketch") else None
    return Probe(_digest(said.view, "view hash"), records, suspicions, said.pull, sketch)


def _sketch(said: pb.Sketch) -> Sketch:
    if len(said.layout) != TAG_BYTES or not is_body(said.body):
        raise RemoteError(f"{len(said.body)} bytes are no sketch, or {len(said.layout)} no layout's digest")
    return Sketch(_count(said.life, "life"), _below(ROUNDS, said.round, "round"), said.layout, said.body)


def _probe_to_wire(probe: Probe, seal: Seal) -> pb.Probe:
    message = pb.Probe(view=probe.view, pull=probe.pull)
    message.records.extend(record_to_wire(record, seal) for record in probe.records[:MAX_MEMBERS])
    for rumor in probe.suspicions[:MAX_SUSPICIONS]:
        message.suspicions.add(peer=rumor.peer, incarnation=rumor.incarnation, by=rumor.by)
    if (made := probe.sketch) is not None:
        message.sketch.CopyFrom(
            pb.Sketch(life=made.life, round=made.round, layout=made.layout, body=made.body)
        )
    return message


def _generation(said: pb.Generation) -> Generation:
    """Whether its parents make a tree is seen where the tree is made (mesh/graphs.py)."""
    view, parents = tuple(map(peer_id, said.view)), tuple(said.parents)
    if not 0 < len(view) <= MAX_MEMBERS or len(set(view)) < len(view):
        raise RemoteError(f"a generation of {len(view)} members, or one of them twice")
    if parents and (len(parents) != len(view) or max(parents) >= len(view)):
        raise RemoteError("a generation whose parents are not members")
    return Generation(_below(ROUNDS >> 1, said.epoch, "epoch"), peer_id(said.proposer), view, parents)


def _goodbye(goodbye: pb.Goodbye, src: PeerId, seal: Seal) -> Goodbye:
    record = record_from_wire(goodbye.record, seal)
    if record.peer != src:
        raise RemoteError(f"a goodbye in the name of {record.peer}")
    return Goodbye(record, _farewell(goodbye.last))


def _farewell(said: pb.Farewell) -> Farewell:
    life, epoch = _count(said.life, "life"), _count(said.epoch, "epoch")
    return Farewell(_count(said.by, "life"), life, epoch, _count(said.applied, "number"))


def _farewell_to_wire(last: Farewell) -> pb.Farewell:
    return pb.Farewell(by=last.by, life=last.life, epoch=last.epoch, applied=last.applied)


# --- frames of a link ----------------------------------------------------------------------------------


def begin_of(parcel: Parcel) -> Begin:
    return Begin(parcel.epoch, parcel.number, parcel.key, parcel.delivery, len(parcel.payload))


def frame_to_wire(frame: WireFrame) -> pb.LinkFrame:
    match frame:
        case Chunk(data):
            return pb.LinkFrame(chunk=bytes(data))
        case Begin(epoch, number, key, delivery, length):
            begin = pb.Begin(epoch=epoch, number=number, generation=key.generation, round=key.round)
            begin.phase, begin.delivery, begin.length = key.phase, DELIVERIES[delivery], length
            return pb.LinkFrame(begin=begin)
        case End(digest):
            return pb.LinkFrame(end=pb.End(digest=digest))
        case Attach(direction, to):
            return pb.LinkFrame(attach=pb.Attach(direction=DIRECTIONS[direction], to=to))
        case Open(life, epoch, replicas):
            return pb.LinkFrame(open=pb.Open(life=life, epoch=epoch, replicas=replicas))
        case Opened(life, epoch, applied, bases, replicas, before):
            opened = pb.Opened(life=life, epoch=epoch, applied=applied, replicas=replicas)
            opened.bases.extend(bases[:MAX_BASES])
            if before is not None:
                opened.before.CopyFrom(_farewell_to_wire(before))
            return pb.LinkFrame(opened=opened)
        case Ack(epoch, number):
            return pb.LinkFrame(ack=pb.Ack(epoch=epoch, number=number))
        case Refuse(epoch, number, reason):
            return pb.LinkFrame(
                refuse=pb.Refuse(epoch=epoch, number=number, reason=clean(reason, MAX_REASON))
            )


def frame_from_wire(message: pb.LinkFrame) -> WireFrame:
    """RemoteError for an empty frame and for one that breaks a rule."""
    match message.WhichOneof("body"):
        case "chunk":
            return Chunk(message.chunk)
        case "begin":
            return _begin(message.begin)
        case "end":
            return End(message.end.digest)
        case "attach":
            direction = _word(DIRECTIONS, message.attach.direction, "direction")
            return Attach(direction, peer_id(message.attach.to))
        case "open":
            life, epoch = _count(message.open.life, "life"), _count(message.open.epoch, "epoch")
            return Open(life, epoch, message.open.replicas)
        case "opened":
            return _opened(message.opened)
        case "ack":
            return Ack(*_place(message.ack))
        case "refuse":
            return Refuse(*_place(message.refuse), clean(message.refuse.reason, MAX_REASON))
        case _:
            raise RemoteError("an empty frame")


def _place(frame: pb.Begin | pb.Ack | pb.Refuse) -> tuple[int, int]:
    """(epoch, number): where in a link's sequence a parcel stands."""
    return _count(frame.epoch, "epoch"), _count(frame.number, "number")


def _begin(begin: pb.Begin) -> Begin:
    if begin.phase > 1:
        raise RemoteError(f"phase {begin.phase} is unknown")
    if begin.length == 0:
        raise RemoteError("an empty parcel")
    key = Key(_count(begin.generation, "generation"), _below(ROUNDS, begin.round, "round"), begin.phase)
    return Begin(*_place(begin), key, _word(DELIVERIES, begin.delivery, "delivery"), begin.length)


def _opened(opened: pb.Opened) -> Opened:
    if len(opened.bases) > MAX_BASES:
        raise RemoteError(f"{len(opened.bases)} bases; at most {MAX_BASES}")
    bases = tuple(_digest(base, "base") for base in opened.bases)
    life, epoch = _count(opened.life, "life"), _count(opened.epoch, "epoch")
    before = _farewell(opened.before) if opened.HasField("before") else None
    return Opened(life, epoch, _count(opened.applied, "number"), bases, opened.replicas, before)
