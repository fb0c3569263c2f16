"""`peerd block`, `unblock`, `rekey` and `key --qr`: what is asked for, what is said, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from peer.errors import UsageError
from peer.keys import format_key

Run = Callable[..., Result]
PEER = "p-" + "a" * 26
KEY = format_key(bytes(range(16)))


def test_block_says_who_is_meant_and_how_to_undo_it(run: Run, daemon: Any) -> None:
    daemon.answers["block"] = lambda _: [{"op": "done", "peer": PEER, "device": "pi-2"}]
    done = run("block", "pi-2")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"blocked pi-2 ({PEER}); 'peerd unblock {PEER}' lets it in again\n"
    assert daemon.asked == [{"op": "block", "peer": "pi-2"}]


def test_who_may_be_meant_is_listed(run: Run, daemon: Any) -> None:
    def refuse(_: Any) -> Any:
        raise UsageError("'pi' may be one of 2: p-aa (pi), p-ab (pi); give more of its id")

    daemon.answers["block"] = refuse
    done = run("block", "pi")
    assert done.exit_code == 2
    assert "p-aa (pi), p-ab (pi)" in done.stderr


def test_the_list_is_for_people_and_programs(run: Run, daemon: Any) -> None:
    rows = [{"peer": PEER, "device": "pi-2\x1b"}, {"peer": "p-b", "device": ""}]
    daemon.answers["blocked"] = lambda _: [{"op": "done", "blocked": rows}]
    assert run("block", "--list").stdout == f"pi-2  {PEER}\n–     p-b\n"
    assert json.loads(run("block", "--list", "--json").stdout) == {"blocked": rows}
    daemon.answers["blocked"] = lambda _: [{"op": "done", "blocked": []}]
    assert run("block", "--list").stdout == "nobody is blocked\n"


@pytest.mark.parametrize("arguments", [(), ("--json",), ("pi-2", "--list"), ("pi-2", "--json")])
def test_block_wants_a_device_or_the_list(run: Run, daemon: Any, arguments: tuple[str, ...]) -> None:
    assert run("block", *arguments).exit_code == 2
    assert daemon.asked == []


def test_unblock(run: Run, daemon: Any) -> None:
    daemon.answers["unblock"] = lambda _: [{"op": "done", "peer": PEER, "device": ""}]
    assert run("unblock", "p-aa").stdout == f"{PEER} is not blocked any more\n"
    assert daemon.asked == [{"op": "unblock", "peer": "p-aa"}]


def test_the_help_says_what_happens_where_all_agree_on_a_graph(run: Run) -> None:
    words = " ".join(run("block", "--help").output.split())
    assert "rounds do not wait for it, a spanning tree goes around the pair" in words


def test_rekey_prints_the_key_alone_and_says_what_to_do_elsewhere(
    run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERD_KEY", KEY)  # of before: it is not the new one
    daemon.answers["rekey"] = lambda _: [{"op": "done", "key": KEY, "checkpoint": True}]
    done = run("rekey", "home")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{KEY}\n"
    assert "peerd rekey home --key-file F" in done.stderr
    assert "goes on from its checkpoint" in done.stderr
    assert KEY not in done.stderr
    assert daemon.asked == [{"op": "rekey", "name": "home", "key": None}]
    daemon.answers["rekey"] = lambda _: [{"op": "done", "key": KEY, "checkpoint": False}]
    assert "begins anew" in run("rekey", "home").stderr


def test_rekey_takes_the_key_that_another_device_has_made(run: Run, daemon: Any, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY.lower())
    daemon.answers["rekey"] = lambda _: [{"op": "done", "key": KEY, "checkpoint": True}]
    done = run("rekey", "home", "--key-file", str(file))
    assert done.exit_code == 0, done.output
    assert KEY not in done.output
    assert daemon.asked == [{"op": "rekey", "name": "home", "key": KEY}]
    assert run("rekey", "home", "--key", "peerd1-nonsense").exit_code == 2


def test_a_qr_code_is_drawn_of_the_key_and_says_who_may_join(
    run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "segno", raising=False)
    daemon.answers["key"] = lambda _: [{"op": "done", "key": KEY}]
    assert run("key", "home").stdout == f"{KEY}\n"
    assert "segno" not in sys.modules, "loaded only when asked for"
    done = run("key", "home", "--qr")
    assert done.exit_code == 0, done.output
    first, *code = done.stdout.splitlines()
    assert first == KEY
    assert len(code) >= 15
    assert {len(line) for line in code} == {len(code[0])}
    assert set("".join(code)) <= set(" ▀▄█")
    assert "whoever sees this code may join" in done.stderr


def test_the_code_holds_the_key(run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import segno

    made: list[str] = []
    make = segno.make

    def noticed(text: str, **how: Any) -> Any:
        made.append(text)
        return make(text, **how)

    monkeypatch.setattr(segno, "make", noticed)
    daemon.answers["key"] = lambda _: [{"op": "done", "key": KEY}]
    assert run("key", "home", "--qr").exit_code == 0
    from peer.keys import parse_key

    assert [parse_key(text) for text in made] == [bytes(range(16))]


def test_without_the_package_it_says_what_to_install(
    run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    daemon.answers["key"] = lambda _: [{"op": "done", "key": KEY}]
    done = run("key", "home", "--qr")
    assert done.exit_code == 78
    assert "pip install segno" in done.stderr
