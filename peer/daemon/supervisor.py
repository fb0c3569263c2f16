"""Keeps one learner process running: spawns it, reads what it prints into the log, starts it again when it
dies.

A learner is `python -m peer.learner`, always a fresh program: a fork of a process that has used gRPC may
deadlock (grpc#18075). It gets no key and no NOTIFY_SOCKET, and ends by itself when its socket closes. It is
in a session of its own: Ctrl-C at the daemon's terminal must not reach it before its mass is handed over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 30.0  # doubling; guess: a crash at once does not wear out the SD card
HEALTHY_S = 60.0  # one that lived this long starts the pauses anew (guess)
LAST_WORDS_S = 1.0  # for what a dead child printed to reach the log; guess
REAP_S = 10.0  # from SIGKILL to its end: a process in a disk wait takes its time (guess)
STOP_S, TERM_S = 10.0, 5.0  # for a last checkpoint after "stop", then after SIGTERM (guess)
HOPELESS = frozenset({2, 65, 78})  # exit codes that a restart does not help: usage, model or data, config
SECRETS = ("PEERD_KEY", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS")
OOM_SCORE = 800  # of 1000: before nearly everything, whatever its size (proc(5), oom_score_adj)
MAX_LINE = 4096  # bytes of a printed line that reach the log


def share_of_cores(learners: int) -> int:
    """Threads for each of so many learners."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, learners))


def environment(source: Mapping[str, str], learners: int) -> dict[str, str]:
    """A learner's environment: without secrets, and with its share of the cores unless the user says
    otherwise."""
    kept = {name: value for name, value in source.items() if name not in SECRETS}
    kept.setdefault("OMP_NUM_THREADS", str(share_of_cores(learners)))
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


class Supervisor:
    """One session's child. `start` and `stop` may be called any number of times.

    command: the program and its arguments. learners(): how many run on this device. on_death(code): called
    when it died without being stopped; false means: do not start it again."""

    def __init__(
        self, command: list[str], learners: Callable[[], int], on_death: Callable[[int], bool]
    ) -> None:
        self.command = command
        self.restarts = 0
        self.last_code: int | None = None
        self.problem = ""  # why there is no child now
        self._learners = learners
        self._on_death = on_death
        self._process: asyncio.subprocess.Process | None = None
        self._sent: set[int] = set()  # signals, to this process
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """A child is alive or will be started again."""
        return self._keeper is not None and not self._keeper.done()

    def start(self) -> None:
        if not self.running:
            self._keeper = asyncio.create_task(self._keep())

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Wait `grace_s` for it to end by itself (it has been told), then SIGTERM, then SIGKILL."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        process, sent = self._process, self._sent
        if process is not None:
            for wait_s, then in ((grace_s, signal.SIGTERM), (TERM_S, signal.SIGKILL), (REAP_S, None)):
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await process.wait()
                if process.returncode is not None:
                    _complain(process.returncode, sent)
                    break
                if then is not None:
                    sent.add(then)
                    with suppress(ProcessLookupError):
                        process.send_signal(then)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self._process = None

    def kill(self) -> None:
        """End a child that does not answer, as if it had died: another is started."""
        if self._process is not None:
            self._sent.add(signal.SIGKILL)
            _kill_group(self._process.pid)

    async def _keep(self) -> None:
        pause = BACKOFF_FIRST_S
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                self.last_code, self.problem = await self._run_once(), ""
            except OSError as error:  # no memory, no descriptors, an interpreter that is being upgraded
                self.problem = f"the learner cannot be started: {error.strerror or error}"
                log.error("%s; trying again in %.0f s", self.problem, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, BACKOFF_MOST_S)
                continue
            if self._keeper is not asyncio.current_task() or not self._on_death(self.last_code):
                return
            pause = BACKOFF_FIRST_S if clock() - began > HEALTHY_S else pause
            log.warning("the learner ended with %d; starting it again in %.0f s", self.last_code, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF_MOST_S)
            self.restarts += 1

    async def _run_once(self) -> int:
        """One child from its start to its end; its exit code. OSError: it cannot be started."""
        said, printing = os.pipe()
        try:
            # a pipe of our own: with asyncio's, `wait` would wait for everybody who holds its other end
            process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printing,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(os.environ, self._learners()),
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(said)
            raise
        finally:
            os.close(printing)
        self._process, self._sent = process, set()
        _let_it_go_first(process.pid)
        copying = asyncio.create_task(_copy_to_log(said))
        try:
            code = await process.wait()
            await asyncio.wait([copying], timeout=LAST_WORDS_S)
            return code
        finally:
            copying.cancel()
            if process.returncode is not None or self._keeper is not None:
                _kill_group(process.pid)  # with what it started: it leads a session of its own
            self._process = None


def _complain(code: int, sent: Container[int]) -> None:
    """How one ended that was told to stop: said where it was a signal that nobody here has sent."""
    if code < 0 and -code not in sent:
        log.warning(
            "the learner was told to stop, and ended by signal %d (%s)", -code, signal.strsignal(-code)
        )


def _let_it_go_first(pid: int) -> None:
    """Where memory ends the kernel is to take a learner, which starts again, and not the daemon (proc(5))."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
    except OSError as error:  # it has ended already, or /proc is not to be written here
        log.info("the learner is no more likely to be ended for memory than others: %s", error.strerror)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


async def _copy_to_log(descriptor: int) -> None:
    """Every line that comes out of a pipe, without control characters. Closes the descriptor."""
    stream = asyncio.StreamReader(limit=MAX_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        while line := await _line(stream):
            text = "".join(c if c.isprintable() else " " for c in line.decode("utf-8", "replace")).strip()
            if text:
                log.info("learner: %s", text)
    finally:
        transport.close()


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, or MAX_LINE bytes of it; b"" at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.readexactly(error.consumed)


def learner_command(socket: Path, session: str) -> list[str]:
    """`-P`: a folder the daemon happens to run in must not shadow our modules."""
    return [sys.executable, "-P", "-m", "peer.learner", "--socket", str(socket), "--session", session]
