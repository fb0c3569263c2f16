"""What status says of the other members: how far apart the models are, and a word on each link."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.conftest import PATIENCE_S, Home
from daemon.puppet import Puppet, ask
from daemon.test_sessions import pair, until
from peer.daemon.company import members, verdict
from peer.daemon.learning import sketch_of
from peer.events import Met, Record, Sketched, StreamUp, Tick
from peer.mesh.contacts import Contact
from peer.mesh.links import Counts
from peer.mesh.node import Node
from peer.mesh.terms import Terms
from peer.sketch import COUNT, pack

Make = Callable[[str], Home]
LAYOUT = b"L" * 8


def body(value: float) -> bytes:
    made = pack([value] * COUNT)
    assert made is not None
    return made


def sketched(puppet: Puppet, value: float, round_: int) -> None:
    puppet.report(sketch=body(value), sketch_round=round_, sketch_layout=LAYOUT)


async def test_two_devices_say_how_far_apart_their_models_are(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b, first, second = await pair(home)
        await asyncio.gather(first.until(2), second.until(2))
        answer, _ = await ask(a.socket, "status", name="home")
        [shown] = answer["status"]["sessions"]
        assert (shown["consensus_distance"], shown["peers"][0]["distance"]) == (None, None)
        sketched(first, 1.0, 8)
        sketched(second, 1.5, 8)
        for one in (a, b):
            driver = one.daemon.sessions["home"]
            await until(driver, lambda driver=driver: driver.status().consensus_distance is not None)
        [mine], [theirs] = (one.daemon.status("home").sessions for one in (a, b))
    far = 0.5 * math.sqrt(COUNT)
    assert mine.consensus_distance == theirs.consensus_distance == pytest.approx(far / 2, rel=1e-3)
    assert mine.consensus_relative == pytest.approx(0.25, rel=1e-3)
    assert theirs.consensus_relative == pytest.approx(0.5 / 3, rel=1e-3)
    [member] = mine.peers
    assert (member.device, member.state, member.phase) == ("b", "alive", "training")
    assert member.distance == pytest.approx(far, rel=1e-3)
    assert member.distance_relative == pytest.approx(0.5, rel=1e-3)
    assert member.distance_age_s is not None
    assert member.distance_age_s < PATIENCE_S
    assert mine.mean_weight is not None
    assert {link.verdict for link in mine.links} <= {"ok", "late"}
    heard = [link.round for link in mine.links if link.direction == "in"]
    assert heard
    assert all(round_ is not None for round_ in heard)
    json.dumps(mine.to_dict())


GOOD = {"sketch": body(1.0), "sketch_round": 3, "sketch_layout": LAYOUT}


def test_a_report_that_holds_no_sketch_is_none() -> None:
    assert sketch_of({"op": "report", **GOOD}) == Sketched(3, LAYOUT, body(1.0))
    wrong: list[dict[str, Any]] = [
        {"sketch": None},
        {"sketch": b"short"},
        {"sketch": struct.pack("<f", math.nan) + body(1.0)[4:]},
        {"sketch_round": -1},
        {"sketch_round": 1 << 32},
        {"sketch_round": "3"},
        {"sketch_layout": b""},
        {"sketch_layout": None},
    ]
    for change in wrong:
        assert sketch_of({"op": "report", **GOOD, **change}) is None


def test_a_link_has_one_word_the_worst_first() -> None:
    node = Node(Record("p-me", 1, 1 << 20), Terms("complete", 0, founder=True))
    theirs = Record("p-a", 1, 1 << 20, phase="training", life=9, weight=1.0)
    node.handle(Met(theirs), 0.0)
    contact = Contact("p-a")

    def word(**counts: int) -> str:
        [record] = [r for r in node.members.members() if r.peer == "p-a"]
        return verdict(node, record, contact, "in", Counts(**counts), now)

    now = 0.0
    assert word() == "no stream"
    node.handle(StreamUp("p-a", "in"), 0.0)
    assert word() == "ok"
    node.rounds.missed = frozenset({"p-a"})
    assert word() == "late"
    assert word(rejected=2) == "2 refused"
    for quarter in range(21):
        now = quarter / 4
        node.handle(Tick(), now)
    assert word() == "suspect"
    contact.blocked = True
    assert word() == "blocked"
    transport: Any = SimpleNamespace(contacts={"p-a": contact})
    assert [row.state for row in members(node, transport, now)] == ["blocked"]
