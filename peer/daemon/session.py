"""One session on this device: a node, its transport and discovery, and its learner, composed and driven.

    transport, discovery, learner, clock --event--> Node.handle --effect--> transport, learner, log

The descriptor may be unknown at first: then the driver looks for a member, whose Hello carries it, and only then is
there a node and a learner. Everything happens on one event loop, one event after another; `now` is its clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from peer.config import Descriptor, JoinOptions
from peer.daemon.figures import Figures
from peer.daemon.finding import Finder
from peer.daemon.learner_end import LearnerEnd
from peer.daemon.logs import session_name
from peer.daemon.signatures import first_difference
from peer.daemon.store import SessionFolder, check_task
from peer.daemon.supervisor import HOPELESS, Supervisor
from peer.errors import ConfigError, DataError, PeerdError, UsageError, by_exit_code
from peer.events import (
    Closed,
    Connect,
    Deliver,
    Disconnect,
    Dispose,
    Effect,
    ForLearner,
    FromLearner,
    Gone,
    LearnerGone,
    Leave,
    LinkUp,
    Met,
    Moved,
    Note,
    OpenRound,
    PeerId,
    Reach,
    Ready,
    Record,
    Send,
    Tell,
    Tick,
)
from peer.local import Connection, Frame
from peer.mesh import transport as mesh
from peer.mesh.discovery import Discovery
from peer.mesh.greeting import Introduction, Signature
from peer.mesh.identity import Device, SessionIdentity
from peer.mesh.node import Node, NodeEvent, Terms
from peer.mesh.stream import Intake
from peer.shared_buffer import SharedBuffer
from peer.status import SessionState, SessionStatus

log = logging.getLogger(__name__)

ADMIT_S = 5.0  # to hear the members' model signatures before a learner may be seated (guess)
GONE_S = 30.0  # for leaving politely: the node gives up on the hand-over by itself after 10 s
ALONE_ROUNDS = 3  # closed alone in a row: shown as "alone"
PARCEL_SLACK = 1 << 20  # bytes on top of 16 per parameter: the longest parcel taken (fp64, twice over)


@dataclass(frozen=True, slots=True)
class Seat:
    """Who drives: this device's key, its name for people, and how often its daemon has started."""

    device: Device
    name: str
    boot: int


class SessionDriver:
    """`start`, then `attach` a learner; `leave` or the session's end takes everything down.

    `described`, `linked` and `ended` are events to wait on: the descriptor is known; both ends of a first link are
    up (or it trains already); nothing runs any more.
    """

    def __init__(
        self, folder: SessionFolder, seat: Seat, supervisor: Callable[[SessionDriver], Supervisor]
    ) -> None:
        self.folder, self.seat = folder, seat
        self.name = folder.note.name
        self.options: JoinOptions = folder.options
        self.descriptor: Descriptor | None = None
        self.figures = Figures()
        self.node: Node | None = None
        self.learner: LearnerEnd | None = None
        self.discovery: Discovery | None = None
        self.failure: PeerdError | None = None
        self.scripted = False  # a user's script has taken the child's place
        self.described, self.linked, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.changed = asyncio.Event()  # set whenever one of the three is, or `failure`
        self.supervisor = supervisor(self)
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self.first_link_s: float | None = None
        rng = random.Random(f"{seat.device.id} {seat.boot}")
        identity = SessionIdentity(folder.key, seat.device, folder.path)
        self.transport = mesh.Transport(
            identity, self._introduction, self._on_event, Intake(self._longest_parcel, SharedBuffer.create), rng,
            self.options.insecure,
        )  # fmt: skip
        self.finder = Finder(self.transport, self.options.peers, self._knows, self.transport.learn)
        self._beacon_key = identity.beacon_key
        self._me = Record(
            seat.device.id, seat.boot, seat.boot << 20, device=seat.name, task_digest=folder.task_digest
        )
        self._signature: Signature | None = None
        self._gone: Gone | None = None
        self._leaving: Leave | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve, announce, look for members. Raises PortError, or DataError for a task file that is missing."""
        session_name.set(self.name)
        if self.folder.descriptor is not None:
            check_task(self.folder.descriptor, self.folder)
        port = await self.transport.start(self.options.listen)
        interfaces = self._interfaces()
        discovery = Discovery(
            self._beacon_key, self.seat.device.id, port, interfaces, self.finder.sighted, self._on_moved
        )
        self.discovery = discovery
        if self.folder.descriptor is not None:
            self._adopt(self.folder.descriptor)
        await discovery.start()
        self.finder.start()
        self._spawn(self._tick())
        log.info("listening", extra={"port": port})

    def _interfaces(self) -> tuple[str, ...]:
        """Where to announce: as asked, or the one address listened on, or loopback for a session without TLS."""
        host = (self.options.listen or "").rpartition(":")[0].strip("[]")
        if self.options.interfaces or self.options.insecure:
            return self.options.interfaces or ("lo",)
        return (host,) if host not in ("", "0.0.0.0", "::") else ()

    async def leave(self, *, pause: bool) -> None:
        """Hand over, say goodbye, take everything down. Safe to call twice."""
        session_name.set(self.name)
        self._leaving = self._leaving or Leave(pause)
        if self.node is not None and self._gone is None and self.failure is None:
            self._feed(self._leaving)
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_S):
                    await self.ended.wait()
        await self._take_down()

    async def _take_down(self) -> None:
        """Stop learner, discovery and transport, in this order: what is on its way still arrives."""
        learner = self.learner
        if learner is not None:
            learner.ask_to_stop()
        await self.supervisor.stop()
        if learner is not None:
            learner.close()
        await self.finder.stop()
        if self.discovery is not None:
            await self.discovery.stop()
        await self.transport.stop()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._signal(self.ended)

    def fail(self, error: PeerdError) -> None:
        """This device cannot take part: say so, stop the learner; the session is shown as failed."""
        if self.failure is None:
            self.failure = error
            log.error("%s", error)
            self._signal(self.changed)
            if self.learner is not None:
                self.learner.ask_to_stop()
            self._spawn(self.supervisor.stop())

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]  # coroutines only
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of this session failed", exc_info=error)
            self.fail(error if isinstance(error, PeerdError) else PeerdError(f"internal error: {error!r}"))

    def _signal(self, event: asyncio.Event) -> None:
        event.set()
        self.changed.set()

    # --- the descriptor ----------------------------------------------------------------------------------

    def _adopt(self, descriptor: Descriptor) -> None:
        """The session is known: there is a node from now on, and a learner soon."""
        self.descriptor = descriptor
        terms = Terms(
            topology=descriptor.topology,
            seed=descriptor.seed,
            lockstep=descriptor.pace == "lockstep",
            rounds=descriptor.rounds,
            founder=self.folder.note.founder,
        )
        self.node = Node(replace(self._me, incarnation=0), terms)
        self._signal(self.described)
        self.supervisor.start()

    def _consider(self, met: Met) -> None:
        """A member has said Hello. Take its descriptor if there is none yet, else compare it."""
        said = self.transport.introduction(met.record.peer)
        if self.descriptor is not None or said is None or not said.descriptor or self.failure is not None:
            return
        try:
            descriptor = Descriptor.from_dict(json.loads(said.descriptor))
            if descriptor.name != self.name:
                raise UsageError(
                    f"this key is of the session '{descriptor.name}', not '{self.name}'; "
                    f"run 'peerd join {descriptor.name}'"
                )
            check_task(descriptor, self.folder)
            self.folder.save_descriptor(descriptor)
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            self.fail(ConfigError(f"{met.record.peer} sent a descriptor that cannot be understood: {error}"))
        except PeerdError as error:
            self.fail(error)
        else:
            self._adopt(descriptor)

    def _introduction(self) -> Introduction:
        """What this device says of itself in Hello."""
        me = self.node.members.me if self.node is not None else self._me
        if self.descriptor is None:
            return Introduction(me)
        return Introduction(me, self.descriptor.id, self.descriptor.canonical(), self._signature)

    # --- events in, effects out --------------------------------------------------------------------------

    def _on_event(self, event: mesh.Event) -> None:
        """From the transport."""
        if isinstance(event, Met):
            self._consider(event)
        self._feed(event)
        if isinstance(event, Met) and self.node is not None and self.node.phase == "seeking":
            self._compare_models()

    def _on_moved(self, addresses: tuple[str, ...]) -> None:
        self._me = replace(self._me, addresses=addresses)
        self._feed(Moved(addresses))

    def _feed(self, event: NodeEvent) -> None:
        if self.node is not None:
            for effect in self.node.handle(event, self._loop.time()):
                self._perform(effect)
            if self.node.phase == "training":
                self._note_progress(self.node)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case ForLearner(command):
                if isinstance(command, OpenRound):
                    self.figures.opened(command)
                elif isinstance(command, LinkUp):
                    self._linked()
                if self.learner is not None:
                    self.learner.send(command)
                elif isinstance(command, Deliver):
                    log.warning("a parcel came for a learner that is gone", extra={"peer": command.src})
            case Send(peer, direction, frame):
                self.transport.send(peer, direction, frame)
            case Tell(peer, message):
                self.transport.tell(peer, message)
            case Connect(peer, direction):
                self.transport.connect(peer, direction)
            case Disconnect(peer, direction):
                self.transport.disconnect(peer, direction)
            case Reach(peer, addresses):
                self.transport.learn(peer, addresses)
            case Dispose(payload):
                if isinstance(payload, SharedBuffer):
                    payload.close()
            case Note(text, fields, level):
                levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
                log.log(levels[level], "%s", text, extra={f"{key}": value for key, value in fields.items()})
            case Gone():
                self._on_gone(effect)

    async def _tick(self) -> None:
        while True:
            self._feed(Tick())
            await asyncio.sleep(Node.tick_s)

    def _note_progress(self, node: Node) -> None:
        """It trains: that counts as a first link, and with company as the end of being the founder."""
        if not self.folder.note.founder:
            self._linked()
        elif node.company:
            self.folder.mark(founder=False)

    def _linked(self) -> None:
        if not self.linked.is_set():
            self.first_link_s = self._loop.time() - self.started_at
            self._signal(self.linked)

    def _on_gone(self, gone: Gone) -> None:
        self._gone = gone
        log.info("gone: %s", gone.reason)
        if gone.reason == "finished":
            self.folder.mark(over=True)
            self._spawn(self._take_down())
        elif self.scripted and self._leaving is None:
            self._start_over()
        else:
            self._signal(self.ended)

    def _start_over(self) -> None:
        """A script has left and its daemon stays: a new node waits for the next learner."""
        assert self.node is not None and self.descriptor is not None
        self._me, self._gone = replace(self.node.members.me, state="alive"), None
        self._me = replace(self._me, incarnation=self._me.incarnation + 1)
        records = [record for record in self.node.members.alive() if record.peer != self._me.peer]
        terms, self.node = self.node.terms, None
        self.node = Node(self._me, replace(terms, founder=False))
        for record in records:
            self._feed(Met(record))

    # --- the learner -------------------------------------------------------------------------------------

    async def attach(self, connection: Connection, end: LearnerEnd) -> None:
        """Serve a learner until its connection ends. A script takes the place of the child, a child that of nobody."""
        session_name.set(self.name)
        if self.descriptor is None or self.failure is not None or self._gone is not None:
            raise self.failure or UsageError(f"session '{self.name}' has no member yet that says what it is")
        await self._make_way(end)
        self.learner = end
        descriptor, task = self.descriptor, self.folder.task_file
        connection.send({
            "op": "attached", "life": end.life, "descriptor": descriptor.to_dict(), "options": self.options.to_dict(),
            "folder": str(self.folder.path), "task_file": str(task) if task is not None else None,
        })  # fmt: skip
        log.info("a learner is attached", extra={"pid": end.pid, "life": end.life})
        reason = await end.serve(self)
        if self.learner is end:
            self.learner = None
            self._signature = None
            self._feed(LearnerGone((end.failure and str(end.failure)) or reason))
        if end.failure is not None and end.failure.exit_code in HOPELESS:
            self.fail(end.failure)

    async def _make_way(self, end: LearnerEnd) -> None:
        old = self.learner
        if old is not None and old.child == end.child and not end.child:
            raise UsageError(f"a script (pid {old.pid}) trains in '{self.name}' already; end it first")
        self.scripted = not end.child
        if self.scripted:
            if old is not None:
                old.ask_to_stop()
            await self.supervisor.stop()
        if old is not None and self.learner is old:
            old.close()
            self.learner = None
            self._feed(LearnerGone("another learner takes its place"))

    def on_learner_event(self, event: FromLearner) -> None:
        if isinstance(event, Ready):
            self._spawn(self._admit(event))
            return
        if isinstance(event, Closed) and self.descriptor is not None:
            self.figures.closed(event, self.descriptor.local_steps, self._loop.time())
            log.info(
                "round closed",
                extra={"round": event.key.round, "heard": len(event.heard), "loss": self.figures.loss},
            )
        self._feed(event)

    def on_report(self, frame: Frame) -> None:
        self.figures.report(frame, self._loop.time())
        digest, text = frame.get("signature"), frame.get("signature_list")
        if isinstance(digest, bytes) and len(digest) == 32:
            self._signature = Signature(digest, text if isinstance(text, bytes) else b"")

    def on_learner_leaves(self) -> None:
        """A script ends politely: its mass goes to a neighbor, the session stays."""
        self._feed(Leave(pause=True))

    def on_learner_died(self, code: int) -> bool:
        """The child is dead. May it be started again?"""
        if code in HOPELESS and self.failure is None:
            self.fail(
                by_exit_code(code, f"the learner ended with code {code}; 'peerd logs {self.name}' says why")
            )
        return self.failure is None and self._gone is None and self._leaving is None

    async def _admit(self, ready: Ready) -> None:
        """Exchange model signatures with the members before the learner may get mass."""
        known = [contact.peer for contact in self.transport.contacts if contact.introduction]
        refreshed = [self._loop.create_task(self.transport.refresh(peer)) for peer in known]
        if refreshed:
            await asyncio.wait(refreshed, timeout=ADMIT_S)
        if self.learner is not None and self.learner.life == ready.life and self._compare_models():
            self._feed(ready)

    def _compare_models(self) -> bool:
        """Does this model fit what the members train? If not, the session has failed here."""
        if self._signature is None or self.node is None:
            return True
        for record in self.node.members.alive():
            said = self.transport.introduction(record.peer)
            if record.phase != "training" or said is None or said.signature is None:
                continue
            if said.signature.sha256 != self._signature.sha256:
                self.fail(DataError(first_difference(self._signature.text, said.signature.text)))
                return False
        return True

    def _longest_parcel(self) -> int:
        return 16 * (self.figures.parameters or 0) + PARCEL_SLACK

    # --- questions ---------------------------------------------------------------------------------------

    def _knows(self, peer: PeerId) -> bool:
        """Is this peer a member that is alive?"""
        if self.node is None:
            return False
        return any(record.peer == peer for record in self.node.members.alive())

    def has_met(self) -> bool:
        return any(contact.introduction is not None for contact in self.transport.contacts)

    @property
    def state(self) -> SessionState:
        if self.failure is not None:
            return "failed"
        if self._gone is not None:
            return "paused" if self._gone.reason == "paused" else "stopped"
        node = self.node
        if node is None or node.phase != "training" or not node.company:
            return "waiting"
        if len(node.members.view()) < 2 or node.rounds_alone >= ALONE_ROUNDS:
            return "alone"
        return "training"

    def status(self) -> SessionStatus:
        fields = self.figures.status(self._loop.time(), self.descriptor, self.node, self.transport)
        identifier = self.descriptor.id if self.descriptor is not None else ""
        return SessionStatus(name=self.name, id=identifier, state=self.state, **fields)
