"""The simulated network: streams between devices, control calls, and what becomes of them in bad weather.

It keeps the promises that the real transport makes (mesh/transport.py), and breaks everything else:

    a stream keeps order; a frame that is lost breaks it, and all behind it is lost too
    each end learns of the end for itself, and hears nothing of a stream after its StreamDown
    a cut shows at neither end at once: frames are held back as TCP does, go on when the cut is healed soon,
    and else each end gives the stream up some 15 s later
    a control call is lost, doubled or overtaken by itself, and so is its answer
    who cannot be dialed is reached over what it has dialed itself, and by answers to its calls
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from peer.events import (
    Control,
    Direction,
    Frame,
    FrameHeard,
    Measured,
    Parcel,
    PeerId,
    Probe,
    Progress,
    StreamDown,
    StreamUp,
    Told,
)
from peer.rehearsal.timeline import Timeline

REDIAL_MOST_S = 3.0  # as mesh/transport.py: pauses between attempts grow by 1.6 up to this
CALL_S = 3.0  # as there: a control call that is not answered by then has failed
UNDELIVERED_S = 10.0  # as there: for so long it is kept, as the answer to the peer's own call
NOTICED_S = (10.0, 20.0)  # TCP notices a dead network after about 15 s (ARCHITECTURE.md, traps)
FROZEN_S = (60.0, 80.0)  # and HTTP/2 a frozen peer after about 70 s
REPEAT_S = (0.2, 3.0)  # when TCP repeats what a cut has held back
OVERTAKEN_S = (0.1, 2.0)  # how much later a control message comes that others overtake; guess
ROAMING_S = (0.5, 3.0)  # how long a device that changes its address is out of reach; guess
FRAME_BYTES = 64  # of a frame or a control message without its payload, about
PROGRESS_S = 1.0  # a parcel longer on its way than this shows that it moves

OTHER_END: dict[Direction, Direction] = {"out": "in", "in": "out"}
Link = tuple[PeerId, PeerId, Direction]  # this end, the other, and which way the link goes for this end
Event = StreamUp | StreamDown | FrameHeard | Measured | Progress | Told


@dataclass(frozen=True, slots=True)
class Weather:
    """The network's faults. latency_s: uniform range per frame. loss, duplicate: probability per frame and
    per control message; reorder: that a control message is overtaken by later ones. bandwidth_bps: of each
    device's uplink, 0 without a limit.

    local_s: each way between a device's node and its learner. Above 0, `mass` may count a parcel twice
    while the learner's word that it has taken it is on its way.
    """

    latency_s: tuple[float, float] = (0.005, 0.05)
    local_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    redial_s: float = 0.2
    reorder: float = 0.0
    bandwidth_bps: float = 0.0


class Hosts(Protocol):
    """The devices, as the network sees them."""

    def is_on(self, peer: PeerId) -> bool: ...
    def is_awake(self, peer: PeerId) -> bool: ...
    def feed(self, peer: PeerId, event: Event) -> None:
        """At once, or when it wakes."""

    def when_awake(self, peer: PeerId, action: Callable[[], None]) -> None: ...


class Stream:
    """One stream of one directed link. `up`: the ends that have not ended yet; `known`: those told of it."""

    __slots__ = ("arrival", "broken", "cut", "held", "known", "receiver", "sender", "up")

    def __init__(self, sender: PeerId, receiver: PeerId) -> None:
        self.sender, self.receiver = sender, receiver
        self.up, self.known = {sender, receiver}, set[PeerId]()
        self.arrival = {sender: 0.0, receiver: 0.0}  # the last at this end: nothing overtakes it
        self.held: dict[PeerId, list[Frame]] = {sender: [], receiver: []}  # by who sends them
        self.cut = 0  # which cut it is under, 0 for none
        self.broken = False  # a frame is lost: nothing more goes in

    def other(self, peer: PeerId) -> PeerId:
        return self.receiver if peer == self.sender else self.sender

    def direction(self, peer: PeerId) -> Direction:
        return "out" if peer == self.sender else "in"


class Network:
    """`weather`, `undialable` and `frames_lost` may be read and set at any time."""

    def __init__(self, timeline: Timeline, hosts: Hosts, weather: Weather, rng: random.Random) -> None:
        self.weather = weather
        self.undialable: set[PeerId] = set()
        self.frames_lost = 0
        self._timeline, self._hosts, self._random = timeline, hosts, rng
        self._ends: dict[tuple[PeerId, PeerId, Direction], Stream] = {}
        self._wanted: set[Link] = set()
        self._dialing: set[Link] = set()
        self._groups: dict[PeerId, int] = {}  # of a partition; who is in none is with everybody
        self._blocked: set[tuple[PeerId, PeerId]] = set()
        self._roaming: set[PeerId] = set()
        self._cuts: dict[tuple[PeerId, PeerId], float] = {}  # pairs that are cut, since when
        self._serial = 0
        self._uplink_free: dict[PeerId, float] = {}
        self._answers: dict[tuple[PeerId, PeerId], Control | None] = {}  # of calls that are being heard
        self._undelivered: dict[tuple[PeerId, PeerId], dict[type, tuple[float, Control]]] = {}

    def latency(self) -> float:
        return self._random.uniform(*self.weather.latency_s)

    # --- what happens to the network -----------------------------------------------------------------

    def partition(self, groups: Sequence[AbstractSet[PeerId]]) -> None:
        """Cut everything between different groups, in place of the partition before."""
        self._groups = {peer: number for number, group in enumerate(groups) for peer in group}
        self._look_at_cuts()

    def block(self, a: PeerId, b: PeerId, *, both: bool = False) -> None:
        """Nothing that `a` sends gets to `b` any more."""
        self._blocked |= {(a, b), (b, a)} if both else {(a, b)}
        self._look_at_cuts()

    def heal(self) -> None:
        self._groups, self._blocked = {}, set()
        self._look_at_cuts()

    def passes(self, src: PeerId, dst: PeerId) -> bool:
        """Does what `src` sends get to `dst`?"""
        if self._roaming and (src in self._roaming or dst in self._roaming):
            return False
        if self._blocked and (src, dst) in self._blocked:
            return False
        groups = self._groups
        return not groups or src not in groups or dst not in groups or groups[src] == groups[dst]

    def meets(self, a: PeerId, b: PeerId) -> bool:
        """Would one of the two get through to the other with a Hello?"""
        both = self._hosts.is_awake(a) and self._hosts.is_awake(b) and {a, b} - self.undialable
        return bool(both) and self.passes(a, b) and self.passes(b, a)

    def off(self, peer: PeerId, *, silent: bool = False) -> None:
        """The device is off. Silent, as in a power cut: no word of it comes from its kernel."""
        self._undelivered = {pair: kept for pair, kept in self._undelivered.items() if pair[0] != peer}
        self._wanted = {link for link in self._wanted if link[0] != peer}
        for stream in self._streams_of(peer):
            stream.up.discard(peer)
            self._ends.pop((peer, stream.other(peer), stream.direction(peer)), None)
            delay = self._random.uniform(*NOTICED_S) if silent else self.latency()
            self._timeline.at(delay, self._end, stream, stream.other(peer), "the other end is gone")

    def on(self, peer: PeerId) -> None:
        """The device is on again: it knows nothing of streams that the others still hold open."""
        for end, stream in list(self._ends.items()):
            if end[1] == peer and peer not in stream.up:
                self._timeline.at(self.latency(), self._end, stream, end[0], "the other end has restarted")

    def froze(self, peer: PeerId) -> None:
        """The device stands still: its streams end at the others if it does so for long."""
        for stream in self._streams_of(peer):
            self._timeline.at(self._random.uniform(*FROZEN_S), self._thaw, stream, peer)

    def roam(self, peer: PeerId, arrived: Callable[[], None]) -> None:
        """The device goes where it has another address: its streams end, at the others' ends later."""
        for stream in self._streams_of(peer):
            stream.broken = True
            self._timeline.at(
                self._random.uniform(*NOTICED_S), self._end, stream, stream.other(peer), "silent"
            )
            self._timeline.at(self._random.uniform(*ROAMING_S), self._lose_address, stream, peer)
        self._roaming.add(peer)
        self._timeline.at(self._random.uniform(*ROAMING_S), self._arrived, peer, arrived)

    def _lose_address(self, stream: Stream, peer: PeerId) -> None:
        self._end(stream, peer, "its address is gone", silent=True)

    def _arrived(self, peer: PeerId, then: Callable[[], None]) -> None:
        self._roaming.discard(peer)
        then()

    # --- for the node's effects ----------------------------------------------------------------------

    def connect(self, me: PeerId, peer: PeerId, direction: Direction) -> None:
        self._wanted.add((me, peer, direction))
        self._redial((me, peer, direction), self.latency())

    def disconnect(self, me: PeerId, peer: PeerId, direction: Direction) -> None:
        self._wanted.discard((me, peer, direction))
        stream = self._ends.get((me, peer, direction))
        if stream is not None:
            self._end(stream, me, "disconnected")

    def has_stream(self, me: PeerId, peer: PeerId, direction: Direction) -> bool:
        """May a frame sent now get anywhere?"""
        stream = self._ends.get((me, peer, direction))
        return stream is not None and not stream.broken

    def send(self, me: PeerId, peer: PeerId, direction: Direction, frame: Frame) -> None:
        stream = self._ends.get((me, peer, direction))
        if stream is None or stream.broken:
            return
        if stream.held[me] or (stream.cut and not self.passes(me, peer)):
            stream.held[me].append(frame)
        else:
            self._transmit(stream, me, frame)

    def tell(self, me: PeerId, peer: PeerId, message: Control) -> None:
        """A call with a control message; what is told to one whose call is being heard is the answer."""
        if self._answers.get((me, peer), message) is None:
            self._answers[me, peer] = message
            return
        if peer in self.undialable or self._random.random() < self.weather.loss:
            if not isinstance(message, Probe):
                kept = self._undelivered.setdefault((me, peer), {})
                kept[type(message)] = (self._timeline.now + CALL_S, message)
            return
        since = self._cuts.get((min(me, peer), max(me, peer)))
        if since is not None and self._timeline.now - since > NOTICED_S[1]:
            return  # where nothing comes back, no new connection can be made
        for _ in self._copies():
            self._timeline.at(self._control_s(), self._call, me, peer, message, self._timeline.now)

    # --- control calls -------------------------------------------------------------------------------

    def _control_s(self) -> float:
        overtaken = self.weather.reorder and self._random.random() < self.weather.reorder
        return self.latency() + (self._random.uniform(*OVERTAKEN_S) if overtaken else 0.0)

    def _copies(self) -> range:
        duplicate = self.weather.duplicate
        return range(2 if duplicate and self._random.random() < duplicate else 1)

    def _call(self, src: PeerId, dst: PeerId, message: Control, since: float) -> None:
        if self._hosts.is_on(dst) and self.passes(src, dst):
            self._hosts.when_awake(dst, lambda: self._hear(src, dst, message, since))

    def _hear(self, src: PeerId, dst: PeerId, message: Control, since: float) -> None:
        self._answers[dst, src] = None
        self._hosts.feed(dst, Told(src, message))
        answer = self._answers.pop((dst, src))
        if answer is None and self._undelivered:
            answer = self._take_undelivered(dst, src)
        if self._random.random() >= self.weather.loss:
            self._timeline.at(self._control_s(), self._answered, src, dst, answer, since)

    def _take_undelivered(self, me: PeerId, peer: PeerId) -> Control | None:
        """What did not get through to `peer`, known as failed by now and not too old."""
        now, kept = self._timeline.now, self._undelivered.get((me, peer), {})
        for kind, (failed_at, message) in list(kept.items()):
            if failed_at <= now:
                del kept[kind]
                if now - failed_at <= UNDELIVERED_S:
                    return message
        return None

    def _answered(self, caller: PeerId, by: PeerId, answer: Control | None, since: float) -> None:
        in_time = self._timeline.now - since <= CALL_S
        if in_time and self._hosts.is_on(caller) and self.passes(by, caller):
            self._hosts.feed(caller, Measured(by, self._timeline.now - since))
            self._hosts.feed(caller, Told(by, answer) if answer is not None else Progress(by, "out"))

    # --- streams -------------------------------------------------------------------------------------

    def _streams_of(self, peer: PeerId) -> list[Stream]:
        return [stream for end, stream in self._ends.items() if end[0] == peer]

    def _redial(self, link: Link, delay_s: float) -> None:
        if link in self._wanted and link not in self._dialing:
            self._dialing.add(link)
            self._timeline.at(delay_s, self._dial, link, self.weather.redial_s)

    def _dial(self, link: Link, pause_s: float) -> None:
        me, peer, direction = link
        if link not in self._wanted or link in self._ends:
            self._dialing.discard(link)
            return
        awake = self._hosts.is_awake(me) and self._hosts.is_awake(peer) and peer not in self.undialable
        through = awake and self.passes(me, peer) and self.passes(peer, me)
        if not through or self._random.random() < self.weather.loss:
            self._timeline.at(pause_s, self._dial, link, min(1.6 * pause_s, REDIAL_MOST_S))
            return
        self._dialing.discard(link)
        self._begin(me, peer, direction)

    def _begin(self, me: PeerId, peer: PeerId, direction: Direction) -> None:
        """`me` has got through: the other end knows first."""
        there = OTHER_END[direction]
        old = self._ends.get((peer, me, there))
        if old is not None:
            self._end(old, peer, "replaced by a newer stream")
        stream = Stream(me, peer) if direction == "out" else Stream(peer, me)
        self._ends[me, peer, direction] = self._ends[peer, me, there] = stream
        stream.arrival[me] = self._timeline.now + self.latency()
        self._timeline.when(stream.arrival[me], self._up, stream, me)
        self._up(stream, peer)

    def _up(self, stream: Stream, end: PeerId) -> None:
        if end in stream.up:
            stream.known.add(end)
            self._hosts.feed(end, StreamUp(stream.other(end), stream.direction(end)))

    def _end(self, stream: Stream, end: PeerId, reason: str, *, silent: bool = False) -> None:
        """The stream is over at this end, and soon at the other if word of it gets there."""
        if end not in stream.up:
            return
        other, direction = stream.other(end), stream.direction(end)
        stream.up.discard(end)
        stream.broken = True
        if self._ends.get((end, other, direction)) is stream:
            del self._ends[end, other, direction]
        if end in stream.known and self._hosts.is_on(end):
            self._hosts.feed(end, StreamDown(other, direction, reason))
        if other in stream.up and not silent and self.passes(end, other):
            self._timeline.at(self.latency(), self._end, stream, other, reason)
        self._redial((end, other, direction), self.weather.redial_s)

    def _thaw(self, stream: Stream, frozen: PeerId) -> None:
        if not self._hosts.is_awake(frozen):
            self._end(stream, stream.other(frozen), "the other end does not answer")

    def _transmit(self, stream: Stream, src: PeerId, frame: Frame) -> None:
        weather = self.weather
        if self._random.random() < weather.loss:
            self.frames_lost += 1
            stream.broken = True
            for end in (src, stream.other(src)):
                self._timeline.at(self.latency(), self._end, stream, end, "frame lost")
            return
        dst = stream.other(src)
        parcel = isinstance(frame, Parcel)
        for _ in self._copies() if parcel else range(1):
            delay = self.latency()
            if weather.bandwidth_bps:
                delay += self._moving_s(stream, src, frame)
            stream.arrival[dst] = max(stream.arrival[dst], self._timeline.now + delay)
            self._timeline.when(stream.arrival[dst], self._arrive, stream, src, frame)

    def _moving_s(self, stream: Stream, src: PeerId, frame: Frame) -> float:
        """How long until the frame has left: parcels queue for their device's uplink, the rest is small."""
        if not isinstance(frame, Parcel):
            return 8 * FRAME_BYTES / self.weather.bandwidth_bps
        now = self._timeline.now
        begins = max(self._uplink_free.get(src, 0.0), now)
        ends = begins + 8 * (len(frame.payload) + FRAME_BYTES) / self.weather.bandwidth_bps
        self._uplink_free[src] = ends
        # streams share an uplink, so that what waits here for others moves a little there
        for second in range(1, int((ends - now) / PROGRESS_S) + 1):
            self._timeline.at(second * PROGRESS_S, self._progress, stream, src)
        return ends - now

    def _progress(self, stream: Stream, src: PeerId) -> None:
        dst = stream.other(src)
        if stream.up == {src, dst} and self.passes(src, dst) and self.passes(dst, src):
            self._hosts.feed(src, Progress(dst, stream.direction(src)))
            self._hosts.feed(dst, Progress(src, stream.direction(dst)))

    def _arrive(self, stream: Stream, src: PeerId, frame: Frame) -> None:
        dst = stream.other(src)
        if dst not in stream.up:
            return
        if not self.passes(src, dst):
            stream.broken = True  # what comes behind it cannot arrive; the cut ends the stream
            self.frames_lost += 1
            return
        self._hosts.feed(dst, FrameHeard(src, stream.direction(dst), frame))

    # --- cuts ----------------------------------------------------------------------------------------

    def _look_at_cuts(self) -> None:
        """Reachability has changed: begin or end the cuts of streams and of pairs."""
        now, before = self._timeline.now, self._cuts
        self._cuts = {pair: before.get(pair, now) for pair in self._cut_pairs()}
        for stream in list(dict.fromkeys(self._ends.values())):
            pair = (min(stream.sender, stream.receiver), max(stream.sender, stream.receiver))
            if pair in self._cuts and not stream.cut:
                self._serial += 1
                stream.cut = self._serial
                for end in sorted(stream.up):
                    noticed_s = self._random.uniform(*NOTICED_S)
                    self._timeline.at(noticed_s, self._give_up, stream, end, stream.cut)
            elif pair not in self._cuts and stream.cut:
                stream.cut = 0
                self._go_on(stream)

    def _cut_pairs(self) -> Iterator[tuple[PeerId, PeerId]]:
        for a, b in self._blocked:
            yield min(a, b), max(a, b)
        groups = sorted(self._groups)
        for place, a in enumerate(groups):
            yield from ((a, b) for b in groups[place + 1 :] if self._groups[a] != self._groups[b])

    def _give_up(self, stream: Stream, end: PeerId, cut: int) -> None:
        if stream.cut == cut:
            self._end(stream, end, "the network is silent")

    def _go_on(self, stream: Stream) -> None:
        """The cut is healed: TCP repeats what it has held back, or tells an end that the other is gone."""
        whole = not stream.broken and len(stream.up) == 2
        for end in sorted(stream.up):
            delay = self._random.uniform(*REPEAT_S)
            if whole:
                self._timeline.at(delay, self._repeat, stream, end)
            else:
                self._timeline.at(delay, self._end, stream, end, "the other end is gone")

    def _repeat(self, stream: Stream, src: PeerId) -> None:
        if stream.cut or stream.broken:
            return
        held, stream.held[src] = stream.held[src], []
        for frame in held:
            if not stream.broken:
                self._transmit(stream, src, frame)
