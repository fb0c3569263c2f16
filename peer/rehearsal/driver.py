"""A session of many simulated devices in virtual time.

One heap of timed events; one seeded generator for latency, loss and duplicates. A device is a `Node` and an
`Exchange`, exactly as on a real one; its training thread is a function from model to change that takes
`step_s` of virtual time. Streams keep order, as TCP does: a lost frame breaks its stream, and everything
behind it is lost too until the node has it opened again.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peer.events import (
    Connect,
    Control,
    Direction,
    Disconnect,
    Effect,
    Farewell,
    ForLearner,
    Frame,
    FrameHeard,
    FromLearner,
    Gone,
    Leave,
    Met,
    Note,
    Parcel,
    PeerId,
    Progress,
    Ready,
    Record,
    Send,
    StreamDown,
    StreamUp,
    Tell,
    Tick,
    Told,
)
from peer.learner.exchange import Exchange
from peer.mesh.node import Node, NodeEvent, Terms

Train = Callable[[PeerId, Tensor, int], tuple[Tensor, float] | Tensor]  # with the learning rate, else 1
MakeExchange = Callable[[PeerId, tuple[Tensor, int] | None], Exchange]


@dataclass(frozen=True, slots=True)
class Weather:
    """The network's faults. latency_s: uniform range per frame; loss, duplicate: probability per frame;
    bandwidth_bps: of each device's uplink, 0 without a limit.

    local_s: each way between a device's node and its learner. Above 0, `mass` may count a parcel twice
    while the learner's word that it has taken it is on its way.
    """

    latency_s: tuple[float, float] = (0.005, 0.05)
    local_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    redial_s: float = 0.2
    bandwidth_bps: float = 0.0


@dataclass(slots=True, eq=False)
class _Stream:
    sender: PeerId
    receiver: PeerId
    up: bool = True
    arrival: dict[PeerId, float] = field(default_factory=dict)  # last arrival time, by who sends the frame

    def other(self, peer: PeerId) -> PeerId:
        return self.receiver if peer == self.sender else self.sender


@dataclass(slots=True, eq=False)
class Device:
    """One simulated device. `node` is None while it is off."""

    peer: PeerId
    boot: int
    node: Node
    exchange: Exchange
    model: Tensor | None = None
    checkpoint: tuple[Tensor, int] | None = None
    computing: bool = False
    alive: bool = True
    left: str = ""
    rounds: int = 0
    farewells: dict[PeerId, Farewell] = field(default_factory=dict)
    inbox: deque[NodeEvent] = field(default_factory=deque)
    busy: bool = False


class Witness:
    """Sees a rehearsal while it runs; override what is wanted."""

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        """What the learner tells its node, before the node hears it; `device.model` is the newest."""

    def sent(self, device: Device, frame: Frame) -> None:
        """A frame goes out on a stream that is up, again or for the first time."""


class Rehearsal:
    """`add` devices, let time pass with `run`, and do to them what happens to devices."""

    def __init__(
        self,
        terms: Terms,
        make_exchange: MakeExchange,
        train: Train,
        *,
        weather: Weather | None = None,
        step_s: Callable[[PeerId], float] = lambda _: 1.0,
        seed: int = 0,
        witness: Witness | None = None,
    ) -> None:
        """step_s: of a round's local steps; infinite for a device that is to take no more."""
        self.terms, self.weather = terms, weather or Weather()
        self.now, self.seed = 0.0, seed
        self.devices: dict[PeerId, Device] = {}
        self.notes: list[tuple[float, PeerId, Note]] = []
        self.frames_lost = 0
        self._make_exchange, self._train, self._step_s = make_exchange, train, step_s
        self._witness = witness or Witness()
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._streams: dict[tuple[PeerId, PeerId], _Stream] = {}
        self._wanted: set[tuple[PeerId, PeerId, Direction]] = set()
        self._groups: dict[PeerId, int] = {}
        self._uplink_free: dict[PeerId, float] = {}

    # --- what happens to devices -----------------------------------------------------------------

    def add(self, peer: PeerId, *, founder: bool = False) -> Device:
        """Switch a device on: for the first time, or again after `crash` (then as a new life)."""
        old = self.devices.get(peer)
        boot = old.boot + 1 if old else 1
        checkpoint = old.checkpoint if old else None
        record = Record(peer, boot, boot << 20, device=peer, addresses=(f"{peer}:1",))
        terms = Terms(
            self.terms.topology, self.terms.seed, self.terms.lockstep, self.terms.rounds, founder=founder
        )
        farewells = old.farewells if old else {}
        device = Device(
            peer, boot, Node(record, terms, farewells), self._make_exchange(peer, checkpoint),
            checkpoint=checkpoint, farewells=farewells,
        )  # fmt: skip
        self.devices[peer] = device
        for other in list(self.devices.values()):
            if other.alive and other is not device:
                self._at(self._latency(), lambda o=other: self._meet(device, o))  # type: ignore[misc]
        round_ = checkpoint[1] if checkpoint else -1
        self._feed(device, Ready((boot << 20) + 1, round_, device.exchange.algorithm.bases))
        self._tick(device)
        return device

    def crash(self, peer: PeerId) -> None:
        """Pull the plug."""
        device = self.devices[peer]
        device.alive = False
        self._off(device)

    def leave(self, peer: PeerId, *, pause: bool = False) -> None:
        self._feed(self.devices[peer], Leave(pause))

    def partition(self, groups: Sequence[AbstractSet[PeerId]]) -> None:
        """Cut everything between different groups, until `heal` or the next partition."""
        self._groups = {peer: number for number, group in enumerate(groups) for peer in group}
        for stream in list(self._streams.values()):
            if not self._passes(stream.sender, stream.receiver):
                self._hang_up(stream, "cut")

    def heal(self) -> None:
        self._groups = {}

    def _passes(self, a: PeerId, b: PeerId) -> bool:
        return self._groups.get(a) == self._groups.get(b)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass, until the predicate holds after some event or the time is over."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            if until():
                return
        self.now = end

    # --- what can be measured --------------------------------------------------------------------

    def alive(self) -> list[Device]:
        return [device for device in self.devices.values() if device.alive]

    def mass(self) -> tuple[Tensor, float]:
        """Sum of x and of w over the live devices and the parcels in flight between them."""
        x, w = None, 0.0
        for device in self.alive():
            algorithm = copy.deepcopy(device.exchange.algorithm)
            for dst, message in device.exchange.unacknowledged().items():
                if not self._applied(device, dst):
                    algorithm.returned(dst, message)
            dx, dw = algorithm.mass()
            x, w = dx if x is None else x + dx, w + dw
        assert x is not None
        return x, w

    def _applied(self, device: Device, dst: PeerId) -> bool:
        """Has the receiver taken the parcel that `device` still keeps for it? One that crashed took what it
        had applied along; what it had not is the sender's still."""
        for parcel in device.node.links.ledger():
            if parcel.dst == dst and parcel.number > 0:
                mine = (device.node.life, parcel.epoch, parcel.number)
                before = self.devices[dst].farewells.get(device.peer)
                said = (before.life, before.epoch, before.applied) if before else (0, 0, 0)
                return max(said, self.devices[dst].node.links.applied(device.peer)) >= mine
        return False

    # --- the machinery ---------------------------------------------------------------------------

    def _at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def _latency(self) -> float:
        return self._random.uniform(*self.weather.latency_s)

    def _meet(self, a: Device, b: Device) -> None:
        if self._is_on(a) and self._is_on(b):
            self._feed(a, Met(b.node.members.me))
            self._feed(b, Met(a.node.members.me))

    def _is_on(self, device: Device) -> bool:
        return device.alive and self.devices.get(device.peer) is device

    def _tick(self, device: Device) -> None:
        if self._is_on(device):
            self._feed(device, Tick())
            self._at(device.node.tick_s, lambda: self._tick(device))

    def _feed(self, device: Device, *events: NodeEvent) -> None:
        """Events into a device, and everything that follows from them inside the device, in order."""
        device.inbox.extend(events)
        if device.busy:
            return  # further up the stack somebody is emptying the inbox
        device.busy = True
        while device.inbox:
            event = device.inbox.popleft()
            if self._is_on(device):
                for effect in device.node.handle(event, self.now):
                    self._perform(device, effect)
        device.busy = False

    def _perform(self, device: Device, effect: Effect) -> None:
        match effect:
            case ForLearner(command):
                self._locally(device, lambda: self._answer(device, device.exchange.handle(command, self.now)))
            case Connect(peer, direction):
                self._wanted.add((device.peer, peer, direction))
                self._at(self._latency(), lambda: self._dial(device, peer, direction))
            case Disconnect(peer, direction):
                self._wanted.discard((device.peer, peer, direction))
                self._hang_up(self._stream(device.peer, peer, direction), "disconnected")
            case Send(peer, direction, frame):
                if self._stream(device.peer, peer, direction) is not None:
                    self._witness.sent(device, frame)
                self._send(device, peer, direction, frame)
            case Tell(peer, message):
                if self._random.random() >= self.weather.loss:
                    self._at(self._latency(), lambda: self._tell(device.peer, peer, message))
            case Note():
                self.notes.append((self.now, device.peer, effect))
            case Gone(reason):
                device.alive, device.left = False, reason
                device.farewells = device.node.farewells()
                self._at(0.0, lambda: self._off(device))

    def _answer(self, device: Device, events: Iterable[FromLearner]) -> None:
        events = tuple(events)
        model = device.exchange.take()
        if model is not None:
            device.model, device.rounds = model, device.rounds + 1
            device.checkpoint = (model, device.exchange.key.round)
        self._witness.said(device, events)
        self._locally(device, lambda: self._feed(device, *events))
        if device.exchange.open and not device.computing and device.model is not None:
            device.computing = True
            self._at(self._step_s(device.peer), lambda: self._computed(device))

    def _computed(self, device: Device) -> None:
        device.computing = False
        if not self._is_on(device) or not device.exchange.open or device.model is None:
            return
        found = self._train(device.peer, device.model, device.exchange.key.round)
        u, lr = found if isinstance(found, tuple) else (found, 1.0)
        self._answer(device, device.exchange.submit(u, lr, self.now))

    def _locally(self, device: Device, action: Callable[[], None]) -> None:
        """Over the socket between node and learner, which keeps order."""
        if self.weather.local_s:
            self._at(self.weather.local_s, lambda: action() if self._is_on(device) else None)
        else:
            action()

    # --- streams ---------------------------------------------------------------------------------

    def _ends(self, me: PeerId, peer: PeerId, direction: Direction) -> tuple[PeerId, PeerId]:
        return (me, peer) if direction == "out" else (peer, me)

    def _stream(self, me: PeerId, peer: PeerId, direction: Direction) -> _Stream | None:
        return self._streams.get(self._ends(me, peer, direction))

    def _dial(self, device: Device, peer: PeerId, direction: Direction) -> None:
        if (device.peer, peer, direction) not in self._wanted or not self._is_on(device):
            return
        if self._stream(device.peer, peer, direction) is not None:
            return
        other = self.devices.get(peer)
        if (
            other is None
            or not other.alive
            or not self._passes(device.peer, peer)
            or self._random.random() < self.weather.loss
        ):
            self._at(self.weather.redial_s, lambda: self._dial(device, peer, direction))
            return
        sender, receiver = self._ends(device.peer, peer, direction)
        self._streams[sender, receiver] = _Stream(sender, receiver)
        self._feed(self.devices[receiver], StreamUp(sender, "in"))
        self._feed(self.devices[sender], StreamUp(receiver, "out"))

    def _hang_up(self, stream: _Stream | None, reason: str) -> None:
        if stream is None or not stream.up:
            return
        stream.up = False
        del self._streams[stream.sender, stream.receiver]
        self._at(0.0, lambda: self._told_down(stream.sender, StreamDown(stream.receiver, "out", reason)))
        self._at(0.0, lambda: self._told_down(stream.receiver, StreamDown(stream.sender, "in", reason)))

    def _told_down(self, peer: PeerId, event: StreamDown) -> None:
        device = self.devices[peer]
        if not self._is_on(device):
            return
        if self._stream(peer, event.peer, event.direction) is None:
            self._feed(device, event)
        if (peer, event.peer, event.direction) in self._wanted:
            self._at(self.weather.redial_s, lambda: self._dial(device, event.peer, event.direction))

    def _send(self, device: Device, peer: PeerId, direction: Direction, frame: Frame) -> None:
        stream = self._stream(device.peer, peer, direction)
        if stream is None:
            return
        if self._random.random() < self.weather.loss:
            self.frames_lost += 1
            self._hang_up(stream, "frame lost")
            return
        twice = isinstance(frame, Parcel) and self._random.random() < self.weather.duplicate
        for _ in range(2 if twice else 1):
            delay = self._latency()
            if self.weather.bandwidth_bps and isinstance(frame, Parcel):
                begins = max(self._uplink_free.get(device.peer, 0.0), self.now)
                ends = begins + 8 * len(frame.payload) / self.weather.bandwidth_bps
                self._uplink_free[device.peer] = ends
                delay += ends - self.now
            arrival = max(stream.arrival.get(device.peer, 0.0), self.now + delay)
            stream.arrival[device.peer] = arrival
            self._at(arrival - self.now, lambda: self._arrive(stream, device.peer, direction, frame))

    def _arrive(self, stream: _Stream, src: PeerId, direction: Direction, frame: Frame) -> None:
        device = self.devices[stream.other(src)]
        if stream.up and self._is_on(device):
            self._feed(device, FrameHeard(src, "in" if direction == "out" else "out", frame))

    def _tell(self, src: PeerId, dst: PeerId, message: Control) -> None:
        device = self.devices.get(dst)
        if device is not None and device.alive and self._passes(src, dst):
            self._feed(device, Told(src, message))
            self._at(self._latency(), lambda: self._answered(src, dst))

    def _answered(self, src: PeerId, dst: PeerId) -> None:
        device = self.devices[src]
        if self._is_on(device):
            self._feed(device, Progress(dst, "out"))  # that the call went through is a sign of life

    def _off(self, device: Device) -> None:
        device.inbox.clear()
        for stream in list(self._streams.values()):
            if device.peer in (stream.sender, stream.receiver):
                self._hang_up(stream, "the other end is gone")
        self._wanted = {wish for wish in self._wanted if wish[0] != device.peer}


def quadratics(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Minimisers b_i of n quadratics |z - b_i|^2 / 2, and their mean: a task whose answer is known."""
    generator = torch.Generator().manual_seed(seed)
    minimisers = torch.randn(n, dim, generator=generator, dtype=dtype)
    return minimisers, minimisers.mean(0)
