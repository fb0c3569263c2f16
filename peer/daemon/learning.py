"""One session's learner on this device: which process it is, what it says, and whether its model fits.

The child is started by the daemon and restarted when it dies. A user's script that attaches takes its
place: the child is told to stop, and none is started again until the next `join` or the daemon's next
start.

A learner whose link thread says nothing for SILENT_S is stopped, or hangs where no other thread can run.
A child is killed and started again; a script is its user's, and is reported. One that only waits, for its
data or for the others, goes on saying that it lives, and is left alone."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

from peer.daemon.figures import Figures
from peer.daemon.learner_end import LearnerEnd
from peer.daemon.signatures import first_difference
from peer.daemon.supervisor import HOPELESS, Supervisor
from peer.errors import DataError, PeerdError, UsageError, by_exit_code
from peer.events import Closed, FromLearner, Leave, PeerId, Push, Pushed, Ready, Sketched, SponsorMe
from peer.local import Connection, Frame
from peer.mesh.frames import ROUNDS
from peer.mesh.greeting import Signature
from peer.mesh.node import Node, NodeEvent
from peer.mesh.transport import Transport
from peer.sketch import TAG_BYTES, is_body

log = logging.getLogger(__name__)

LOG_S = 0.1  # between two lines about rounds: small models alone do hundreds in a second (guess)
SILENT_S = 120.0  # a task that reads much data at once may keep the interpreter for itself (guess)
LOOK_S = 10.0  # between two looks for that; it takes two, for the daemon may have stood still, too
ADMIT_S = 5.0  # to hear the members' model signatures before a learner may be seated (guess)


class Owner(Protocol):
    """What a learner needs of its session."""

    name: str
    transport: Transport
    node: Node | None

    def feed(self, event: NodeEvent) -> None: ...
    async def hand_over(self) -> None: ...
    def learner_lost(self, reason: str) -> None: ...
    def fail(self, error: PeerdError) -> None: ...
    def spawn(self, work: Any) -> None: ...


class Learning:
    """`end`: the learner that is attached. `scripted`: a user's script has taken the child's place, or is to.
    `signature`: of the model it trains."""

    def __init__(
        self,
        owner: Owner,
        figures: Figures,
        supervisor: Callable[[Callable[[int], bool]], Supervisor],
        threads: Callable[[], int | None],
    ) -> None:
        self.end: LearnerEnd | None = None
        self.scripted = False
        self._has_task = True  # a session for scripts has none that a child could train
        self.signature: Signature | None = None
        self.wanted = True  # False from the session's end on: a child that dies stays dead
        self._logged_at = -math.inf
        self._threads = threads
        self._owner = owner
        self._figures = figures
        self.supervisor = supervisor(self._on_death)
        self._loop = asyncio.get_running_loop()
        self._asking: set[PeerId] = set()

    def begin(self, *, has_task: bool) -> None:
        """The session is known, and with it whether a child could train in it."""
        self._has_task = has_task
        self.scripted = self.scripted or not has_task

    @property
    def needs_script(self) -> bool:
        """Is there nothing that trains here but scripts?"""
        return not self._has_task

    async def serve(self, connection: Connection, end: LearnerEnd, welcome: Frame) -> None:
        """Be this learner's session until its connection ends. welcome: the "attached" frame. Call after
        `make_way`."""
        self.end = end
        connection.send(welcome)
        log.info("a learner is attached", extra={"pid": end.pid, "life": end.life})
        watching = self._loop.create_task(self._watch(end))
        try:
            reason = await end.serve(self)
        finally:
            watching.cancel()
        if self.end is end:
            self._lost(str(end.failure) if end.failure is not None else reason)
        if end.failure is not None and end.failure.exit_code in HOPELESS:
            self._owner.fail(end.failure)

    def silent_s(self, now: float) -> float:
        """For how long the learner has said nothing, if long enough to be taken for a fault; else 0."""
        heard_at = self.end.heard_at if self.end is not None else None
        silent_s = now - heard_at if heard_at is not None else 0.0
        return silent_s if silent_s > SILENT_S else 0.0

    async def _watch(self, end: LearnerEnd) -> None:
        """End a child that has fallen silent; its supervisor starts another."""
        silent_before = False
        while end.child:
            await asyncio.sleep(LOOK_S)
            silent_s = self.silent_s(self._loop.time())
            if silent_s and silent_before:
                log.error(
                    "the learner has said nothing for %.0f s and is killed", silent_s, extra={"pid": end.pid}
                )
                self.supervisor.kill()
                return
            silent_before = bool(silent_s)

    async def stop(self) -> None:
        """Ask it to stop, and see to it that it does."""
        self.wanted = False
        end = self.end
        if end is not None:
            end.ask_to_stop()
        await self.supervisor.stop()
        if end is not None:
            end.close()

    async def rest(self) -> None:
        """End our own learner until the supervisor is started again. One that trains hands its mass over
        first."""
        old = self.end
        await self._hand_over(old)
        self._let_go(old, "this device pauses")

    async def make_way(self, end: LearnerEnd) -> None:
        """End the learner that is attached, if there is one. One that trains hands its mass over first."""
        old = self.end
        if old is not None and not old.child and not end.child:
            raise UsageError(
                f"a script (pid {old.pid}) trains in '{self._owner.name}' already; end that one first"
            )
        self.scripted = not end.child
        if self.scripted:
            await self._hand_over(old)
        self._let_go(old, "another learner takes its place")

    async def _hand_over(self, old: LearnerEnd | None) -> None:
        if old is not None:
            await self._owner.hand_over()
            old.ask_to_stop()
        await self.supervisor.stop()

    def _let_go(self, old: LearnerEnd | None, reason: str) -> None:
        if old is not None and self.end is old:
            old.close()
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._figures.interrupted()
        self.end = self.signature = None
        self._owner.learner_lost(reason)

    # --- what a learner says ---------------------------------------------------------------------------

    def on_learner_event(self, event: FromLearner) -> None:
        if isinstance(event, Ready):
            self._owner.spawn(self._admit(event))
            return
        if isinstance(event, Push):
            self._figures.pushed(event)
        if isinstance(event, Pushed):
            self._figures.held_back(event)
        if isinstance(event, Closed):
            self._figures.closed(event, self._loop.time())
            self._log_round(event)
        self._owner.feed(event)

    def _log_round(self, event: Closed) -> None:
        """A line for each round, but not for every one of a crowd."""
        now = self._loop.time()
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            heard = ",".join(event.heard) or "nobody"
            log.info(
                "round closed", extra={"peer": heard, "round": event.key.round, "loss": self._figures.loss}
            )

    def on_report(self, frame: Frame) -> None:
        self._figures.report(frame, self._loop.time())
        if self.end is not None and self.end.child and (threads := self._threads()) is not None:
            self.end.use_threads(threads)  # learners come and go
        if self.end is not None and isinstance(minds := frame.get("manners"), bool):
            self.end.minds = minds
        digest, text = frame.get("signature"), frame.get("signature_list")
        if isinstance(digest, bytes) and len(digest) == 32:
            self.signature = Signature(digest, text if isinstance(text, bytes) else b"")
        if (sketched := sketch_of(frame)) is not None:
            self._owner.feed(sketched)

    def on_learner_leaves(self) -> None:
        """A script ends politely: its mass goes to a neighbor, the session stays."""
        self._owner.feed(Leave(pause=True))

    def _on_death(self, code: int) -> bool:
        """The child is dead. May it be started again?"""
        if code in HOPELESS:
            said = f"the learner ended with code {code}; 'peerd logs {self._owner.name}' says why"
            self._owner.fail(by_exit_code(code, said))
        return self.wanted

    # --- does its model fit? ---------------------------------------------------------------------------

    async def _admit(self, ready: Ready) -> None:
        """Exchange model signatures with the members before the learner may get mass."""
        transport = self._owner.transport
        known = [contact.peer for contact in transport.contacts if contact.introduction is not None]
        refreshed = [self._loop.create_task(transport.refresh(peer)) for peer in known]
        if refreshed:
            await asyncio.wait(refreshed, timeout=ADMIT_S)
        if self.end is not None and self.end.life == ready.life and self.check_model():
            self._owner.feed(ready)

    async def ask_for_mass(self, peer: PeerId, ask: SponsorMe) -> None:
        """Of a member whose model is like ours. One that cannot be reached is not asked twice at a time."""
        if peer in self._asking:
            return
        self._asking.add(peer)
        try:
            fits, node = await self._fits(peer), self._owner.node
        finally:
            self._asking.discard(peer)
        still = node is not None and node.phase == "seeking" and ask == SponsorMe(node.life)
        if fits and still:
            self._owner.transport.tell(peer, ask)

    async def _fits(self, peer: PeerId) -> bool:
        """Is the model of this member, which trains, known to be like ours? It is asked anew unless it is."""
        if not self._is_like_ours(peer):  # it began to train, or with another model, after its last Hello
            await self._owner.transport.refresh(peer)
        return self.check_model() and self._is_like_ours(peer)

    def _is_like_ours(self, peer: PeerId) -> bool:
        said, mine = self._owner.transport.introduction(peer), self.signature
        theirs = said.signature if said is not None else None
        return mine is not None and theirs is not None and theirs.sha256 == mine.sha256

    def check_model(self) -> bool:
        """Is this model like those that the members train? If not, the session has failed here."""
        node = self._owner.node
        if self.signature is None or node is None or node.phase == "training":
            return True
        for record in node.members.alive():
            said = self._owner.transport.introduction(record.peer)
            if record.phase != "training" or said is None or said.signature is None:
                continue
            if said.signature.sha256 != self.signature.sha256:
                self._owner.fail(DataError(first_difference(self.signature.text, said.signature.text)))
                return False
        return True


def sketch_of(frame: Frame) -> Sketched | None:
    """The sketch in a learner's report, if there is one; what is none is left out."""
    round_, layout, body = (frame.get(name) for name in ("sketch_round", "sketch_layout", "sketch"))
    if not isinstance(round_, int) or not 0 <= round_ < ROUNDS:
        return None
    if not isinstance(layout, bytes) or len(layout) != TAG_BYTES:
        return None
    if not isinstance(body, bytes) or not is_body(body):
        return None
    return Sketched(round_, layout, body)
