"""One session on this device: a node, its transport and discovery, and its learner, composed and driven.

    transport, discovery, learner, clock --event--> Node.handle --effect--> transport, learner, log

The descriptor may be unknown at first: then the driver looks for a member, whose Hello carries it, and only
then is there a node and a learner. Everything happens on one event loop, one event after another; `now` is
its clock."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from peer import catalogue
from peer.config import Descriptor, JoinOptions
from peer.daemon import farewells, health
from peer.daemon.clocks import SuspendWatch
from peer.daemon.effects import perform
from peer.daemon.figures import Figures
from peer.daemon.finding import Finder, announced_on
from peer.daemon.health import ALONE_ROUNDS
from peer.daemon.joining import take_over
from peer.daemon.learning import Learning
from peer.daemon.logs import session_name
from peer.daemon.store import SessionFolder, check_task
from peer.daemon.this_device import ThisDevice
from peer.daemon.turns import Turns
from peer.errors import ConfigError, PeerdError, StateError, UsageError
from peer.events import (
    Block,
    Deliver,
    Dispose,
    ForLearner,
    Gone,
    LearnerGone,
    Leave,
    LinkUp,
    Measured,
    Met,
    Moved,
    PeerId,
    Record,
    Resumed,
    Spent,
    SponsorMe,
    StartOver,
    Tell,
    Tick,
    ToLearner,
)
from peer.mesh import transport as mesh
from peer.mesh.budget import Spending
from peer.mesh.discovery import Discovery
from peer.mesh.frames import Begin
from peer.mesh.greeting import Introduction
from peer.mesh.identity import SessionIdentity
from peer.mesh.node import Node, NodeEvent
from peer.mesh.stream import Buffer, Intake
from peer.mesh.terms import Terms
from peer.placing import Placing
from peer.shared_buffer import Reserve, overlaps
from peer.status import SessionState, SessionStatus

log = logging.getLogger(__name__)

GONE_S = 30.0  # for leaving politely: the node gives up on the hand-over by itself after 10 s
DRIVER_BITS = 24  # changes of its record that one driver may tell: a change a second for half a year (guess)
MEASURED_TICKS = 20  # round-trip times are told to the node every 5 s (guess)
PARCEL_SLACK = 1 << 20  # bytes on top of 16 per parameter: the longest parcel taken (fp64, twice over)


class SessionDriver:
    """`start`, then `turns.attach` a learner; `leave` or the session's end takes everything down.

    `linked` and `ended` are events to wait on: both ends of a first link are up (or it trains already);
    nothing runs any more. `changed` is set with each of them, and with `failure`."""

    def __init__(
        self, folder: SessionFolder, device: ThisDevice, blocked: frozenset[PeerId] = frozenset()
    ) -> None:
        self.folder, self.name, self.options = folder, folder.note.name, folder.options
        self.descriptor: Descriptor | None = None
        self.node: Node | None = None
        self.discovery: Discovery | None = None
        self.failure: PeerdError | None = None
        self.linked, self.ended, self.changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.first_link_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        identity = SessionIdentity(folder.key, device.key, folder.path)
        self._beacon_key = identity.beacon_key
        incarnation = (device.boot << 20) + (next(device.drivers) << DRIVER_BITS)
        instance = device.instance
        self._me = Record(device.key.id, device.boot, incarnation, device=device.name, instance=instance)
        self.figures = Figures(folder.path)
        self.spending = Spending(self.options.bytes_per_min)
        self._control_bytes = 0  # of messages that were no frames, as the spending knows of them
        rng = random.Random(f"{device.key.id} {device.boot}")
        self.reserve = Reserve()  # memory for parcels that come, and of those the learner sends
        intake = Intake(self._longest_parcel, self.reserve.make, self._coming)
        insecure = self.options.insecure
        self.transport = mesh.Transport(identity, self._introduction, self._on_event, intake, rng, insecure)
        self.finder = Finder(self.transport, self.options.peers, self._knows, self.transport.learn)
        self.learning = Learning(
            self, self.figures, lambda died: device.supervisor(self.name, died), device.threads
        )
        self.turns = Turns(self, self.learning, owned=device.owned)
        self._suspends = SuspendWatch()
        self._silence: asyncio.Task[None] | None = None  # of a copy of a running device
        self._went = asyncio.Event()  # the node has said goodbye
        self._gone: Gone | None = None
        self._leaving: Leave | None = None
        self.blocked = blocked
        for peer in blocked:  # a node is told when there is one
            self.transport.block(peer)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve, announce, look for members. Raises PortError; DataError when the task file is missing."""
        session_name.set(self.name)
        self._me = replace(self._me, task_digest=self.folder.task_digest)
        if self.folder.descriptor is not None:
            check_task(self.folder.descriptor, self.folder)
        port = await self.transport.start(self.options.listen)
        on = announced_on(self.options)
        self.discovery = Discovery(
            self._beacon_key, self._me.peer, port, on, self.finder.sighted, self._on_moved
        )
        if self.folder.descriptor is not None:
            self._adopt(self.folder.descriptor)
        await self.discovery.start()
        self.finder.start()
        self.spawn(self._tick())
        log.info("listening", extra={"port": port})

    async def leave(self, *, pause: bool) -> None:
        """Hand over, say goodbye, take everything down. Safe to call twice."""
        session_name.set(self.name)
        self._leaving = self._leaving or Leave(pause)
        if self.node is not None and self._gone is None and self.failure is None:
            self.feed(self._leaving)
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_S):
                    await self.ended.wait()
        await self._take_down()

    async def _take_down(self) -> None:
        """Stop learner, discovery and transport, in this order: what is on its way still arrives."""
        await self.learning.stop()
        if self._silence is not None:
            await self._silence  # half stopped, the rest could not be stopped any more
        await self.finder.stop()
        if self.discovery is not None:
            await self.discovery.stop()
        await self.transport.stop()
        self.reserve.close()
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
            self.changed.set()
            self.spawn(self.learning.stop())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run beside everything else until the session is taken down; what it raises fails the session."""
        task = self._loop.create_task(work)
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
        self.figures.local_steps, self.figures.placing = descriptor.local_steps, Placing.of(descriptor)
        terms = Terms(
            topology=descriptor.topology,
            seed=descriptor.seed,
            lockstep=descriptor.pace != "free",
            rounds=descriptor.rounds,
            founder=self.folder.note.founder,
            graph=catalogue.algorithm(descriptor.algorithm).graph,
        )
        me = replace(self._me, incarnation=self._me.incarnation + 1)
        self.transport.disconnect_all()  # opened by those who knew this device before; nobody heard of it
        self.node = Node(me, terms, farewells.kept(self.folder), self.spending)
        self.learning.begin(has_task=descriptor.task != catalogue.SCRIPT)
        self.feed(Block(self.blocked))
        self.turns.start()

    def _consider(self, met: Met) -> None:
        """A member has said Hello. Take its descriptor if there is none here yet."""
        said = self.transport.introduction(met.record.peer)
        if self.descriptor is not None or said is None or not said.descriptor or self.failure is not None:
            return
        try:
            descriptor = take_over(said.descriptor, self.folder)
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            self.transport.contacts.of(met.record.peer).reject("its descriptor makes no sense")
            self.fail(ConfigError(f"the descriptor that {met.record.peer} sent makes no sense: {error}"))
        except PeerdError as error:
            self.fail(error)
        else:
            self._adopt(descriptor)

    def _introduction(self) -> Introduction:
        """What this device says of itself in Hello."""
        me = self.node.members.me if self.node is not None else self._me
        if self.descriptor is None:
            return Introduction(me)
        return Introduction(me, self.descriptor.id, self.descriptor.canonical(), self.learning.signature)

    # --- options given anew ------------------------------------------------------------------------------

    def set_budget(self, options: JoinOptions) -> None:
        """Hold another budget from now on, if these options name one. Raises StateError, UsageError."""
        if options.budget is not None:
            if self.descriptor is not None:
                catalogue.check_budget(self.descriptor.algorithm, options.budget)
            # nothing was counted while there was no budget
            self._control_bytes = self.transport.contacts.control_bytes_sent()
            self._keep(budget=options.budget)
            self.spending.limit(self.options.bytes_per_min)

    def set_manners(self, options: JoinOptions) -> None:
        """Other quiet hours and manners from now on, if these options name any. Raises StateError."""
        asked = {"quiet_hours": options.quiet_hours, "manners": options.manners}
        if any(asked.values()):
            self._keep(**{name: value for name, value in asked.items() if value is not None})

    def _keep(self, **changes: Any) -> None:
        self.folder.save_options(replace(self.folder.options, **changes))
        self.options = self.folder.options

    # --- events in, effects out --------------------------------------------------------------------------

    def _on_event(self, event: mesh.Event) -> None:
        """From the transport."""
        session_name.set(self.name)
        if isinstance(event, Met):
            self._consider(event)
        self.feed(event)
        if isinstance(event, Met):
            self.learning.check_model()
            if self.descriptor is not None and self.learning.scripted and self.learning.end is None:
                self._linked()  # more comes of it when the script is there

    def _on_moved(self, addresses: tuple[str, ...]) -> None:
        self._me = replace(self._me, addresses=addresses)
        self.feed(Moved(addresses))

    async def _tick(self) -> None:
        for ticks in itertools.count():
            self.feed(Tick())
            if ticks % MEASURED_TICKS == 0:
                self._tell_measured()
            self.reserve.tidy()
            await asyncio.sleep(Node.tick_s)

    def _tell_measured(self) -> None:
        for contact in list(self.transport.contacts):
            if contact.rtt_s is not None:
                self.feed(Measured(contact.peer, contact.rtt_s))

    def feed(self, event: NodeEvent) -> None:
        """Let the node handle an event, and do what it asks for."""
        suspended_s = self._suspends.suspended()
        if self.node is None or self.node.members.yields:
            return
        self._count_control(self.node)
        if suspended_s:
            self._handle(self.node, Resumed(suspended_s))
        self._handle(self.node, event)
        if self.node.members.yields:
            self.fail(StateError(health.copied(*self.node.members.copies[self._me.peer])))
            self._silence = self._loop.create_task(self._fall_silent())
            self._silence.add_done_callback(self._reap)

    def _count_control(self, node: Node) -> None:
        """Tell the node what control messages have cost, where that is of interest."""
        if self.spending.bytes_per_min is None:
            return
        sent = self.transport.contacts.control_bytes_sent()
        if sent > self._control_bytes:
            self._handle(node, Spent(sent - self._control_bytes))
        self._control_bytes = sent

    async def _fall_silent(self) -> None:
        """A copy of this device has run for longer: whatever this one says would be taken for that one's."""
        await self.finder.stop()
        if self.discovery is not None:
            await self.discovery.stop()
        await self.transport.stop()

    def _handle(self, node: Node, event: NodeEvent) -> None:
        for effect in node.handle(event, self._loop.time()):
            if isinstance(effect, ForLearner):
                self._command(effect.command)
            elif isinstance(effect, Gone):
                self._on_gone(effect)
            elif isinstance(effect, StartOver):
                if self.learning.end is not None:
                    self.learning.end.ask_to_start_over()
            elif isinstance(effect, Tell) and isinstance(effect.message, SponsorMe):
                self.spawn(self.learning.ask_for_mass(effect.peer, effect.message))
            else:
                perform(effect, self.transport)
        if node.phase == "training":
            self._note_progress(node)

    def _command(self, command: ToLearner) -> None:
        if isinstance(command, LinkUp):
            self._linked()
        self.figures.commanded(command)
        if self.learning.end is not None:
            self.learning.end.send(command)

    def _coming(self, src: PeerId, begin: Begin, buffer: Buffer, filled: int) -> None:
        """So much of a long parcel is here."""
        if self.learning.end is not None and overlaps():
            parcel = Deliver(src, begin.epoch, begin.number, begin.key, buffer, begin.delivery)
            self.learning.end.coming(parcel, filled)

    def _note_progress(self, node: Node) -> None:
        """It trains: for one that joined, that counts as a first link; company ends being the founder."""
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
        self._went.set()
        log.info("gone: %s", gone.reason)
        assert self.node is not None
        farewells.keep(self.folder, self.node)
        if gone.reason == "finished":
            self.folder.mark(over=True, finished=True)
            self.spawn(self._take_down())
        elif self._leaving is None:
            if self.learning.end is not None:
                self.learning.end.ask_to_stop()  # a script waits for this: its mass is handed over
            self._start_over()
        else:
            self._signal(self.ended)

    def learner_lost(self, reason: str) -> None:
        """Its mass is lost with it. A founder without company so far was all there is: it founds anew."""
        self.feed(LearnerGone(reason))
        if self.folder.note.founder and not self.is_going:
            self._start_over()

    def _start_over(self) -> None:
        """A new node waits for the next learner: a script has left, or the founder's learner is lost."""
        assert self.node is not None
        me, said = self.node.members.me, self.node.farewells()
        self.figures.node_ends(self.node)
        self.transport.disconnect_all()  # streams that stay would never be told to the new node
        for effect in self.node.links.learner_gone():
            if isinstance(effect, Dispose):
                perform(effect, self.transport)
        self._me, self._gone = replace(me, state="alive", incarnation=me.incarnation + 1), None
        others = [record for record in self.node.members.alive() if record.peer != me.peer]
        terms = replace(self.node.terms, founder=self.folder.note.founder)
        self.node = Node(self._me, terms, said, self.spending)
        self.feed(Block(self.blocked))
        for record in others:
            self.feed(Met(record))

    def block(self, peers: frozenset[PeerId]) -> None:
        """Have nothing to do with these devices from now on, and with all others again."""
        session_name.set(self.name)
        before, self.blocked = self.blocked, peers
        self.feed(Block(peers))
        for peer in peers - before:
            self.transport.block(peer)
        for peer in before - peers:
            self.transport.unblock(peer)

    # --- the learner -------------------------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Give this learner's mass to a neighbor, for another takes its place."""
        if self.node is not None and self.node.phase == "training":
            self._went.clear()
            self.feed(Leave(pause=True))
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_S):
                    await self._went.wait()

    def attachable(self) -> Descriptor:
        """What there is for a learner to learn. Raises UsageError when there is nothing."""
        if self.failure is not None:
            raise self.failure
        if self.descriptor is None or self.is_going:
            state = "waits for a first member" if self.descriptor is None else f"is {self.state}"
            state = "is being left" if self._leaving is not None and self._gone is None else state
            raise UsageError(f"session '{self.name}' {state}; 'peerd join {self.name}' takes it up")
        return self.descriptor

    def _longest_parcel(self) -> int:
        return 16 * (self.figures.parameters or 0) + PARCEL_SLACK

    # --- questions ---------------------------------------------------------------------------------------

    def _knows(self, peer: PeerId) -> bool:
        """Is this peer a member that is alive, or one that is not to be dialed?"""
        if peer in self.blocked:
            return True
        return self.node is not None and any(r.peer == peer for r in self.node.members.alive())

    def has_met(self) -> bool:
        return any(contact.introduction is not None for contact in self.transport.contacts)

    @property
    def is_going(self) -> bool:
        """Is this device leaving the session, or gone from it?"""
        return self._leaving is not None or self._gone is not None

    @property
    def state(self) -> SessionState:
        if self.failure is not None:
            return "failed"
        if self._gone is not None:
            return "paused" if self._gone.reason == "paused" else "stopped"
        if self.turns.rests:
            return "paused"
        node = self.node
        if node is None or node.phase != "training" or not node.company:
            return "waiting"
        if len(node.members.view()) < 2 or node.rounds.alone >= ALONE_ROUNDS:
            return "alone"
        return "training"

    def status(self) -> SessionStatus:
        known = self.descriptor or self.folder.descriptor  # one that could not start is known all the same
        fields = self.figures.status(self._loop.time(), known, self.node, self.transport)
        fields["learner_restarts"] = self.learning.supervisor.restarts
        identifier = known.id if known is not None else None
        if self._gone is not None:  # nobody listens here any more: that the others are not heard says nothing
            fields["links"] = tuple(replace(link, state="left") for link in fields["links"])
        return SessionStatus(name=self.name, id=identifier, state=self.state, **fields, **self.turns.status())
