"""What `status` shows: dense bytes as the contract counts them, and the age of the newest checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import peer
from daemon.conftest import PATIENCE_S, Home, here, session
from peer.daemon.figures import Figures, links
from peer.events import FINAL, Closed, HandOver, Key, Met, OpenRound, Push, Pushed, Record, StreamUp, Tick
from peer.local import Frame
from peer.mesh.links import Counts
from peer.mesh.node import Node
from peer.mesh.terms import Terms
from peer.placing import Placing

MODEL = 4 * 10  # bytes of ten numbers in fp32


def figures(folder: Path, local_steps: int = 16) -> Figures:
    made = Figures(folder)
    made.local_steps = local_steps
    made.report({"parameters": 10}, 0.0)
    return made


def opened(key: Key, *out: str) -> OpenRound:
    return OpenRound(key, dict.fromkeys(out, 0.5), (), 2, 1.0)


def push(dst: str, key: Key) -> Push:
    return Push(dst, 1, key, b"x")


def test_a_round_counts_one_model_per_local_step_and_link(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    shown.commanded(opened(key, "p-a", "p-b"))
    for dst in ("p-a", "p-b", "p-b"):
        shown.pushed(push(dst, key))
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert (shown.bytes_dense_exchanges, shown.bytes_dense) == (2 * MODEL, 2 * 16 * MODEL)


def test_the_time_without_a_learner_is_not_a_rounds(tmp_path: Path) -> None:
    numbers = figures(tmp_path)
    for round_, at in enumerate((0.0, 0.5, 1.0)):
        numbers.closed(Closed(Key(round=round_), (), 1.0), at)
    numbers.interrupted()
    for round_, at in enumerate((3600.0, 3600.5)):
        numbers.closed(Closed(Key(round=3 + round_), (), 1.0), at)
    assert numbers.round_s == pytest.approx(0.5)


def test_what_a_learner_computes_on_is_told_while_there_is_one(tmp_path: Path) -> None:
    numbers = figures(tmp_path)
    numbers.report({"computes_on": "Orin\n (nvgpu)\x1b[31m" + 100 * "x"}, 0.0)
    numbers.report({"loss": 1.0}, 1.0)
    assert numbers.computes_on is not None
    assert numbers.computes_on.startswith("Orin (nvgpu)[31mxx")
    assert len(numbers.computes_on) <= 64
    numbers.interrupted()
    assert numbers.computes_on is None


def test_a_link_that_carried_nothing_does_not_count(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    shown.commanded(opened(key, "p-a", "p-b"))
    shown.pushed(push("p-a", key))
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert shown.bytes_dense == 16 * MODEL


def test_a_link_that_only_word_went_to_does_not_count(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    shown.commanded(opened(key, "p-a", "p-b"))
    for dst in ("p-a", "p-b"):
        shown.pushed(push(dst, key))
    shown.held_back(Pushed(key, ("p-b", "p-c")))
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert shown.bytes_dense == 16 * MODEL


def test_a_snapshot_for_a_newcomer_is_no_exchange(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    shown.pushed(push("p-new", key))  # before this round was opened at all
    shown.commanded(opened(key, "p-a"))
    shown.pushed(push("p-new", key))
    shown.commanded(opened(key, "p-new"))  # it has a seat, and the round is told anew with it
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert (shown.bytes_dense_exchanges, shown.bytes_dense) == (0, 0)


def test_what_a_learner_hands_over_when_it_leaves_is_no_exchange(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    shown.commanded(opened(key, "p-a"))
    shown.commanded(HandOver("p-a"))
    shown.pushed(push("p-a", key))
    shown.closed(Closed(key, (), 0.0), 1.0)
    assert shown.bytes_dense == 0


def test_a_final_round_has_no_local_steps(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3, FINAL)
    shown.commanded(opened(key, "p-a"))
    shown.pushed(push("p-a", key))
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert (shown.bytes_dense_exchanges, shown.bytes_dense) == (MODEL, MODEL)


def test_where_rounds_are_placed_by_the_learning_rate_each_counts_its_own_steps(tmp_path: Path) -> None:
    shown, bounded = figures(tmp_path, 4), session(algorithm="difference-push", rounds=10, local_steps=4)
    shown.placing = Placing.of(bounded)
    for round_ in range(10):
        key = Key(0, round_)
        shown.commanded(opened(key, "p-a"))
        shown.pushed(push("p-a", key))
        shown.closed(Closed(key, (), 1.0), float(round_))
        assert shown.bytes_dense == MODEL * shown.placing.first(round_ + 1)
    assert shown.bytes_dense == MODEL * 40
    assert shown.usual_s(9) == pytest.approx(shown.placing.steps(9) / shown.placing.steps(4))
    shown.report({"local_steps": 1}, 0.0)
    assert shown.steps(9) == 1, "a script that takes its own"


def test_the_learners_own_local_steps_count(tmp_path: Path) -> None:
    shown, key = figures(tmp_path), Key(0, 3)
    for said in (0, -1, "9", None, 2):
        shown.report({"local_steps": said}, 0.0)
    shown.commanded(opened(key, "p-a"))
    shown.pushed(push("p-a", key))
    shown.closed(Closed(key, (), 1.0), 1.0)
    assert shown.bytes_dense == 2 * MODEL


def test_a_checkpoint_of_the_same_round_is_new_when_it_was_written_again(tmp_path: Path) -> None:
    shown, file = figures(tmp_path), tmp_path / "ckpt-7.peerd"
    file.write_bytes(b"one")
    shown.report({"checkpoint_round": 7}, 10.0)
    shown.report({"checkpoint_round": 7}, 20.0)
    assert shown.checkpoint_at == 10.0
    again = tmp_path / "again"
    again.write_bytes(b"two")
    again.replace(file)
    shown.report({"checkpoint_round": 7}, 30.0)
    assert shown.checkpoint_at == 30.0
    file.unlink()
    shown.report({"checkpoint_round": 7}, 40.0)
    assert shown.checkpoint_at == 30.0
    shown.report({"checkpoint_round": 8}, 50.0)
    assert shown.checkpoint_at == 50.0


async def test_a_script_says_how_many_local_steps_it_takes_and_saves_one_round_twice(
    home: Callable[[str], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A founder on its own closes no round: it keeps a checkpoint when it begins, and another as it ends."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reported = asyncio.Event()
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session(local_steps=16), here())
        shown = a.daemon.sessions["home"].figures
        report = shown.report

        def noticed(frame: Frame, now: float) -> None:
            report(frame, now)
            reported.set()

        async def until(condition: Callable[[], bool]) -> None:
            while not condition():
                reported.clear()
                await reported.wait()

        monkeypatch.setattr(shown, "report", noticed)
        assert shown.local_steps == 16
        swarm = await asyncio.to_thread(peer.attach, "home", model, optimizer, socket=a.socket, local_steps=1)
        await until(lambda: shown.checkpoint_at is not None)
        begun = shown.checkpoint_at
        assert shown.local_steps == 1
        assert a.daemon.status("home").sessions[0].computes_on == "CPU"
        await asyncio.to_thread(swarm.close)
        await until(lambda: shown.checkpoint_at != begun)
    assert len(list(a.daemon.store.sessions()[0].path.glob("ckpt-*"))) == 1


def test_how_long_the_newest_parcels_were_is_told_of_each_link(tmp_path: Path) -> None:
    """And still of links whose node was followed by another, until they carry something again."""
    node = Node(Record("p-me", 1, 1 << 20), Terms("complete", 0, founder=True))
    node.handle(Met(Record("p-a", 1, 1 << 20, phase="training", life=9, weight=1.0)), 0.0)
    node.handle(StreamUp("p-a", "in"), 0.0)
    transport: Any = SimpleNamespace(contacts={})
    before = {("p-a", "in"): Counts(parcels=3, parcel_bytes=50)}

    def shown(*of: Any) -> tuple[int | None, float | None]:
        [row] = links(node, transport, 0.0, *of)
        return row.parcel_bytes, row.bits_per_parameter

    assert shown() == (None, None)
    assert shown(before) == (50, None)
    assert shown(before, 100) == (50, 4.0)
    assert shown({}, 100) == (None, None)
    inlink = node.links._in["p-a"]
    inlink.parcels, inlink.parcel_bytes = 1, 75
    assert shown(before, 100) == (75, 6.0)
    numbers = figures(tmp_path)
    numbers._counts_before = before
    numbers.node_ends(node)
    assert numbers._counts_before == {("p-a", "in"): Counts(parcels=4, parcel_bytes=75)}
    inlink.parcel_bytes = 0
    numbers.node_ends(node)
    assert numbers._counts_before["p-a", "in"].parcel_bytes == 75


@pytest.mark.parametrize(
    ("silent_s", "shown"), [(0.0, "alive"), (2.0, "alive"), (5.0, "suspect"), (15.0, "dead")]
)
def test_a_member_that_is_silent_is_suspect_before_it_is_dead(silent_s: float, shown: str) -> None:
    node = Node(Record("p-me", 1, 1 << 20), Terms("complete", 0, founder=True))
    node.handle(Met(Record("p-a", 1, 1 << 20, phase="training", life=9, weight=1.0)), 0.0)
    node.handle(StreamUp("p-a", "in"), 0.0)
    for quarter in range(int(4 * silent_s) + 1):
        node.handle(Tick(), quarter / 4)
    transport: Any = SimpleNamespace(contacts={})
    [row] = links(node, transport, silent_s)
    assert (row.state, row.last_heard_s) == (shown, silent_s)
