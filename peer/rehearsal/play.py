"""A plan, played in virtual time: the daemons' nodes and exchanges, a trainer, faults, and a tally of it all.

All peers begin at time 0 with weight 1 and the same initial model, and have met before the first local step:
nobody joins, so nothing but what is compared differs between two rehearsals. There are no final rounds unless
asked for; the report's averaged model says what they would come to. Local steps take STEP_S of virtual time
each. A peer that has closed the last round takes no more, and answers until the others have closed theirs
too.

How well it goes is measured on the models as they are mixed: of WATCHED peers about POINTS times on the way,
of all at the end and, with schedule "step", in the last round before the learning rate first falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.errors import PeerdError
from peer.events import TRAIN, Closed, Frame, FromLearner, PeerId, Push, Pushed, ToLearner
from peer.learner.exchange import Exchange, Resume
from peer.mesh.frame_bytes import frame_bytes
from peer.mesh.terms import Terms
from peer.rehearsal.books import Books
from peer.rehearsal.driver import Device, Rehearsal, Weather, Witness
from peer.rehearsal.plan import Plan
from peer.rehearsal.scenes import Scene, halves, scenes_of
from peer.rehearsal.trainer import Trainer

STEP_S = 0.05  # virtual, of one local step: what a batch of a small CNN takes on a Raspberry Pi (guess)
POINTS, WATCHED = 20, 4  # of the curve: each costs an evaluation, which is worth many local steps
STUCK_S = 600.0  # virtual, beyond what the slowest peer's steps take: no fault holds all peers up so long
FLOAT32_BYTES = 4

Progress = Callable[[int, float], None]


class StuckError(PeerdError):
    """No peer closes a round any more."""


@dataclass(slots=True)
class Tally:
    """What is counted on the way. Dense figures are as in `peerd status` (daemon/figures.py)."""

    sent: int = 0
    dense: int = 0
    dense_exchanges: int = 0
    rounds_alone: int = 0  # of lives that are over
    generations: set[int] = field(default_factory=set)
    points: dict[int, dict[PeerId, float]] = field(default_factory=dict)  # round, by peer


class Play(Witness):
    """One rehearsal of `plan`. progress: told (round, virtual seconds) when the first peer closes one."""

    def __init__(self, plan: Plan, trainer: Trainer, progress: Progress = lambda round_, now: None) -> None:
        self.plan, self.trainer, self.progress = plan, trainer, progress
        self.rounds = plan.session.rounds
        self.front = 0  # rounds closed by whoever has closed most
        self.tally = Tally()
        self.final: dict[PeerId, Tensor] = {}  # as mixed in the last round, or after the final ones
        self.before_final: dict[PeerId, Tensor] = {}
        self.before_decay: dict[PeerId, Tensor] = {}
        self._scenes = scenes_of(plan)
        self._used: dict[PeerId, set[PeerId]] = {}  # links that carry something in the open round
        self._curve = sorted({max(1, k * self.rounds // POINTS) for k in range(1, POINTS + 1)})
        names = plan.names()
        self._watched = {names[k * plan.peers // WATCHED] for k in range(WATCHED)}
        self._next_point = dict.fromkeys(self._watched, 0)
        self._decay_round = _decay_round(plan, trainer)
        self._step_s = {name: STEP_S * plan.slowness(number) for number, name in enumerate(names)}
        self._longest = max(trainer.placing.steps(round_) for round_ in range(self.rounds))
        self.rehearsal = _Stage(
            Terms(
                plan.session.topology,
                plan.session.seed,
                rounds=plan.session.rounds if plan.final_rounds else 0,
                graph=catalogue.algorithm(plan.session.algorithm).graph,
            ),
            self._exchange,
            self._train,
            weather=Weather(latency_s=(0.0, 0.0)),
            step_s=self._takes_s,
            overlap=plan.session.pace == "overlap",
            seed=plan.session.seed,
            witness=self,
        )
        self.books = self.rehearsal.books = Books(self.rehearsal)

    def play(self) -> None:
        """From the first local step to the last peer's last round. Raises StuckError, DivergedError."""
        r = self.rehearsal
        self._look(0, None, self.trainer.initial)
        for name in self.plan.names():
            r.add(name, founder=True)
        r.run(0.0)  # without latency: all have met
        r.weather = self._weather()
        closed = -1
        while not self._over():
            due = self._scenes[0].round if self._scenes else math.inf
            if self.front >= due:
                self._perform(self._scenes.pop(0))
                continue
            closed = self.front
            r.run(self._patience_s(), until=lambda due=due: self.front >= due or self._over())  # type: ignore[misc]
            if self.front == closed and not self._over():
                raise StuckError(f"no peer has closed a round for {self._patience_s():.0f} virtual seconds")

    def device(self, peer: PeerId) -> Device:
        return self.rehearsal.devices[peer]

    # --- what the driver asks for --------------------------------------------------------------------

    def _exchange(self, peer: PeerId, resume: Resume | None) -> Exchange:
        session, trainer = self.plan.session, self.trainer
        own = catalogue.options_for("algorithm", session.options)
        dtype = trainer.initial.dtype
        algorithm = make(session.algorithm, own, trainer.layout, dtype, session.compression)
        return Exchange(algorithm, trainer.layout, trainer.initial, resume=resume)

    def _train(self, peer: PeerId, z: Tensor, round_: int) -> tuple[Tensor, float]:
        return self.trainer.train(peer, z, round_, self.device(peer).exchange.algorithm.lr_scale)

    def _takes_s(self, peer: PeerId) -> float:
        round_ = self.device(peer).exchange.position
        steps = self.trainer.placing.steps(round_) if round_ < self.rounds else math.inf
        return steps * self._step_s[peer]

    def _weather(self) -> Weather:
        plan = self.plan
        return Weather(latency_s=plan.latency_s, loss=plan.loss, bandwidth_bps=plan.bandwidth_bps)

    def _patience_s(self) -> float:
        return STUCK_S + 4 * self._longest * max(self._step_s.values())

    def _over(self) -> bool:
        return self.front >= self.rounds and all(map(self._is_done, self.rehearsal.alive()))

    def _is_done(self, device: Device) -> bool:
        if self.plan.final_rounds:
            return device.exchange.state == "finished"
        return device.node.key.round >= self.rounds

    def there(self) -> list[Device]:
        """Devices that are on, or have gone because the session was over."""
        devices = self.rehearsal.devices.values()
        return [device for device in devices if device.alive or device.left == "finished"]

    # --- what happens to the devices -----------------------------------------------------------------

    def _perform(self, scene: Scene) -> None:
        r = self.rehearsal
        match scene.what:
            case "split":
                r.partition(halves(self.plan))
            case "heal":
                r.heal()
            case "return":
                if self.device(scene.peer).alive:  # it has not said its goodbye yet
                    self._scenes = sorted([*self._scenes, Scene(self.front + 1, "return", scene.peer)])
                else:
                    self._add(scene.peer)
            case "leave" | "crash" if len(r.alive()) > 2:
                if scene.what == "leave":
                    r.leave(scene.peer)
                else:
                    r.crash(scene.peer)

    def _add(self, peer: PeerId) -> None:
        self.tally.rounds_alone += self.device(peer).node.rounds.alone_total
        self.rehearsal.add(peer)

    # --- what is seen --------------------------------------------------------------------------------

    def sent(self, device: Device, frame: Frame) -> None:
        self.tally.sent += frame_bytes(frame)

    def told(self, device: Device, command: ToLearner) -> None:
        self.books.told(device, command)

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        in_round = any(isinstance(event, Pushed) for event in events)
        for event in events:
            self.books.said(device, event)
            if isinstance(event, Push) and (in_round or event.delivery == "latest"):
                self._used.setdefault(device.peer, set()).add(event.dst)
            elif isinstance(event, Closed):
                self._closed(device, event)
        if device.exchange.state == "finished" and device.model is not None:
            self.final[device.peer] = device.model

    def _closed(self, device: Device, event: Closed) -> None:
        assert device.model is not None
        links = len(self._used.pop(device.peer, ()))
        model = FLOAT32_BYTES * self.trainer.parameters * links
        self.tally.dense_exchanges += model
        steps = self.trainer.placing.steps(event.key.round) if event.key.phase == TRAIN else 1
        self.tally.dense += model * steps
        self.tally.generations.add(event.key.generation)
        count = min(event.key.round + 1, self.rounds)
        if count == self.rounds:
            self.final.setdefault(device.peer, device.model)
            if self.plan.final_rounds:
                self.before_final.setdefault(device.peer, device.model)
        if self._decay_round is not None and count >= self._decay_round:
            self.before_decay.setdefault(device.peer, device.model)
        self._look(count, device.peer, device.model)
        if count > self.front:
            self.front = count
            self.progress(count, self.rehearsal.now)

    def _look(self, count: int, peer: PeerId | None, model: Tensor) -> None:
        """Evaluate a watched peer's model when the curve has a point there; None: before the first round."""
        if peer is None:
            if (found := self.trainer.evaluate(model)) is not None:
                self.tally.points[0] = dict.fromkeys(self._watched, found[1])
            return
        if peer not in self._watched:
            return
        passed = [at for at in self._curve[self._next_point[peer] :] if at <= count]
        if passed and (found := self.trainer.evaluate(model)) is not None:
            self.tally.points.setdefault(passed[-1], {})[peer] = found[1]
        self._next_point[peer] += len(passed)


class _Stage(Rehearsal):
    """Tells the books when a learner's life ends."""

    books: Books

    def _start_over(self, device: Device) -> None:
        self.books.ends(device)
        super()._start_over(device)

    def _off(self, device: Device, silent: bool = False) -> None:
        self.books.ends(device)
        super()._off(device, silent)


def _decay_round(plan: Plan, trainer: Trainer) -> int | None:
    """How many rounds close before the learning rate first falls; None where it does not."""
    if not trainer.schedule.decay:
        return None
    step = math.ceil(trainer.schedule.decay[0][0] * plan.steps)
    return max(1, trainer.placing.closed(step))
