from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import Result

from cli import talk
from peer.config import Descriptor, JoinOptions
from peer.keys import format_key, new_key

Run = Callable[..., Result]
KEY = format_key(new_key())


@pytest.fixture
def creating(daemon: Any) -> Any:
    daemon.answers["create"] = lambda request: [
        {"op": "progress", "text": "starting"},
        {"op": "done", "key": KEY, "name": request["descriptor"]["name"]},
    ]
    return daemon


def described(daemon: Any) -> Descriptor:
    return Descriptor.from_dict(daemon.asked[-1]["descriptor"])


def taking_part(daemon: Any) -> JoinOptions:
    return JoinOptions.from_dict(daemon.asked[-1]["options"])


def test_create_prints_the_join_key(run: Run, creating: Any) -> None:
    done = run("create", "home")
    assert done.exit_code == 0, done.output
    assert KEY in done.stdout


def test_the_defaults_make_a_valid_session(run: Run, creating: Any) -> None:
    run("create", "home")
    session = described(creating)
    assert session == Descriptor("home", session.nonce)
    assert taking_part(creating) == JoinOptions()


def test_two_sessions_of_one_name_are_two(run: Run, creating: Any) -> None:
    run("create", "home")
    first = described(creating).id
    run("create", "home")
    assert described(creating).id != first


def test_every_option_arrives(run: Run, creating: Any, tmp_path: Path) -> None:
    words = (
        "create home --task quadratic --algorithm sgp --topology random-3 --local-steps 4 --rounds 9 "
        "--pace free --compression fp16 --lr 0.5 --batch 8 --momentum 0 --seed 7 --option dim=10 "
        "--option task.noise=0.5 --shard 1/4 --peer pi-1:7070 --peer [fe80::1]:7071 --device cpu "
        f"--listen 0.0.0.0:7072 --interface lo --timeout 3 --insecure --data {tmp_path}"
    )
    done = run(*words.split())
    assert done.exit_code == 0, done.output
    assert described(creating) == Descriptor(
        "home", described(creating).nonce, task="quadratic", algorithm="sgp", topology="random-3",
        local_steps=4, rounds=9, pace="free", compression="fp16", lr=0.5, batch=8, momentum=0.0, seed=7,
        options={"task.dim": "10", "task.noise": "0.5"},
    )  # fmt: skip
    assert taking_part(creating) == JoinOptions(
        data=str(tmp_path), shard="1/4", peers=("pi-1:7070", "[fe80::1]:7071"), device="cpu", timeout_s=3.0,
        listen="0.0.0.0:7072", interfaces=("lo",), insecure=True,
    )  # fmt: skip


def test_a_port_alone_is_enough_to_listen_on(run: Run, creating: Any) -> None:
    done = run("create", "home", "--listen", ":7000")
    assert done.exit_code == 0, done.output
    assert taking_part(creating).listen == ":7000"


def test_a_preset_sets_what_the_user_does_not(run: Run, creating: Any) -> None:
    run("create", "home", "--option", "preset=frugal")
    assert described(creating).local_steps == 32
    run("create", "home", "--option", "preset=frugal", "--local-steps", "5", "--compression", "bits=2")
    assert (described(creating).local_steps, described(creating).compression) == (5, "bits=2")


def test_a_task_file_travels_as_text_with_its_digest(run: Run, creating: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def model(): ...  # \u00e9\n", encoding="utf-8")
    assert run("create", "home", "--task", str(path)).exit_code == 0
    assert described(creating).task == "file"
    assert described(creating).task_digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert taking_part(creating).task_file_text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"), [("import torch\nx = (1\n", "line 2: '(' was never closed"), ("x = '\0'", "null byte")]
)
def test_a_task_file_that_is_not_python_is_noticed_here(
    run: Run, creating: Any, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    done = run("create", "home", "--task", str(path))
    assert done.exit_code == 65
    assert f"{path} is not Python, " in done.stderr
    assert said in done.stderr
    assert creating.asked == []


def test_a_task_file_of_doubtful_style_and_with_a_byte_order_mark_is_python(
    run: Run, creating: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(b"\xef\xbb\xbfx = '\\d'\n")
    done = run("create", "home", "--task", str(path))
    assert (done.exit_code, len(creating.asked)) == (0, 1), done.output


def test_data_in_a_folder_that_may_not_be_looked_at_is_65(
    run: Run, daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, barred = os.stat, tmp_path / "barred" / "data"

    def stat(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        if str(path) == str(barred):  # root, who may run this, may look anywhere
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    done = run("create", "home", "--data", str(barred))
    assert (done.exit_code, daemon.asked) == (65, [])
    assert f"the folder {barred} may not be looked at: Permission denied; look at --data" in done.stderr


def test_data_may_be_one_file(run: Run, creating: Any, tmp_path: Path) -> None:
    text = tmp_path / "verse.txt"
    text.write_text("the cat sat on the mat")
    done = run("create", "home", "--task", "characters", "--data", str(text))
    assert done.exit_code == 0, done.output
    (asked,) = creating.asked
    assert asked["options"]["data"] == str(text)


def test_a_task_file_that_is_too_long_is_refused_with_advice(run: Run, creating: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text("#" * 61_441)
    done = run("create", "home", "--task", str(path))
    assert done.exit_code == 2
    assert "61441 bytes" in done.stderr
    assert "import it" in done.stderr


@pytest.mark.parametrize(
    ("algorithm", "topology"),
    [
        ("sgp", "exponential"),
        ("relay-sum", "binary-tree"),
        ("relay-sum-grad", "binary-tree"),
        ("d-psgd", "ring"),
    ],
)
def test_an_algorithm_brings_its_topology(run: Run, creating: Any, algorithm: str, topology: str) -> None:
    assert run("create", "home", "--algorithm", algorithm).exit_code == 0
    assert (described(creating).topology, described(creating).local_steps) == (topology, 16)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            "--algorithm relay-sum --topology ring",
            2,
            "runs on binary-tree, double-tree, chain, spanning-tree",
        ),
        (
            "--topology chain",
            2,
            "not on 'chain'; on that one run relay-sum, relay-sum-grad, d-psgd",
        ),
        ("--algorithm relay-sum-grad --pace free", 2, "cannot run in the pace 'free'; it can in lockstep"),
        ("--algorithm relay-sum --option fill=nothing", 2, "prev, x0, half, counts"),
        ("--algorithm d-psgd --compression topk=1%", 2, "none or fp32, fp16, bf16, int8, int4"),
        ("--task nosuch", 2, "spoken-digits, quadratic"),
        ("--task nosuch.py", 65, "nosuch.py"),
        ("--algorithm nosuch", 2, "difference-push, sgp, sparse-push"),
        ("--topology nosuch", 2, "ring, exponential"),
        ("--algorithm sparse-push --compression auto", 2, "sparse-push cannot work with compression 'auto'"),
        ("--compression none", 2, "difference-push cannot work with"),
        ("--option nosuch=1", 2, "algorithm.preset"),
        ("--shard 9/8", 2, "parts count from 0"),
        ("--shard speaker=nobody", 2, "yweweler"),
        ("--data /nosuch", 65, "--data"),
        ("--data /dev/null", 65, "no folder and no file"),
        ("--task characters --shard dirichlet=0.1:0/2", 2, "it has part"),
        ("--task fashion-mnist --option model=lenet", 2, "cnn, mlp"),
        ("--option schedule=cosine", 2, "--rounds"),
        ("--option schedule=step --rounds 9 --option lr-decay=9:9", 2, "lr-decay"),
        ("--option warmup=5e1", 2, "in digits"),
        ("--task quadratic --option dim=1e3", 2, "in digits"),
        ("--peer nowhere", 2, "HOST:PORT"),
        ("--listen 7070", 2, "HOST:PORT"),
        ("--lr 0", 2, "--lr"),
        ("--lr nan", 2, "--lr"),
        ("--momentum 1", 2, "--momentum"),
        ("--local-steps 0", 2, "--local-steps"),
        ("--device tpu", 2, "--device"),
        ("--nosuch", 2, "--nosuch"),
        ("--budget 2MB", 2, "2MB/min"),
        ("--budget 1kB/min", 2, "kB/min"),
        ("--quiet-hours 22", 2, "22:30-06:15"),
        ("--manners good", 2, "'on', 'mains', 'off'"),
    ],
)
def test_what_is_wrong_is_said_before_anyone_is_asked(
    run: Run, daemon: Any, words: str, code: int, said: str
) -> None:
    done = run("create", "home", *words.split())
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("peerd: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert daemon.asked == []


def test_a_name_must_be_one(run: Run, daemon: Any) -> None:
    assert run("create", "../etc").exit_code == 2
    assert run("create").exit_code == 2
    assert daemon.asked == []


def test_without_a_daemon_create_becomes_one(run: Run, nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[list[str], dict[str, str], dict[str, Any]]] = []

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        fd = int(arguments[arguments.index("--request-fd") + 1])
        with open(fd, "rb") as request:
            became.append((arguments, environment, msgpack.unpackb(request.read())))
        raise SystemExit(0)

    monkeypatch.setattr(talk.os, "execve", execve)
    monkeypatch.setenv("PEERD_KEY", KEY)
    run("create", "home", "--state", "/tmp/elsewhere")
    [(arguments, environment, request)] = became
    assert arguments[1:4] == ["-P", "-m", "peer"]
    assert arguments[arguments.index("--state") + 1] == "/tmp/elsewhere"
    assert Descriptor.from_dict(request["descriptor"]).name == "home"
    assert request["op"] == "create"
    assert "PEERD_KEY" not in environment
    assert environment["PEERD_SOCKET"] == str(nobody)
