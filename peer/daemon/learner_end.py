"""One learner's connection to its session: frames become events and reports, commands become frames."""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from typing import Protocol

from peer.errors import DataError, NoDaemonError, PeerdError, by_exit_code
from peer.event_frames import EventAssembler, begin_frame, end_frame, progress_frame
from peer.events import Deliver, FromLearner, ToLearner
from peer.local import Connection, Frame
from peer.shared_buffer import Reserve, SharedBuffer

log = logging.getLogger(__name__)


class LearnersSession(Protocol):
    """What a learner's connection tells its session. Nothing here may wait."""

    def on_learner_event(self, event: FromLearner) -> None: ...
    def on_report(self, frame: Frame) -> None: ...
    def on_learner_leaves(self) -> None: ...


class LearnerEnd:
    """One life of a learner. child: started by the daemon, else a user's script. `failure`: what it said it
    died of. `heard_at`: the loop's time of its last word, once it sends signs of life (link.py, BEAT_S).
    reserve: knows the memory of its messages."""

    def __init__(self, connection: Connection, life: int, child: bool, pid: int, reserve: Reserve) -> None:
        self.life, self.child, self.pid = life, child, pid
        self.failure: PeerdError | None = None
        self.heard_at: float | None = None
        self.minds = child  # manners: it takes local steps for a share of the time, if told so
        self._threads = 0  # as told last
        self._share: float | None = None  # as told last; an earlier daemon may have told it another
        self._connection = connection
        self._assembler = EventAssembler(reserve.taken)
        self._export: asyncio.Future[SharedBuffer] | None = None
        self._coming = set[int]()  # memory of parcels that are on their way here, and told of

    def send(self, command: ToLearner) -> None:
        """A command of the node, with its payload, which stays the caller's."""
        if self._coming and isinstance(command, Deliver) and isinstance(command.payload, SharedBuffer):
            self._coming.discard(command.payload.memory)
        self._connection.send_event(command)

    def coming(self, parcel: Deliver, filled: int) -> None:
        """So much of what may be delivered is there: to be looked at, and no more than that. An earlier
        learner may have mixed a part of it in its place already: then the link's epoch has ended with that
        one, and it will not be delivered (mesh/inlink.py)."""
        payload = parcel.payload
        assert isinstance(payload, SharedBuffer)
        try:
            memory = payload.memory
            if memory not in self._coming:
                self._connection.send(begin_frame(parcel), payload.fileno())
                self._coming.add(memory)
                payload.on_close = partial(self._given_up, memory)
            self._connection.send(progress_frame(memory, filled))
        except OSError as error:  # no descriptor left, say
            log.info("a parcel is not looked at while it comes: %s", error, extra={"peer": parcel.src})

    def _given_up(self, memory: int) -> None:
        if memory in self._coming:
            self._coming.discard(memory)
            self._connection.send(end_frame(memory))

    def ask_to_stop(self) -> None:
        self._connection.send({"op": "stop"})

    def ask_to_start_over(self) -> None:
        self._connection.send({"op": "anew"})

    def use_threads(self, count: int) -> None:
        """Its share of the cores from now on, if that is news."""
        if count != self._threads:
            self._threads = count
            self._connection.send({"op": "threads", "count": count})

    def use_share(self, share: float) -> None:
        """Of the time, for local steps from now on, if that is news."""
        if share != self._share:
            self._share = share
            self._connection.send({"op": "share", "share": share})

    def close(self) -> None:
        self._connection.close()

    async def serve(self, session: LearnersSession) -> str:
        """Hand what it says to the session until the connection ends; the reason of the end."""
        try:
            while True:
                frame, fd = await self._connection.receive()
                if self.heard_at is not None or "beat_s" in frame:
                    self.heard_at = asyncio.get_running_loop().time()
                self._take(frame, fd, session)
        except EOFError as error:
            return str(error)
        except PeerdError as error:
            log.warning("the learner broke the local protocol: %s", error, extra={"pid": self.pid})
            return str(error)
        finally:
            self._connection.close()
            self._assembler.close()
            if self._export is not None and not self._export.done():
                self._export.set_exception(NoDaemonError("the learner ended before it wrote its model"))
            self._export = None

    async def export(self, known: dict[str, str], timeout_s: float) -> SharedBuffer:
        """The model as the bytes of a safetensors file that says what is `known` of it; the buffer is the
        caller's."""
        if self._export is None or self._export.done():
            self._export = asyncio.get_running_loop().create_future()
            self._export.add_done_callback(lambda done: done.exception())  # nobody may be waiting any more
            self._connection.send({"op": "export", "provenance": known})
        export = self._export
        try:
            async with asyncio.timeout(timeout_s):
                buffer = await asyncio.shield(export)
            return SharedBuffer.from_fd(os.dup(buffer.fileno()), len(buffer))
        finally:
            if self._export is export and export.done():
                self._export = None  # the model goes with the last who waits for it

    def _take(self, frame: Frame, fd: int | None, session: LearnersSession) -> None:
        match frame["op"]:
            case "exported":
                self._exported(frame, fd)
            case "report" | "log" | "failed" | "leave" if fd is not None:
                os.close(fd)
                raise PeerdError(f"{frame['op']!r} came with a descriptor and has no use for one")
            case "report":
                session.on_report(frame)
            case "log":
                log.info("learner: %s", printable(frame.get("text")))
            case "failed":
                code = frame.get("code")
                text = printable(frame.get("message"))
                self.failure = by_exit_code(code, text) if isinstance(code, int) else DataError(text)
            case "leave":
                session.on_learner_leaves()
            case _:
                event = self._assembler.take(frame, fd)
                if event is not None:
                    session.on_learner_event(event)  # type: ignore[arg-type]  # checked by the session

    def _exported(self, frame: Frame, fd: int | None) -> None:
        size = frame.get("size")
        if fd is None or not isinstance(size, int):
            raise PeerdError("'exported' came without its model")
        buffer = SharedBuffer.from_fd(fd, size)
        if self._export is None or self._export.done():
            buffer.close()
        else:
            self._export.set_result(buffer)


def printable(text: object) -> str:
    """Text from another process, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:2000]
