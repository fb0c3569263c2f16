"""The link thread: it owns the socket to the daemon and the Exchange, and answers at once while a step
computes.

    training thread                        link thread                              daemon
      hand_over(change) ──condition──▶ exchange.submit ──Push, Pushed──▶
      take() ◀──condition── exchange.take ◀── exchange.handle ◀──OpenRound, Deliver, …──

However long a step takes, the daemon hears a sign of life every BEAT_S: a learner that sends none is stopped,
or hangs. Everything both threads touch is guarded by one condition, `Link.met`. When the daemon vanishes, a
child learner is over; an attached script goes on alone, and the link thread redials and rejoins as a new
life.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from peer.compression import codec
from peer.errors import DataError, NoDaemonError, PeerdError
from peer.event_frames import EventAssembler
from peer.events import (
    FINAL,
    Closed,
    Deliver,
    Direction,
    Found,
    FromLearner,
    HandOver,
    PeerId,
    Push,
    Ready,
    ToLearner,
)
from peer.learner.dial import Attachment
from peer.learner.early import Early
from peer.learner.exchange import Change, Exchange, Resume, State
from peer.learner.look import Look
from peer.learner.outbox import Outbox, Rooms, exhaust
from peer.local import SharedBuffer, error_of
from peer.shared_buffer import Growth, Reserve, overlaps

log = logging.getLogger("peerd.learner")
BEAT_S = 10.0  # between two signs of life; the daemon takes two minutes of silence for a fault (guess)
LONG = 8 << 20  # bytes; to put a shorter message together takes a few milliseconds
REDIAL_S = 0.5, 30.0  # first and longest wait between two tries; each is twice the one before (guess)


@dataclass(frozen=True)
class Duties:
    """What the link thread needs from its owner. exchange: a new one that knows this initial model, if it is
    kept, and resumes from this one of its own if it must. export: a safetensors file, in parts, of a flat
    model at a round, with what the daemon knows of it. introduction: the frame that comes before Ready.
    child: the daemon's own, which ends with it."""

    exchange: Callable[[Tensor | None, Resume | None], Exchange]
    export: Callable[[Tensor, int, dict[str, str]], tuple[bytes, memoryview]]
    redial: Callable[[], Attachment]
    introduction: dict[str, Any]
    child: bool = False


class _AnewError(Exception):
    """The daemon wants this learner to begin a new life with another's model."""


class Link:
    """Both threads' meeting place, and the link thread itself. Methods without a note are the training
    thread's."""

    def __init__(self, attached: Attachment, duties: Duties, initial: Tensor, resume: Resume | None) -> None:
        self.met = threading.Condition()
        self._reserve = Reserve()  # memory for what is sent, and of what comes
        self.rooms = Rooms(self._reserve)
        self.round = -1  # the last round closed or joined at
        self.weight = 0.0
        self.heard: Sequence[str] = ()
        self.rounds_heard = 0  # so many closed in which a neighbor was heard
        self.connected = True
        self.stopping = False  # the daemon, a signal or the owner says: no more steps
        self.dismissed = False  # the daemon says so: what this learner held is handed over
        self.threads: int | None = None  # for the training thread; None: as it began
        self.share = 1.0  # of the time, for local steps
        self.resumed = False  # this life began from this device's own checkpoint
        self._attached, self._duties = attached, duties
        self._assembler = EventAssembler(self._reserve.taken)
        self._exchange = self._new_exchange(initial, resume)
        self._resume = resume  # until there is a newer one
        self._mixed: Tensor | None = None
        self._last: Resume | None = None  # what was there last, with its round, once it may be handed over
        self._early: dict[SharedBuffer, Early] = {}  # parcels that are still coming, or are not delivered yet
        self._anew = False  # `_mixed` is the first model of a life: it replaces, whatever came before
        self._handed: tuple[Change, float, float] | None = None
        self._outbox: deque[dict[str, Any]] = deque()
        self._closing = self._ended = False
        self._fault: BaseException | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._main, name="peerd-link", daemon=True)
        self._thread.start()

    # --- the training thread's side --------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._exchange.state

    @property
    def over(self) -> bool:
        """No more local steps are wanted."""
        return self.stopping or self.state in ("finished", "left")

    @property
    def final(self) -> bool:
        """The final rounds have begun: averaging alone."""
        return self._exchange.key.phase == FINAL

    @property
    def position(self) -> int:
        """The round the next local step is for."""
        worked_on = self._exchange.key.round
        return worked_on + 1 if self.round == worked_on else worked_on

    @property
    def next_round(self) -> int:
        """The round after what has been handed over."""
        return self._exchange.position + self.handing_over

    def is_open(self) -> bool:
        """A round waits for this learner's change."""
        return self.connected and self._exchange.open and not self.handing_over

    def check(self) -> None:
        """Raise what the link thread ended with, if it did."""
        if self._fault is not None:
            raise self._fault

    def wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait, `met` held, until `until()`, the timeout, or the link thread's end, whose fault is raised."""
        self.met.wait_for(lambda: self._ended or until(), timeout_s)
        self.check()

    @property
    def takes_models(self) -> bool:
        """Is what is handed over better a model than a change?"""
        return self._exchange.algorithm.takes_models

    @property
    def sends_models(self) -> bool:
        """Will that model go to the neighbors as it is?"""
        return self._exchange.algorithm.sends_models

    def hand_over(self, change: Change, lr: float, worked_s: float) -> None:
        """Give the link thread the change of the last local steps, which took so long; `met` held, `open`."""
        self._handed, self._last = (change, lr, worked_s), None
        self._nudge()

    def take_back(self) -> None:
        """What was handed over and is not looked at yet is not to go out."""
        with self.met:
            self._handed = None

    @property
    def handing_over(self) -> bool:
        """What the training thread has handed over is yet to be looked at; `met` held."""
        return self._handed is not None

    def has_mixed(self) -> bool:
        return self._mixed is not None

    def take(self) -> tuple[Tensor, bool] | None:
        """The mixed model, once, and whether it begins a life (or ends the session); `met` held."""
        mixed, self._mixed = self._mixed, None
        return None if mixed is None else (mixed, self._anew)

    def kept(self) -> Resume | None:
        """What a checkpoint is to hold: the model and what goes with it, or the last model there was, if it
        is handed over already."""
        with self.met:
            return self._kept()

    def _kept(self) -> Resume | None:
        return self._exchange.kept(self.round) or self._last

    def take_look(self) -> Look | None:
        """A model shown by a neighbor, once; `met` held."""
        return self._exchange.take_look()

    @property
    def lr_scale(self) -> float:
        """What the local steps' learning rate is to be multiplied with, as things stand; `met` held."""
        return self._exchange.lr_scale

    def lacking(self) -> frozenset[tuple[Direction, PeerId]]:
        """Links that do without a replica for want of memory."""
        with self.met:
            return self._exchange.algorithm.lacking

    def post(self, frame: dict[str, Any]) -> None:
        """Send a frame to the daemon; dropped while there is none."""
        with self.met:
            if self.connected:
                self._outbox.append(frame)
        self._nudge()

    def stop(self) -> None:
        """End training after the current call. Takes no lock: a signal may call it."""
        self.stopping = True
        self._nudge()

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is posted, close the socket and end the link thread."""
        self._closing = True
        self._nudge()
        self._thread.join(timeout_s)
        if not self._thread.is_alive() and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _nudge(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # --- the link thread -------------------------------------------------------------------------

    def _main(self) -> None:
        fault: BaseException | None = None
        try:
            self._live()
        except BaseException as error:  # noqa: BLE001 - raised again in the training thread, by check()
            fault = error
        finally:
            self._attached.client.close()
            self._assembler.close()
            self._reserve.close()
            with self.met:  # at once: who sees the fault must not find the link still connected
                self._fault = fault
                self.connected, self._ended = False, True
                self.met.notify_all()

    def _live(self) -> None:
        while True:
            try:
                self._serve()
                return
            except _AnewError:
                log.warning("this model is given up for that of the other devices, as a new life")
                with self.met:
                    self.connected, self.share, self._handed = False, 1.0, None
                    self._outbox.clear()
                if not self._redial(first_s=0.0):  # the model is kept for the case that nobody has another
                    return
                continue
            except NoDaemonError as error:
                with self.met:
                    self.connected, self.share, self._handed = False, 1.0, None
                    self._outbox.clear()
                    self.stopping = self.stopping or self._duties.child
                    self.met.notify_all()
                if self._closing or self.stopping:
                    return
                log.warning("%s; training goes on alone, and rejoins when a daemon answers", error)
            if not self._redial():
                return

    def _serve(self) -> None:
        """Answer daemon and training thread until told to close. Raises NoDaemonError."""
        client, algorithm = self._attached.client, self._exchange.algorithm
        round_ = self._resume.round if self._resume is not None else -1
        client.send(self._duties.introduction)
        client.send_event(Ready(self._attached.life, round_, algorithm.bases))
        beat_at = time.monotonic()  # at once: from then on silence is a fault
        while True:
            self._on_frames(deque(client.receive_ready()))
            closing = self._closing
            self._answer_training_thread()
            if closing:
                return
            if time.monotonic() >= beat_at:
                client.send({"op": "report", "beat_s": BEAT_S})
                beat_at = time.monotonic() + BEAT_S
            wait_s = min(max(0.0, beat_at - time.monotonic()), self._reserve.tidy())
            select.select([client.fileno(), self._wake], [], [], wait_s)
            self._clear_nudge()

    def _clear_nudge(self) -> None:
        if select.select([self._wake], [], [], 0)[0]:
            os.eventfd_read(self._wake)

    def _answer_training_thread(self) -> None:
        with self.met:
            frames = [self._outbox.popleft() for _ in range(len(self._outbox))]
            handed, self._handed = self._handed, None
            answers: Sequence[FromLearner] = ()
            if handed is not None and self._exchange.open:
                answers = self._exchange.submit(handed[0], handed[1], time.monotonic(), handed[2])
            elif handed is not None:
                self._exchange.missed()
            del handed  # as large as the model, and used up
            self._book(answers)
        self._send(answers)
        for frame in frames:
            self._attached.client.send(frame)

    def _on_frames(self, frames: deque[tuple[dict[str, Any], int | None]]) -> None:
        try:
            while frames:
                self._on_frame(*frames.popleft())
        finally:
            for _, fd in frames:  # behind one that ends this life
                if fd is not None:
                    os.close(fd)

    def _on_frame(self, frame: dict[str, Any], fd: int | None) -> None:
        match frame["op"]:
            case "export":
                known = frame.get("provenance") or {"session": self._attached.descriptor.name}
                self._export({str(key): str(value) for key, value in known.items()})
            case "stop":
                with self.met:
                    self.stopping = self.dismissed = True
                    self.met.notify_all()
            case "anew":
                raise _AnewError
            case "threads":
                self.threads = max(1, int(frame.get("count", 1)))
            case "share":
                with self.met:
                    self.share = min(1.0, max(0.0, float(frame.get("share", 1.0)))) or 1.0
                    self.met.notify_all()
            case "error":
                raise error_of(frame)
            case _:
                event = self._assembler.take(frame, fd)
                payload = getattr(event, "payload", None)
                if isinstance(event, Deliver) and isinstance(payload, SharedBuffer) and payload.growth:
                    self._see(event, payload, payload.growth)
                elif event is not None:
                    self._handle(event)

    def _see(self, parcel: Deliver, payload: SharedBuffer, growth: Growth) -> None:
        """A parcel is on its way: it is looked at as it comes, and counts when it is delivered."""
        early = self._early[payload] = Early(parcel, payload, self._exchange.layout, self._exchange.dtype)

        def look() -> None:
            if growth.failed:
                if self._early.pop(payload, None) is not None:
                    with self.met:
                        early.give_up()
                return
            with self.met:
                early.advance(growth.filled, self._exchange.algorithm)

        growth.on_change = look

    def _handle(self, event: Any) -> None:
        command: ToLearner = event
        payload = getattr(event, "payload", None)
        try:
            if isinstance(payload, SharedBuffer) and self.sends_models:
                self.rooms.came(payload)
            early = self._early.pop(payload, None) if isinstance(payload, SharedBuffer) else None
            with self.met:
                if early is not None and isinstance(command, Deliver):
                    command = replace(command, payload=early)
                seeking = self.state == "seeking"
                if isinstance(command, HandOver) and self._last is None and (kept := self._kept()):
                    self._last = kept._replace(own={})  # which goes with the mass
                answers = self._exchange.handle(command, time.monotonic())
                if isinstance(command, Found) and seeking:
                    self.resumed = command.resume and self._resume is not None
                self._book(answers, anew=seeking)
            self._send(answers)
        finally:
            if isinstance(payload, SharedBuffer):
                payload.close()

    def _book(self, answers: Sequence[FromLearner], anew: bool = False) -> None:
        """Note what the exchange has just done, `met` held, and tell the training thread."""
        for answer in answers:
            if isinstance(answer, Closed):
                self.round, self.heard, self.weight = answer.key.round, answer.heard, answer.weight
                self.rounds_heard += bool(answer.heard)
        mixed = self._exchange.take()
        if mixed is not None:
            self._last, self._resume = Resume(mixed, self.round), None
            self._mixed, self._anew = mixed, anew or self.state == "finished"
            if anew:
                self.round = self._exchange.key.round if self.resumed or self._exchange.key.round else -1
        self.met.notify_all()

    def _new_exchange(self, initial: Tensor | None, resume: Resume | None) -> Exchange:
        exchange = self._duties.exchange(initial, resume)
        # `_send` copies the parts, before anything else is done with the model
        exchange.outgoing.encode = codec.in_parts
        exchange.emit = self._emit
        return exchange

    def _emit(self, sent: list[FromLearner]) -> list[FromLearner]:
        """A model that is still to be laid out is laid while it goes out already."""
        if not self.rooms.unlaid:
            return sent
        try:
            self._send(sent)
        finally:
            self.rooms.finish()  # nobody is sent it, or there is no daemon any more
        return []

    def _send(self, answers: Sequence[FromLearner]) -> None:
        """What is the same for several neighbors lies in one buffer."""
        with Outbox(self.rooms) as outbox:
            for answer in answers:
                if isinstance(answer, Push) and isinstance(answer.payload, codec.Encoded):
                    self._push(answer, answer.payload, outbox)
                else:
                    self._attached.client.send_event(answer)

    def _push(self, push: Push, message: codec.Encoded, outbox: Outbox) -> None:
        """Hand it over; what is long and still to be put together before that, with word of how far it is."""
        client, (buffer, filling) = self._attached.client, outbox.begin(message)
        push = replace(push, payload=buffer)
        try:
            if len(buffer) < LONG or not overlaps() or (filled := next(filling, None)) is None:
                exhaust(filling)
                client.send_event(push)
                return
            client.begin_event(push, buffer)
            client.progress(buffer, filled)
            said = filled
            for filled in filling:
                if filled - said >= LONG or filled == len(buffer):
                    client.progress(buffer, filled)
                    said = filled
        finally:
            exhaust(filling)  # it may be this learner's model

    def _export(self, known: dict[str, str]) -> None:
        kept = self.kept()
        model, round_ = kept[:2] if kept is not None else (self._exchange.estimate(), -1)
        with SharedBuffer.of(*self._duties.export(model, round_, known)) as buffer:
            self._attached.client.send({"op": "exported", "size": len(buffer)}, buffer.fileno())

    def _redial(self, first_s: float = REDIAL_S[0]) -> bool:
        """Attach again, as a new life that could resume from the model it has. False: told to close."""
        self._attached.client.close()
        self._assembler.close()
        wait_s, longest_s = first_s, REDIAL_S[1]
        while True:
            select.select([self._wake], [], [], min(wait_s, self._reserve.tidy()))
            self._clear_nudge()
            with self.met:
                # a training thread that waits for its first model may have been told to stop
                self.met.notify_all()
            if self._closing or self.stopping:
                return False
            wait_s = min(2 * max(wait_s, REDIAL_S[0]), longest_s)
            try:
                attached = self._duties.redial()
            except DataError:
                raise
            except PeerdError as error:
                log.info("not attached yet: %s", error)
                continue
            with self.met:
                self._resume = self._exchange.kept(self.round) or self._resume or self._last
                self._attached, self._assembler = attached, EventAssembler(self._reserve.taken)
                self._exchange = self._new_exchange(self._exchange.initial, self._resume)
                self._mixed, self._handed, self.connected = None, None, True
                self.met.notify_all()
            log.warning("attached again, as a new life")
            return True
