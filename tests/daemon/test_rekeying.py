"""A new key for a session: the first device takes its model along, the others follow with the key alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet, ask
from daemon.test_sessions import knows, pair, port, quiet, until
from peer.daemon import rekeying
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, PortError, StateError, UnknownSessionError, UsageError
from peer.keys import format_key, new_key, parse_key
from peer.learner.checkpoint import Checkpoint, CheckpointFolder

Make = Callable[[str], Home]


def keep_checkpoint(home: Home, round_: int) -> None:
    """As a learner of this device does."""
    folder = home.daemon.sessions["home"].folder
    assert folder.descriptor is not None
    CheckpointFolder(folder.path).save(
        Checkpoint(
            session=folder.descriptor.id,
            algorithm="sgp",
            round=round_,
            weight=1.0,
            signature=[("weight", [2, 3], "torch.float32")],
            model=torch.full((6,), float(round_)),
        )
    )


def kept_round(home: Home) -> int:
    found, _ = CheckpointFolder(home.daemon.sessions["home"].folder.path).load()
    assert found is not None
    return found.round


async def test_with_the_new_key_the_others_train_on_and_the_old_one_opens_nothing(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        old, descriptor = a.daemon.key("home"), a.daemon.sessions["home"].descriptor
        options = a.daemon.sessions["home"].options
        keep_checkpoint(a, 7)
        keep_checkpoint(b, 6)
        done, _ = await ask(a.socket, "rekey", name="home", key=None)
        key = done["key"]
        assert key == a.daemon.key("home") != old
        assert done["checkpoint"]
        assert first.stopped
        assert b.daemon.sessions["home"].node is not None
        node = b.daemon.sessions["home"].node
        assert node.members.record(a.daemon.device.key.id).state == "left", "it said goodbye"  # type: ignore[union-attr]
        await until(b.daemon.sessions["home"], lambda: second.weight == pytest.approx(1.0))
        driver = a.daemon.sessions["home"]
        assert (driver.descriptor, driver.options) == (descriptor, options)
        assert [f.note.name for f in a.daemon.store.sessions()] == ["home"], "of the old key nothing is left"
        assert a.daemon.store.known(parse_key(old)) is None
        assert kept_round(a) == 7
        assert not driver.folder.note.founder, "it has a model to go on with"
        # the other device: the same with that key, and they meet
        await ask(b.socket, "rekey", name="home", key=key)
        assert b.daemon.key("home") == key
        assert kept_round(b) == 6


async def test_two_devices_with_the_new_key_find_each_other(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        await a.daemon.create(session(), here(listen="127.0.0.1:0"))
        done, _ = await ask(a.socket, "rekey", name="home", key=None)
        assert not done["checkpoint"]
        assert a.daemon.sessions["home"].folder.note.founder, "without a model it begins anew"
        first = await Puppet.attach(a.socket, "home")
        await first.training.wait()
        joining = asyncio.create_task(b.daemon.join("home", done["key"], here(peers=(port(a),)), quiet))
        await until(a.daemon.sessions["home"], lambda: knows(b))
        second = await Puppet.attach(b.socket, "home")
        await joining
        await asyncio.gather(first.until(2), second.until(2))


async def test_what_cannot_have_another_key_keeps_its_own(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        key = await a.daemon.create(session(), here())
        with pytest.raises(UnknownSessionError):
            await ask(a.socket, "rekey", name="office", key=None)
        with pytest.raises(UsageError, match="'home' has that key on this device already"):
            await ask(a.socket, "rekey", name="home", key=key)
        script = await Puppet.attach(a.socket, "home", child=False)
        with pytest.raises(UsageError, match=r"a script .* trains in 'home'; end it first"):
            await ask(a.socket, "rekey", name="home", key=None)
        await script.training.wait()
        await script.leave()
        with pytest.raises(UsageError, match=r"or if 'peerd rekey' has made that key for it"):
            await a.daemon.join("home", format_key(new_key()), here(), quiet)
        assert a.daemon.key("home") == key


def full_from(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files of the new folder, that one no longer fits."""
    whole, written = rekeying.write, 0

    def one(path: Path, data: bytes) -> None:
        nonlocal written
        if written == write:
            raise StateError(f"cannot write {path}: no space left")
        written += 1
        whole(path, data)

    monkeypatch.setattr("peer.daemon.rekeying.write", one)


@pytest.mark.parametrize("writes", [0, 2])
async def test_on_a_full_disk_the_session_goes_on_with_the_old_key(
    home: Make, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, _, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        keep_checkpoint(a, 7)
        key, folders = a.daemon.key("home"), sorted(a.daemon.store.folder.rglob("key"))
        with monkeypatch.context() as patched:
            full_from(writes, patched)
            with pytest.raises(StateError, match=r"no space left; 'home' keeps its key, and goes on with it"):
                await ask(a.socket, "rekey", name="home", key=None)
        assert a.daemon.key("home") == key
        assert a.daemon.changing == set()
        assert sorted(a.daemon.store.folder.rglob("key")) == folders, "nothing half made is left"
        driver = a.daemon.sessions["home"]
        assert (driver.failure, driver.folder.note.over, kept_round(a)) == (None, False, 7)
        again = await Puppet.attach(a.socket, "home")
        await again.until(3)
        assert a.daemon.status("home").sessions[0].members == 2
        done, _ = await ask(a.socket, "rekey", name="home", key=None)
        assert a.daemon.key("home") == done["key"] != key


async def test_where_it_cannot_go_on_it_is_said_how(home: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        key = await a.daemon.create(session(), here())

        async def start(_: SessionDriver) -> None:
            raise PortError("port 7001 is taken")

        with monkeypatch.context() as patched:
            full_from(0, patched)
            patched.setattr(SessionDriver, "start", start)
            with pytest.raises(
                StateError, match=r"no space left; 'home' keeps its key, .* port 7001 is taken"
            ):
                await a.daemon.rekey("home", None)
        with pytest.raises(NobodyFoundError):
            await a.daemon.join("home", None, here(timeout_s=0.0), quiet)
        assert a.daemon.key("home") == key
        assert a.daemon.sessions["home"].failure is None


class Copying:
    """A copy to the new folder that takes until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._whole = rekeying.carry_over
        monkeypatch.setattr("peer.daemon.rekeying.carry_over", self._carry_over)

    def _carry_over(self, *args: Any, **options: Any) -> Any:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return self._whole(*args, **options)

    async def on(self, home: Home) -> asyncio.Task[tuple[str, bool]]:
        """A new key for the session of this device, which is being copied."""
        task = asyncio.create_task(home.daemon.rekey("home", None))
        assert await asyncio.to_thread(self.begun.wait, PATIENCE_S)
        return task


async def test_a_session_that_is_being_copied_is_neither_left_nor_joined(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        copying = Copying(monkeypatch)
        task = await copying.on(a)
        try:
            for forget in (False, True):
                with pytest.raises(
                    UsageError, match="is being left, or given another key; ask again in a moment"
                ):
                    await a.daemon.leave("home", forget)
        finally:
            copying.go.set()
            key, _ = await task
        assert a.daemon.key("home") == key
        assert a.daemon.sessions["home"].failure is None


async def test_a_session_that_is_being_left_gets_no_key_and_a_session_in_its_place_stays(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        driver, went, goes = a.daemon.sessions["home"], asyncio.Event(), asyncio.Event()
        whole = driver.leave

        async def leave(*, pause: bool) -> None:
            goes.set()
            await went.wait()
            await whole(pause=pause)

        monkeypatch.setattr(driver, "leave", leave)
        leaving = asyncio.create_task(a.daemon.leave("home", forget=True))
        await goes.wait()
        for refused in (a.daemon.rekey("home", None), a.daemon.join("home", None, here(), quiet)):
            with pytest.raises(
                UsageError, match="is being left, or given another key; ask again in a moment"
            ):
                await refused
        went.set()
        await leaving
        assert a.daemon.changing == set()
        with pytest.raises(UnknownSessionError):
            a.daemon.key("home")
        await a.daemon.create(session(), here())
        await a.daemon._take_leave(driver)
        assert a.daemon.sessions["home"] is not driver, "who is left twice takes nobody along"


async def test_a_copy_that_begins_while_a_join_clears_up_ends_the_join(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        failed = a.daemon.sessions["home"]
        failed.fail(StateError("no space left"))
        whole = failed.leave

        async def leave(*, pause: bool) -> None:
            a.daemon.changing.add("home")
            await whole(pause=pause)

        monkeypatch.setattr(failed, "leave", leave)
        with pytest.raises(UsageError, match="is being left, or given another key"):
            await a.daemon.join("home", None, here(timeout_s=0.0), quiet)
    assert a.daemon.sessions == {}


async def test_a_daemon_that_ends_meanwhile_starts_nothing_any_more(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(), here())
        copying = Copying(monkeypatch)
        task = await copying.on(a)
        a.daemon.stopping.set()
        await a.daemon.stop()
        copying.go.set()
        key, _ = await task
        assert a.daemon.sessions == {}
        await a.stop()
        again = home("a")
        await again.daemon.resume()
        assert again.daemon.key("home") == key
        assert again.daemon.sessions["home"].failure is None


async def test_a_session_that_does_not_start_with_its_new_key_tells_where_that_is(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        old = await a.daemon.create(session(), here())

        async def start(_: SessionDriver) -> None:
            raise PortError("port 7001 is taken")

        monkeypatch.setattr(SessionDriver, "start", start)
        with pytest.raises(PortError, match=r"taken; 'home' has its new key .* 'peerd key home'"):
            await a.daemon.rekey("home", None)
        assert a.daemon.key("home") != old
