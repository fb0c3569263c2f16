"""Asking and listening on real sockets, on the loopback of this test's own network, and what that says."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from peer.doctor import interfaces, multicast
from peer.doctor.interfaces import Wires
from peer.doctor.multicast import MDNS_PORT, Ear, Heard, dial, judge, listen
from peer.mesh.discovery import Discovery, Sighting
from peer.mesh.interfaces import Interface

LO = Interface("lo", ("127.0.0.1",))
OWN = frozenset({"127.0.0.1"})
PEER, OTHER = "p-" + "a" * 26, "p-" + "b" * 26


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multicast, "LISTEN_S", 0.3)
    monkeypatch.setattr(multicast, "ASK_AT_S", (0.0, 0.1))


async def test_the_own_question_comes_back_and_is_nobody_else() -> None:
    heard = await listen((LO,), OWN, ("lo",))
    [ear] = heard.ears
    assert (ear.own, ear.others, ear.problem) == (True, set(), "")
    assert judge(heard, True, "").verdict == "ok", "nobody else is on a loopback"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=60)


@pytest.fixture
def cable() -> Iterator[None]:
    """Two ends of a cable, of which one has an address: fd00::1 on doc0."""
    ip("link", "add", "doc0", "type", "veth", "peer", "name", "doc1")
    try:
        ip("address", "add", "fd00::1/64", "dev", "doc0", "nodad")
        ip("link", "set", "doc0", "up")
        ip("link", "set", "doc1", "up")
        yield
    finally:
        ip("link", "del", "doc0")


async def test_over_ipv6_too(cable: None) -> None:
    wires = interfaces.look(())
    assert [(one.name, one.addresses) for one in wires.used] == [("doc0", ("fd00::1",))]
    assert "no address" in wires.left_out["doc1"] or "link-local" in wires.left_out["doc1"]
    assert "loopback" in wires.left_out["lo"]
    heard = await listen(wires.used, wires.own, ())
    assert [(ear.own, ear.others, ear.problem) for ear in heard.ears] == [(True, set(), "")]


@pytest.fixture
async def announced() -> AsyncIterator[Discovery]:
    me = Discovery(b"h" * 32, PEER, 7001, ("lo",), lambda sighting: None)
    await me.start()
    yield me
    await me.stop()


async def test_who_announces_peerd_is_seen_and_others_datagrams_are_others(
    announced: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multicast, "LISTEN_S", 1.5)
    heard = await listen((LO,), frozenset(), ("lo",))  # as if 127.0.0.1 were another device's
    [sighting] = heard.sightings
    assert (sighting.peer, sighting.addresses[0]) == (PEER, "127.0.0.1:7001")
    assert heard.others == {"127.0.0.1"}
    assert not heard.ears[0].own


async def test_a_port_that_another_program_keeps_to_itself_is_a_problem() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        selfish.bind(("", MDNS_PORT))
        heard = await listen((LO,), OWN, ("lo",))
    finding = judge(heard, False, "'allow'")
    assert finding.verdict == "problem"
    assert "another program keeps UDP port 5353 to itself" in finding.seen
    assert "ss -ulpn" in finding.advice


async def test_an_interface_that_is_gone_is_a_problem() -> None:
    heard = await listen((Interface("gone0", ("127.0.0.1",)),), OWN, ("lo",))
    finding = judge(heard, False, "'allow'")
    assert (finding.verdict, "no multicast on gone0" in finding.seen) == ("problem", True)


def ear(name: str, own: bool = True, *others: str, problem: str = "") -> Ear:
    return Ear(name, f"10.0.0.{len(name)}", own, set(others), problem)


@pytest.mark.parametrize(
    ("ears", "waits", "verdict", "seen"),
    [
        ([], False, "problem", "no interface to listen on"),
        ([ear("eth0", True, "10.0.0.9")], False, "ok", "1 other device(s) heard"),
        ([ear("eth0")], False, "warning", "nothing of any other was heard"),
        ([ear("eth0")], True, "problem", "nothing of any other was heard"),
        ([ear("eth0", False)], False, "problem", "own question does not come back"),
        ([ear("eth0", False, problem="Network is unreachable")], False, "problem", "Network is unreachable"),
        ([ear("eth0", True, "10.0.0.9"), ear("wlan0", False)], False, "warning", "no multicast on wlan0"),
    ],
)
def test_what_is_heard_is_judged(ears: list[Ear], waits: bool, verdict: str, seen: str) -> None:
    finding = judge(Heard(ears, []), waits, "'sudo ufw allow 5353/udp'")
    assert finding.verdict == verdict
    assert seen in finding.seen
    assert bool(finding.advice) == (verdict != "ok")
    if "own question" in seen:
        assert "ufw" in finding.advice
    assert Heard(ears, []).deaf == (seen.startswith(("no interface", "own", "Network")))


async def test_whoever_cannot_be_dialed_is_told_from_who_can() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    open_ = Sighting(PEER, ("127.0.0.1:9", f"127.0.0.1:{port}"), False, 3, "0" * 32)
    shut = Sighting(OTHER, ("127.0.0.1:9",), False, 3, "1" * 32)
    async with server:
        dialed = await dial([open_, shut], 5.0)
    assert dialed[open_.nonce] == ""
    assert "127.0.0.1:9: " in dialed[shut.nonce]


# --- interfaces ------------------------------------------------------------------------------------------


def test_the_interfaces_of_this_network_are_told_apart() -> None:
    wires = interfaces.look(())
    assert [one.name for one in wires.used] == ["lo"]
    assert "127.0.0.1" in wires.own
    finding = interfaces.judge(wires, False)
    assert (finding.verdict, "only loopback" in finding.seen) == ("warning", True)


def test_one_that_is_named_and_not_there_leaves_none() -> None:
    wires = interfaces.look(("eth7",))
    assert (wires.used, wires.left_out["lo"]) == ((), "--interface names others")
    finding = interfaces.judge(wires, False)
    assert (finding.verdict, "no network interface is usable" in finding.seen) == ("problem", True)


def test_those_left_out_are_named_with_the_reason() -> None:
    wires = Wires((Interface("eth0", ("10.0.0.1",)),), {"wlan0": "it has no address"}, OWN)
    finding = interfaces.judge(wires, False)
    assert finding.verdict == "ok"
    assert "wlan0 not: it has no address" in finding.seen
    inside = interfaces.judge(wires, True)
    assert (inside.verdict, "--network host" in inside.advice) == ("warning", True)


def test_a_container_is_told_by_its_mark_and_its_only_interface(tmp_path: Path) -> None:
    wired = tmp_path / "sys/class/net"
    (wired / "eth0").mkdir(parents=True)
    assert not interfaces.in_container(tmp_path)
    (tmp_path / ".dockerenv").touch()
    assert interfaces.in_container(tmp_path)
    (wired / "wlan0").mkdir()
    assert not interfaces.in_container(tmp_path), "it has the host's network"
