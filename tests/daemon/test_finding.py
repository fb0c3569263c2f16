"""Who is dialed when, and what is remembered of those who did not answer. The transport is a stand-in."""

from __future__ import annotations

import asyncio

import pytest

from peer.daemon import finding
from peer.daemon.finding import Finder
from peer.errors import NobodyFoundError, PeerdError, RemoteError, WrongKeyError
from peer.mesh.discovery import Sighting
from peer.mesh.greeting import VersionError


class Town:
    """Answers at addresses as told; members are those who were met."""

    def __init__(self) -> None:
        self.answers: dict[str, str | PeerdError] = {}
        self.asked: list[str] = []
        self.alive: set[str] = set()
        self.learnt: dict[str, tuple[str, ...]] = {}
        self.bell = asyncio.Event()

    async def hello(self, address: str) -> str:
        self.asked.append(address)
        self.bell.set()
        answer = self.answers.get(address, NobodyFoundError("connection refused"))
        if isinstance(answer, PeerdError):
            raise answer
        self.alive.add(answer)
        return answer

    def learn(self, peer: str, addresses: tuple[str, ...]) -> None:
        self.learnt[peer] = addresses

    async def asked_times(self, address: str, times: int) -> None:
        async with asyncio.timeout(60):
            while self.asked.count(address) < times:
                self.bell.clear()
                await self.bell.wait()
        await asyncio.sleep(0)


@pytest.fixture
def town(monkeypatch: pytest.MonkeyPatch) -> Town:
    for name in ("REDIAL_FIRST_S", "REDIAL_MOST_S", "LOOK_AGAIN_S"):
        monkeypatch.setattr(finding, name, 0.0)
    return Town()


def finder(town: Town, *peers: str) -> Finder:
    return Finder(town, peers, lambda peer: peer in town.alive, town.learn)


def seen(peer: str, *addresses: str, ours: bool = True, protocol: int = 1) -> Sighting:
    return Sighting(peer, addresses, ours, protocol, "0" * 32)


async def test_a_peer_address_is_dialed_until_somebody_answers_and_then_no_more(town: Town) -> None:
    find = finder(town, "a:1")
    find.start()
    await town.asked_times("a:1", 3)
    assert find.unanswered == {"a:1": "nobody answers there; is peerd running, and the port open?"}
    town.answers["a:1"] = "p-a"
    await town.asked_times("a:1", 4)
    await town.asked_times("a:1", town.asked.count("a:1"))
    asked = town.asked.count("a:1")
    for _ in range(20):
        await asyncio.sleep(0)
    assert find.unanswered == {}
    assert town.asked.count("a:1") == asked
    town.alive.clear()
    await town.asked_times("a:1", asked + 1)
    await find.stop()


async def test_a_wrong_key_is_remembered_by_address(town: Town) -> None:
    town.answers["a:1"] = WrongKeyError("the peerd on a:1 does not know this key")
    find = finder(town, "a:1")
    find.start()
    await town.asked_times("a:1", 2)
    assert find.wrong_key == {"a:1"}
    assert "does not know this key" in find.unanswered["a:1"]
    await find.stop()


async def test_a_member_that_is_seen_is_greeted_once_at_the_first_address_that_answers(town: Town) -> None:
    town.answers["b:2"] = "p-b"
    find = finder(town)
    find.sighted(seen("p-b", "b:1", "b:2", "b:3"))
    find.sighted(seen("p-b", "b:1", "b:2", "b:3"))
    await town.asked_times("b:2", 1)
    find.sighted(seen("p-b", "b:9"))
    await find.stop()
    assert town.asked == ["b:1", "b:2"]
    assert town.learnt["p-b"] == ("b:9",), "a new address of a known member is passed on all the same"


async def test_strangers_are_counted_and_not_dialed(town: Town) -> None:
    find = finder(town)
    find.sighted(seen("p-x", "x:1", ours=False))
    find.sighted(seen("p-x", "x:1", ours=False))
    await find.stop()
    assert find.foreign == {"p-x"}
    assert town.asked == []


async def test_a_member_of_another_version_is_told_from_one_that_breaks_rules(town: Town) -> None:
    town.answers["o:1"] = VersionError("p-o speaks protocol 7, this device 1")
    town.answers["r:1"] = RemoteError("a Hello without its magic number")
    find = finder(town)
    find.sighted(seen("p-o", "o:1", protocol=7))
    find.sighted(seen("p-r", "r:1"))
    await town.asked_times("o:1", 1)
    await town.asked_times("r:1", 1)
    await find.stop()
    assert find.other_versions == {"p-o": 7}
