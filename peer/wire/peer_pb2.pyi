from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    ALIVE: _ClassVar[MemberState]
    DEAD: _ClassVar[MemberState]
    LEFT: _ClassVar[MemberState]
    PAUSED: _ClassVar[MemberState]

class MemberPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_PHASE_UNSPECIFIED: _ClassVar[MemberPhase]
    IDLE: _ClassVar[MemberPhase]
    SEEKING: _ClassVar[MemberPhase]
    TRAINING: _ClassVar[MemberPhase]
    LEAVING: _ClassVar[MemberPhase]
    FINISHED: _ClassVar[MemberPhase]

class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_UNSPECIFIED: _ClassVar[Direction]
    OUT: _ClassVar[Direction]
    IN: _ClassVar[Direction]

class Delivery(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_UNSPECIFIED: _ClassVar[Delivery]
    MASS: _ClassVar[Delivery]
    LATEST: _ClassVar[Delivery]
MEMBER_STATE_UNSPECIFIED: MemberState
ALIVE: MemberState
DEAD: MemberState
LEFT: MemberState
PAUSED: MemberState
MEMBER_PHASE_UNSPECIFIED: MemberPhase
IDLE: MemberPhase
SEEKING: MemberPhase
TRAINING: MemberPhase
LEAVING: MemberPhase
FINISHED: MemberPhase
DIRECTION_UNSPECIFIED: Direction
OUT: Direction
IN: Direction
DELIVERY_UNSPECIFIED: Delivery
MASS: Delivery
LATEST: Delivery

class HelloMessage(_message.Message):
    __slots__ = ("magic", "protocol_min", "protocol_max", "features", "id", "boot", "leaf", "session", "record", "descriptor", "signature")
    MAGIC_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    LEAF_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    magic: int
    protocol_min: int
    protocol_max: int
    features: int
    id: str
    boot: int
    leaf: bytes
    session: str
    record: SignedRecord
    descriptor: bytes
    signature: Signature
    def __init__(self, magic: _Optional[int] = ..., protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., features: _Optional[int] = ..., id: _Optional[str] = ..., boot: _Optional[int] = ..., leaf: _Optional[bytes] = ..., session: _Optional[str] = ..., record: _Optional[_Union[SignedRecord, _Mapping]] = ..., descriptor: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("sha256", "text")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    text: bytes
    def __init__(self, sha256: _Optional[bytes] = ..., text: _Optional[bytes] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("peer", "boot", "incarnation", "state", "phase", "life", "round", "weight", "device", "addresses", "task_digest", "costs", "instance")
    PEER_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    boot: int
    incarnation: int
    state: MemberState
    phase: MemberPhase
    life: int
    round: int
    weight: float
    device: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    task_digest: bytes
    costs: bytes
    instance: int
    def __init__(self, peer: _Optional[str] = ..., boot: _Optional[int] = ..., incarnation: _Optional[int] = ..., state: _Optional[_Union[MemberState, str]] = ..., phase: _Optional[_Union[MemberPhase, str]] = ..., life: _Optional[int] = ..., round: _Optional[int] = ..., weight: _Optional[float] = ..., device: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., task_digest: _Optional[bytes] = ..., costs: _Optional[bytes] = ..., instance: _Optional[int] = ...) -> None: ...

class SignedRecord(_message.Message):
    __slots__ = ("record", "key", "signature")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    key: bytes
    signature: bytes
    def __init__(self, record: _Optional[bytes] = ..., key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ControlMessage(_message.Message):
    __slots__ = ("probe", "sponsor_me", "goodbye", "nothing", "generation", "probe_for", "vouch", "show_me", "reunion")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SPONSOR_ME_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    NOTHING_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PROBE_FOR_FIELD_NUMBER: _ClassVar[int]
    VOUCH_FIELD_NUMBER: _ClassVar[int]
    SHOW_ME_FIELD_NUMBER: _ClassVar[int]
    REUNION_FIELD_NUMBER: _ClassVar[int]
    probe: Probe
    sponsor_me: SponsorMe
    goodbye: Goodbye
    nothing: Nothing
    generation: Generation
    probe_for: ProbeFor
    vouch: Vouch
    show_me: ShowMe
    reunion: Reunion
    def __init__(self, probe: _Optional[_Union[Probe, _Mapping]] = ..., sponsor_me: _Optional[_Union[SponsorMe, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., nothing: _Optional[_Union[Nothing, _Mapping]] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., probe_for: _Optional[_Union[ProbeFor, _Mapping]] = ..., vouch: _Optional[_Union[Vouch, _Mapping]] = ..., show_me: _Optional[_Union[ShowMe, _Mapping]] = ..., reunion: _Optional[_Union[Reunion, _Mapping]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("view", "records", "suspicions", "pull", "sketch")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SUSPICIONS_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    view: bytes
    records: _containers.RepeatedCompositeFieldContainer[SignedRecord]
    suspicions: _containers.RepeatedCompositeFieldContainer[Suspicion]
    pull: bool
    sketch: Sketch
    def __init__(self, view: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[SignedRecord, _Mapping]]] = ..., suspicions: _Optional[_Iterable[_Union[Suspicion, _Mapping]]] = ..., pull: _Optional[bool] = ..., sketch: _Optional[_Union[Sketch, _Mapping]] = ...) -> None: ...

class Sketch(_message.Message):
    __slots__ = ("life", "round", "layout", "body")
    LIFE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    life: int
    round: int
    layout: bytes
    body: bytes
    def __init__(self, life: _Optional[int] = ..., round: _Optional[int] = ..., layout: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Suspicion(_message.Message):
    __slots__ = ("peer", "incarnation", "by")
    PEER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    incarnation: int
    by: str
    def __init__(self, peer: _Optional[str] = ..., incarnation: _Optional[int] = ..., by: _Optional[str] = ...) -> None: ...

class ProbeFor(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class Vouch(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("epoch", "proposer", "view", "parents")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    proposer: str
    view: _containers.RepeatedScalarFieldContainer[str]
    parents: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., proposer: _Optional[str] = ..., view: _Optional[_Iterable[str]] = ..., parents: _Optional[_Iterable[int]] = ...) -> None: ...

class ShowMe(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reunion(_message.Message):
    __slots__ = ("yields",)
    YIELDS_FIELD_NUMBER: _ClassVar[int]
    yields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, yields: _Optional[_Iterable[str]] = ...) -> None: ...

class SponsorMe(_message.Message):
    __slots__ = ("life",)
    LIFE_FIELD_NUMBER: _ClassVar[int]
    life: int
    def __init__(self, life: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("record", "last")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    record: SignedRecord
    last: Farewell
    def __init__(self, record: _Optional[_Union[SignedRecord, _Mapping]] = ..., last: _Optional[_Union[Farewell, _Mapping]] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("by", "life", "epoch", "applied")
    BY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    by: int
    life: int
    epoch: int
    applied: int
    def __init__(self, by: _Optional[int] = ..., life: _Optional[int] = ..., epoch: _Optional[int] = ..., applied: _Optional[int] = ...) -> None: ...

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LinkFrame(_message.Message):
    __slots__ = ("attach", "open", "opened", "begin", "chunk", "end", "ack", "refuse")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    attach: Attach
    open: Open
    opened: Opened
    begin: Begin
    chunk: bytes
    end: End
    ack: Ack
    refuse: Refuse
    def __init__(self, attach: _Optional[_Union[Attach, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., chunk: _Optional[bytes] = ..., end: _Optional[_Union[End, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("direction", "to")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    to: str
    def __init__(self, direction: _Optional[_Union[Direction, str]] = ..., to: _Optional[str] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("life", "epoch", "replicas")
    LIFE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    life: int
    epoch: int
    replicas: bool
    def __init__(self, life: _Optional[int] = ..., epoch: _Optional[int] = ..., replicas: _Optional[bool] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("life", "epoch", "applied", "bases", "replicas", "before")
    LIFE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    life: int
    epoch: int
    applied: int
    bases: _containers.RepeatedScalarFieldContainer[bytes]
    replicas: bool
    before: Farewell
    def __init__(self, life: _Optional[int] = ..., epoch: _Optional[int] = ..., applied: _Optional[int] = ..., bases: _Optional[_Iterable[bytes]] = ..., replicas: _Optional[bool] = ..., before: _Optional[_Union[Farewell, _Mapping]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("epoch", "number", "generation", "round", "phase", "delivery", "length")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    generation: int
    round: int
    phase: int
    delivery: Delivery
    length: int
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ..., generation: _Optional[int] = ..., round: _Optional[int] = ..., phase: _Optional[int] = ..., delivery: _Optional[_Union[Delivery, str]] = ..., length: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("epoch", "number")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("epoch", "number", "reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    reason: str
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
