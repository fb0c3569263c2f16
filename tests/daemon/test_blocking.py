"""Blocking a device: at once, live streams included, over restarts, and who is meant by a name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import ask
from daemon.test_sessions import pair, port, quiet, until
from peer.daemon import health
from peer.daemon.blocking import MAX_BLOCKED, BlockList, block, meant
from peer.daemon.logs import session_name
from peer.daemon.session import SessionDriver
from peer.errors import NobodyFoundError, RemoteError, StateError, UsageError
from peer.events import Generation, Met, Record
from peer.mesh.node import Node
from peer.mesh.terms import Terms

Make = Callable[[str], Home]


def an_id(letter: str) -> str:
    return "p-" + letter * 26


def streams_with(home: Home, peer: str) -> list[object]:
    return [link for link in home.daemon.sessions["home"].transport._streams if link[0] == peer]


async def test_a_blocked_device_is_cut_off_at_once_and_let_in_again(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(3), second.until(3))
        mine, theirs = a.daemon.device.key.id, b.daemon.device.key.id
        assert streams_with(a, theirs)
        done, _ = await ask(a.socket, "block", peer="b")
        assert (done["peer"], done["device"]) == (theirs, "b")
        assert streams_with(a, theirs) == [], "when the command returns it is done"
        [shown] = a.daemon.status("home").sessions
        assert {link.state for link in shown.links} == {link.verdict for link in shown.links} == {"blocked"}
        assert [member.state for member in shown.peers] == ["blocked"]
        rounds = first.rounds
        await first.until(rounds + 6)  # this device does not wait for it, and says that it is alone
        [alone] = [said for said in a.daemon.status(None).health if "were closed alone" in said]
        assert "all 1 other device(s) are blocked here" in alone
        assert a.daemon.status("home").sessions[0].rounds_alone >= 3
        a.daemon.sessions["home"].feed(Met(Record(an_id("z"), 1, 1 << 20, state="left")))
        [alone] = [said for said in a.daemon.status(None).health if "were closed alone" in said]
        assert "all 1 other device(s) that are not blocked here have left" in alone
        address = port(a)
        with pytest.raises((NobodyFoundError, RemoteError)):
            await b.daemon.sessions["home"].transport.hello(address)
        assert streams_with(a, theirs) == []
        received = a.daemon.sessions["home"].transport.contacts.of(theirs).bytes_received
        await first.until(first.rounds + 3)
        assert a.daemon.sessions["home"].transport.contacts.of(theirs).bytes_received == received
        assert (await ask(a.socket, "blocked"))[0]["blocked"] == [{"peer": theirs, "device": "b"}]
        await ask(a.socket, "unblock", peer=theirs[:8])
        assert (await ask(a.socket, "blocked"))[0]["blocked"] == []
        await until(a.daemon.sessions["home"], lambda: streams_with(a, theirs) and streams_with(b, mine))
        heard = len(first.heard)
        await until(a.daemon.sessions["home"], lambda: len(first.heard) > heard + 3)
    [shown] = a.daemon.status("home").sessions
    assert {link.state for link in shown.links} == {"alive"}


async def test_a_block_outlives_the_daemon_and_holds_before_anything_is_heard(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(2), second.until(2))
        theirs = b.daemon.device.key.id
        await b.daemon.leave("home", forget=False)  # it would have nobody to leave its mass to
        await ask(a.socket, "block", peer="b")
        await a.stop()
        again = home("a")
        await again.daemon.resume()
        driver = again.daemon.sessions["home"]
        assert driver.blocked == {theirs}
        assert driver.transport.contacts.of(theirs).blocked
        assert driver.node is not None
        assert driver.node.members.blocked == {theirs}
        assert driver._knows(theirs), "a sighting of it is not dialed"
        with pytest.raises(UsageError, match="is not blocked"):
            await ask(again.socket, "unblock", peer=an_id("z"))


async def test_what_the_daemon_logs_of_itself_is_of_no_session(
    home: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = home("a")
    await a.daemon.create(session(), here())
    await a.stop()
    session_name.set("")
    again = home("a")
    await again.daemon.resume()
    assert session_name.get() == ""
    block(again.daemon, an_id("q"))
    assert session_name.get() == ""
    with pytest.raises(NobodyFoundError):
        await again.daemon.join("home", None, here(timeout_s=0.0), quiet)
    await again.daemon.rekey("home", None)
    assert session_name.get() == ""
    await again.daemon.leave("home", forget=False)
    await again.daemon.create(session("office"), here())
    await again.daemon.rekey("office", None)
    await again.daemon._drop(again.daemon.sessions["office"])
    assert session_name.get() == ""
    await again.stop()

    async def fails(_: SessionDriver) -> None:
        raise StateError("the disk is gone")

    monkeypatch.setattr(SessionDriver, "start", fails)
    once_more = home("a")
    await once_more.daemon.resume()
    assert session_name.get() == ""
    assert any("the disk is gone" in line for line in once_more.recent.lines("office"))


async def test_this_device_and_nobody_cannot_be_blocked(home: Make) -> None:
    a = home("a")
    with pytest.raises(UsageError, match="this device itself"):
        await ask(a.socket, "block", peer=a.daemon.device.key.id)
    with pytest.raises(UsageError, match="give its whole id"):
        await ask(a.socket, "block", peer="pi-9")
    stranger = an_id("q")
    await ask(a.socket, "block", peer=stranger)  # before it is ever met
    assert a.daemon.blocked.ids == {stranger}


KNOWN = {an_id("a"): "pi", an_id("b"): "pi", "p-ac" + "a" * 24: "nano", an_id("d"): ""}


def test_a_name_comes_before_the_beginning_of_an_id() -> None:
    assert meant("nano", KNOWN) == "p-ac" + "a" * 24
    assert meant("p-b", KNOWN) == meant("bbb", KNOWN) == an_id("b")
    assert meant(an_id("z"), KNOWN) == an_id("z")
    assert meant("pi", {**KNOWN, "p-pi" + "a" * 24: "other"} | {an_id("b"): "two"}) == an_id("a")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pi", "may be one of 2: p-a.* .pi., p-b.* .pi.; give more of its id"),
        ("p-a", r"may be one of 2: p-a.* \(pi\), p-ac.* \(nano\)"),
        ("p-x", "no device is called 'p-x', and no id begins so; known are p-a.*without a name"),
    ],
)
def test_who_may_be_meant_is_listed(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        meant(word, KNOWN)


def test_the_list_is_kept_whole_and_bounded(tmp_path: Path) -> None:
    blocked = BlockList(tmp_path)
    ids = [f"p-{chr(97 + i % 26)}{chr(97 + i // 26)}" + "a" * 24 for i in range(MAX_BLOCKED + 1)]
    for peer in ids[:-1]:
        blocked.peers[peer] = ""
    blocked.add(ids[0], "known already")
    with pytest.raises(UsageError, match="peerd unblock"):
        blocked.add(ids[-1], "")
    assert BlockList(tmp_path).peers == blocked.peers
    blocked.remove(ids[0])
    assert BlockList(tmp_path).ids == set(ids[1:-1])


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"nonsense": ""}', b'{"p-', b"\xff"])
def test_a_damaged_list_lets_nobody_in(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "blocked.json").write_bytes(damaged)
    with pytest.raises(StateError, match="delete it, and block them again"):
        BlockList(tmp_path)


def test_where_all_agree_on_a_graph_status_says_what_a_block_costs_there() -> None:
    peer = an_id("b")
    node = Node(Record(an_id("a"), 1, 1 << 20), Terms("ring", 0, graph="undirected"))
    session: Any = SimpleNamespace(name="home", failure=None, blocked=frozenset({peer}), node=node)
    assert list(health._blocked(session)) == []
    assert node.generations is not None
    node.generations.current = Generation(1, an_id("a"), (an_id("a"), peer))
    node.members.merge([Record(peer, 1, 1 << 20, device="pi-2")], 0.0)
    [sentence] = health._blocked(session)
    assert sentence.startswith("pi-2 is blocked here, and on the graph that all members agree on")
    assert "peerd rekey home" in sentence
