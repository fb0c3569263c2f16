"""Whole daemons in one process: create, join, train, leave, crash. The learners are stand-ins (puppet.py)."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask
from peer.daemon.joining import nobody
from peer.daemon.session import SessionDriver
from peer.errors import DataError, NobodyFoundError, PortError, UnknownSessionError, UsageError, WrongKeyError
from peer.keys import format_key, new_key
from peer.shared_buffer import SharedBuffer

Make = Callable[[str], Home]


async def until(driver: SessionDriver, condition: Callable[[], object]) -> None:
    """Look at every tick of the node until the condition holds."""
    while not condition():
        driver.changed.clear()
        try:
            async with asyncio.timeout(0.05):
                await driver.changed.wait()
        except TimeoutError:
            continue


def port(home: Home, name: str = "home") -> str:
    address: str = home.daemon.sessions[name].discovery.addresses[0]  # type: ignore[union-attr]
    return address


def knows(home: Home, name: str = "home") -> bool:
    """Has it heard from a member what the session is?"""
    return name in home.daemon.sessions and home.daemon.sessions[name].descriptor is not None


def quiet(text: str) -> None:
    """Nobody reads the progress."""


async def pair(make: Make, **changes: object) -> tuple[Home, Home, Puppet, Puppet]:
    """Two devices that train together."""
    a, b = make("a"), make("b")
    key = await a.daemon.create(session(**changes), here())
    first = await Puppet.attach(a.socket, "home")
    joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
    await until(a.daemon.sessions["home"], lambda: knows(b))
    second = await Puppet.attach(b.socket, "home")
    await joining
    return a, b, first, second


async def test_two_devices_train_and_no_weight_is_made_or_lost(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home, rounds=20)
        for h in (a, b):  # who falls behind the other skips a round, so that nobody is sure to close all
            await h.daemon.sessions["home"].ended.wait()
    assert first.weight + second.weight == pytest.approx(1.0)
    status = a.daemon.status("home").sessions[0]
    assert status.state == "stopped"
    assert {link.state for link in status.links} == {"left"}
    assert status.bytes_dense_exchanges
    assert status.bytes_dense
    assert status.bytes_dense_exchanges < status.bytes_dense <= 4 * status.bytes_dense_exchanges
    assert status.bytes_sent
    assert status.message_bytes_sent
    assert status.message_bytes_sent < status.bytes_sent
    assert status.round == 20
    assert first.rounds > 10
    assert second.rounds > 10
    assert first.stopped


async def test_status_shows_both_directions_and_is_healthy(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, _, first, second = await pair(home)
        await asyncio.gather(first.until(5), second.until(5))
        answer, _ = await ask(a.socket, "status", name=None)
    [shown] = answer["status"]["sessions"]
    assert answer["status"]["health"] == []
    assert (shown["state"], shown["members"], shown["local_steps"]) == ("training", 2, 4)
    assert sorted(link["direction"] for link in shown["links"]) == ["in", "out"]
    assert {link["state"] for link in shown["links"]} == {"alive"}
    assert {link["device"] for link in shown["links"]} == {"b"}
    json.dumps(answer["status"])


async def test_one_that_leaves_hands_its_weight_over_and_is_gone(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        await ask(b.socket, "leave", name="home", forget=False)
        await until(a.daemon.sessions["home"], lambda: first.weight == pytest.approx(1.0))
        with pytest.raises(UnknownSessionError, match="has left session 'home'; 'peerd join home'"):
            await ask(b.socket, "status", name="home")
        listed, _ = await ask(b.socket, "sessions")
        [row] = [row for row in listed["sessions"] if row["known"]]
        assert (row["name"], row["state"], row["known"]) == ("home", "left", True)
        await ask(b.socket, "leave", name="home", forget=True)
        assert not [row for row in (await ask(b.socket, "sessions"))[0]["sessions"] if row["known"]]
    assert second.stopped
    assert second.weight == 0.0


@pytest.mark.parametrize("forget", [False, True])
async def test_who_leaves_and_joins_again_trains_again_with_the_same_daemon(home: Make, forget: bool) -> None:
    """The others hold its word that it left; it has to outrank that."""
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        key = a.daemon.key("home")
        await b.daemon.leave("home", forget=forget)
        joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b))
        again = await Puppet.attach(b.socket, "home")
        assert (await joining).linked.is_set()
        await again.until(3)
        node = a.daemon.sessions["home"].node
        assert node is not None
        assert len(node.members.view()) == 2
    assert again.weight > 0


async def test_a_failed_session_that_is_joined_again_trains_with_the_others(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        b.daemon.sessions["home"].fail(DataError("the data is gone"))
        await second.ended()
        joining = asyncio.create_task(b.daemon.join("home", None, here(peers=(port(a),)), quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b) and b.daemon.sessions["home"].failure is None)
        again = await Puppet.attach(b.socket, "home")
        await joining
        await again.until(3)
    assert again.weight > 0


async def test_a_device_of_two_sessions_is_a_stranger_in_neither(home: Make) -> None:
    """Each session announces itself; those of the other one are not of somebody unknown."""
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        for name in ("one", "two"):
            key = await a.daemon.create(session(name), here())
            joining = asyncio.create_task(b.daemon.join(name, key, here(peers=(port(a, name),)), quiet))
            await until(a.daemon.sessions[name], lambda name=name: knows(b, name))  # type: ignore[misc]
            joining.cancel()
        for one in (a, b):
            found = [driver.finder for driver in one.daemon.sessions.values()]
            await until(one.daemon.sessions["one"], lambda found=found: all(f.foreign for f in found))  # type: ignore[misc]
            assert [row["name"] for row in await one.daemon.known_and_seen()] == ["one", "two"]


async def test_a_learner_that_dies_comes_back_as_a_new_life_with_a_sponsors_weight(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        _, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        second.close()
        await until(b.daemon.sessions["home"], lambda: b.daemon.sessions["home"].learning.end is None)
        again = await Puppet.attach(b.socket, "home")
        assert again.life > second.life
        await again.until(3)
    assert b.daemon.sessions["home"].state == "training"
    assert again.weight > 0


async def test_a_script_takes_the_childs_place_and_a_second_script_is_refused(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        child = await Puppet.attach(a.socket, "home")
        await child.training.wait()
        script = await Puppet.attach(a.socket, "home", child=False)
        await child.ended()
        assert child.stopped
        await script.training.wait()
        with pytest.raises(UsageError, match="end that one first"):
            await Puppet.attach(a.socket, "home", child=False)


async def test_the_child_whose_place_a_script_takes_hands_its_weight_over(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        script = await Puppet.attach(b.socket, "home", child=False)
        await child.ended()
        assert (child.stopped, child.weight) == (True, 0.0)
        await script.training.wait()
        await script.leave()
        await until(a.daemon.sessions["home"], lambda: first.weight == pytest.approx(1.0))
    assert script.weight == 0.0


async def test_learners_are_told_their_share_of_the_cores_as_others_come_and_go(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        learners = []
        for name, share in (("one", 8), ("two", 4)):
            await a.daemon.create(session(name), here())
            learners.append(await Puppet.attach(a.socket, name))
            await until(a.daemon.sessions[name], lambda share=share: learners[-1].threads == share)  # type: ignore[misc]
        first, second = learners
        assert first.threads == 8, "it is told when it next reports"
        first.report(loss=0.5)
        await until(a.daemon.sessions["one"], lambda: first.threads == 4)
        second.close()
        await until(a.daemon.sessions["two"], lambda: a.daemon.sessions["two"].learning.end is None)
        first.report(loss=0.4)
        await until(a.daemon.sessions["one"], lambda: first.threads == 8)


async def test_another_model_is_refused_with_the_first_difference(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        first = await Puppet.attach(a.socket, "home")
        await first.training.wait()
        joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
        await until(
            a.daemon.sessions["home"], lambda: b.daemon.sessions and b.daemon.sessions["home"].descriptor
        )
        await Puppet.attach(b.socket, "home", signature=WIDE)
        with pytest.raises(DataError, match=r"'weight': here \(4, 3\) float32, session has \(2, 3\) float32"):
            await joining
    assert b.daemon.sessions["home"].state == "failed"
    assert "same task file" in " ".join(b.daemon.status(None).health)


async def newcomer(make: Make, signature: bytes) -> tuple[Home, Home, asyncio.Task[Any], Puppet]:
    """A member without a learner, and one that joins, whose learner looks for mass already."""
    a, b = make("a"), make("b")
    key = await a.daemon.create(session(), here())
    joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
    await until(a.daemon.sessions["home"], lambda: knows(b))
    learner = await Puppet.attach(b.socket, "home", signature=signature)
    driver = b.daemon.sessions["home"]
    await until(driver, lambda: driver.node is not None and driver.node.phase == "seeking")
    return a, b, joining, learner


WIDE = json.dumps([["weight", [4, 3], "float32"]]).encode()


async def test_another_model_is_refused_also_when_the_members_learner_starts_last(home: Make) -> None:
    """Nobody trained when the newcomer said Hello: the models are compared before mass is asked for."""
    async with asyncio.timeout(PATIENCE_S):
        a, b, joining, wide = await newcomer(home, WIDE)
        first = await Puppet.attach(a.socket, "home")
        with pytest.raises(DataError, match=r"'weight': here \(4, 3\) float32, session has \(2, 3\) float32"):
            await joining
        await first.training.wait()
    assert b.daemon.sessions["home"].state == "failed"
    assert wide.heard == []
    assert first.weight == 1.0


async def test_a_name_that_is_not_the_sessions_is_an_error_that_gives_the_real_one(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        with pytest.raises(UsageError, match="'home', not 'house'"):
            await b.daemon.join("house", key, here(peers=(port(a),)), quiet)


async def test_nobody_there_is_said_and_the_session_waits(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        b = home("b")
        key = format_key(new_key())
        with pytest.raises(NobodyFoundError, match=r"--peer.*127\.0\.0\.1:9: nobody answers there"):
            await b.daemon.join("home", key, here(peers=("127.0.0.1:9",), timeout_s=1.0), quiet)
    assert [(s.state, s.id) for s in b.daemon.status(None).sessions] == [("waiting", None)]
    assert "127.0.0.1:9" in " ".join(b.daemon.status(None).health)


async def test_join_keeps_to_its_timeout_while_its_learner_is_still_starting(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        await (await Puppet.attach(a.socket, "home")).training.wait()
        with pytest.raises(NobodyFoundError, match=r"within 1 s, for the learner here is still starting"):
            await b.daemon.join("home", key, here(peers=(port(a),), timeout_s=1.0), quiet)
        later = await Puppet.attach(b.socket, "home")
        await later.training.wait()


async def test_members_that_do_not_know_the_session_yet_are_not_waited_for_longer_than_asked(
    home: Make,
) -> None:
    """The device that created it is off: no learner can start, so nothing is worth the learner's time."""
    key = format_key(new_key())
    async with asyncio.timeout(PATIENCE_S):
        b, c = home("b"), home("c")
        with pytest.raises(NobodyFoundError, match="no member"):
            await b.daemon.join("home", key, here(timeout_s=0.0), quiet)
        await until(b.daemon.sessions["home"], lambda: b.daemon.sessions["home"].discovery.addresses)  # type: ignore[union-attr]
        with pytest.raises(NobodyFoundError, match="start the device that created it"):
            await c.daemon.join("home", key, here(peers=(port(b),), timeout_s=3.0), quiet)
    for h in (b, c):
        assert "none of them knows the session yet; start the device" in " ".join(
            h.daemon.status(None).health
        )


async def test_a_listener_is_announced_where_its_name_leads(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here(insecure=False, listen="localhost:0"))
    discovery = a.daemon.sessions["home"].discovery
    assert discovery is not None
    assert discovery.problem is None
    assert discovery.addresses
    assert {address.rpartition(":")[0] for address in discovery.addresses} <= {"127.0.0.1", "[::1]"}


async def test_a_learner_that_died_is_told_from_its_first_pause_on(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
    child: Any = a.daemon.sessions["home"].learning.supervisor

    def said() -> str:
        return " ".join(a.daemon.status(None).health)

    child.running, child.pid, child.problem = True, 1, ""
    assert "learner" not in said(), "it is started for the first time"
    child.last_code, child.pid = 139, None
    assert "died with exit code 139 and is started again soon" in said()
    child.restarts, child.pid = 1, 2
    assert "is started again (restarts so far: 1)" in said()
    child.problem = "the learner cannot be started: Cannot allocate memory"
    assert "Cannot allocate memory; it is tried again" in said()


async def test_cores_are_shared_among_sessions_that_learn_and_no_others(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        with pytest.raises(NobodyFoundError):
            await a.daemon.join("far", format_key(new_key()), here(timeout_s=0.0), quiet)
        child: Any = a.daemon.sessions["home"].learning.supervisor
        assert a.daemon._learners() == 0
        child.running = True
        assert a.daemon._learners() == 1, "one waits for a member, and has nothing to learn"
        child.running = False
        script = await Puppet.attach(a.socket, "home", child=False)
        await script.training.wait()
        assert a.daemon._learners() == 1


async def test_a_wrong_key_makes_room_for_the_right_one(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here(insecure=False, listen="127.0.0.1:0"))
        await Puppet.attach(a.socket, "home")
        away = here(insecure=False, listen="127.0.0.1:0", peers=(port(a),), timeout_s=3.0)
        with pytest.raises(WrongKeyError, match="did not recognise this key"):
            await b.daemon.join("home", format_key(new_key()), away, quiet)
        joining = asyncio.create_task(b.daemon.join("home", key, away, quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b))
        await Puppet.attach(b.socket, "home")
        await joining
    assert len(b.daemon.store.sessions()) == 1


async def test_an_occupied_port_leaves_no_session_behind(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        await a.daemon.create(session(), here())
        with pytest.raises(PortError, match="--listen"):
            await b.daemon.create(session("other"), here(listen=port(a)))
    assert b.daemon.sessions == {}
    assert b.daemon.store.sessions() == []


async def test_export_hands_the_learners_model_on(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        with pytest.raises(DataError, match="no model to export yet"):
            await ask(a.socket, "export", name="home")
        await (await Puppet.attach(a.socket, "home")).training.wait()
        before = payloads()
        for _ in range(3):
            answers = await asyncio.gather(*(ask(a.socket, "export", name="home") for _ in range(2)))
            for answer, fd in answers:
                assert fd is not None
                with SharedBuffer.from_fd(fd, answer["size"]) as buffer:
                    assert bytes(buffer.view()) == b"a model"
        assert payloads() == before, "the daemon keeps no model that it has handed on"


def payloads() -> int:
    """Descriptors of payloads that this process, which daemon and puppet are in, has."""
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("peerd-payload" in str(link.readlink()) for link in links)


async def test_a_daemon_takes_its_sessions_up_again(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        key = await a.daemon.create(session(), here())
        await a.stop()
        again = home("a")
        await again.daemon.resume()
        assert again.daemon.key("home") == key
        assert again.daemon.device.boot == a.daemon.device.boot + 1
        puppet = await Puppet.attach(again.socket, "home")
        assert puppet.life >> 20 == again.daemon.device.boot
        assert puppet.welcome["descriptor"] == session().to_dict()
        assert puppet.welcome["folder"] == str(again.daemon.sessions["home"].folder.path)


async def test_strangers_do_not_make_a_known_session_a_wrong_key(home: Make) -> None:
    """A device that holds the session's descriptor has the right key: its members are off, no more."""
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        driver = a.daemon.sessions["home"]
        driver.finder.strangers["a nonce"] = "p-stranger"
        assert isinstance(nobody(driver, 3), NobodyFoundError)
        driver.descriptor = None
        assert isinstance(nobody(driver, 3), WrongKeyError)
