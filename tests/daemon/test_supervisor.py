"""The learner process: its environment, its death, its end. Real processes, none of which computes."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from peer.daemon import supervisor as supervisors
from peer.daemon.supervisor import Supervisor, environment

POLITE = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); print('up'); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); signal.pause()"


class Deaths:
    """Collects exit codes; `again` says how many times a child is to be started again."""

    def __init__(self, again: int = 0) -> None:
        self.codes: list[int] = []
        self.again = again
        self.enough = asyncio.Event()

    def __call__(self, code: int) -> bool:
        self.codes.append(code)
        if len(self.codes) > self.again:
            self.enough.set()
        return len(self.codes) <= self.again


def supervisor(script: str, deaths: Deaths) -> Supervisor:
    return Supervisor([sys.executable, "-c", script], lambda: 1, deaths)


class Said(logging.Handler):
    """Sets an event when a line with this text is logged."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.event = text, asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.event.set()


async def until_said(text: str) -> None:
    said = Said(text)
    supervisors.log.addHandler(said)
    try:
        await said.event.wait()
    finally:
        supervisors.log.removeHandler(said)


def test_a_learner_gets_no_secret_and_its_share_of_the_cores() -> None:
    given = environment({"PEERD_KEY": "k", "NOTIFY_SOCKET": "n", "PATH": "/bin"}, learners=10_000)
    assert "PEERD_KEY" not in given
    assert "NOTIFY_SOCKET" not in given
    assert given["PATH"] == "/bin"
    assert given["OMP_NUM_THREADS"] == "1"
    alone = environment({}, learners=1)
    assert alone["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environment({"OMP_NUM_THREADS": "3"}, learners=1)["OMP_NUM_THREADS"] == "3"


async def test_what_a_learner_prints_is_logged_without_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    deaths = Deaths()
    child = supervisor("print('a\\x1b[31mb'); print('x' * 10000)", deaths)
    child.start()
    async with asyncio.timeout(60):
        await deaths.enough.wait()
    await child.stop()
    said = [record.getMessage() for record in caplog.records]
    assert "learner: a [31mb" in said
    assert sum(line.count("x") for line in said) >= 10000


async def test_ctrl_c_at_the_daemons_terminal_does_not_reach_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    deaths = Deaths()
    child = supervisor("import os; print('leads', os.getsid(0) == os.getpgrp() == os.getpid())", deaths)
    child.start()
    async with asyncio.timeout(60):
        await deaths.enough.wait()
    await child.stop()
    assert "learner: leads True" in [record.getMessage() for record in caplog.records]


async def test_one_that_dies_is_started_again_until_that_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "BACKOFF_FIRST_S", 0.0)
    deaths = Deaths(again=2)
    child = supervisor("raise SystemExit(7)", deaths)
    child.start()
    async with asyncio.timeout(60):
        await deaths.enough.wait()
    await child.stop()
    assert deaths.codes == [7, 7, 7]
    assert child.restarts == 2
    assert not child.running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def at_once(delay: float) -> None:
        asked.append(delay)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    return asked


async def dies(times: int) -> None:
    deaths = Deaths(again=times - 1)
    child = supervisor("raise SystemExit(7)", deaths)
    child.start()
    async with asyncio.timeout(60):
        await deaths.enough.wait()
    await child.stop()


async def test_the_pause_doubles_from_death_to_death_up_to_a_limit(pauses: list[float]) -> None:
    await dies(times=8)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_one_that_lived_long_enough_starts_the_pauses_anew(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "HEALTHY_S", -1.0)
    await dies(times=4)
    assert pauses == [1, 1, 1]


async def test_one_that_ends_when_told_is_not_killed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    deaths = Deaths(again=99)
    child = supervisor(POLITE, deaths)
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        await child.stop(grace_s=0)
    assert deaths.codes == []
    assert not child.running


async def test_one_that_ignores_everything_is_killed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(supervisors, "TERM_S", 0.05)
    child = supervisor(STUBBORN, Deaths())
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        pid = child.pid
        assert pid is not None
        await child.stop(grace_s=0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


ABORTING = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os.abort()); "
ON_ITS_OWN = "the learner was told to stop, and ended by signal"


@pytest.mark.parametrize(
    ("script", "ends"),
    [
        (ABORTING + "print('up'); signal.pause()", [f"{ON_ITS_OWN} 6 (Aborted)"]),
        ("import signal; print('up'); signal.pause()", []),  # by the SIGTERM that it is sent
        (STUBBORN, []),  # by the SIGKILL after it
        (POLITE, []),
    ],
)
async def test_one_that_ends_by_a_signal_it_was_not_sent_is_reported(
    script: str, ends: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(supervisors, "TERM_S", 60.0 if script != STUBBORN else 0.05)
    child = supervisor(script, Deaths())
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        await child.stop(grace_s=0)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if line.startswith(ON_ITS_OWN)] == ends


async def test_one_that_was_killed_for_its_silence_and_then_stopped_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    child = supervisor(STUBBORN, Deaths())
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        child.kill()
        await child.stop()
    assert not [record for record in caplog.records if record.getMessage().startswith(ON_ITS_OWN)]


async def test_stopping_what_never_started_is_fine() -> None:
    await supervisor("pass", Deaths()).stop()


async def test_one_that_leaves_a_process_behind_is_noticed_and_takes_it_along(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data loader's worker holds the learner's output open; the learner's death is seen all the same."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(supervisors, "LAST_WORDS_S", 0.05)
    left_behind = "import subprocess as s; print('left', s.Popen(['sleep', '1000']).pid); raise SystemExit(9)"
    deaths = Deaths()
    child = supervisor(left_behind, deaths)
    child.start()
    async with asyncio.timeout(60):
        await deaths.enough.wait()
    await child.stop()
    assert deaths.codes == [9]
    [line] = [m for m in (record.getMessage() for record in caplog.records) if m.startswith("learner: left")]
    with suppress(ProcessLookupError):  # gone already
        watch = os.pidfd_open(int(line.split()[-1]))
        assert select.select([watch], [], [], 60)[0], "it still runs"
        os.close(watch)


async def test_one_that_cannot_be_started_is_tried_again_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "BACKOFF_FIRST_S", 0.0)
    child = Supervisor(["/nonexistent/python"], lambda: 1, Deaths())
    child.start()
    async with asyncio.timeout(60):
        await until_said("cannot be started")
    assert "cannot be started: No such file" in child.problem
    assert child.running
    await child.stop()


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_memory_runs_out_for_a_learner_first(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    child = supervisor(POLITE, Deaths(again=99))
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        assert child.pid is not None
        its, ours = oom_score(child.pid), oom_score(os.getpid())
        await child.stop(grace_s=0)
    assert its == supervisors.OOM_SCORE > ours


async def test_one_that_is_stopped_is_killed_and_started_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(supervisors, "BACKOFF_FIRST_S", 0.0)
    deaths = Deaths(again=1)
    child = supervisor(STUBBORN, deaths)
    child.start()
    async with asyncio.timeout(60):
        await until_said("up")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        child.kill()
        await until_said("up")
        child.kill()
        await deaths.enough.wait()
    await child.stop()
    assert deaths.codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert child.restarts == 1
