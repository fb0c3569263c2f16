"""`peerd rehearse`: what a user types, and what they get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from peer.rehearsal.plan import Plan

Run = Callable[..., Result]
SMALL = (
    "--task",
    "quadratic",
    "--option",
    "dim=20",
    "--algorithm",
    "sgp",
    "--peers",
    "4",
    "--local-steps",
    "2",
)


class BecameError(Exception):
    """Where the process would have become another."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, run: Run) -> Callable[..., dict[str, Any]]:
    """Run the command up to where it becomes `python -m peer.rehearsal`; the request."""
    seen: list[list[str]] = []

    def execv(path: str, argv: list[str]) -> None:
        seen.append(argv)
        raise BecameError

    def becoming(*words: str) -> dict[str, Any]:
        run("rehearse", *words)
        assert seen[-1][:4] == [sys.executable, "-P", "-m", "peer.rehearsal"]
        request: dict[str, Any] = json.loads(seen[-1][4])
        return request

    monkeypatch.setattr(os, "execv", execv)
    return becoming


def rehearse(*words: str, folder: Path, hide: str = "") -> subprocess.CompletedProcess[str]:
    """The whole command in a process of its own. hide: a module that is not installed."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    if hide:
        (folder / "sitecustomize.py").write_text(f"import sys; sys.modules[{hide!r}] = None")
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    elif "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    command = [sys.executable, "-P", "-m", "cli.main", "rehearse", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_every_option_arrives(become: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    words = (
        "--task quadratic --algorithm sparse-push --topology random-2 --peers 16 --rounds 300 "
        "--local-steps 3 --batch 8 --lr 0.2 --momentum 0.5 --schedule step --warmup 7 --lr-decay 0.5:0.1 "
        "--compression topk=5% --split iid --option dim=30 --latency 5ms..50ms --bandwidth 20mbit --loss 5% "
        "--churn 20%/100 "
        "--slow 2:3x --partition 100-200:half --final-rounds --seed 9 --json j.json --plot p.png"
    )
    request = become(*words.split(), "--data", str(tmp_path))
    plan = Plan.from_request(request)
    assert plan.arguments() == {
        "task": "quadratic", "algorithm": "sparse-push", "topology": "random-2", "peers": 16, "rounds": 300,
        "steps": 900, "local_steps": 3, "batch": 8, "lr": 0.2, "momentum": 0.5, "schedule": "step",
        "warmup": 7, "lr_decay": "0.5:0.1", "compression": "topk=5%", "split": "iid",
        "final_rounds": True,
        "options": {"task.dim": "30"},
        "latency": "5ms..50ms", "bandwidth": "20mbit", "loss": "5%", "churn": "20%/100", "slow": "2:3x",
        "partition": "100-200:half", "data": str(tmp_path),
    }  # fmt: skip
    assert (plan.session.seed, request["json"], request["plot"]) == (9, "j.json", "p.png")


def test_defaults_are_the_sessions_own_with_a_constant_rate(become: Callable[..., dict[str, Any]]) -> None:
    plan = Plan.from_request(become("--rounds", "5"))
    found = plan.arguments()
    assert (found["task"], found["algorithm"], found["topology"]) == (
        "spoken-digits", "difference-push", "exponential",
    )  # fmt: skip
    assert (found["local_steps"], found["compression"], found["split"]) == (16, "bits=1", "iid")
    assert (found["schedule"], found["warmup"], found["lr"], found["loss"]) == ("constant", 20, None, None)


def test_steps_are_rounded_up_to_whole_rounds(become: Callable[..., dict[str, Any]]) -> None:
    request = become("--steps", "100", "--local-steps", "16")
    assert request["session"]["rounds"] == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--rounds or --steps"),
        ("--rounds 5 --steps 5", "--rounds or --steps"),
        ("--rounds 5 --algorithm gossip", "no algorithm is called 'gossip'"),
        ("--rounds 5 --topology star", "no topology is called 'star'"),
        ("--rounds 5 --task script", "leaves training to scripts, and nothing to rehearse"),
        ("--rounds 5 --task nosuch", "no task is called 'nosuch'"),
        ("--rounds 5 --task quadratic --option depth=3", "no option 'depth'"),
        ("--rounds 5 --compression zip", "no compression is called 'zip'"),
        ("--rounds 5 --lr 0", "--lr is above 0"),
        ("--rounds 5 --peers 1", "--peers"),
        ("--rounds 5 --schedule step --option schedule=cosine", "given twice"),
        ("--rounds 5 --schedule step --lr-decay 2:0.1", "lr-decay"),
    ],
)
def test_a_word_that_is_not_known_is_a_usage_error(run: Run, words: str, said: str) -> None:
    refused = run("rehearse", *words.split())
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_folder_that_is_not_there_is_65(run: Run) -> None:
    refused = run("rehearse", "--rounds", "5", "--data", "/nosuch")
    assert (refused.exit_code, "/nosuch; look at --data" in refused.stderr) == (65, True)


def test_the_same_seed_gives_the_same_json_but_for_the_time_it_took(tmp_path: Path) -> None:
    words = (*SMALL, "--rounds", "20", "--loss", "3%", "--seed", "5", "--json")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        done = rehearse(*words, str(file), folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "distance, averaged model" in done.stdout
    first, second = (json.loads(file.read_text()) for file in files)
    assert first.pop("wall_s") > 0
    assert second.pop("wall_s") > 0
    assert first == second


def test_json_to_standard_output_is_alone_there(tmp_path: Path) -> None:
    done = rehearse(*SMALL, "--rounds", "4", "--json", "-", "--plot", "p.png", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["arguments"]["rounds"] == 4
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--latency", "fast"), 2, "--latency is written"),
        (("--split", "dirichlet=0.1"), 2, "task quadratic has no dirichlet shards"),
        (("--json", "nosuch/j.json"), 73, "nosuch/j.json cannot be written"),
        (("--option", "noise=1e5", "--lr", "500"), 65, "diverged"),
    ],
)
def test_an_error_is_a_sentence_and_a_code(
    tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = rehearse(*SMALL, "--rounds", "40", *words, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("peerd: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_picture_without_matplotlib_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    done = rehearse(*SMALL, "--rounds", "4", "--plot", "p.png", folder=tmp_path, hide="matplotlib")
    assert done.returncode == 2
    assert "pip install peerd[demo]" in done.stderr
    assert done.stdout == ""


def test_an_interrupt_says_what_was_reached(tmp_path: Path) -> None:
    """The task itself sends the signal, in the middle of a local step."""
    task = tmp_path / "task.py"
    task.write_text(
        "import os, signal, torch\n"
        "count = 0\n"
        "def model():\n    return torch.nn.Linear(2, 1)\n"
        "def batches(shard, device):\n    while True: yield torch.ones(1, 2)\n"
        "def loss(model, batch):\n"
        "    global count\n    count += 1\n"
        f"    if count == 40: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "    return model(batch).square().sum()\n"
    )
    words = (
        "--task",
        str(task),
        "--algorithm",
        "sgp",
        "--peers",
        "4",
        "--local-steps",
        "1",
        "--rounds",
        "100",
    )
    done = rehearse(*words, folder=tmp_path)
    assert done.returncode == 130
    assert done.stderr.startswith("peerd: interrupted; ")
    assert "of 100 rounds" in done.stderr
