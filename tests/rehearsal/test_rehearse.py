"""What `peerd rehearse` plays and reports: the contract's fields, faults by seed, what figures mean."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cli.rehearse import command, request_of
from peer.errors import DivergedError, UsageError
from peer.events import Ack, Farewell, Frame, Key, Open, Opened, Parcel, Refuse
from peer.mesh import chunks, frames
from peer.mesh.frame_bytes import CHUNK_BYTES, frame_bytes
from peer.rehearsal import plan as words
from peer.rehearsal import plot, report
from peer.rehearsal.plan import Churn, Partition, Plan, Slow
from peer.rehearsal.play import POINTS, STEP_S, WATCHED, Play, StuckError
from peer.rehearsal.progress import Progress
from peer.rehearsal.scenes import Scene, halves, scenes_of
from peer.rehearsal.trainer import Trainer
from peer.schedule import Schedule

QUADRATIC = "--task quadratic --option dim=20 --local-steps 1 --momentum 0"


def plan_of(text: str, task: str = QUADRATIC) -> Plan:
    arguments: dict[str, Any] = command.make_context("rehearse", f"{task} {text}".split()).params
    return Plan.from_request(request_of(arguments))


def played(text: str, task: str = QUADRATIC) -> Play:
    plan = plan_of(text, task)
    play = Play(plan, Trainer(plan))
    play.play()
    return play


def figures(text: str, task: str = QUADRATIC) -> dict[str, Any]:
    return report.figures(played(text, task), 1.0)


# --- what is reported ------------------------------------------------------------------------------------


def test_the_json_has_the_contracts_names() -> None:
    found = figures("--algorithm sgp --peers 4 --rounds 8")
    assert list(found) == [
        "arguments", "seed", "virtual_s", "wall_s", "parameters", "metric", "metric_before_decay",
        "metric_before_final_rounds", "curve",
        "bytes", "mass_error", "weight_min", "weight_max", "consensus_distance", "messages_lost",
        "generations", "rounds_alone",
    ]  # fmt: skip
    assert list(found["metric"]) == ["name", "mean", "worst", "best", "averaged_model"]
    assert list(found["bytes"]) == [
        "sent_per_peer",
        "dense_per_peer",
        "dense_exchanges_per_peer",
        "reduction",
    ]
    assert (found["metric_before_decay"], found["parameters"]) == (None, 20)
    assert (found["messages_lost"], found["rounds_alone"], found["generations"]) == (0, 0, 1)


def test_together_the_peers_come_to_the_mean_minimizer() -> None:
    found = figures("--algorithm sgp --peers 8 --rounds 150 --lr 0.05")
    metric = found["metric"]
    assert metric["name"] == "distance"
    assert metric["best"] <= metric["mean"] <= metric["worst"] < 0.1  # alone, some 0.9 away
    assert metric["averaged_model"] < 0.01
    assert found["mass_error"] < 1e-12


def test_algorithms_on_an_agreed_graph_have_one_generation_and_no_mass() -> None:
    found = figures("--algorithm relay-sum --peers 6 --rounds 60 --lr 0.05")
    assert (found["mass_error"], found["generations"], found["rounds_alone"]) == (None, 1, 0)
    assert (found["weight_min"], found["weight_max"]) == (1.0, 1.0)
    assert found["arguments"]["topology"] == "binary-tree"
    assert found["metric"]["worst"] < 0.1
    churned = figures("--algorithm relay-sum --peers 6 --rounds 60 --lr 0.05 --churn 17%/60")
    assert churned["generations"] > 1


def test_all_begin_at_once_with_the_same_model_and_nobody_joins() -> None:
    play = played("--algorithm sgp --peers 16 --rounds 6 --topology ring")
    notes = [note.text for _, _, note in play.rehearsal.notes if note.level != "debug"]
    assert notes == ["has mass and trains"] * 16
    assert set(play.tally.points[0].values()) == {play.trainer.evaluate(play.trainer.initial)[1]}  # type: ignore[index]
    assert play.rehearsal.mass()[1] == pytest.approx(16, rel=1e-12)
    assert all(device.exchange.key.round == 6 for device in play.rehearsal.alive())


def test_the_curve_is_of_few_peers_at_few_rounds_and_ends_at_the_last() -> None:
    play = played("--algorithm sgp --peers 8 --rounds 60")
    curve = report.figures(play, 1.0)["curve"]
    assert [point[0] for point in curve] == [0, *range(3, 61, 3)]
    assert len(curve) == POINTS + 1
    assert all(len(by_peer) == WATCHED for by_peer in play.tally.points.values())
    assert all(worst >= mean for _, mean, worst in curve)
    assert curve[-1][1] < curve[0][1] / 5


def test_before_the_decay_the_rate_is_still_the_first_one() -> None:
    text = "--algorithm sgp --peers 4 --rounds 40 --lr 0.2 --warmup 0 --option noise=1"
    decayed = figures(f"{text} --schedule step --lr-decay 0.5:0.01")
    constant = figures(f"{text.replace('40', '20')}")
    assert decayed["metric_before_decay"] == constant["metric"]
    assert decayed["metric"] != decayed["metric_before_decay"]


@pytest.mark.parametrize("algorithm", ["sgp", "difference-push", "relay-sum"])
def test_final_rounds_end_with_one_model_when_they_are_asked_for(algorithm: str) -> None:
    text = f"--algorithm {algorithm} --peers 8 --rounds 20 --option noise=1 --latency 2ms..40ms"
    if algorithm == "difference-push":
        text += " --option final-bits=8"
    found, without = figures(f"{text} --final-rounds"), figures(text)
    assert without["metric_before_final_rounds"] is None and not without["arguments"]["final_rounds"]
    assert found["consensus_distance"] < 0.05 * without["consensus_distance"]
    assert found["metric"]["worst"] == pytest.approx(found["metric"]["averaged_model"], rel=0.02)
    assert found["metric_before_final_rounds"] == without["metric"], "up to there it is the same"
    assert found["bytes"]["sent_per_peer"] > without["bytes"]["sent_per_peer"]
    assert found["mass_error"] is None or found["mass_error"] < 1e-9


def test_dense_figures_are_one_model_per_link_and_local_step() -> None:
    text = "--algorithm sgp --peers 4 --rounds 10 --topology complete"
    one, three = (
        figures(text)["bytes"],
        figures(text.replace("--rounds", "--local-steps 3 --rounds"))["bytes"],
    )
    assert one["dense_per_peer"] == one["dense_exchanges_per_peer"] == 10 * 3 * 4 * 20
    assert three["dense_per_peer"] == 3 * three["dense_exchanges_per_peer"] == 3 * one["dense_per_peer"]
    assert one["reduction"] == one["dense_per_peer"] / one["sent_per_peer"]
    assert one["sent_per_peer"] > one["dense_per_peer"]  # whole models, and their frames


def test_rounds_that_are_placed_by_the_learning_rate_have_all_steps_and_count_them() -> None:
    text = "--algorithm difference-push --peers 4 --rounds 12 --schedule cosine"
    long = QUADRATIC.replace("--local-steps 1", "--local-steps 8 --lr 0.01")
    found = {}
    for placing in ("rate", "steps"):
        words = f"{long} {text} --option placing={placing}".split()
        plan = Plan.from_request(request_of(command.make_context("rehearse", words).params))
        play = Play(plan, Trainer(plan))
        play.play()
        found[placing] = report.figures(play, 1.0)
        assert play.rehearsal.now > plan.steps * STEP_S
    assert found["rate"]["bytes"]["dense_per_peer"] == found["steps"]["bytes"]["dense_per_peer"]
    assert found["rate"]["metric"] != found["steps"]["metric"]


def test_a_compressed_rehearsal_sends_less() -> None:
    text = "--option dim=2000 --peers 4 --rounds 20"
    wide, plain = QUADRATIC.replace(" --option dim=20", ""), {}
    for algorithm in ("sgp", "difference-push"):
        arguments = command.make_context("rehearse", f"{wide} {text} --algorithm {algorithm}".split()).params
        plan = Plan.from_request(request_of(arguments))
        play = Play(plan, Trainer(plan))
        play.play()
        plain[algorithm] = report.figures(play, 1.0)["bytes"]
    assert plain["difference-push"]["sent_per_peer"] < plain["sgp"]["sent_per_peer"] / 8
    assert plain["difference-push"]["dense_per_peer"] == plain["sgp"]["dense_per_peer"]


@pytest.mark.parametrize(
    "frame",
    [
        Parcel(3, 200, Key(1 << 62, 70_000, 0), b"x" * (CHUNK_BYTES + 5)),
        Parcel(1, 1, Key(0, 0, 1), b"xy", "latest"),
        Ack(2, 1 << 20),
        Open((1 << 20) + 1, 3),
        Opened(5, 1, 0, (b"d" * 16, b"e" * 16), False, Farewell(1, 2, 3, 4)),
        Refuse(1, 2, "leaving"),
        Refuse(1, 2, ""),
    ],
)
def test_frames_are_counted_as_long_as_they_are_on_the_wire(frame: Frame) -> None:
    sent: list[Any] = [frame]
    if isinstance(frame, Parcel):
        assert isinstance(frame.payload, bytes)
        parts = [frame.payload[at : at + CHUNK_BYTES] for at in range(0, len(frame.payload), CHUNK_BYTES)]
        sent = [frames.begin_of(frame), *map(frames.Chunk, parts), frames.End(b"\1" * 16)]
    assert frame_bytes(frame) == sum(len(frames.frame_to_wire(f).SerializeToString()) for f in sent)
    assert CHUNK_BYTES == chunks.CHUNK_BYTES


def test_what_is_better_is_read_from_the_figures_name() -> None:
    assert report.worst("accuracy", [0.5, 0.9]) == 0.5
    assert report.worst("distance", [0.5, 0.9]) == 0.9
    assert report.worst("test_loss", [0.5, 0.9]) == 0.9


def test_the_table_shows_what_matters_and_the_picture_is_written(tmp_path: Path) -> None:
    found = figures("--algorithm sgp --peers 4 --rounds 8 --schedule step")
    screen = io.StringIO()
    Console(file=screen, width=100).print(report.table(found))
    for word in ("worst peer", "averaged model", "before the first decay", "reduction", "virtual time"):
        assert word in screen.getvalue()
    assert (
        report.title(found["arguments"])
        == "sgp on exponential, quadratic, iid: 4 peers, 8 rounds of 1 local step"
    )
    plot.draw(found, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_task_without_figures_of_its_own_is_reported_without(tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(
        "import torch\n"
        "def model():\n    return torch.nn.Linear(2, 1)\n"
        "def batches(shard, device):\n    yield torch.ones(1, 2)\n"
        "def loss(model, batch):\n    return model(batch).square().sum()\n"
    )
    arguments = command.make_context(
        "rehearse",
        ["--task", str(task), "--algorithm", "sgp", "--peers", "2", "--rounds", "3", "--local-steps", "1"],
    ).params
    plan = Plan.from_request(request_of(arguments))
    play = Play(plan, Trainer(plan))
    play.play()
    found = report.figures(play, 1.0)
    assert found["arguments"]["task"] == str(task)
    assert set(found["metric"].values()) == {None}
    assert found["curve"] == []
    plot.draw(found, tmp_path / "p.png")


# --- what happens to the devices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    ["--loss 5%", "--churn 25%/30", "--slow 2:3x", "--partition 20-40:half", "--bandwidth 100kbit",
     "--loss 3% --churn 25%/40 --partition 50-70:half --slow 1:2x"],
)  # fmt: skip
def test_faults_are_rehearsed_and_the_same_seed_replays_them(faults: str) -> None:
    text = f"--algorithm sgp --peers 8 --rounds 80 --seed 2 {faults}"
    first = figures(text)
    assert first == figures(text)
    assert first["virtual_s"] > figures("--algorithm sgp --peers 8 --rounds 80 --seed 2")["virtual_s"]
    assert first["metric"]["worst"] < 0.6  # alone, some 0.9 away


FINAL = "--peers 8 --rounds 60 --local-steps 8 --lr 0.02 --momentum 0 --option noise=1 --final-rounds"


@pytest.mark.parametrize("tree", ["binary-tree", "double-tree"])
@pytest.mark.parametrize(
    "faults",
    ["--loss 5%", "--churn 25%/30", "--slow 2:3x", "--partition 10-40:half",
     "--loss 3% --churn 25%/30 --partition 15-45:half --slow 1:2x"],
)  # fmt: skip
def test_whoever_relays_has_one_finite_model_in_the_end_whatever_fails(faults: str, tree: str) -> None:
    words = f"--algorithm relay-sum --topology {tree} {FINAL} {faults}"
    play = played(words, "--task quadratic --option dim=20")
    found = report.figures(play, 1.0)
    before = found["metric_before_final_rounds"]
    assert len(play.final) == 8 and all(model.isfinite().all() for model in play.final.values())
    assert before["worst"] - before["best"] > 1e-3
    assert found["consensus_distance"] < 1e-6
    assert found["metric"]["worst"] < 0.6  # alone, some 0.9 away
    assert (found["messages_lost"] > 0) == ("loss" in faults or "partition" in faults)
    assert found["generations"] > 1 or "churn" not in faults


@pytest.mark.parametrize("faults", ["--churn 40%/40 --loss 2%", "--partition 10-40:half"])
def test_weight_is_lost_with_crashes_alone(faults: str) -> None:
    for seed in range(4):
        found = figures(f"--algorithm sgp --peers 8 --rounds 80 --seed {seed} {faults}")
        assert found["mass_error"] < 1e-9, f"seed {seed}"


@pytest.mark.parametrize("algorithm", ["sgp", "difference-push", "sparse-push --compression topk=50%"])
def test_weight_lost_is_booked_when_all_faults_come_together(algorithm: str) -> None:
    """Some leave while cut off, some crash while they leave, and parcels outlive their senders."""
    for seed in range(8):
        text = f"--algorithm {algorithm} --peers 8 --rounds 60 --topology random-2 --seed {seed}"
        found = figures(f"{text} --churn 40%/20 --partition 12-32:half --loss 2%")
        assert found["mass_error"] < 1e-9, f"seed {seed}"


def test_the_last_ones_of_a_half_leave_together_and_say_what_they_take_along() -> None:
    faults = "--churn 40%/20 --partition 20-53:half --slow 1:10x"
    text = f"--algorithm difference-push --peers 4 --rounds 100 --topology complete --seed 168 {faults}"
    play = played(text)
    notes = [note.text for _, _, note in play.rehearsal.notes]
    assert "leaves with its mass: nobody is there to take it over" in notes
    error = play.books.error()
    assert error is not None
    assert error < 1e-9


def test_books_notice_weight_that_comes_from_nowhere() -> None:
    play = played("--algorithm sgp --peers 4 --rounds 10 --churn 25%/10")
    play.device("p001").exchange.algorithm.w += 0.1  # type: ignore[attr-defined]
    error = play.books.error()
    assert error is not None
    assert error > 0.01


def test_frames_are_lost_and_what_they_carried_is_not() -> None:
    found = figures("--algorithm difference-push --peers 6 --rounds 60 --loss 10%")
    assert found["messages_lost"] > 20
    assert found["mass_error"] < 1e-9


def test_everybody_is_back_before_the_end() -> None:
    play = played("--algorithm sgp --peers 8 --rounds 80 --churn 50%/40 --seed 1")
    boots = [device.boot for device in play.rehearsal.devices.values()]
    assert max(boots) > 1
    assert len(play.rehearsal.alive()) == 8
    assert len(report.figures(play, 1.0)["curve"]) > POINTS / 2


def test_slow_peers_set_the_pace_of_all() -> None:
    text = "--algorithm sgp --peers 4 --rounds 20 --latency 1ms"
    assert figures(text)["virtual_s"] == pytest.approx(20 * STEP_S, rel=0.2)
    assert figures(f"{text} --slow 1:3x")["virtual_s"] == pytest.approx(60 * STEP_S, rel=0.2)


def test_a_narrow_link_takes_its_time() -> None:
    """80 bytes of model and about 20 beside it, at 1 kB/s: a tenth of a second for each parcel."""
    found = figures("--algorithm sgp --peers 4 --rounds 20 --bandwidth 8kbit")
    assert found["virtual_s"] > 20 * (STEP_S + 0.08)


WIDE = "--task quadratic --option dim=4000 --momentum 0 --local-steps 10 --pace overlap --compression auto"


def test_auto_sends_on_each_link_what_hides_behind_the_next_local_steps() -> None:
    """The slow network would take 13 times as long as the local steps for whole models."""
    slow, fast = (
        figures(f"--algorithm difference-push --peers 4 --rounds 40 --bandwidth {bandwidth}", WIDE)
        for bandwidth in ("20kbit", "1mbit")
    )
    steps_s = 40 * 10 * STEP_S
    assert fast["virtual_s"] < 1.05 * steps_s
    assert slow["virtual_s"] < 1.3 * steps_s
    assert fast["bytes"]["sent_per_peer"] > 4 * slow["bytes"]["sent_per_peer"]
    assert fast["metric"]["mean"] <= slow["metric"]["mean"]


@pytest.mark.parametrize("algorithm", ["sgp", "d-psgd"])
def test_auto_sends_whole_models_in_the_type_that_each_link_has_room_for(algorithm: str) -> None:
    fast, slow = (
        figures(f"--algorithm {algorithm} --peers 4 --rounds 30 --bandwidth {bandwidth}", WIDE)["bytes"]
        for bandwidth in ("10mbit", "150kbit")
    )
    assert 3.2 < fast["sent_per_peer"] / slow["sent_per_peer"] < 4.0, "fp32 against int8"


def test_in_a_partition_the_halves_come_to_means_of_their_own() -> None:
    apart = figures("--algorithm sgp --peers 8 --rounds 120 --partition 1-120:half")
    whole = figures("--algorithm sgp --peers 8 --rounds 120")
    assert apart["consensus_distance"] > 2 * whole["consensus_distance"]


def test_a_diverging_rehearsal_says_who_and_when() -> None:
    with pytest.raises(DivergedError, match=r"p\d+ diverged in round \d+"):
        played("--algorithm sgp --peers 4 --rounds 400 --lr 900")


def test_when_nobody_gets_further_the_rehearsal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("--algorithm sgp --peers 4 --rounds 10")
    play = Play(plan, Trainer(plan))
    monkeypatch.setattr(play, "_takes_s", lambda peer: math.inf)
    play.rehearsal._step_s = lambda peer: math.inf
    with pytest.raises(StuckError, match="no peer has closed a round for"):
        play.play()


@pytest.mark.parametrize(
    ("network", "links", "final"),
    [("relay-sum --topology binary-tree", 63 * 2, 10), ("sgp --topology exponential", 64, 6)],
)
def test_64_peers_come_to_one_model_near_the_mean_minimizer(network: str, links: int, final: int) -> None:
    """links: that carry a model in each round; final: rounds without local steps."""
    play = played(f"--algorithm {network} --peers 64 --rounds 20 --lr 0.15 --warmup 5 --final-rounds")
    found = report.figures(play, 1.0)
    before = found["metric_before_final_rounds"]
    assert len(play.final) == 64 and found["consensus_distance"] < 1e-6
    assert before["worst"] - before["best"] > 1e-3
    assert found["curve"][0][1] > 0.9 and found["metric"]["worst"] < 0.2
    assert (found["generations"], found["rounds_alone"], found["messages_lost"]) == (1, 0, 0)
    assert found["bytes"]["dense_per_peer"] == (20 + final) * links / 64 * 4 * 20
    assert found["mass_error"] is None or found["mass_error"] < 1e-9


# --- local steps -----------------------------------------------------------------------------------------


def test_a_peers_steps_are_plain_sgd_with_its_own_momentum() -> None:
    plan = plan_of("--algorithm sgp --peers 2 --rounds 10 --momentum 0.9 --lr 0.05 --warmup 2")
    trainer = Trainer(plan)
    schedule = Schedule("constant", 2, 10)
    goal = trainer._judge.minimizer(1)  # type: ignore[attr-defined]
    z = expected = trainer.initial
    velocity = torch.zeros_like(z)
    for round_ in range(3):
        trainer.train("p000", trainer.initial, round_)  # the other one's steps leave no trace in this one's
        u, lr = trainer.train("p001", z, round_)
        velocity = 0.9 * velocity + (expected - goal)
        expected = expected - 0.05 * schedule.factor(round_) * velocity
        z = z + u
        assert lr == pytest.approx(0.05 * schedule.factor(round_))
        assert torch.allclose(z, expected, atol=1e-5)


def test_the_algorithm_has_a_say_in_the_learning_rate() -> None:
    plan = plan_of("--algorithm sgp --peers 2 --rounds 10 --warmup 0 --lr 0.05")
    trainer = Trainer(plan)
    once, twice = (trainer.train("p000", trainer.initial, 0, scale)[0] for scale in (1.0, 2.0))
    assert torch.allclose(2 * once, twice, atol=1e-6)


# --- how things are written ------------------------------------------------------------------------------


def test_words_and_what_they_mean() -> None:
    assert words.parse_latency("5ms..50ms") == (0.005, 0.05)
    assert words.parse_latency("0.1s") == (0.1, 0.1)
    assert words.parse_bandwidth("20mbit") == 20e6
    assert words.parse_share("5%", "--loss") == 0.05
    assert words.parse_churn("20%/100") == Churn(0.2, 100)
    assert words.parse_slow("2:3x, 1:10x") == (Slow(2, 3.0), Slow(1, 10.0))
    assert words.parse_partitions("100-200:half,300-310:half") == (Partition(100, 200), Partition(300, 310))


@pytest.mark.parametrize(
    "text",
    [
        "--latency 5", "--latency 50ms..5ms", "--latency 2h", "--bandwidth 20", "--bandwidth 0mbit",
        "--loss 0.05", "--loss 95%", "--churn 20%", "--churn 120%/100", "--churn 20%/2", "--slow 2",
        "--slow 2:0.5x",
        "--slow 9:2x", "--partition 100", "--partition 7-5:half", "--partition 1-3:third",
        "--partition 5-70:half", "--partition 1-5:half,3-8:half", "--split half", "--split natural",
    ],
)  # fmt: skip
def test_a_word_that_makes_no_sense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        plan_of(f"--algorithm sgp --peers 8 --rounds 60 {text}")


def test_the_slow_ones_are_the_last() -> None:
    plan = plan_of("--algorithm sgp --peers 5 --rounds 9 --slow 1:10x,2:3x")
    assert [plan.slowness(number) for number in range(5)] == [1, 1, 3, 3, 10]


def test_shards_follow_the_split() -> None:
    text = "--algorithm sgp --peers 4 --rounds 9 --task spoken-digits"
    for split, shard in (("iid", "3/4"), ("natural", "natural:3/4"), ("dirichlet=0.1", "dirichlet=0.1:3/4")):
        arguments = command.make_context("rehearse", f"{text} --split {split}".split()).params
        assert Plan.from_request(request_of(arguments)).shard(3) == shard


def test_churn_is_decided_by_the_seed_and_everyone_returns() -> None:
    plan = plan_of("--algorithm sgp --peers 10 --rounds 300 --churn 20%/100 --partition 100-200:half")
    scenes = scenes_of(plan)
    assert scenes == scenes_of(plan) == sorted(scenes)
    gone = [scene for scene in scenes if scene.what in ("leave", "crash")]
    assert len(gone) == 6
    for scene in gone:
        assert Scene(scene.round + 25, "return", scene.peer) in scenes
    assert [scene.round for scene in scenes if scene.what in ("split", "heal")] == [100, 200]
    assert [len(half) for half in halves(plan)] == [5, 5]


# --- progress --------------------------------------------------------------------------------------------


def test_progress_is_a_bar_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.rehearsal.progress.SHOW_S", 0.0)
    for terminal in (True, False):
        screen = io.StringIO()
        with Progress(Console(file=screen, width=100, force_terminal=terminal), 60) as progress:
            progress.show(30, 12.0)
            progress._bars.refresh()
        assert ("30/60" in screen.getvalue()) is terminal
        assert ("12 virtual s" in screen.getvalue()) is terminal
        assert terminal or screen.getvalue() == ""
