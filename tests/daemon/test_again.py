"""Joining again what this device knows already, and exporting what no learner answers for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask, dial
from daemon.test_sessions import knows, pair, port, quiet, until
from peer.daemon import app
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, PeerdError, UnknownSessionError, UsageError
from peer.events import Dispose
from peer.keys import format_key, new_key, parse_key
from peer.learner.checkpoint import Checkpoint, CheckpointFolder
from peer.shared_buffer import SharedBuffer

Make = Callable[[str], Home]


def starts(driver: SessionDriver) -> int:
    """How often its own learner was started."""
    supervisor: Any = driver.learning.supervisor
    return int(supervisor.starts)


async def test_the_daemons_end_ends_the_wait_for_a_first_member(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        looking = asyncio.Event()
        options = here(timeout_s=10 * PATIENCE_S)
        joining = asyncio.create_task(
            a.daemon.join("home", format_key(new_key()), options, lambda text: looking.set())
        )
        await looking.wait()
        a.daemon.stopping.set()
        assert not (await joining).linked.is_set()


async def test_a_script_is_told_when_its_mass_is_taken_and_another_learner_takes_its_place(
    home: Make,
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        _, b, first, child = await pair(home)
        driver = b.daemon.sessions["home"]
        script = await Puppet.attach(b.socket, "home", child=False)
        await script.until(3)
        assert child.stopped
        await script.leave()
        assert script.weight == 0.0
        assert not driver.transport._keepers, "the new node begins without links"
        await until(driver, lambda: driver.learning.end is None)
        with pytest.raises(UsageError, match="in this learner's place"):
            await Puppet.attach(b.socket, "home")
        driver.turns.take_up()
        again = await Puppet.attach(b.socket, "home")
        await again.until(3)
    assert first.weight > 0


async def test_what_the_old_node_still_had_out_is_freed(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a = home("a")
    await a.daemon.create(session(), here())
    driver = a.daemon.sessions["home"]
    assert driver.node is not None
    buffer = SharedBuffer.of(b"a parcel")
    monkeypatch.setattr(driver.node.links, "learner_gone", lambda: [Dispose(buffer)])
    driver._start_over()
    assert buffer.closed


async def test_join_starts_the_own_learner_after_a_script_has_ended(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        driver = a.daemon.sessions["home"]
        script = await Puppet.attach(a.socket, "home", child=False)
        await script.training.wait()
        with pytest.raises(NobodyFoundError):
            await a.daemon.join("home", None, here(timeout_s=0.1), quiet)
        assert starts(driver) == 1, "the script trains"
        await script.leave()
        await until(driver, lambda: driver.learning.end is None)
        assert "start it again" in " ".join(a.daemon.status(None).health)
        with pytest.raises(NobodyFoundError):
            await a.daemon.join("home", None, here(timeout_s=0.1), quiet)
    assert starts(driver) == 2
    assert "start it again" not in " ".join(a.daemon.status(None).health)


async def test_other_options_for_a_session_that_runs_are_refused(home: Make) -> None:
    a = home("a")
    await a.daemon.create(session(), here(shard="1/8"))
    with pytest.raises(UsageError, match=r"another --shard, --peer; leave it first with 'peerd leave home'"):
        await a.daemon.join("home", None, here(shard="2/8", peers=("127.0.0.1:9",)), quiet)
    with pytest.raises(NobodyFoundError):
        await a.daemon.join("home", None, here(shard="1/8", timeout_s=0.1), quiet)


async def test_a_finished_session_says_so_before_and_after_a_restart(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, _, _ = await pair(home, rounds=2)
        for h in (a, b):
            await h.daemon.sessions["home"].ended.wait()
        with pytest.raises(UsageError, match=r"is finished.*peerd export home.*peerd leave home"):
            await a.daemon.join("home", None, here(), quiet)
        await a.stop()
        again = home("a")
        await again.daemon.resume()
        with pytest.raises(UsageError, match="is finished"):
            await again.daemon.join("home", None, here(), quiet)
        for name in ("home", None):
            [shown] = again.daemon.status(name).sessions
            assert (shown.name, shown.state, shown.algorithm) == ("home", "stopped", "sgp")
        assert [row["state"] for row in await again.daemon.known_and_seen() if row["known"]] == ["stopped"]


async def test_a_session_that_has_ended_is_taken_up_by_a_driver_of_its_own(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        first = a.daemon.sessions["home"]
        await first.leave(pause=True)
        with pytest.raises(NobodyFoundError):
            await a.daemon.join("home", None, here(timeout_s=0.1), quiet)
    assert a.daemon.sessions["home"] is not first
    assert not a.daemon.sessions["home"].ended.is_set()


async def test_what_was_applied_before_a_pause_is_still_known_after_it(home: Make) -> None:
    """By a node in the same daemon, after a script; and by one of a later daemon, from the folder."""
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, child = await pair(home)
        await asyncio.gather(first.until(3), child.until(3))
        me, driver = a.daemon.device.key.id, b.daemon.sessions["home"]
        script = await Puppet.attach(b.socket, "home", child=False)
        assert driver.node is not None
        assert driver.node.farewells() == driver.folder.farewells()
        assert driver.node.farewells()[me].by == child.life
        await script.until(3)
        await driver.leave(pause=True)
        later = SessionDriver(driver.folder, b.daemon.device)
        await later.start()
        assert later.node is not None
        assert later.node.farewells()[me].by == script.life
        await later.leave(pause=True)


async def test_a_wrong_name_leaves_nothing_and_the_right_one_joins(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        with pytest.raises(UsageError, match="'home', not 'house'"):
            await b.daemon.join("house", key, here(peers=(port(a),)), quiet)
        assert (b.daemon.sessions, b.daemon.store.sessions()) == ({}, [])
        joining = asyncio.create_task(b.daemon.join("home", key, here(peers=(port(a),)), quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b))
        assert set(b.daemon.sessions) == {"home"}
        joining.cancel()
        with pytest.raises(UsageError, match="run 'peerd join home'"):
            await b.daemon.join("house", key, here(), quiet)


def keep_checkpoint(home: Home) -> None:
    folder = home.daemon.sessions["home"].folder.path
    signature = [("weight", [2], "float32")]
    CheckpointFolder(folder).save(Checkpoint("id", "sgp", 7, 1.0, signature, torch.ones(2)))


async def exported(home: Home) -> list[float]:
    answer, fd = await ask(home.socket, "export", name="home")
    assert fd is not None
    with SharedBuffer.from_fd(fd, answer["size"]) as buffer:
        values: list[float] = safetensors.torch.load(bytes(buffer.view()))["weight"].tolist()
    return values


async def test_without_a_learner_the_newest_checkpoint_is_exported_after_leaving_too(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        keep_checkpoint(a)
        assert await exported(a) == [1.0, 1.0]
        await a.daemon.leave("home", forget=False)
        assert await exported(a) == [1.0, 1.0]
        with pytest.raises(UnknownSessionError):
            await ask(a.socket, "export", name="nosuch")


async def test_a_learner_that_does_not_answer_keeps_no_export_back(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "EXPORT_S", 0.05)
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        keep_checkpoint(a)
        silent = await dial(a.socket, "learner")
        silent.send({"op": "attach", "session": "home", "child": True, "pid": 1})
        await silent.receive()
        assert await exported(a) == [1.0, 1.0]
        silent.close()


async def test_one_damaged_session_keeps_no_other_from_being_taken_up(home: Make) -> None:
    a = home("a")
    for name in ("home", "worn", "torn"):
        await a.daemon.create(session(name), here())
    folders = {name: driver.folder.path for name, driver in a.daemon.sessions.items()}
    await a.stop()
    (folders["worn"] / "key").write_bytes(b"short")
    (folders["torn"] / "session.json").write_bytes(b"[]")
    again = home("a")
    await again.daemon.resume()
    assert set(again.daemon.sessions) == {"home"}
    health = "\n".join(again.daemon.status(None).health)
    assert "'peerd leave worn --forget'" in health
    assert str(folders["torn"]) in health
    with pytest.raises(UnknownSessionError, match="cannot be taken up from"):
        again.daemon.status("worn")
    await again.daemon.leave("worn", forget=True)
    assert "worn" not in "\n".join(again.daemon.status(None).health)


@pytest.mark.parametrize("damaged", ["descriptor.json", "session.json"])
@pytest.mark.parametrize("how", ["another key", "a port that is taken", "a wrong name"])
async def test_no_join_that_fails_deletes_what_a_damaged_folder_holds(
    home: Make, damaged: str, how: str
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        folder = b.daemon.store.session(parse_key(key), "home")
        folder.save_descriptor(session())
        (folder.path / "ckpt-7.peerd").write_bytes(b"weeks of training")
        (folder.path / damaged).write_bytes(bytes(40))
        await b.daemon.resume()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            busy = f"127.0.0.1:{taken.getsockname()[1]}"
            name = "house" if how == "a wrong name" else "home"
            given = format_key(new_key()) if how == "another key" else key
            options = here(timeout_s=0.5, listen=busy if how == "a port that is taken" else None)
            with pytest.raises(PeerdError):
                await b.daemon.join(name, given, options, quiet)
        assert (folder.path / "key").read_bytes() == parse_key(key)
        assert (folder.path / "ckpt-7.peerd").read_bytes() == b"weeks of training"


async def test_a_join_that_fails_leaves_alone_what_another_has_taken_up(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        key = await a.daemon.create(session(), here())
        options = here(peers=(port(a),))
        wrong = asyncio.create_task(b.daemon.join("house", key, options, quiet))
        await until(a.daemon.sessions["home"], lambda: (not b.daemon.sessions and wrong.done()) or knows(b))
        right = asyncio.create_task(b.daemon.join("home", key, options, quiet))
        with pytest.raises(UsageError, match="'home', not 'house'"):
            await wrong
        await until(a.daemon.sessions["home"], lambda: knows(b))
        assert b.daemon.sessions["home"].folder.path.exists()
        right.cancel()


async def test_of_two_joins_at_once_of_a_session_that_failed_one_starts_it_and_both_have_it(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[SessionDriver] = []
    start = SessionDriver.start

    async def counted(driver: SessionDriver) -> None:
        begun.append(driver)
        await start(driver)

    async with asyncio.timeout(PATIENCE_S):
        _, b, *_ = await pair(home)
        failed = b.daemon.sessions["home"]
        failed.fail(PeerdError("it failed"))
        monkeypatch.setattr(SessionDriver, "start", counted)
        joins = [asyncio.create_task(b.daemon.join("home", None, here(), quiet)) for _ in range(2)]
        await until(failed, lambda: b.daemon.sessions.get("home") not in (failed, None))
        puppet = await Puppet.attach(b.socket, "home", child=True)
        one, other = await asyncio.gather(*joins)
        assert one is other is b.daemon.sessions["home"]
        assert begun == [one]
        await puppet.leave()


async def test_a_session_whose_port_is_taken_at_the_daemons_start_is_shown_as_failed(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here(listen="127.0.0.1:0"))
        folder, taken = a.daemon.sessions["home"].folder, port(a)
        await a.stop()
        folder.save_options(here(listen=taken))
        with socket.create_server(("127.0.0.1", int(taken.rpartition(":")[2]))):
            again = home("a")
            await again.daemon.resume()
        [shown] = again.daemon.status("home").sessions
    assert (shown.state, shown.algorithm, shown.id) == ("failed", "sgp", session().id)
    assert any("is taken on this device" in sentence for sentence in again.daemon.status(None).health)


async def test_a_checkpoint_that_cannot_be_written_is_in_the_health(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        puppet = await Puppet.attach(a.socket, "home")
        puppet.report(checkpoint_problem="the disk is full")
        driver = a.daemon.sessions["home"]
        await until(driver, lambda: driver.figures.checkpoint_problem)
    assert "home: the disk is full" in a.daemon.status(None).health
