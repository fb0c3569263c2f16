"""What goes into and comes out of the pure state machines. Standard library only.

Two machines share these words. `mesh.node.Node` lives in the daemon: membership, topology, links, rounds.
`learner.exchange.Exchange` lives in the learner: algorithm, codec. Between them stands the local socket
(or, in a rehearsal, nothing). Payloads are opaque here: anything with a length. A driver feeds events and
performs effects; nothing in this file does anything.

    training thread --submit--> Exchange --FromLearner--> Node --Send, Connect, Tell--> driver --> network
    training thread <---take--- Exchange <--ToLearner---- Node <--FrameHeard, Told, ...-- driver <-- network
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Literal

PeerId = str
Direction = Literal["out", "in"]  # seen from this node: "out" carries what it sends
Delivery = Literal["mass", "latest"]
Payload = Sized  # bytes in a rehearsal, a shared buffer in the daemon

TRAIN, FINAL = 0, 1  # phases of a round: with local steps; averaging alone, at the end of a bounded session


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which exchange something belongs to. Orders by generation, then round, then phase."""

    generation: int = 0
    round: int = 0
    phase: int = TRAIN


# --- on the wire between two nodes: frames of one directed link ---------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Sender to receiver, first on every stream: my learner's life, and the epoch of this link."""

    life: int
    epoch: int
    replicas: bool = True


@dataclass(frozen=True, slots=True)
class Farewell:
    """Of your link to me (life, epoch) my learner's life `by`, which has ended politely, applied up to
    `applied`."""

    by: int
    life: int
    epoch: int
    applied: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Receiver's answer: its learner's life, how far it has applied this epoch, models it holds by digest.

    before: the last word of an earlier life about this sender's link, whose goodbye may have been lost.
    """

    life: int
    epoch: int
    applied: int
    bases: tuple[bytes, ...] = ()
    replicas: bool = True
    before: Farewell | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """A numbered message. Applied once, whole, in order of `number` within (life, epoch)."""

    epoch: int
    number: int
    key: Key
    payload: Payload
    delivery: Delivery = "mass"


@dataclass(frozen=True, slots=True)
class Ack:
    """Receiver: everything up to `number` of this epoch is applied."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Receiver: parcel `number` is not applied and never will be; the link needs a new epoch."""

    epoch: int
    number: int
    reason: str


Frame = Open | Opened | Parcel | Ack | Refuse


# --- on the wire between two nodes: control messages --------------------------------------------------

MemberState = Literal["alive", "suspect", "dead", "left", "paused"]  # a member says neither of the middle two
MemberPhase = Literal["idle", "seeking", "training", "leaving", "finished"]


@dataclass(frozen=True, slots=True)
class Record:
    """What every member knows of one member. Only its owner raises `incarnation`; the higher one wins.

    boot: the daemon's boot count. life: its learner's life, 0 without one. phase: has it push-sum mass?
    round: the last round closed, or while seeking the round of its checkpoint (-1: none).
    weight: its push-sum weight, rounded; mean over live members gives the w̄ that scales local updates.
    costs: classes of measured link costs, where the topology is made of them (mesh/graphs.py packs them).
    instance: of the daemon that wrote it, rising with each start of one device; 0 where nobody says.
    proof: its owner's signature, as it came over the wire; passed on, and no part of what a record says.
    """

    peer: PeerId
    boot: int
    incarnation: int
    state: MemberState = "alive"
    phase: MemberPhase = "idle"
    life: int = 0
    round: int = -1
    weight: float = 0.0
    device: str = ""
    addresses: tuple[str, ...] = ()
    task_digest: bytes = b""
    costs: bytes = b""
    instance: int = 0
    proof: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """`by` could not hear this member, whose record had that incarnation. With a higher one it refutes."""

    peer: PeerId
    incarnation: int
    by: PeerId


@dataclass(frozen=True, slots=True)
class Sketch:
    """A model in a few numbers (peer/sketch.py): of its owner's learner in this life, after this round.
    layout: names what it is a sketch of."""

    life: int
    round: int
    layout: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Probe:
    """I am here; `view` is a hash of my records, `records` those the receiver seems not to have.

    pull: tell me all of yours, if your view is another. sketch: of my own model. view: b"" is not said.
    """

    view: bytes
    records: tuple[Record, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    pull: bool = False
    sketch: Sketch | None = None


@dataclass(frozen=True, slots=True)
class ProbeFor:
    """I do not hear this member. Do you?"""

    target: PeerId


@dataclass(frozen=True, slots=True)
class Vouch:
    """To whoever asked: I hear this member."""

    target: PeerId


@dataclass(frozen=True, slots=True)
class SponsorMe:
    """A learner without mass asks for half of the receiver's."""

    life: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """I go, for good ("left") or for now ("paused"). last: what that means for your link to me."""

    record: Record
    last: Farewell


@dataclass(frozen=True, slots=True)
class Generation:
    """The graph that an undirected algorithm exchanges on, and who is on it: the same for all its members.

    view: members in the order the graph is made of. parents: where it is a tree of measured costs: each
    member's by place in the view, the root's its own. Which of two holds: mesh/generations.py.
    """

    epoch: int
    proposer: PeerId
    view: tuple[PeerId, ...]
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShowMe:
    """We were parted for long: send me your model, to look at."""


@dataclass(frozen=True, slots=True)
class Reunion:
    """Two halves that were parted train together again. yields: those that start over with the others' model,
    because the two do not mix; empty when they do."""

    yields: tuple[PeerId, ...]


Control = Probe | ProbeFor | Vouch | SponsorMe | Goodbye | Generation | ShowMe | Reunion


# --- events a driver feeds into a Node ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Met:
    """Hello succeeded with this peer, in either role: it is a member, and control calls reach it."""

    record: Record


@dataclass(frozen=True, slots=True)
class StreamUp:
    """A stream for the directed link is open; whoever sends on it has not said Open yet."""

    peer: PeerId
    direction: Direction


@dataclass(frozen=True, slots=True)
class StreamDown:
    peer: PeerId
    direction: Direction
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FrameHeard:
    """A whole frame came in on the stream of a directed link. Parcels are whole and their checksum holds."""

    peer: PeerId
    direction: Direction
    frame: Frame


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a parcel are moving to or from this peer: a sign of life."""

    peer: PeerId
    direction: Direction


@dataclass(frozen=True, slots=True)
class Told:
    """A control message came in from this peer, as a call of its or as the answer to ours."""

    peer: PeerId
    message: Control


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Drivers send one at least every `Node.tick_s`."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The system was suspended for so long, by a clock that counts it; `now` may not."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LearnerGone:
    """The learner's process or connection is gone; its mass is lost with it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The user (or SIGTERM) wants out: hand over, say goodbye. `pause`: back later."""

    pause: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A call to this peer and back takes so long, s, smoothed."""

    peer: PeerId
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Sketched:
    """The learner has made a sketch of the model that it has mixed in this round; layout, body: its."""

    round: int
    layout: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """The user wants nothing to do with these devices: all that are blocked now."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Spent:
    """So many bytes of control messages have gone out, calls and answers. Parcels and other frames are
    counted where they are sent; only a device with a budget is told."""

    size: int


@dataclass(frozen=True, slots=True)
class Moved:
    """This device's own addresses changed."""

    addresses: tuple[str, ...]


# --- learner -> node (also frames of the local socket) -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The learner has built its model, and has no mass yet.

    life: this learner's life, given to it by the daemon. round: of the newest good checkpoint, -1 for none.
    bases: digests of models it holds and could name as the base of a link.
    """

    life: int
    round: int = -1
    bases: tuple[bytes, ...] = ()
    replicas: bool = True


@dataclass(frozen=True, slots=True)
class Push:
    """A message for one out-neighbor, composed for this epoch of the link; for another it comes back."""

    dst: PeerId
    epoch: int
    key: Key
    payload: Payload
    delivery: Delivery = "mass"


@dataclass(frozen=True, slots=True)
class Held:
    """The local steps of this round are done, and it is not pushed yet: the last parcels to these
    out-neighbors are not acknowledged. A Deadline pushes it to the others."""

    key: Key
    dsts: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Pushed:
    """Everything this round sends is out; the learner waits for its in-neighbors. held_back: out-neighbors
    that nothing is sent to, or only word that nothing comes, because the round may not take so many bytes.
    still: it had no local steps. worked_s: how long they took; 0 where nobody has looked. half: this is
    what the round's second half sends."""

    key: Key
    held_back: tuple[PeerId, ...] = ()
    still: bool = False
    worked_s: float = 0.0
    half: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """The round is mixed. heard: in-neighbors whose message of it counted. weight: push-sum weight now."""

    key: Key
    heard: tuple[PeerId, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Taken:
    """The learner has taken this parcel over: it may be acknowledged. half: of its round another one follows,
    in the second half."""

    src: PeerId
    epoch: int
    number: int
    half: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The parcel broke a rule or builds on an unknown base; nothing of it was applied."""

    src: PeerId
    epoch: int
    number: int
    reason: str
    fault: bool = True  # False: an honest miss (a base that is gone), not the neighbor's fault


@dataclass(frozen=True, slots=True)
class Holds:
    """The digests of the models this learner holds have changed, or its weight outside of a round has.

    replicas: is there room for one more in-link's? Epochs that begin from now on say so. whole: bytes of a
    whole model, as a newcomer is given it; 0: not said.
    """

    bases: tuple[bytes, ...]
    weight: float
    replicas: bool = True
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Renew:
    """The state of this out-link made room for another's: a new epoch, so that the far end's goes too."""

    dst: PeerId


@dataclass(frozen=True, slots=True)
class Looked:
    """The model that this peer has shown is near to this learner's own: the two may be mixed. round: its."""

    peer: PeerId
    round: int
    near: bool


FromLearner = Ready | Push | Held | Pushed | Closed | Taken | Rejected | Holds | Renew | Looked


# --- node -> learner (also frames of the local socket) -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """No member with mass is about, and this device is the one to begin: weight 1, from its checkpoint
    (resume) or the initial model."""

    resume: bool


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The round to work on. out: mixing weights of out-neighbors; expected: in-neighbors that will send.
    Sent again for the same key when membership changes before the learner has pushed.

    Where the generation's graph is a spanning tree, or two: trees are this node's neighbors on each, n the
    number of its members, mean_delay the mean of max(hops - 1, 0) over all ordered pairs, itself included.
    allowance: how many bytes the round's messages may take in all; None: as many as they like.
    aligning: rounds that news takes to everybody, where members of a new generation are first to come to the
    same model; 0: they are not. hides: bytes that a message to each out-neighbor may have to be there before
    the next local steps are done; nothing of links that have carried nothing yet. graph, place, parents: on
    an agreed graph which one it is, and this node's place on it (peer/graphs.py); "" elsewhere.
    """

    key: Key
    out: dict[PeerId, float]
    expected: tuple[PeerId, ...]
    n: int
    mean_weight: float
    trees: tuple[tuple[PeerId, ...], ...] = ()
    mean_delay: float = 0.0
    allowance: int | None = None
    aligning: int = 0
    hides: dict[PeerId, int] | None = None
    graph: str = ""
    place: int = 0
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Expect:
    """After Pushed: the in-neighbors still worth waiting for, all of them, heard ones included."""

    key: Key
    expected: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Deadline:
    """Waiting is not worth it any more: push a held round as it is, close a pushed one with what has come, or
    its first half. half: it is said of the second one."""

    key: Key
    half: bool = False


@dataclass(frozen=True, slots=True)
class Deliver:
    src: PeerId
    epoch: int
    number: int
    key: Key
    payload: Payload
    delivery: Delivery = "mass"


@dataclass(frozen=True, slots=True)
class Acked:
    dst: PeerId
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Returned:
    """The parcel was never applied in a life that counts: un-apply it."""

    dst: PeerId
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A directed link has a new epoch: state kept per link starts anew, at both ends together."""

    peer: PeerId
    direction: Direction
    epoch: int
    bases: tuple[bytes, ...] = ()  # out: what the receiver holds
    replicas: bool = True


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link's epoch is over; forget its state. An unacknowledged parcel is settled separately."""

    peer: PeerId
    direction: Direction


@dataclass(frozen=True, slots=True)
class Sponsor:
    """Give half of the mass to this newcomer, as units of weight of a snapshot. show: give it no weight, only
    the model, to look at."""

    dst: PeerId
    show: bool = False


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give all mass to this neighbor and stop; None: nobody is left to take it, only stop."""

    dst: PeerId | None


@dataclass(frozen=True, slots=True)
class TakeAll:
    """This node leaves: answer for every parcel now, those included that wait for a round to close."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The bounded session is done: every round and final round is closed. Stop."""


ToLearner = (
    Found
    | OpenRound
    | Expect
    | Deadline
    | Deliver
    | Acked
    | Returned
    | LinkUp
    | LinkDown
    | Sponsor
    | HandOver
    | TakeAll
    | Finish
)


# --- effects of a Node for its driver ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForLearner:
    command: ToLearner


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the stream of this directed link and keep trying, with back-off, until Disconnect."""

    peer: PeerId
    direction: Direction


@dataclass(frozen=True, slots=True)
class Reach:
    """Where this member says it can be reached: candidates for the driver's dialer, nothing more."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disconnect:
    peer: PeerId
    direction: Direction


@dataclass(frozen=True, slots=True)
class Send:
    """Put a frame on the stream of this directed link. Dropped when the stream is down: the node re-sends."""

    peer: PeerId
    direction: Direction
    frame: Frame


@dataclass(frozen=True, slots=True)
class Tell:
    """Call a peer with a control message; an answer comes back as `Told`. Failure is silence."""

    peer: PeerId
    message: Control


@dataclass(frozen=True, slots=True)
class Dispose:
    """The driver may free this payload: it is acknowledged, returned, refused or written off."""

    payload: Payload


@dataclass(frozen=True, slots=True)
class Note:
    """Worth a log line. `fields` become key=value."""

    text: str
    fields: dict[str, object] = field(default_factory=dict)
    level: Literal["debug", "info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Gone:
    """The node has finished leaving (or the bounded session is over): the driver may take everything down."""

    reason: Literal["left", "paused", "finished"]


@dataclass(frozen=True, slots=True)
class StartOver:
    """The learner's model is given up: it is to begin a new life, with the model of a sponsor."""


Effect = ForLearner | Connect | Disconnect | Reach | Send | Tell | Dispose | Note | Gone | StartOver
