"""`peer.attach`: makes a training script a member of a session. The built-in loop (loop.py) is written on it.

    import peer
    with peer.attach("home", model, optimizer) as swarm:
        for batch in loader:
            loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
            swarm.step()                                   # one exchange every `local_steps` calls
            if swarm.done: break

`swarm.step()` is where the training thread meets the link thread (link.py). Let p be the model's parameters
and b the point they are counted from, the last mixed model z or, but for the pace "lockstep", the last
hand-over:

    hand over  u = p - b          lockstep: wait for z;  p = b = z
                                  free: go on with b = p; when z comes, p += z - b, b = z
                                  overlap: as free, but wait for z before the next hand-over

In lockstep, algorithms that send whole models are handed p and b instead of u, and then b is p until z comes.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from peer import algorithms, catalogue
from peer.algorithms.base import LocalSteps
from peer.compression.bodies import Layout, peak_of
from peer.compression.self_check import check_codecs
from peer.errors import DivergedError, UsageError
from peer.event_frames import to_frame
from peer.events import Looked
from peer.learner.checkpoint import Checkpoint, CheckpointKeeper
from peer.learner.devices import name_of
from peer.learner.dial import Attachment, dial
from peer.learner.exchange import Change, Exchange, Resume
from peer.learner.export import exported
from peer.learner.flat import FlatModel, signature_bytes
from peer.learner.link import Duties, Link
from peer.learner.look import mixes
from peer.learner.memory import with_memory
from peer.learner.own_daemon import OwnDaemon, Where, attach_to
from peer.learner.pulse import Pulse
from peer.learner.rate import ScaledRate
from peer.learner.sketching import Sketching
from peer.placing import Placing

log = logging.getLogger("peerd.learner")
Pace = Literal["lockstep", "overlap", "free"]
PATIENCE = 3  # losses in a row that are not finite before training counts as diverged (guess)
LONGER = 4.0  # times as long a round of this device may take at the most, for manners (guess)
LEAVE_S = 12.0  # for the hand-over of a script that ends: its node gives up on it after 10 s
SIGNATURE_MAX = 256 * 1024  # bytes of the list that devices show each other; of a longer one only the digest


def attach(
    session: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    socket: str | Path | None = None,
    state: str | Path | None = None,
    key: str | None = None,
    start_daemon: bool = True,
    pace: Pace | None = None,
    local_steps: int | None = None,
    manners: bool = False,
) -> Swarm:
    """Train `model` with the other devices of `session`, which this device has created or joined.

    Only `model` is shared, and of it what requires a gradient, with the floating-point buffers: give a part
    of yours to keep the rest at home. Other parameters that the optimizer has stay this device's own.

    Blocks until there is a model to train from (as founder, from a member's snapshot, or after a power cut
    from this device's checkpoint) and loads it into `model`, in place. Use the result in a `with` statement
    and call its `step()` after each `optimizer.step()`.

    socket: the daemon's; None finds it as the command line does. If none runs there, one is started, unless
    `start_daemon` is false: with that state folder, None for the usual one, and for as long as this script,
    or another that found it, trains. Meanwhile it takes up every other session of that folder that was not
    left, too, and trains in it with the session's own task.
    key: joins the session with it if this device does not know it; None takes PEERD_KEY. pace: "free" never
    waits for others, and is what a script gets whatever the session's own pace is, where the algorithm can
    run so; "lockstep", which it gets elsewhere, waits in every exchange, "overlap" for the last one before it
    hands over to the next.
    local_steps: calls of `step()` per exchange; None: the session's, which in a session with an end may place
    its exchanges by its learning rate (peer/placing.py). manners: let `step()` rest, and take fewer local
    steps per exchange, while the device is hot, on battery, or has others that need its processors.
    Raises NoDaemonError, UnknownSessionError, NobodyFoundError for a key that no member is found with,
    DataError when the model does not fit the session, UsageError
    for a pace that its algorithm cannot run in, or CodecCheckError when this machine's libraries are not to
    be trusted with messages.
    """
    check_codecs()
    own = OwnDaemon(Where.of(socket, state), session, may_start=start_daemon)
    try:
        attached = attach_to(own, session, key)
        descriptor = attached.descriptor
        if pace is None:
            pace = "free" if "free" in catalogue.algorithm(descriptor.algorithm).paces else "lockstep"
        steps = local_steps or descriptor.local_steps
        terms = Terms(own.where.socket, pace, steps, manners=manners, daemon=own)
        swarm = Swarm(attached, model, optimizer, terms)
    except BaseException:
        own.close()
        raise
    try:
        swarm.begin()
    except BaseException:
        swarm.close()
        raise
    return swarm


@dataclass(frozen=True)
class Terms:
    """How this learner takes part. child: started by the daemon, and ending with it. manners: it rests as the
    daemon says. daemon: one that a script may start, and that ends with it."""

    socket: Path
    pace: Pace
    local_steps: int
    child: bool = False
    manners: bool = False
    daemon: OwnDaemon | None = None


class Swarm:
    """This script's membership. Attributes: `round`, `finished` (the session's rounds are done), `stopped`
    (this device leaves, or its daemon says stop), `done` (either).

    loss_now: None, or a function that gives the loss on a batch of this device, without a step. By it
    another half's model is judged after a long separation; without it the distance decides.
    on_mixed: None, or what is called with each newly mixed model, while the module is that.
    """

    def __init__(
        self, attached: Attachment, model: nn.Module, optimizer: torch.optim.Optimizer, terms: Terms
    ) -> None:
        self.descriptor, self.options, self.terms = attached.descriptor, attached.options, terms
        self._owned = attached.owned  # its daemon ends with scripts, and may be started by one
        try:
            catalogue.check_pace(self.descriptor.algorithm, terms.pace)
        except UsageError:
            attached.client.close()
            raise
        self._flat, self._optimizer = FlatModel(model), optimizer
        self._rate = ScaledRate(optimizer)
        self._keeper = CheckpointKeeper(attached.folder, self.descriptor.id, self._flat.signature)
        self._base = self._flat.read()
        self._since = 0  # local steps since the last hand-over
        self._placing = Placing.of(self.descriptor)
        self._mass = False
        self._replica_mb: float | None = None  # memory for what is remembered of links
        self._bad = 0
        self.loss_now: Callable[[], float] | None = None  # of the module as it is, on a batch of this device
        self.on_mixed: Callable[[], None] | None = None
        self._pulse = Pulse()
        self._sketching = Sketching(self.descriptor.id, signature_bytes(self._flat.signature))
        self._sketch: dict[str, Any] = {}  # to be told with the next report
        found = self._keeper.found
        self._link = Link(attached, Duties(
            self._exchange, self._export, self._redial, self._introduction(), terms.child
        ), self._base, None if found is None else Resume(found.model, found.round, found.own))  # fmt: skip
        for problem in self._keeper.problems:
            self.log(problem)

    # --- what a script reads ---------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The last exchange that closed; -1 before there was one."""
        return self._link.round

    @property
    def rounds_with_others(self) -> int:
        """Exchanges of this script that closed with what a neighbor sent; the others were closed alone."""
        return self._link.rounds_heard

    @property
    def steps(self) -> int:
        """Local steps of the session so far, those before this device joined included."""
        return self._placing.first(self._position) + self._since

    @property
    def finished(self) -> bool:
        return self._link.state == "finished"

    @property
    def stopped(self) -> bool:
        return self._link.over and not self.finished

    @property
    def done(self) -> bool:
        """No more steps are wanted; leave the loop."""
        return self._link.over

    # --- training --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Wait until there is a model to train from, and load it."""
        link = self._link
        with link.met:
            link.wait(lambda: link.has_mixed() or link.over)
        if self._take() and link.resumed and (problem := self._keeper.restore(self._optimizer)):
            self.log(problem)
        self._keeper.found = None  # there is a newer model now
        if self._mass:
            self._checkpoint()
        self._pulse.start()

    def step(self, loss: float | None = None) -> bool:
        """One local step is done; exchange when it is time. True if the model is now a newly mixed one.

        loss: of this step, for `status`. Raises DivergedError when the model is not finite again and again,
        and whatever ended the link thread.
        """
        took_s = self._pulse.step(loss)
        self._since += 1
        self._rest(took_s)
        if not self._link.connected:
            self._rate.scale = 1.0  # alone, nothing is mixed
        if self._pulse.due():
            self._tell()  # now: a round of many steps takes long, and so may waiting for the others
        try:
            meet = {"lockstep": self._meet_lockstep, "overlap": self._meet_later, "free": self._meet_free}
            mixed = meet[self.terms.pace]()
            if mixed:
                self._keep_and_tell()
                self._look()
        finally:
            self._pulse.start()
        return mixed

    def roll_back(self, found: float) -> None:
        """A loss or gradient was not finite: back to the last exchange, with a fresh optimizer state.

        Raises DivergedError at the third time in a row; a finite exchange in between starts the count anew.
        """
        self._bad += 1
        if self._bad >= PATIENCE:
            raise DivergedError(
                f"training diverged in round {self.round + 1}: the loss was {found}, {PATIENCE} times "
                f"in a row; lower --lr (it was {self._lr():g}), or look for infinite numbers in the data"
            )
        log.warning("the loss was %s; back to the model of round %d", found, self.round)
        self._flat.write(self._base)
        self._optimizer.state.clear()
        self._since = 0

    def _rest(self, step_s: float) -> None:
        """After a local step that took so long, rest as long as makes that the share of the time that this
        device has for them. Together with `_wanted` rounds take as long as without, and nobody waits for it;
        only where they have a step or two they take longer, up to LONGER times."""
        link, share = self._link, self._share
        if share < 1.0 and not (link.over or link.final):
            with link.met:
                link.wait(lambda: link.over or link.final or self._share > share, step_s * (1 / share - 1))

    @property
    def _share(self) -> float:
        return max(self._link.share, 1 / (LONGER * self._whole)) if self.terms.manners else 1.0

    def _meet_lockstep(self) -> bool:
        link = self._link
        link.check()
        if link.over or link.final or link.has_mixed():
            with link.met:  # the session ends, or a new life has begun: these local steps are not part of it
                link.wait(lambda: link.has_mixed() or link.over or not link.connected)
            return self._take()
        if self._since < self._wanted():
            return False
        if not link.connected or link.state == "seeking":
            self._since = 0  # alone until the daemon is back
            return False
        with link.met:
            link.wait(lambda: link.is_open() or link.has_mixed() or link.over or not link.connected)

        def answered() -> bool:
            return not link.handing_over and (link.has_mixed() or link.over or not link.connected)

        try:
            if self._hand_over(go_on=False):
                with link.met:
                    link.wait(answered)
        except BaseException:  # a signal's handler, say: the model is the script's again
            link.take_back()
            raise
        self._since = 0
        return self._take()

    def _meet_later(self) -> bool:
        """Hand over, and go on with the next local steps while this round's exchange goes its way; what the
        others did is added when it comes. One round ahead of it, and no more."""
        link = self._link
        link.check()
        if link.over or link.final:
            with link.met:
                link.wait(lambda: link.has_mixed() or link.over or not link.connected)
            return self._take()
        mixed = self._take()
        if self._since < self._wanted():
            return mixed
        if not link.connected or link.state == "seeking":
            self._since = 0  # alone until the daemon is back
            return mixed
        with link.met:
            link.wait(lambda: link.is_open() or link.over or not link.connected)
        mixed = self._take() or mixed
        if self._since < self._wanted():
            return mixed  # another life has begun meanwhile
        self._hand_over(go_on=True)
        return mixed

    def _meet_free(self) -> bool:
        link = self._link
        link.check()
        if link.final and not link.over:
            with link.met:
                link.wait(lambda: link.has_mixed() or link.over or not link.connected)
        mixed = self._take()
        if self._since >= self._wanted() and link.is_open() and not link.over:
            self._hand_over(go_on=True)
        return mixed

    def _hand_over(self, *, go_on: bool) -> bool:
        """What has been done since b, if the round is still open and the model finite. Was it handed over?
        go_on: the model is what further steps are counted from."""
        link, flat = self._link, self._flat
        in_place = not go_on and link.takes_models and link.sends_models
        here = None if in_place else flat.read()
        peak = flat.bound() if here is None else peak_of(here)
        if not self._may_go(peak):
            return False
        with link.met:
            if not link.is_open() or link.has_mixed():
                return False
            change: Change
            if here is None:
                change = LocalSteps(self._base, self._lay, peak)
            elif go_on:
                change, self._base, self._since = here - self._base, here, 0
            elif link.takes_models:
                change, self._base = LocalSteps(self._base, here, peak), here
            else:
                change = here.sub_(self._base)
            link.hand_over(change, self._rate.scale * self._lr(), self._pulse.worked())
        return True

    def _lay(self, over: Tensor | None) -> Tensor:
        """The module, laid out for the neighbors by the link thread, which alone reads the model that it may
        be laid over; this thread waits meanwhile."""
        self._base = self._link.rooms.lay(self._flat.pieces(), self._flat.size, self._flat.dtype, over)
        return self._base

    def _take(self) -> bool:
        """Take the mixed model over, if there is one."""
        with self._link.met:
            taken = self._link.take()
            scale = self._link.lr_scale
        if taken is None:
            return False
        self._rate.scale = scale
        z, anew = taken
        if anew and self._mass and not self.finished:
            self._optimizer.state.clear()  # it was of a model that is given up
        if anew or self.terms.pace == "lockstep":
            self._write_mixed(z)
            self._since = 0
        else:
            moved = self._flat.read().add_(z - self._base)
            if self.on_mixed is not None:
                self._write_mixed(z)
            self._flat.write(moved)
        self._base, self._mass = z, True
        if (not anew or self.finished) and self._sketching.is_due(self.round):
            self._sketch = self._sketching.made(z, self.round)
        return True

    def _write_mixed(self, z: Tensor) -> None:
        self._flat.write(z)
        if self.on_mixed is not None:
            self.on_mixed()

    def _look(self) -> None:
        """Has a neighbor shown its model, after a long separation? Say whether the two may be mixed."""
        with self._link.met:
            look = self._link.take_look()
        if look is not None:
            near = self._mixes_with(look.model)
            self._link.post(to_frame(Looked(look.peer, look.round, near)))

    def _mixes_with(self, theirs: Tensor) -> bool:
        """By distance and, where losses can be had, by the loss half way."""
        mine, loss_now = self._flat.read(), self.loss_now

        def loss(model: Tensor) -> float:
            assert loss_now is not None
            self._flat.write(model)
            return loss_now()

        try:
            return mixes(mine, theirs, loss if loss_now is not None else None)
        finally:
            self._flat.write(mine)

    def _may_go(self, peak: float) -> bool:
        """May a model with this largest |value| be handed over? If not, the model is rolled back."""
        if not math.isfinite(peak):
            self.roll_back(peak)
            return False
        self._bad = 0
        return True

    def _wanted(self) -> int:
        """Local steps of the round that is worked on."""
        return math.ceil(self._share * self._whole)

    @property
    def _whole(self) -> int:
        """Local steps that this round has for a device at full pace."""
        own = self.terms.local_steps
        return self._placing.steps(self._position) if own == self._placing.local_steps else own

    @property
    def _position(self) -> int:
        """The round that the next local step is for."""
        return max(self._link.next_round if self.terms.pace == "overlap" else self._link.position, 0)

    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    # --- checkpoints and reports -----------------------------------------------------------------

    def report(self, metrics: dict[str, float]) -> None:
        """Show these figures in `status`; ones that are not finite are left out."""
        self._pulse.metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._tell()

    def log(self, text: str) -> None:
        """Say something in this session's log, and in an attached script's own."""
        if not self.terms.child:  # what a child prints is in the session's log already
            log.info("%s", text)
        self._link.post({"op": "log", "text": text})

    def _keep_and_tell(self) -> None:
        threads = self._link.threads
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        if self._keeper.due():
            self._checkpoint()
        if self._pulse.due() or self._sketch:
            self._tell()

    def _tell(self) -> None:
        kept = {"checkpoint_round": self._keeper.round, "checkpoint_problem": self._keeper.problem}
        memory = {} if self._replica_mb is None else self._memory(self._replica_mb)
        self._link.post({"op": "report", **self._pulse.report(), **kept, **memory, **self._sketch})
        self._sketch = {}

    def _memory(self, replica_mb: float) -> dict[str, Any]:
        return {"replica_mb": replica_mb, "links_without_replica": len(self._link.lacking())}

    def _checkpoint(self) -> None:
        kept = self._link.kept()
        if kept is None or self._link.rooms.torn:
            return  # there is no model here: an earlier checkpoint stays the newest
        before = self._keeper.problem
        self._keeper.save(
            Checkpoint(
                session=self.descriptor.id,
                algorithm=self.descriptor.algorithm,
                round=max(kept.round, 0),
                weight=self._link.weight,
                signature=self._flat.signature,
                model=kept.model,
                optimizer=self._optimizer.state_dict(),
                own=dict(kept.own),
            )
        )
        if self._keeper.problem and self._keeper.problem != before:
            self.log(self._keeper.problem)
        self._tell()

    # --- the end ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the loop to end after the current call. A signal handler may call it."""
        self._link.stop()

    def fail(self, code: int, message: str) -> None:
        """Tell the daemon why this learner ends."""
        self._link.post({"op": "failed", "code": code, "message": message})

    def settle(self) -> None:
        """Load the final model of a finished session, if `step()` has not seen it yet."""
        if self.finished:
            self._take()

    def close(self) -> None:
        """Leave: hand the mass over, keep a checkpoint, let go of the daemon. Safe to call twice."""
        link = self._link
        self._rate.release()
        self.settle()
        if self._mass:
            self._hand_mass_over()
            self._mass = False
            self._checkpoint()
        link.close()
        if self.terms.daemon is not None:
            self.terms.daemon.close()

    def _hand_mass_over(self) -> None:
        """Until the daemon says stop: not before a neighbor has confirmed that it took the mass."""
        link = self._link
        if link.dismissed or not link.connected or (self.terms.child and link.over):
            return  # a child that was told to end has lingered already
        if link.state == "training":
            link.post({"op": "leave"})
        with link.met:
            link.wait(lambda: link.dismissed or not link.connected, LEAVE_S)

    def linger(self, timeout_s: float) -> None:
        """After the last step, answer the daemon until it says stop or closes: what is on its way arrives."""
        link = self._link
        with link.met:
            link.wait(lambda: link.stopping or not link.connected, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- what the link thread asks for -----------------------------------------------------------

    def _exchange(self, initial: Tensor | None, resume: Resume | None) -> Exchange:
        session, lockstep = self.descriptor, self.terms.pace != "free"
        layout = Layout(self._flat.sizes, self._flat.rows)
        options = catalogue.options_for("algorithm", session.options)
        options = with_memory(session.algorithm, options, layout.d)
        if "replica-mb" in options:
            self._replica_mb = float(options["replica-mb"])
        algorithm = algorithms.make(
            session.algorithm, options, layout, self._flat.dtype, session.compression, lockstep=lockstep
        )
        return Exchange(algorithm, layout, initial, lockstep=lockstep, resume=resume)

    def _export(self, model: Tensor, round_: int, known: dict[str, str]) -> tuple[bytes, memoryview]:
        origin = {**known, "algorithm": self.descriptor.algorithm, "round": str(round_)}
        return exported(model, self._flat.signature, origin)

    def _redial(self) -> Attachment:
        def again() -> Attachment:
            return dial(self.terms.socket, self.descriptor.name, child=self.terms.child)

        own = self.terms.daemon
        found = own.reach(again) if own is not None and self._owned else again()
        self._owned = found.owned
        return found

    def _introduction(self) -> dict[str, Any]:
        signature = signature_bytes(self._flat.signature)
        return {
            "op": "report", "parameters": self._flat.parameters, "checkpoint_round": self._keeper.round,
            "local_steps": self.terms.local_steps, "manners": self.terms.manners,
            "computes_on": name_of(self._flat.device),
            "signature": hashlib.sha256(signature).digest(),
            "signature_list": signature if len(signature) <= SIGNATURE_MAX else b"",
        }  # fmt: skip
