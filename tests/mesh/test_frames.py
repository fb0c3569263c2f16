"""What goes onto the wire comes back equal, and what comes from it is bounded, printable and finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import RemoteError
from peer.events import (
    Ack,
    Farewell,
    Goodbye,
    Key,
    Open,
    Opened,
    Probe,
    ProbeFor,
    Record,
    Refuse,
    SponsorMe,
    Suspicion,
    Vouch,
)
from peer.mesh import frames
from peer.mesh.frames import Attach, Begin, Chunk, End, WireFrame
from peer.mesh.greeting import Greeting, Introduction, Signature, greeting_from_wire, greeting_to_wire
from peer.mesh.identity import Device, RecordSeal
from peer.wire import peer_pb2 as pb

DEVICES = [Device(ec.generate_private_key(ec.SECP256R1())) for _ in range(2)]
SEAL, SEAL_B = (RecordSeal(device, b"session") for device in DEVICES)
A, B = SEAL.peer_id, SEAL_B.peer_id
COUNT, ROUND = st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)
LABEL = st.text(st.characters(exclude_categories=("C", "Z")), max_size=64)
RECORDS = st.builds(
    Record,
    peer=st.just(A),
    boot=COUNT,
    incarnation=COUNT,
    state=st.sampled_from(list(frames.STATES)),
    phase=st.sampled_from(list(frames.PHASES)),
    life=COUNT,
    round=st.integers(-1, 2**32 - 1),
    weight=st.floats(0, frames.MAX_WEIGHT),
    device=LABEL,
    addresses=st.lists(st.sampled_from(["10.0.0.1:7000", "[fd00::7]:1", "[fe80::1%eth0]:9"]), max_size=8).map(
        tuple
    ),
    task_digest=st.binary(max_size=64),
    costs=st.binary(max_size=frames.MAX_COSTS),
    instance=COUNT,
)
SUSPICIONS = st.builds(Suspicion, st.sampled_from([A, B]), COUNT, st.sampled_from([A, B]))
KEYS = st.builds(Key, generation=ROUND, round=ROUND, phase=st.integers(0, 1))
FAREWELLS = st.builds(Farewell, COUNT, COUNT, COUNT, COUNT)
DELIVERY = st.sampled_from(["mass", "latest"])
FRAMES = st.one_of(
    st.builds(Open, COUNT, COUNT, st.booleans()),
    st.builds(
        Opened,
        COUNT,
        COUNT,
        COUNT,
        st.lists(st.binary(max_size=64), max_size=8).map(tuple),
        st.booleans(),
        st.none() | FAREWELLS,
    ),
    st.builds(Ack, COUNT, COUNT),
    st.builds(Refuse, COUNT, COUNT, LABEL),
    st.builds(Begin, COUNT, COUNT, KEYS, DELIVERY, st.integers(1, 2**64 - 1)),
    st.builds(Chunk, st.binary(max_size=99)),
    st.builds(End, st.binary(min_size=32, max_size=32)),
    st.builds(Attach, st.sampled_from(["out", "in"]), st.just(A)),
)
CONTROLS = st.one_of(
    st.none(),
    st.builds(
        Probe,
        st.binary(max_size=64),
        st.lists(RECORDS, max_size=4).map(tuple),
        st.lists(SUSPICIONS, max_size=4).map(tuple),
        st.booleans(),
    ),
    st.builds(ProbeFor, st.just(B)),
    st.builds(Vouch, st.just(B)),
    st.builds(SponsorMe, COUNT),
    st.builds(Goodbye, RECORDS, FAREWELLS),
)


@given(FRAMES)
def test_every_frame_survives_the_wire(frame: WireFrame) -> None:
    data = frames.frame_to_wire(frame).SerializeToString()
    assert data
    assert frames.frame_from_wire(frames.parse(pb.LinkFrame, data)) == frame


@given(CONTROLS)
def test_every_control_message_survives_the_wire(control: frames.Control | None) -> None:
    data = frames.control_to_wire(control, SEAL).SerializeToString()
    assert data
    assert frames.control_from_wire(frames.parse(pb.ControlMessage, data), A, SEAL_B) == control


@given(
    RECORDS,
    LABEL,
    st.binary(max_size=99),
    st.none() | st.builds(Signature, st.binary(min_size=32, max_size=32)),
)
def test_every_greeting_survives_the_wire(
    record: Record, session: str, descriptor: bytes, signature: Signature | None
) -> None:
    said = Introduction(record, session, descriptor, signature, features=3)
    for greeting in (Greeting(A, 7, b"leaf"), Greeting(A, 7, b"leaf", said)):
        data = greeting_to_wire(greeting, SEAL).SerializeToString()
        assert greeting_from_wire(frames.parse(pb.HelloMessage, data), SEAL_B) == greeting


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_valid_and_never_anything_else(data: bytes) -> None:
    for kind, read in (
        (pb.LinkFrame, frames.frame_from_wire),
        (pb.ControlMessage, lambda message: frames.control_from_wire(message, A, SEAL)),
        (pb.HelloMessage, lambda message: greeting_from_wire(message, SEAL)),
    ):
        try:
            read(frames.parse(kind, data))
        except RemoteError:
            continue


def test_an_empty_message_is_never_valid() -> None:
    with pytest.raises(RemoteError, match="empty frame"):
        frames.frame_from_wire(pb.LinkFrame())
    with pytest.raises(RemoteError, match="empty control"):
        frames.control_from_wire(pb.ControlMessage(), A, SEAL)
    with pytest.raises(RemoteError, match="magic"):
        greeting_from_wire(pb.HelloMessage(), SEAL)
    with pytest.raises(RemoteError):
        frames.record_from_wire(pb.SignedRecord(), SEAL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"peer": "p-short"},
        {"peer": "p-" + "A" * 26},
        {"weight": math.nan},
        {"weight": math.inf},
        {"weight": -1.0},
        {"weight": 1e300},
        {"round": -2},
        {"round": 2**32},
        {"boot": 2**63},
        {"incarnation": 2**64 - 1},
        {"life": 2**63},
        {"state": 99},
        {"phase": 0},
        {"task_digest": bytes(65)},
        {"costs": bytes(frames.MAX_COSTS + 1)},
        {"instance": 2**63},
        {"addresses": ["10.0.0.1:7000"] * 9},
        {"addresses": ["10.0.0.1:70000"]},
        {"addresses": ["\x1b[2J:1"]},
        {"addresses": ["10.0.0.1"]},
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(wrong: dict[str, object]) -> None:
    """Its owner may have signed it all the same."""
    signed = frames.record_to_wire(Record(A, 1, 1), SEAL)
    frames.record_from_wire(signed, SEAL_B)
    message = frames.parse(pb.Record, signed.record)
    for name, value in wrong.items():
        message.ClearField(name)
        message.MergeFrom(pb.Record(**{name: value}))
    with pytest.raises(RemoteError, match=r"record|out of bounds|unknown|no peer id|bytes; at most"):
        frames.record_from_wire(sealed(message), SEAL_B)


def sealed(message: pb.Record, seal: RecordSeal = SEAL) -> pb.SignedRecord:
    key, signature = seal.sign(message.SerializeToString())
    return pb.SignedRecord(record=message.SerializeToString(), key=key, signature=signature)


def test_the_longest_record_fits() -> None:
    long = Record(
        A, 2**63 - 1, 2**63 - 1, "paused", "finished", 2**63 - 1, 2**32 - 1, 1e6, "\U0001f600" * 64,
        (f"[{'f' * 45}%{'x' * 15}]:65535",) * frames.MAX_ADDRESSES, bytes(64), bytes(frames.MAX_COSTS),
        2**63 - 1,
    )  # fmt: skip
    assert frames.record_from_wire(frames.record_to_wire(long, SEAL), SEAL_B) == long


# --- signatures ----------------------------------------------------------------------------------------


def heard(record: Record) -> Record:
    """As B knows it."""
    return frames.record_from_wire(frames.record_to_wire(record, SEAL), SEAL_B)


def test_a_record_passed_on_is_the_owners_word_still_with_fields_that_are_not_known_here() -> None:
    message = frames.parse(pb.Record, frames.record_to_wire(Record(A, 1, 1), SEAL).record)
    message.MergeFromString(b"\xf8\x07\x05")  # field 127 of a later version
    at_b = frames.record_from_wire(sealed(message), SEAL_B)
    assert at_b == Record(A, 1, 1)
    passed_on = frames.record_to_wire(at_b, SEAL_B)
    third = RecordSeal(Device(ec.generate_private_key(ec.SECP256R1())), b"session")
    assert frames.record_from_wire(passed_on, third) == at_b
    assert passed_on.record == message.SerializeToString()


@pytest.mark.parametrize("change", [{"state": "left"}, {"incarnation": 9}, {"boot": 2}, {"weight": 3.0}])
def test_nobody_changes_anothers_record(change: dict[str, object]) -> None:
    """Neither with the owner's signature of something else, nor with the liar's own."""
    true = heard(Record(A, 1, 1))
    forged = frames._written(replace(true, **change)).SerializeToString()  # type: ignore[arg-type]
    told = frames.parse(pb.SignedRecord, true.proof)
    told.record = forged
    with pytest.raises(RemoteError, match="false signature"):
        frames.record_from_wire(told, SEAL_B)
    key, signature = SEAL_B.sign(forged)
    for shown in (key, told.key):
        with pytest.raises(RemoteError, match=r"another's key|false signature"):
            frames.record_from_wire(pb.SignedRecord(record=forged, key=shown, signature=signature), SEAL_B)
    shown_as = replace(true, **change)  # type: ignore[arg-type]
    assert frames.record_from_wire(frames.record_to_wire(shown_as, SEAL_B), SEAL) == true


def test_a_record_of_one_session_is_none_in_another() -> None:
    elsewhere = RecordSeal(DEVICES[1], b"another session")
    with pytest.raises(RemoteError, match="false signature"):
        frames.record_from_wire(frames.record_to_wire(Record(A, 1, 1), SEAL), elsewhere)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_what_is_no_key_or_no_signature_is_refused(key: bytes, signature: bytes) -> None:
    good = frames.record_to_wire(Record(A, 1, 1), SEAL)
    for wrong in ({"key": key}, {"signature": signature}):
        told = pb.SignedRecord()
        told.CopyFrom(good)
        told.MergeFrom(pb.SignedRecord(**wrong))
        if told != good:
            with pytest.raises(RemoteError):
                frames.record_from_wire(told, SEAL_B)


def test_a_record_that_its_owner_never_signed_is_not_passed_on() -> None:
    with pytest.raises(RemoteError, match="no signature"):
        frames.record_to_wire(Record(B, 1, 1), SEAL)


def test_a_signature_is_checked_once_and_made_once() -> None:
    class Counting:
        checks = 0

        def __init__(self, seal: RecordSeal) -> None:
            self._private_key = seal._private_key

        def sign(self, data: bytes, algorithm: ec.ECDSA) -> bytes:
            Counting.checks += 1
            return self._private_key.sign(data, algorithm)

    seal = RecordSeal(DEVICES[0], b"session")
    seal._private_key = Counting(seal)  # type: ignore[assignment]
    told = [frames.record_to_wire(Record(A, 1, 1), seal) for _ in range(3)]
    assert Counting.checks == 1
    assert told[0] == told[1]
    assert len(told[0].key) == 33
    for _ in range(3):
        frames.record_from_wire(told[0], SEAL_B)
    many = [Record(A, 1, n) for n in range(1, 2000)]
    for record in many:
        assert heard(record) == record
    assert len(SEAL_B._good) <= 1024


# --- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        Open(life=2**63, epoch=1),
        Open(life=1, epoch=2**63),
        Opened(life=2**63, epoch=1, applied=1),
        Opened(life=1, epoch=2**63, applied=1),
        Opened(life=1, epoch=1, applied=2**63),
        *(Opened(1, 1, 1, before=Farewell(*[2**63 if i == at else 1 for i in range(4)])) for at in range(4)),
        Ack(epoch=2**63, number=1),
        Ack(epoch=1, number=2**64 - 1),
        Refuse(epoch=2**63, number=1, reason=""),
        Refuse(epoch=1, number=2**63, reason=""),
        Begin(2**63, 1, Key(), "mass", 1),
        Begin(1, 2**63, Key(), "mass", 1),
        Begin(1, 1, Key(generation=2**63), "mass", 1),
        Begin(1, 1, Key(round=2**32), "mass", 1),
        Begin(1, 1, Key(phase=2), "mass", 1),
        SponsorMe(life=2**63),
        *(
            Goodbye(Record(A, 1, 1), Farewell(*[2**63 if i == at else 1 for i in range(4)]))
            for at in range(4)
        ),
    ],
    ids=str,
)
def test_a_number_out_of_bounds_is_refused(frame: WireFrame | SponsorMe | Goodbye) -> None:
    """Later on it is packed and counted with: a device must not fall over its neighbor's word."""
    with pytest.raises(RemoteError, match=r"out of bounds|unknown"):
        through_the_wire(frame)


def through_the_wire(said: WireFrame | SponsorMe | Goodbye) -> object:
    if isinstance(said, SponsorMe | Goodbye):
        return frames.control_from_wire(frames.control_to_wire(said, SEAL), A, SEAL_B)
    return frames.frame_from_wire(frames.frame_to_wire(said))


def test_strings_are_fit_for_a_terminal() -> None:
    record = Record(A, 1, 1, device="kitchen\x1b[31m\r\n\u202epi" + "x" * 99)
    assert heard(record).device == ("kitchen[31mpi" + "x" * 99)[:64]
    message = pb.LinkFrame(refuse=pb.Refuse(epoch=1, number=1, reason="\x07bell"))
    assert frames.frame_from_wire(message) == Refuse(1, 1, "bell")


def test_nobody_says_goodbye_for_another() -> None:
    goodbye = frames.control_to_wire(Goodbye(Record(B, 1, 1), Farewell(0, 0, 0, 0)), SEAL_B)
    with pytest.raises(RemoteError, match="in the name of"):
        frames.control_from_wire(goodbye, A, SEAL)
    hello = greeting_to_wire(Greeting(A, 1, b"", Introduction(Record(B, 1, 1))), SEAL_B)
    with pytest.raises(RemoteError, match="with the record of"):
        greeting_from_wire(hello, SEAL)
