"""The daemon of one device: every session on it, and what a user can ask for. The composition root.

`control.ControlServer` turns requests of the local socket into calls of `Daemon`, `foreground` makes them
directly. Every method that cannot do what it is asked for raises the PeerdError whose exit code the command
ends with."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from peer import catalogue
from peer.available import rss_mb
from peer.config import Descriptor, JoinOptions, check_name
from peer.daemon import clocks, health, rekeying
from peer.daemon.blocking import BlockList
from peer.daemon.company import everybody
from peer.daemon.disk import free_mb
from peer.daemon.exporting import as_onnx, from_checkpoint, provenance
from peer.daemon.joining import Say, check_data, finished, first_link, merged, refuse_change
from peer.daemon.known import known_and_seen, not_running, over, unknown
from peer.daemon.learner_end import LearnerEnd
from peer.daemon.logs import Recent, session_name
from peer.daemon.network import network
from peer.daemon.pacing import Pacing
from peer.daemon.session import SessionDriver
from peer.daemon.store import SessionFolder, Store
from peer.daemon.supervisor import Supervisor, learner_command, share_of_cores
from peer.daemon.this_device import ThisDevice
from peer.errors import (
    NoDaemonError,
    PeerdError,
    StateError,
    UnknownSessionError,
    UsageError,
    by_exit_code,
)
from peer.keys import format_key, new_key, parse_key
from peer.local import Connection, Frame
from peer.mesh.identity import Device
from peer.shared_buffer import SharedBuffer
from peer.status import DeviceStatus, SessionStatus
from peer.version import VERSION

if TYPE_CHECKING:
    from peer.daemon.metrics_server import MetricsServer

log = logging.getLogger(__name__)

INSTANCE_BITS = 40  # drawn at random: copies of one disk start with the same boot
MAX_BOOT = (1 << 63 - INSTANCE_BITS) - 1
EXPORT_S = 30.0  # the learner answers from its link thread, which never waits for a step (guess)


class Daemon:
    """socket: where learners find it. awaited: the session of the script that has started this daemon; no
    child is to train in it. `stopping` is set when it is to end, `no_script` while no script is attached;
    `sessions` are those that run, by name, and `changing` those that are being left or given another key;
    `metrics`: who serves them, if anybody."""

    def __init__(self, store: Store, socket: Path, recent: Recent, awaited: str | None = None) -> None:
        self.store, self.socket, self.recent = store, socket, recent
        self._awaited = awaited
        self._scripts = 0  # attached now, in all sessions
        self.no_script = asyncio.Event()
        self.no_script.set()
        self.stopping = asyncio.Event()
        self.sessions: dict[str, SessionDriver] = {}
        self.changing: set[str] = set()
        self.blocked = BlockList(store.folder)
        self.metrics: MetricsServer | None = None
        key, boot = Device.load_or_create(store.folder), store.next_boot()
        instance = min(boot, MAX_BOOT) << INSTANCE_BITS | secrets.randbits(INSTANCE_BITS)
        self.device = ThisDevice(
            key, store.device, boot, self._supervisor, self._threads,
            instance=instance, owned=awaited is not None,
        )  # fmt: skip
        self._taken_up = asyncio.Event()  # clear while sessions are
        self._taken_up.set()
        self._spoilt: dict[Path, SessionFolder] = {}  # could not be taken up at this daemon's start
        self._lives = 0
        self.pacing = Pacing(lambda: [driver.turns for driver in self.sessions.values()])
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()

    async def resume(self) -> None:
        """Take up every session that was not left."""
        self._taken_up.clear()
        try:
            await self._take_up()
        finally:
            self._taken_up.set()

    async def _take_up(self) -> None:
        for folder in self.store.sessions():
            if folder.problem:
                self._spoilt[folder.path] = folder
                log.error("%s", folder.problem)
            if folder.note.over or folder.note.name in self.sessions:
                continue
            driver = None
            try:
                driver = self._driver(folder)
                await asyncio.create_task(driver.start())  # a task: log lines know their session by context
            except (PeerdError, OSError, ValueError) as error:
                self._not_taken_up(folder, driver, error)

    def _not_taken_up(self, folder: SessionFolder, driver: SessionDriver | None, error: Exception) -> None:
        """One session that cannot be taken up is said, and keeps none of the others from it."""
        if driver is not None:
            if not isinstance(error, PeerdError):
                error = PeerdError(f"internal error: {error!r}")
            context = copy_context()
            context.run(session_name.set, driver.name)
            context.run(driver.fail, error)
            return
        folder.spoil(error)
        self._spoilt[folder.path] = folder
        log.error("%s", folder.problem)

    async def stop(self) -> None:
        """Pause every session politely: mass handed over, goodbye "back later"."""
        await asyncio.gather(*(driver.leave(pause=True) for driver in self.sessions.values()))

    # --- what a user can ask for -------------------------------------------------------------------------

    async def create(self, descriptor: Descriptor, options: JoinOptions) -> str:
        """Make a session and be its first member; the join key."""
        await check_data(options)
        self._refuse_taken(descriptor.name)
        catalogue.check_budget(descriptor.algorithm, options.budget)
        key = new_key()
        folder = self.store.session(key, descriptor.name)
        try:
            folder.mark(founder=True)
            folder.save_options(options)
            folder.save_descriptor(descriptor)
            await self._start(folder)
        except PeerdError:
            folder.forget()
            raise
        return format_key(key)

    async def join(self, name: str, key: str | None, options: JoinOptions, say: Say) -> SessionDriver:
        """Take part in a session; returns at the first link. Raises NobodyFoundError or WrongKeyError when
        `options.timeout_s` is over (the session stays and waits), DataError when the model does not fit."""
        check_name(name)
        await check_data(options)
        self._refuse_changing(name)
        is_new = key is not None and self.store.known(parse_key(key)) is None
        folder = await self._folder_to_join(name, key)
        if folder.note.finished:
            raise finished(name)
        driver = self.sessions.get(name)
        if driver is not None and driver.failure is None and not driver.ended.is_set():
            refuse_change(driver, options)
            driver.set_budget(options)
            driver.set_manners(options)
            copy_context().run(driver.turns.pace, self.pacing.verdict(driver.options))  # see _take_up
            driver.turns.take_up()
            await first_link(driver, options.timeout_s, say, self.stopping)
            return driver
        for other in [d for d in self.sessions.values() if d.folder.path == folder.path]:
            await self._drop(other)  # it failed or has ended, or the key was given with another name before
        if name in self.sessions and self.sessions[name] is not driver:
            return await self.join(name, key, options, say)  # another join was quicker meanwhile
        wanted = merged(folder, options)
        if folder.descriptor is not None:
            catalogue.check_budget(folder.descriptor.algorithm, wanted.budget)
        try:
            self._refuse_changing(name)  # others were waited for
            folder.save_options(wanted)
            folder.mark(over=False, name=name)
            folder.problem = ""
            self._spoilt.pop(folder.path, None)
            driver = await self._start(folder)
        except PeerdError:
            self._forget_if_new(folder, is_new)
            raise
        try:
            await first_link(driver, options.timeout_s, say, self.stopping)
        except UsageError:  # the key is of a session with another name
            if is_new:
                await self._drop(driver)
                self._forget_if_new(folder, is_new)
            raise
        return driver

    def _forget_if_new(self, folder: SessionFolder, is_new: bool) -> None:
        """A join that came to nothing leaves nothing: what it made, unless another join has taken it up."""
        taken_up = any(driver.folder.path == folder.path for driver in self.sessions.values())
        if is_new and not taken_up and SessionFolder(folder.path).is_empty:
            folder.forget()

    async def leave(self, name: str, forget: bool) -> None:
        """Hand over, say goodbye, and keep checkpoint and key unless told to forget."""
        folder, driver = self._folder(name), self.sessions.get(name)
        with self._changing(name):
            if driver is not None:
                if not forget:  # what is to be deleted takes no space on a full disk
                    folder.mark(over=True)
                await self._take_leave(driver)
            elif not forget:
                raise UnknownSessionError(
                    f"this device is not in a session '{name}' now; 'peerd sessions' lists them, and "
                    f"'peerd leave {name} --forget' deletes what is kept of it"
                )
            if forget:
                folder.forget()

    def in_short(self) -> str:
        """One line for 'systemctl status'."""
        states = [f"{name} {driver.state}" for name, driver in sorted(self.sessions.items())]
        return f"{len(states)} session(s){': ' if states else ''}{', '.join(states)}"

    def key(self, name: str) -> str:
        return format_key(self._folder(name).key)

    async def rekey(self, name: str, key: str | None) -> tuple[str, bool]:
        """Leave the session as it is, and begin it with another key: the one that another device has made, or
        a new one. Gives that key, and whether a checkpoint is carried over. On a full disk it goes on with
        the old one. Raises StateError."""
        self._refuse_changing(name)
        folder, driver = self._folder(name), self.sessions.get(name)
        raw = parse_key(key) if key is not None else new_key()
        rekeying.check(self.store, folder, raw)
        if driver is not None and driver.learning.end is not None and not driver.learning.end.child:
            pid = driver.learning.end.pid
            raise UsageError(
                f"a script (pid {pid}) trains in '{name}'; end it first, and attach it again then"
            )
        with self._changing(name):
            if driver is not None:
                folder.mark(over=True)
                await self._take_leave(driver)
            try:
                new, kept = await asyncio.to_thread(
                    rekeying.carry_over, self.store, folder, raw, first=key is None
                )
            except StateError as error:
                if driver is None:
                    raise
                raise await self._go_on(folder, error) from error
            if not self.stopping.is_set():  # nobody would take it down again; the next start takes it up
                await self._start_rekeyed(new)
        return format_key(raw), kept

    async def _go_on(self, folder: SessionFolder, error: StateError) -> StateError:
        """Take a session up again that got no new key. What to say of it."""
        name = folder.note.name
        try:
            folder.mark(over=False)
            if not self.stopping.is_set():
                await self._start(folder)
        except PeerdError as another:
            return StateError(
                f"{error}; '{name}' keeps its key, and is left, for it does not start again: {another}; "
                f"'peerd join {name}' takes part again"
            )
        return StateError(f"{error}; '{name}' keeps its key, and goes on with it")

    async def _start_rekeyed(self, folder: SessionFolder) -> None:
        try:
            await self._start(folder)
        except PeerdError as error:
            name = folder.note.name
            raise by_exit_code(
                error.exit_code,
                f"{error}; '{name}' has its new key all the same: 'peerd key {name}' shows it, "
                f"'peerd join {name}' takes part again",
            ) from error

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """Nobody else changes what runs and is kept of this session meanwhile. Raises UsageError."""
        self._refuse_changing(name)
        self.changing.add(name)
        try:
            yield
        finally:
            self.changing.discard(name)

    def _refuse_changing(self, name: str) -> None:
        if name in self.changing:
            raise UsageError(f"session '{name}' is being left, or given another key; ask again in a moment")

    def status(self, name: str | None) -> DeviceStatus:
        """The whole of `peerd status --json`."""
        if name is not None and name not in self.sessions:
            folder = self._folder(name)
            folder = self._spoilt.get(folder.path, folder)
            if folder.note.finished and not folder.problem:
                return self._of_device((), (over(folder),))
            raise not_running(folder)
        now = self._loop.time()
        chosen = [driver for key, driver in sorted(self.sessions.items()) if name in (None, key)]
        sentences: list[str] = []
        finished_ones = []
        if name is None:
            sentences += [folder.problem for folder in self._spoilt.values() if folder.path.exists()]
            with suppress(OSError):  # the disk is gone, which `health.of_device` says
                kept = [folder for folder in self.store.sessions() if folder.note.name not in self.sessions]
                finished_ones = [over(folder) for folder in kept if folder.note.finished]
        for driver in chosen:
            sentences += health.of_session(driver, now)
        return self._of_device(sentences, [*(driver.status() for driver in chosen), *finished_ones])

    def _of_device(self, sentences: Iterable[str], sessions: Iterable[SessionStatus]) -> DeviceStatus:
        return DeviceStatus(
            peer=self.device.key.id,
            device=self.device.name,
            version=VERSION,
            pid=os.getpid(),
            uptime_s=self._loop.time() - self._started_at,
            rss_mb=rss_mb(),
            health=tuple(dict.fromkeys([*self._own_health(), *sentences])),
            sessions=tuple(sessions),
            state_free_mb=free_mb(self.store.folder),
            clock_set=not clocks.is_unset(),
        )

    def network(self) -> Frame:
        """What `peerd doctor` asks for."""
        drivers = [driver for _, driver in sorted(self.sessions.items())]
        return network(self.device.key.id, self.store.folder, drivers, self._loop.time())

    def _own_health(self) -> Iterable[str]:
        """Sentences that are of no session."""
        yield from health.of_device(self.store.folder)
        yield from self.pacing.sentences()
        if self.metrics is not None:
            yield from self.metrics.sentences()

    async def known_and_seen(self) -> list[Frame]:
        """What `peerd sessions` lists."""
        return await known_and_seen(self.device.key.id, self.store, self.sessions)

    async def export(self, name: str, *, onnx: bool = False) -> SharedBuffer:
        """The model as a safetensors file, of the learner or else of the newest checkpoint, or as ONNX; the
        buffer is the caller's. Raises UnknownSessionError, DataError when there is no model, or UsageError
        when ONNX is not to be had here."""
        folder, driver = self._folder(name), self.sessions.get(name)
        end = driver.learning.end if driver is not None else None
        known = provenance(folder, everybody(driver.node) if end is not None and driver is not None else [])
        model = None
        if end is not None:
            try:
                model = await end.export(known, EXPORT_S)
            except (TimeoutError, NoDaemonError) as error:
                log.info("the learner wrote no model, its checkpoint is exported: %s", error)
        if model is None:
            model = await from_checkpoint(name, folder.path, known)
        if not onnx:
            return model
        with model:
            return await as_onnx(name, folder.path, model)

    def check_known(self, name: str) -> None:
        """Raises UnknownSessionError unless a session of that name is on disk."""
        self._folder(name)

    async def attach(self, connection: Connection, request: Frame) -> None:
        """Serve a learner of one of the sessions until it is gone."""
        name = str(request.get("session"))
        if name not in self.sessions:
            await self._taken_up.wait()  # it may be about to be
        driver = self.sessions.get(name)
        if driver is None:
            raise unknown(name)
        self._lives += 1
        life = (self.device.boot << 20) + self._lives
        pid, _ = connection.credentials()
        end = LearnerEnd(connection, life, bool(request.get("child")), pid, driver.reserve)
        if end.child:
            await driver.turns.attach(connection, end)
            return
        self._scripts += 1
        self.no_script.clear()
        try:
            await driver.turns.attach(connection, end)
        finally:
            self._scripts -= 1
            if not self._scripts:
                self.no_script.set()

    # --- inside ------------------------------------------------------------------------------------------

    def _driver(self, folder: SessionFolder) -> SessionDriver:
        driver = SessionDriver(folder, self.device, self.blocked.ids)
        driver.learning.scripted = driver.name == self._awaited
        driver.turns.verdict = self.pacing.verdict(folder.options)
        self.sessions[driver.name] = driver
        return driver

    def _supervisor(self, name: str, on_death: Callable[[int], bool]) -> Supervisor:
        return Supervisor(learner_command(self.socket, name), self._learners, on_death)

    def _threads(self) -> int | None:
        return None if "OMP_NUM_THREADS" in os.environ else share_of_cores(self._learners())

    def _learners(self) -> int:
        """How many train on this device, or will as soon as they are started (again)."""
        all_learning = [driver.learning for driver in self.sessions.values()]
        return sum(learning.end is not None or learning.supervisor.running for learning in all_learning)

    async def _start(self, folder: SessionFolder) -> SessionDriver:
        driver = self._driver(folder)
        try:
            await asyncio.create_task(driver.start())  # see _take_up
        except PeerdError:
            await self._drop(driver)
            raise
        return driver

    async def _drop(self, driver: SessionDriver) -> None:
        """Take a session down that is not worth a goodbye: it failed, or has not begun."""
        if self.sessions.get(driver.name) is driver:
            del self.sessions[driver.name]
        await asyncio.create_task(driver.leave(pause=True))  # see _take_up

    async def _take_leave(self, driver: SessionDriver) -> None:
        """It runs until it has said goodbye."""
        await asyncio.create_task(driver.leave(pause=False))  # see _take_up
        if self.sessions.get(driver.name) is driver:
            del self.sessions[driver.name]

    def _folder(self, name: str) -> SessionFolder:
        driver = self.sessions.get(name)
        if driver is not None:
            return driver.folder
        for folder in self.store.sessions():
            if folder.note.name == name:
                return folder
        raise unknown(name)

    def _refuse_taken(self, name: str) -> None:
        with suppress(UnknownSessionError):
            self._folder(name)
            raise UsageError(
                f"this device knows a session '{name}' already; choose another name, or forget that one with "
                f"'peerd leave {name} --forget'"
            )

    async def _folder_to_join(self, name: str, key: str | None) -> SessionFolder:
        """The folder of the session meant, by its key if there is one. Another session in its place that
        never got anywhere makes room: its key was probably wrong."""
        if key is None:
            return self._folder(name)
        raw = parse_key(key)
        kept = self.store.known(raw)
        if kept is not None and kept.descriptor is not None and kept.descriptor.name != name:
            raise UsageError(
                f"this key is of the session '{kept.descriptor.name}', not '{name}'; run "
                f"'peerd join {kept.descriptor.name}'"
            )
        with suppress(UnknownSessionError):
            known = self._folder(name)
            if known.key != raw:
                if not known.is_empty:
                    raise UsageError(
                        f"this device knows another session '{name}', with another key; forget it first with "
                        f"'peerd leave {name} --forget', or if 'peerd rekey' has made that key for it, run "
                        f"'peerd rekey {name}' with it here, too"
                    )
                if name in self.sessions:
                    await self._drop(self.sessions[name])
                known.forget()
        return self.store.session(raw, name)
