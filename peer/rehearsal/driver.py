"""A session of many simulated devices in virtual time.

One heap of timed events; one seeded generator for everything that is left to chance. A device is a `Node` and
an `Exchange`, exactly as on a real one; its training thread is a function from model to change that takes
`step_s` of virtual time. What the network does to them is in network.py.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from peer.events import (
    FINAL,
    Closed,
    Connect,
    Control,
    Disconnect,
    Effect,
    Farewell,
    ForLearner,
    Frame,
    FromLearner,
    Gone,
    LearnerGone,
    Leave,
    Looked,
    Met,
    Moved,
    Note,
    PeerId,
    Ready,
    Record,
    Send,
    Sketched,
    Spent,
    StartOver,
    Tell,
    Tick,
    ToLearner,
)
from peer.learner.exchange import Exchange, Resume
from peer.learner.look import mixes
from peer.learner.projection import project, tag_of
from peer.mesh.budget import Spending
from peer.mesh.frame_bytes import control_bytes
from peer.mesh.node import Node, NodeEvent
from peer.mesh.terms import Terms
from peer.rehearsal.network import Network
from peer.rehearsal.network import Weather as Weather
from peer.rehearsal.timeline import Timeline
from peer.sketch import pack

Train = Callable[[PeerId, Tensor, int], tuple[Tensor, float] | Tensor]  # with the learning rate, else 1
MakeExchange = Callable[[PeerId, Resume | None], Exchange]
TICK = Tick()
MEET_AGAIN_S = 5.0  # two that cannot reach each other hear of each other again after this; guess


@dataclass(slots=True, eq=False)
class Device:
    """One simulated device. `node` is None while it is off. backlog: what waits until it wakes."""

    peer: PeerId
    boot: int
    node: Node
    exchange: Exchange
    model: Tensor | None = None
    checkpoint: Resume | None = None
    older: deque[Resume] = field(default_factory=deque)  # checkpoints, the newest last
    computing: bool = False
    done: tuple[Tensor, float, float] | None = None  # of local steps, while no round is open for it
    alive: bool = True
    left: str = ""
    rounds: int = 0
    lives: int = 1
    farewells: dict[PeerId, Farewell] = field(default_factory=dict)
    spending: Spending = field(default_factory=Spending)
    inbox: deque[NodeEvent] = field(default_factory=deque)
    busy: bool = False
    asleep: bool = False
    backlog: list[Callable[[], None]] = field(default_factory=list)


class Witness:
    """Sees a rehearsal while it runs; override what is wanted."""

    def told(self, device: Device, command: ToLearner) -> None:
        """What the node tells its learner, before the learner hears it."""

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        """What the learner tells its node, before the node hears it; `device.model` is the newest."""

    def sent(self, device: Device, frame: Frame) -> None:
        """A frame goes out on a stream that is up, again or for the first time."""

    def called(self, device: Device, message: Control) -> None:
        """A control message goes out, as a call or an answer."""


class Rehearsal:
    """`add` devices, let time pass with `run`, and do to them what happens to devices.

    keep_checkpoints: so many of the last of each device can be gone back to by `add`.
    """

    def __init__(
        self,
        terms: Terms,
        make_exchange: MakeExchange,
        train: Train,
        *,
        weather: Weather | None = None,
        step_s: Callable[[PeerId], float] = lambda _: 1.0,
        seed: int = 0,
        keep_checkpoints: int = 1,
        overlap: bool = False,
        witness: Witness | None = None,
        sketch_every: int = 0,
    ) -> None:
        """step_s: of a round's local steps; infinite for a device that is to take no more. overlap: the next
        ones begin while a round's exchange goes its way, from this device's own model. sketch_every: so many
        rounds each learner makes a sketch of its model; 0: never, for here all models can be looked at."""
        self.terms, self.seed = terms, seed
        self.devices: dict[PeerId, Device] = {}
        self.notes: list[tuple[float, PeerId, Note]] = []
        self._make_exchange, self._train, self._step_s = make_exchange, train, step_s
        self._witness = witness or Witness()
        self._keep_checkpoints, self._overlap = keep_checkpoints, overlap
        self._sketch_every = sketch_every
        self._random = random.Random(seed)
        self._timeline = Timeline()
        self._at = self._timeline.at
        self.network = Network(self._timeline, self, weather or Weather(), self._random)

    @property
    def now(self) -> float:
        return self._timeline.now

    @property
    def weather(self) -> Weather:
        return self.network.weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self.network.weather = weather

    @property
    def frames_lost(self) -> int:
        return self.network.frames_lost

    # --- what happens to devices -----------------------------------------------------------------

    def add(
        self,
        peer: PeerId,
        *,
        founder: bool = False,
        checkpoint_age: int = 0,
        bytes_per_min: int | None = None,
    ) -> Device:
        """Switch a device on: for the first time, or again after `crash` (then as a new life), with its last
        checkpoint or one so many rounds older. bytes_per_min: its budget; None: none, or as before."""
        old = self.devices.get(peer)
        assert old is None or not old.alive, f"{peer} is on"
        boot = old.boot + 1 if old else 1
        checkpoint = old.checkpoint if old else None
        if old and checkpoint_age and old.older:
            checkpoint = old.older[max(-len(old.older), -1 - checkpoint_age)]
        record = Record(peer, boot, boot << 20, device=peer, addresses=(f"{peer}:1",))
        terms = replace(self.terms, founder=founder)
        farewells = old.farewells if old else {}
        spending = old.spending if old else Spending()
        spending.limit(bytes_per_min or spending.bytes_per_min)
        device = Device(
            peer, boot, Node(record, terms, farewells, spending), self._make_exchange(peer, checkpoint),
            checkpoint=checkpoint, older=deque(maxlen=self._keep_checkpoints), farewells=farewells,
            spending=spending,
        )  # fmt: skip
        self.devices[peer] = device
        self.network.on(peer)
        self._meet_all(device)
        round_ = checkpoint.round if checkpoint else -1
        self._feed(device, Ready((boot << 20) + 1, round_, device.exchange.algorithm.bases))
        self._tick(device)
        return device

    def crash(self, peer: PeerId, *, silent: bool = False) -> None:
        """Kill it; silent: pull the plug, so that its kernel cannot tell anybody either."""
        device = self.devices[peer]
        device.alive = False
        self._off(device, silent=silent)

    def leave(self, peer: PeerId, *, pause: bool = False) -> None:
        self._feed(self.devices[peer], Leave(pause))

    def pause(self, peer: PeerId, seconds: float) -> None:
        """It stands still (SIGSTOP, suspend); what comes in meanwhile waits in its buffers."""
        device = self.devices[peer]
        if device.asleep or not device.alive:
            return
        device.asleep = True
        self.network.froze(peer)
        self._at(seconds, self._wake, device)

    def move(self, peer: PeerId) -> None:
        """It gets another address: streams break, and all meet it again there."""
        device = self.devices[peer]
        self.network.roam(peer, partial(self._moved, device))

    def partition(self, groups: Sequence[AbstractSet[PeerId]]) -> None:
        """Cut everything between different groups, until `heal` or the next partition."""
        self.network.partition(groups)

    def heal(self) -> None:
        """End every partition and block. Whoever has not met yet meets soon."""
        self.network.heal()

    def block(self, a: PeerId, b: PeerId, *, both: bool = False) -> None:
        """Nothing that `a` sends gets to `b` any more, until `heal`."""
        self.network.block(a, b, both=both)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Let virtual time pass, until the predicate holds after some event or the time is over."""
        self._timeline.run(seconds, until)

    # --- what can be measured --------------------------------------------------------------------

    def alive(self) -> list[Device]:
        return [device for device in self.devices.values() if device.alive]

    def mass(self) -> tuple[Tensor, float]:
        """Sum of x and of w over the live devices and the parcels in flight between them."""
        x, w = None, 0.0
        for device in self.alive():
            algorithm = copy.deepcopy(device.exchange.algorithm)
            for dst, message in device.exchange.unacknowledged().items():
                if not self.is_applied(device, dst):
                    algorithm.returned(dst, message)
            dx, dw = algorithm.mass()
            x, w = dx if x is None else x + dx, w + dw
        assert x is not None
        return x, w

    def is_applied(self, device: Device, dst: PeerId) -> bool:
        """Has the receiver taken the parcel that `device` still keeps for it? One that crashed took what it
        had applied along; what it had not is the sender's still."""
        for parcel in device.node.links.ledger():
            if parcel.dst == dst and parcel.number > 0:
                mine = (device.node.life, parcel.epoch, parcel.number)
                before = self.devices[dst].farewells.get(device.peer)
                said = (before.life, before.epoch, before.applied) if before else (0, 0, 0)
                return max(said, self.devices[dst].node.links.applied(device.peer)) >= mine
        return False

    # --- as the network sees them ----------------------------------------------------------------

    def is_on(self, peer: PeerId) -> bool:
        device = self.devices.get(peer)
        return device is not None and device.alive

    def is_awake(self, peer: PeerId) -> bool:
        device = self.devices.get(peer)
        return device is not None and device.alive and not device.asleep

    def feed(self, peer: PeerId, event: NodeEvent) -> None:
        self._feed(self.devices[peer], event)

    def when_awake(self, peer: PeerId, action: Callable[[], None]) -> None:
        self._when_awake(self.devices[peer], action)

    # --- the machinery ---------------------------------------------------------------------------

    def _meet_all(self, device: Device) -> None:
        for other in list(self.devices.values()):
            if other.alive and other is not device:
                self._at(self.network.latency(), self._meet, device, other)

    def _meet(self, a: Device, b: Device) -> None:
        if not self._is_on(a) or not self._is_on(b) or {a.peer, b.peer} <= self.network.undialable:
            return
        if self.network.meets(a.peer, b.peer):
            self._feed(a, Met(b.node.members.me))
            self._feed(b, Met(a.node.members.me))
        else:
            self._at(MEET_AGAIN_S, self._meet, a, b)

    def _moved(self, device: Device) -> None:
        if self._is_on(device):
            here = device.node.members.me.addresses[0].partition(":")
            self._feed(device, Moved((f"{here[0]}:{int(here[2]) + 1}",)))
            self._meet_all(device)

    def _is_on(self, device: Device) -> bool:
        return device.alive and self.devices.get(device.peer) is device

    def _tick(self, device: Device) -> None:
        if self._is_on(device):
            if device.asleep:
                device.backlog.append(partial(self._tick, device))
                return
            self._feed(device, TICK)
            self._at(device.node.tick_s, self._tick, device)

    def _when_awake(self, device: Device, action: Callable[[], None]) -> None:
        if device.asleep:
            device.backlog.append(action)
        else:
            action()

    def _wake(self, device: Device) -> None:
        backlog, device.backlog, device.asleep = device.backlog, [], False
        for action in backlog:
            if self._is_on(device):
                action()

    def _feed(self, device: Device, *events: NodeEvent) -> None:
        """Events into a device, and everything that follows from them inside the device, in order."""
        if device.asleep:
            device.backlog.append(partial(self._feed, device, *events))
            return
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
                self._locally(device, partial(self._tell_learner, device, command))
            case Send(peer, direction, frame):
                if self.network.has_stream(device.peer, peer, direction):
                    self._witness.sent(device, frame)
                self.network.send(device.peer, peer, direction, frame)
            case Tell(peer, message):
                self._witness.called(device, message)
                if device.spending.bytes_per_min is not None:
                    device.inbox.append(Spent(control_bytes(message)))
                self.network.tell(device.peer, peer, message)
            case Connect(peer, direction):
                self.network.connect(device.peer, peer, direction)
            case Disconnect(peer, direction):
                self.network.disconnect(device.peer, peer, direction)
            case Note():
                self.notes.append((self.now, device.peer, effect))
            case StartOver():
                self._at(0.0, lambda: self._start_over(device) if self._is_on(device) else None)
            case Gone(reason):
                device.alive, device.left = False, reason
                device.farewells = device.node.farewells()
                self._off(device)

    def _start_over(self, device: Device) -> None:
        """The learner begins a new life; the node stays."""
        device.lives += 1
        device.computing, device.done = False, None
        device.exchange, device.model = self._make_exchange(device.peer, device.checkpoint), None
        self._feed(device, LearnerGone("it starts over"))
        life = (device.boot << 20) + device.lives
        round_ = device.checkpoint.round if device.checkpoint else -1  # kept if nobody has another model
        self._feed(device, Ready(life, round_, device.exchange.algorithm.bases))

    def _look(self, device: Device) -> None:
        look = device.exchange.take_look()
        if look is not None:
            near = mixes(device.exchange.estimate(), look.model)
            self._locally(device, lambda: self._feed(device, Looked(look.peer, look.round, near)))

    def _sketch(self, device: Device, model: Tensor, round_: int) -> None:
        if not self._sketch_every or round_ % self._sketch_every:
            return
        session = f"rehearsal {self.seed}"
        body = pack(project(model, session))
        if body is not None:
            made = Sketched(round_, tag_of(session, b""), body)
            self._locally(device, lambda: self._feed(device, made))

    def _tell_learner(self, device: Device, command: ToLearner) -> None:
        self._witness.told(device, command)
        self._answer(device, device.exchange.handle(command, self.now))

    def _answer(self, device: Device, events: Iterable[FromLearner]) -> None:
        events = tuple(events)
        model = device.exchange.take()
        if model is not None:
            device.model, device.rounds = model, device.rounds + 1
            own = device.exchange.algorithm.own()
            device.checkpoint = Resume(model, device.exchange.key.round, own)
            device.older.append(device.checkpoint)
        self._witness.said(device, events)
        self._locally(device, lambda: self._feed(device, *events))
        closed = next((event for event in events if isinstance(event, Closed)), None)
        if model is not None and closed is not None:
            self._sketch(device, model, closed.key.round)
        self._look(device)
        self._go_on(device)

    def _go_on(self, device: Device) -> None:
        """The training thread: hand over what is done, if a round is open for it; begin the next steps."""
        exchange, done = device.exchange, device.done
        if done is not None and exchange.open and device.model is not None:
            device.done, device.model = None, device.model + done[0]
            u, lr, worked_s = done
            self._answer(device, exchange.submit(u, lr, self.now, worked_s))
        ahead = self._overlap and exchange.state == "training" and exchange.key.phase != FINAL
        waits = device.computing or device.done is not None
        if device.model is not None and not waits and (exchange.open or ahead):
            device.computing = True
            takes_s = self._step_s(device.peer)
            begun = device.model, exchange.position, takes_s
            self._at(takes_s, self._computed, device, exchange, begun)

    def _computed(self, device: Device, exchange: Exchange, begun: tuple[Tensor, int, float]) -> None:
        if device.asleep:
            device.backlog.append(partial(self._computed, device, exchange, begun))
            return
        if exchange is not device.exchange:
            return  # the learner has started over under this step
        device.computing = False
        open_ = exchange.open or (self._overlap and exchange.state == "training")
        if not self._is_on(device) or not open_ or device.model is None:
            return
        z, round_, worked_s = begun
        if not self._overlap:
            z, round_ = device.model, exchange.key.round
        found = self._train(device.peer, z, round_)
        u, lr = found if isinstance(found, tuple) else (found, 1.0)
        if self._overlap:
            device.done = u, lr, worked_s
            self._go_on(device)
        else:
            self._answer(device, exchange.submit(u, lr, self.now, worked_s))

    def _locally(self, device: Device, action: Callable[[], None]) -> None:
        """Over the socket between node and learner, which keeps order."""
        if self.weather.local_s:
            self._at(self.weather.local_s, self._if_on, device, device.exchange, action)
        else:
            action()

    def _if_on(self, device: Device, exchange: Exchange, action: Callable[[], None]) -> None:
        if self._is_on(device) and device.exchange is exchange:  # a learner's socket ends with it
            self._when_awake(device, action)

    def _off(self, device: Device, silent: bool = False) -> None:
        device.inbox.clear()
        device.backlog.clear()
        device.asleep = False
        self.network.off(device.peer, silent=silent)


def quadratics(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Minimisers b_i of n quadratics |z - b_i|^2 / 2, and their mean: a task whose answer is known."""
    generator = torch.Generator().manual_seed(seed)
    minimisers = torch.randn(n, dim, generator=generator, dtype=dtype)
    return minimisers, minimisers.mean(0)
