from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from peer import catalogue
from peer.demo import __main__ as program
from peer.demo import results, story
from peer.demo.alone import train
from peer.demo.devices import Device, clean_environment
from peer.demo.final import evaluate
from peer.demo.progress import Progress
from peer.demo.terms import SEED, TASK, DemoError, Outcome, placing, shards
from peer.errors import StateError
from peer.learner.export import exported
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, load_task, seeded_model
from peer.status import LinkStatus, SessionStatus

DONE = Outcome("speaker=theo", "p-a", [(16, 0.25), (32, 0.5)], [(16, 0.5), (32, 0.9)], 1000, 9000, 9.0, 1.5)


def progress() -> tuple[Progress, io.StringIO]:
    screen = io.StringIO()
    return Progress(Console(file=screen, width=100)), screen


def test_each_device_has_a_speaker_while_there_are_enough() -> None:
    assert shards(3) == ["speaker=george", "speaker=jackson", "speaker=lucas"]
    assert shards(8)[3] == "3/8"
    for count in (2, 6, 7, 32):
        assert len({catalogue.check_shard("spoken-digits", shard) for shard in shards(count)}) == count


def test_the_json_has_the_contracts_names(tmp_path: Path) -> None:
    results.write_json([DONE, Outcome("0/2")], 12.34, tmp_path / "f.json")
    written = json.loads((tmp_path / "f.json").read_text())
    assert list(written) == ["task", "algorithm", "topology", "seconds", "devices"]
    assert written["devices"][0] == {
        "peer": "p-a", "shard": "speaker=theo", "alone": 0.5, "together": 0.9, "bytes_sent": 1000,
        "bytes_dense": 9000, "reduction": 9.0, "first_link_s": 1.5,
    }  # fmt: skip
    assert written["devices"][1]["alone"] is None


def test_the_table_and_the_picture_show_every_device(tmp_path: Path) -> None:
    screen = io.StringIO()
    Console(file=screen, width=100).print(results.table([DONE, Outcome("0/2")]))
    for word in ("theo", "50.0 %", "90.0 %", "9x", "1.5 s", "0/2"):
        assert word in screen.getvalue()
    assert results.draw([DONE, Outcome("0/2")], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_files_that_cannot_be_written_are_noticed_before_the_work(tmp_path: Path) -> None:
    results.check_writable(tmp_path / "new.png")
    for wrong in (tmp_path, tmp_path / "nosuch" / "p.png"):
        with pytest.raises(StateError, match="cannot be written"):
            results.check_writable(wrong)


def test_training_alone_tells_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    train("speaker=theo", 32, order=1)
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert points[-1]["step"] == 32
    assert all(0 <= point["accuracy"] <= 1 for point in points)


def booked(device: Device, *looks: tuple[int | None, float]) -> None:
    for round_, accuracy in looks:
        links = (LinkStatus("p-b"),)
        device.book(
            SessionStatus(
                "demo", "i", round=round_, metrics={"accuracy": accuracy}, links=links, bytes_sent=5
            )
        )


def test_a_session_is_booked_as_it_goes(tmp_path: Path) -> None:
    device = Device(0, "speaker=theo", tmp_path, 160)
    booked(device, (-1, 0.1), (7, 0.5), (7, 0.6), (9, 0.8), (12, 0.9))
    device.book(SessionStatus("demo", "i"))
    assert device.outcome.together == [(0, 0.1), (placing(10).first(8), 0.6), (160, 0.9)]
    assert device.outcome.bytes_sent == 5


def test_an_evaluation_is_one_point_however_often_it_is_seen(tmp_path: Path) -> None:
    device = Device(0, "speaker=theo", tmp_path, 160)
    booked(device, (None, 0.1), (0, 0.1), (1, 0.1), (4, 0.5), (5, 0.5), (8, 0.5))
    assert device.outcome.together == [(placing(10).first(5), 0.5)]


def test_the_last_point_is_the_final_models(tmp_path: Path) -> None:
    device = Device(0, "speaker=theo", tmp_path, 160)
    booked(device, (4, 0.5), (11, 0.8))
    device.conclude(0.9)
    assert device.outcome.together == [(placing(10).first(5), 0.5), (160, 0.9)]
    assert device.outcome.to_dict()["together"] == 0.9


def exported_file(path: Path, round_: int) -> float:
    """An untrained model as `peerd export` writes it; how many it gets right."""
    task = load_task(TASK, Settings(seed=SEED))
    model = seeded_model(task, 5)
    flat = FlatModel(model)
    path.write_bytes(b"".join(exported(flat.read(), flat.signature, {"round": str(round_)})))
    return task.evaluate(model)["accuracy"]


def test_an_exported_model_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = exported_file(tmp_path / "m", 12)
    evaluate([str(tmp_path / "m")] * 2)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"round": 12, "accuracy": expected}] * 2


@pytest.mark.parametrize("round_", [12, 9])
async def test_together_is_how_good_the_final_model_is_whatever_was_reported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_: int
) -> None:
    """The device is seen as stopped while its learner has not reported its last evaluation."""
    device = Device(0, "speaker=theo", tmp_path, 160)
    expected: list[float] = []

    async def look(device: Device) -> SessionStatus:
        session = SessionStatus("demo", "i", state="stopped", round=12, metrics={"accuracy": 0.8})
        device.book(session)
        return session

    async def create(device: Device, rounds: int) -> str:
        return "key"

    async def export(device: Device) -> Path:
        expected.append(exported_file(tmp_path / "m", round_))
        return tmp_path / "m"

    async def nothing(device: Device, *_: object) -> None: ...

    for name, stand_in in (
        ("look", look), ("create", create), ("export", export), ("start", nothing), ("stop", nothing)
    ):  # fmt: skip
        monkeypatch.setattr(Device, name, stand_in)
    with progress()[0] as shown:
        if round_ < 10:
            with pytest.raises(DemoError, match="model of device 1 is of round 9, not a final one"):
                await story.together([device], 10, shown)
        else:
            await story.together([device], 10, shown)
            assert device.outcome.together == [(160, expected[0])]


def test_devices_inherit_no_settings_of_the_users_own_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERD_SOCKET", "/run/peerd/peerd.sock")
    monkeypatch.setenv("PEERD_KEY", "secret")
    assert not [name for name in clean_environment() if name.startswith("PEERD_")]


async def test_a_daemon_that_does_not_start_is_an_error_that_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    device = Device(0, "speaker=theo", tmp_path, 160)
    with pytest.raises(DemoError, match=r"device 1 ended with code 1; see .*daemon\.log"):
        await device.start()
    await device.stop()


async def test_whatever_goes_wrong_every_device_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    async def start(device: Device) -> None:
        if device.name == "device 2":
            raise DemoError("device 2 is broken")

    async def stop(device: Device, patience_s: float) -> None:
        stopped.append(device.name)

    monkeypatch.setattr(Device, "start", start)
    monkeypatch.setattr(Device, "stop", stop)
    devices = [Device(number, shard, tmp_path, 160) for number, shard in enumerate(shards(3))]
    with pytest.raises(DemoError, match="device 2 is broken"):
        await story.together(devices, 5, progress()[0])
    assert stopped == ["device 1", "device 2", "device 3"]


async def test_an_interrupt_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    tells_its_pid = """#!/bin/sh
        echo "{\\"step\\": $$, \\"accuracy\\": 0.5}"
        exec cat /dev/zero > /dev/null
        """
    fake.write_text(tells_its_pid)
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    devices = [Device(number, str(number), tmp_path, 160) for number in range(2)]
    both = asyncio.Event()
    pids: list[int] = []

    class Watching(Progress):
        def show(self, name: str, step: int, accuracy: float | None) -> None:
            pids.append(step)
            if len(pids) == 2:
                both.set()

    work = asyncio.create_task(story.alone(devices, 10, Watching(Console(file=io.StringIO()))))
    async with asyncio.timeout(60):
        await both.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_without_a_terminal_there_are_lines_and_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.demo.progress.LINE_S", 0.0)
    shown, screen = progress()
    with shown:
        shown.act("alone", ["a", "b"], 100)
        shown.show("a", 50, 0.25)
        shown.show("b", 100, None)
    assert screen.getvalue().splitlines() == [
        "alone: 2 devices, 100 local steps each",
        "   25 % done, 25 to 25 % right",
        "   75 % done, 25 to 25 % right",
        "   75 % done, 25 to 25 % right",
    ]


def test_a_failure_is_one_line_and_a_code_and_keeps_the_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(devices: int, steps: int, folder: Path, progress: Progress) -> list[Outcome]:
        (folder / "daemon.log").write_text("why")
        raise DemoError(f"device 1 failed; see {folder / 'daemon.log'}")

    monkeypatch.setattr(program, "tell", fail)
    monkeypatch.setattr(program.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(program, "MAX_FOLDER", 1000)
    monkeypatch.setattr(sys, "argv", ["demo", "--picture", str(tmp_path / "p.png")])
    assert program.main() == 70
    said = capsys.readouterr().err
    assert said.startswith("peerd: device 1 failed; see ")
    assert Path(said.split()[-1]).read_text() == "why"
