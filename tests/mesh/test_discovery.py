"""Announcing and browsing on loopback; which interfaces are chosen; what a stranger's announcement can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import ifaddr
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from zeroconf.asyncio import AsyncServiceInfo

from peer.mesh import discovery, interfaces
from peer.mesh.discovery import SERVICE_TYPE, Discovery, Sighting, beacon, read
from peer.mesh.greeting import PROTOCOL_MAX
from peer.mesh.identity import Device
from peer.mesh.interfaces import Interface, choose, survey

LO = Interface("lo", ("127.0.0.1", "::1"))
ETH = Interface("eth0", ("192.168.1.7", "fd00::7"))
WIFI = Interface("wlan0", ("192.168.1.8",))
TUNNELS = tuple(
    Interface(name, (f"10.0.{at}.1",))
    for at, name in enumerate(("docker0", "veth1a", "br-12ab", "tailscale0", "wg0"))
)
HOME, OTHER = b"h" * 32, b"o" * 32


class Watched:
    """A Discovery on loopback, and what it saw."""

    def __init__(
        self, key: bytes, port: int, survey: Callable[[], tuple[Interface, ...]] | None = None
    ) -> None:
        self.id = Device(ec.generate_private_key(ec.SECP256R1())).id
        self.sightings: list[Sighting] = []
        self.moves: list[tuple[str, ...]] = []
        self.changed = asyncio.Condition()
        up = survey or (lambda: (Interface("lo", ("127.0.0.1",)),))
        self.discovery = Discovery(key, self.id, port, (), self.see, self.moves.append, up)

    def see(self, sighting: Sighting) -> None:
        self.sightings.append(sighting)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def sees(self, wanted: Callable[[Sighting], bool]) -> Sighting:
        async with self.changed:
            await self.changed.wait_for(lambda: any(wanted(sighting) for sighting in self.sightings))
        return next(sighting for sighting in self.sightings if wanted(sighting))


@asynccontextmanager
async def running(*watched: Watched) -> AsyncIterator[None]:
    async with asyncio.timeout(40):
        for one in watched:
            await one.discovery.start()
        try:
            yield
        finally:
            for one in watched:
                await one.discovery.stop()


async def test_members_recognise_their_session_and_see_others_as_foreign() -> None:
    a, b, stranger = Watched(HOME, 7001), Watched(HOME, 7002), Watched(OTHER, 7003)
    async with running(a, b, stranger):
        for one, other in ((a, b), (b, a)):
            seen = await one.sees(lambda sighting, other=other: sighting.peer == other.id)
            assert seen.ours
            assert seen.protocol == PROTOCOL_MAX
            assert seen.addresses == (f"127.0.0.1:{other.discovery._port}",)
        assert not (await a.sees(lambda sighting: sighting.peer == stranger.id)).ours
        assert not (await stranger.sees(lambda sighting: sighting.peer == a.id)).ours
        assert a.discovery.multicast_heard
        assert a.discovery.problem is None
        assert a.id not in {sighting.peer for sighting in a.sightings}


async def test_one_that_only_listens_hears_everybody_and_is_heard_by_nobody() -> None:
    a, listener = Watched(HOME, 7001), Watched(OTHER, 0)
    async with running(a, listener):
        assert not (await listener.sees(lambda sighting: sighting.peer == a.id)).ours
        late = Watched(HOME, 7002)  # whoever comes now hears of everybody who announces
        async with running(late):
            await late.sees(lambda sighting: sighting.peer == a.id)
            assert listener.id not in {s.peer for one in (a, late) for s in one.sightings}


async def test_a_restarted_peer_is_seen_again_although_it_never_said_goodbye() -> None:
    a, b = Watched(HOME, 7001), Watched(HOME, 7002)
    returned = Watched(HOME, 7009)
    returned.id = b.id
    returned.discovery = Discovery(HOME, b.id, 7009, (), returned.see, survey=b.discovery._survey)
    async with running(a, b):
        first = await a.sees(lambda sighting: sighting.peer == b.id)
        async with running(returned):
            second = await a.sees(lambda sighting: sighting.peer == b.id and sighting.nonce != first.nonce)
            assert second.addresses == ("127.0.0.1:7009",)


async def test_a_changed_address_is_announced_and_reported() -> None:
    up = [(Interface("lo", ("127.0.0.1",)),)]
    a, b = Watched(HOME, 7001), Watched(HOME, 7002, lambda: up[0])
    async with running(a, b):
        await a.sees(lambda sighting: sighting.addresses == ("127.0.0.1:7002",))
        up[0] = (Interface("lo", ("127.0.0.2",)),)
        await b.discovery.look()
        await a.sees(lambda sighting: "127.0.0.2:7002" in sighting.addresses)
        assert b.moves == [("127.0.0.1:7002",), ("127.0.0.2:7002",)]


async def test_without_a_network_there_is_a_problem_and_no_crash_and_it_heals() -> None:
    up: list[tuple[Interface, ...]] = [()]
    a, b = Watched(HOME, 7001, lambda: up[0]), Watched(HOME, 7002)
    async with running(a, b):
        assert a.discovery.problem is not None
        assert "no network interface" in a.discovery.problem
        assert not a.discovery.multicast_heard
        up[0] = (Interface("eth0", ("203.0.113.9",)),)  # not this device's: the sockets cannot be made
        await a.discovery.look()
        assert a.discovery.problem is not None
        up[0] = (Interface("lo", ("127.0.0.1",)),)
        await a.discovery.look()
        assert a.discovery.problem is None
        await a.sees(lambda sighting: sighting.peer == b.id)


async def test_addresses_that_cannot_be_looked_at_for_once_are_a_problem_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "WATCH_S", 0.01)
    looks, again, problems = 0, asyncio.Event(), []

    def up() -> tuple[Interface, ...]:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise OSError(105, "No buffer space available")
        if looks > 2:
            problems.append(a.discovery.problem)
            again.set()
        return (Interface("lo", ("127.0.0.1",)),)

    a = Watched(HOME, 7001, up)
    async with running(a):
        await again.wait()
        assert "No buffer space available" in str(problems[0])
        await a.discovery.look()
        assert a.discovery.problem is None
    assert a.moves == [("127.0.0.1:7001",)]


# --- which interfaces ----------------------------------------------------------------------------------


def test_containers_tunnels_and_loopback_are_left_out() -> None:
    assert choose((LO, ETH, WIFI, *TUNNELS), ()) == (ETH, WIFI)


def test_loopback_is_used_when_nothing_else_is_up_or_when_it_is_asked_for() -> None:
    assert choose((LO,), ()) == (LO,)
    assert choose((LO, TUNNELS[0]), ()) == ()
    assert choose((LO, ETH), ("lo",)) == (LO,)


def test_a_named_interface_or_address_is_used_alone() -> None:
    assert choose((LO, ETH, *TUNNELS), ("wg0",)) == (TUNNELS[-1],)
    assert choose((LO, ETH, WIFI), ("192.168.1.7",)) == (Interface("eth0", ("192.168.1.7",)),)
    assert choose((LO, ETH), ("wlan9",)) == ()


def test_this_device_has_loopback_up_with_ipv4_first() -> None:
    lo = next(interface for interface in survey() if interface.name == "lo")
    assert lo.loopback
    assert lo.addresses[0] == "127.0.0.1"


def test_two_devices_on_one_cable_see_each_others_only_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """169.254/16 (RFC 3927) is all they have; fe80::/10 says nothing on another device."""

    def cable(*ips: str) -> list[ifaddr.Adapter]:
        found = [ifaddr.IP((ip, 0, 2) if ":" in ip else ip, 16, "eth0") for ip in ips]
        return [ifaddr.Adapter("eth0", "eth0", found)]

    monkeypatch.setattr(interfaces, "is_up", lambda name: True)
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: cable("fe80::7", "169.254.3.7"))
    assert survey() == (Interface("eth0", ("169.254.3.7",)),)
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: cable("169.254.3.7", "fd00::7", "10.0.0.7"))
    assert survey() == (Interface("eth0", ("10.0.0.7", "169.254.3.7", "fd00::7")),)
    seen = read(announcement(SAID, "169.254.3.8", "fe80::8"), HOME, loopback_too=False)
    assert seen is not None
    assert seen.addresses == ("169.254.3.8:7000",)


@pytest.mark.parametrize(("flags", "up"), [("0x1003", True), ("0x10d1", True), ("0x1002", False)])
def test_an_interface_is_left_out_by_its_name_and_not_by_its_kind(
    flags: str, up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0x10d1 is a point-to-point link, as a WireGuard or PPP device is one."""
    monkeypatch.setattr(interfaces, "SYSFS", tmp_path)
    for name in ("lo", "ppp0", "wg0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(f"{flags}\n")
        (tmp_path / name / "operstate").write_text("unknown\n")
    adapters = [ifaddr.Adapter(name, name, [ifaddr.IP("10.9.0.1", 24, name)]) for name in ("ppp0", "wg0")]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    names = [interface.name for interface in survey()]
    assert names == (["ppp0", "wg0"] if up else [])
    assert [one.name for one in choose(survey(), ())] == (["ppp0"] if up else [])
    assert [one.name for one in choose(survey(), ("wg0",))] == (["wg0"] if up else [])


# --- what an announcement may say ----------------------------------------------------------------------

PEER = Device(ec.generate_private_key(ec.SECP256R1())).id
NONCE = bytes(range(16))
SAID = {"v": "1", "id": PEER, "n": NONCE.hex(), "h": beacon(HOME, NONCE)}


def announcement(said: dict[str, str], *hosts: str) -> AsyncServiceInfo:
    return AsyncServiceInfo(
        SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=7000, parsed_addresses=list(hosts), properties=said
    )


def test_ipv4_comes_first_and_loopback_only_when_asked() -> None:
    info = announcement(SAID, "127.0.0.1", "fd00::1", "192.168.1.5", "fe80::1")
    seen = Sighting(PEER, ("192.168.1.5:7000", "[fd00::1]:7000"), True, 1, NONCE.hex())
    assert read(info, HOME, loopback_too=False) == seen
    with_loopback = ("127.0.0.1:7000", *seen.addresses)
    assert read(info, HOME, loopback_too=True) == replace(seen, addresses=with_loopback)
    assert read(info, OTHER, loopback_too=False) == replace(seen, ours=False)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {**SAID, "v": "0"},
        {**SAID, "v": "one"},
        {**SAID, "id": "p-\x1b[31m"},
        {**SAID, "n": "00"},
        {**SAID, "n": "zz" * 16},
    ],
)
def test_a_malformed_announcement_is_no_sighting(said: dict[str, str]) -> None:
    assert read(announcement(said, "192.168.1.5"), HOME, loopback_too=False) is None


def test_addresses_are_capped() -> None:
    many = [f"192.168.1.{at}" for at in range(1, 100)]
    seen = read(announcement(SAID, *many), HOME, loopback_too=False)
    assert seen is not None
    assert len(seen.addresses) == 8


async def test_a_flood_of_ids_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_IDS", 3)
    a = Watched(HOME, 7001)
    for at in range(9):
        said = {**SAID, "id": "p-" + "abcdefghi"[at] * 26}
        a.discovery._chosen = (ETH,)
        a.discovery._report(announcement(said, "192.168.1.5"))
    assert len(a.sightings) == 3


async def test_strangers_take_no_members_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_IDS", 3)
    a = Watched(HOME, 7001)
    a.discovery._chosen = (ETH,)
    for at in range(9):
        said = {**SAID, "id": "p-" + "abcdefghi"[at] * 26, "h": beacon(OTHER, NONCE)}
        a.discovery._report(announcement(said, "192.168.1.5"))
    a.discovery._report(announcement(SAID, "192.168.1.6"))
    assert [sighting.peer for sighting in a.sightings if sighting.ours] == [PEER]
    assert a.discovery._ours.keys() == {PEER}, "strangers are not remembered here"


async def test_a_member_not_heard_for_long_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_IDS", 3)
    a = Watched(HOME, 7001)
    a.discovery._chosen = (ETH,)
    ids = ["p-" + letter * 26 for letter in "abcd"]
    for peer in (*ids[:3], ids[0], ids[3]):
        a.discovery._report(announcement({**SAID, "id": peer}, "192.168.1.5"))
    assert [sighting.peer for sighting in a.sightings] == [*ids[:3], ids[0]]
    monkeypatch.setattr(discovery, "FORGET_S", 0.0)
    a.discovery._report(announcement({**SAID, "id": ids[3]}, "192.168.1.5"))
    assert a.discovery._ours.keys() == {ids[0], ids[2], ids[3]}, "the one heard longest ago is forgotten"
    assert a.sightings[-1].peer == ids[3]


def test_an_announcement_carries_no_readable_name() -> None:
    watched = Discovery(HOME, PEER, 7000, (), lambda sighting: None)
    for name in (watched._name.removesuffix("." + SERVICE_TYPE), watched._server.removesuffix(".local.")):
        assert len(name) == 32
        assert int(name, 16) >= 0
