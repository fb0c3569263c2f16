"""Manners on real daemons: who pauses for quiet hours tells the others, stays with them, and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask
from daemon.test_again import starts
from daemon.test_sessions import pair, port, quiet, until
from peer.config import JoinOptions
from peer.daemon.app import Daemon
from peer.daemon.condition import Cooling, Firmware, Host, Pressure
from peer.daemon.manners import LEAST_SHARE, Verdict
from peer.daemon.pacing import Pacing
from peer.daemon.session import SessionDriver
from peer.daemon.supervisor import Supervisor, learner_command
from peer.errors import NobodyFoundError
from peer.status import SessionStatus

Make = Callable[[str], Home]
HOT = Host(cooling=(Cooling("cpufreq-cpu0", 1, 3),))
NOON, NIGHT, MORNING = 12 * 60, 22 * 60, 7 * 60


class Now:
    """What a device sees when it looks at the clock and at itself."""

    def __init__(self, home: Home) -> None:
        self.minute: int | None = NOON
        self.host = Host()
        self.pacing = home.daemon.pacing
        self.pacing.see, self.pacing.minute = self._see, lambda: self.minute

    async def _see(self, _: object) -> Host:
        return self.host

    async def becomes(self, minute: int | None = None, host: Host | None = None) -> None:
        self.minute, self.host = minute, host or Host()
        await self.pacing.once()


def driver(home: Home) -> SessionDriver:
    return home.daemon.sessions["home"]


def shown(home: Home) -> SessionStatus:
    return home.daemon.status("home").sessions[0]


def paces(home: Home) -> tuple[str, float | None, str | None, str | None]:
    status = shown(home)
    return status.state, status.pace_share, status.pace_reason, status.pace_until


IN_QUIET = ("paused", 0.0, "quiet hours 22:00-07:00", "07:00")


async def test_quiet_hours_pause_one_while_the_other_goes_on_and_then_it_trains_again(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        now = Now(b)
        await asyncio.gather(first.until(3), second.until(3))
        await ask(b.socket, "join", name="home", key=None, options=here(quiet_hours="22-7").to_dict())
        await now.becomes(NIGHT - 1)
        assert (shown(b).state, second.stopped) == ("training", False)

        await now.becomes(NIGHT)
        assert paces(b) == IN_QUIET, "at once, while it hands over"
        await until(driver(b), lambda: driver(b).learning.end is None)
        assert second.stopped
        assert second.weight == 0.0, "its mass is with the other"
        assert first.weight == pytest.approx(1.0)
        rounds, before = first.rounds, second.rounds
        await first.until(rounds + 20)
        assert (second.rounds, starts(driver(b))) == (before, 1)
        assert paces(b) == IN_QUIET
        assert (shown(a).members, shown(b).members) == (2, 2), "it stays within reach"
        assert (a.daemon.status(None).health, b.daemon.status(None).health) == ((), ())

        await now.becomes(MORNING)
        assert starts(driver(b)) == 2
        third = await Puppet.attach(b.socket, "home")
        await third.until(3)
        assert shown(b).state == "training"
    assert paces(b)[1:] == (1.0, None, None)


async def test_they_are_kept_over_a_restart_which_starts_no_learner_in_them(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        Now(a)
        await a.daemon.create(session(), here(quiet_hours="22-7", manners="mains"))
        assert starts(driver(a)) == 1
        kept = json.loads((driver(a).folder.path / "options.json").read_text())
        assert (kept["quiet_hours"], kept["manners"]) == ("22-7", "mains")
        await a.stop()
        again = home("a")
        now = Now(again)
        now.minute = NIGHT
        await again.daemon.resume()
        assert paces(again) == IN_QUIET
        assert starts(driver(again)) == 0
        join = await ask(again.socket, "join", name="home", key=None, options=here().to_dict())
        assert (join[0]["paused"], join[0]["waiting"]) == ("quiet hours 22:00-07:00", False)
        assert starts(driver(again)) == 0, "a join wakes nobody up"
        lifted = here(quiet_hours="none", timeout_s=0.0)
        with pytest.raises(NobodyFoundError):
            await again.daemon.join("home", None, lifted, quiet)
        assert starts(driver(again)) > 0, "and lifted they hold nobody back"
        assert driver(again).options.manners == "mains", "what is not given anew stays"


async def test_a_first_join_in_quiet_hours_finds_the_session_and_waits_for_the_morning(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        now = Now(b)
        now.minute = NIGHT
        key = await a.daemon.create(session(), here())
        first = await Puppet.attach(a.socket, "home")
        await b.daemon.join("home", key, here(peers=(port(a),), quiet_hours="22-7"), quiet)
        assert paces(b) == IN_QUIET
        assert starts(driver(b)) == 0
        await now.becomes(MORNING)
        assert starts(driver(b)) == 1
        second = await Puppet.attach(b.socket, "home")
        await asyncio.gather(first.until(5), second.until(3))


async def test_a_device_that_is_left_or_ended_in_its_quiet_hours_goes_as_any_other(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        now = Now(b)
        driver(b).set_manners(here(quiet_hours="22-7"))
        await now.becomes(NIGHT)
        await b.daemon.leave("home", forget=False)
        await until(driver(a), lambda: shown(a).members == 1)
        await first.until(first.rounds + 3)
    assert first.weight == pytest.approx(1.0)


async def trained(home: Make) -> tuple[Home, Now, Puppet]:
    """A device that founds a session, what it sees, and its learner, which trains."""
    a = home("a")
    await a.daemon.create(session(), here())
    puppet = await Puppet.attach(a.socket, "home")
    await puppet.training.wait()
    return a, Now(a), puppet


async def test_a_device_that_throttles_tells_its_learner_to_take_less(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, now, puppet = await trained(home)
        await now.becomes(host=HOT)
        while not puppet.shares:
            puppet.changed.clear()
            await puppet.changed.wait()
        assert puppet.shares == [0.5]
        assert paces(a)[1:] == (0.5, "the processor is held back to cool (cpufreq-cpu0)", None)
        later = await after(puppet, a)
    assert later.shares == [0.5], "the next learner hears of it as well"


async def test_a_learner_that_may_train_all_the_time_is_told_so_for_it_may_have_been_slowed_before(
    home: Make,
) -> None:
    """By the daemon that was here before this one."""
    async with asyncio.timeout(PATIENCE_S):
        _, now, puppet = await trained(home)
        for host in (Host(), Host(), HOT):
            await now.becomes(host=host)
        while len(puppet.shares) < 2:
            puppet.changed.clear()
            await puppet.changed.wait()
    assert puppet.shares == [1.0, 0.5]


async def after(puppet: Puppet, home: Home) -> Puppet:
    """Another learner in this one's place, and what it is told at the next look."""
    puppet.close()
    await until(driver(home), lambda: driver(home).learning.end is None)
    later = await Puppet.attach(home.socket, "home")
    await later.training.wait()
    await home.daemon.pacing.once()
    while not later.shares:
        later.changed.clear()
        await later.changed.wait()
    return later


@pytest.mark.parametrize("minds", [False, True])
async def test_a_script_is_never_paused_and_slowed_only_if_it_has_asked_for_that(
    home: Make, minds: bool
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        now = Now(b)
        driver(b).set_manners(here(quiet_hours="22-7"))
        script = await Puppet.attach(b.socket, "home", child=False)
        script.report(manners=minds)
        await script.until(3)
        await now.becomes(NIGHT)
        await script.until(script.rounds + 3)
        state, share, reason, _ = paces(b)
        assert shown(a).state == "training"
    assert (state, script.stopped) == ("training", False)
    assert script.shares == ([LEAST_SHARE] if minds else [])
    assert share == (LEAST_SHARE if minds else 1.0)
    assert reason is not None
    assert ("is not held back" in reason) is not minds


async def test_what_a_person_should_mend_is_said(home: Make) -> None:
    a = home("a")
    now = Now(a)
    await a.daemon.create(session(), here(quiet_hours="22-7"))
    await now.becomes(NOON, Host(firmware=Firmware(0x50000)))
    [sentence] = a.daemon.status(None).health
    assert "too little voltage (since it was switched on)" in sentence
    await now.becomes(None, Host(firmware=Firmware(0x1)))
    voltage, unset = a.daemon.status(None).health
    assert "too little voltage (now)" in voltage
    assert "quiet hours are not kept while the clock is unset" in unset
    assert shown(a).state != "paused"


class Session:
    """What pacing needs of one."""

    def __init__(self, *pids: int) -> None:
        self.options = JoinOptions()
        self.pids, self.told = pids, Verdict()

    def learner_pids(self) -> Iterator[int]:
        yield from self.pids

    def pace(self, now: Verdict) -> None:
        self.told = now


@pytest.mark.parametrize(
    ("others", "everybody", "group_s", "own_s", "why"),
    [
        (None, 99.0, 100.0, 100.0, ""),  # nobody but ourselves: our own threads wait for each other
        (0.0, 99.0, 100.0, 98.0, ""),
        (None, 99.0, 100.0, 50.0, "others wait for the processor, 50 % of the time"),
        (31.0, 99.0, 100.0, 100.0, "others wait for the processor (camera.service), 31 % of the time"),
        (31.0, 99.0, 100.0, 20.0, "others wait for the processor, 79 % of the time"),
    ],
)
async def test_pressure_that_our_own_learner_makes_is_not_taken_for_the_others(
    tmp_path: Path, others: float | None, everybody: float, group_s: float, own_s: float, why: str
) -> None:
    """In 100 s of processor time that our control group uses, our learner (pid 7) uses `own_s`."""
    one = Session(7)
    used = {"group": 0.0}
    ticks = tmp_path / "proc/7/stat"
    ticks.parent.mkdir(parents=True)

    async def see(_: object) -> Host:
        return Host(pressure=Pressure(everybody, others, "camera.service", everybody, used["group"]))

    pacing = Pacing(lambda: [one], see, lambda: NOON, tmp_path)
    ticks.write_text(f"7 (x) S {'0 ' * 10}0 0 0 0")
    await pacing.once()
    used["group"] = group_s
    ticks.write_text(f"7 (x) S {'0 ' * 10}{int(100 * own_s)} 0 0 0")
    pacing.strain = type(pacing.strain)()  # what the first look alone could not tell apart
    await pacing.once()
    assert one.told.reason == why
    assert one.told.share == (0.5 if why else 1.0)


@pytest.mark.parametrize("first", [True, False])
async def test_a_look_that_fails_is_said_and_training_goes_on(
    home: Make, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setattr("peer.daemon.pacing.LOOK_S", 0.0)
    a = home("a")
    now = Now(a)

    async def see(_: object) -> Host:
        raise RuntimeError("no such thing")

    if first:
        now.pacing.see = see
    await a.daemon.pacing.start()
    now.pacing.see = see
    async with asyncio.timeout(PATIENCE_S):
        await now.pacing.ended()
    assert "not looked at any more" in a.daemon.status(None).health[0]
    await a.daemon.pacing.stop()


async def test_a_real_learner_pauses_and_trains_on_from_the_others_model(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = real(home("a")), real(home("b"))
        now = Now(b)
        key = await a.daemon.create(session(local_steps=1), here())
        await b.daemon.join("home", key, here(peers=(port(a),), quiet_hours="22-7"), quiet)
        await until(driver(b), lambda: (shown(b).round or 0) > 5 and shown(b).state == "training")
        await now.becomes(NIGHT)
        await until(driver(b), lambda: not driver(b).learning.supervisor.running)
        async with driver(b).turns._attaching:
            pass  # what is told while it still ends is for the next look
        still, going = shown(b).round, shown(a).round
        assert paces(b) == IN_QUIET
        await until(driver(a), lambda: (shown(a).round or 0) > (going or 0) + 50)
        assert shown(b).round == still
        assert shown(a).weight == pytest.approx(1.0)
        await now.becomes(MORNING)
        await until(driver(b), lambda: (shown(b).round or 0) > (going or 0) + 50)
        assert shown(b).state == "training"


def real(home: Home) -> Home:
    """With learners of its own, at a low price: each loads torch."""
    daemon: Daemon = home.daemon

    def supervisor(name: str, on_death: Callable[[int], bool]) -> Supervisor:
        return Supervisor(learner_command(home.socket, name), lambda: 2, on_death)

    daemon.device = replace(daemon.device, supervisor=supervisor)
    return home
