"""The foreground view and its end, on daemons in this process."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import Puppet
from peer.daemon import foreground
from peer.daemon.foreground import View, fitted, summary
from peer.errors import PeerdError, UnknownSessionError, WrongKeyError
from peer.keys import format_key, new_key
from peer.status import LinkStatus, SessionStatus

Make = Callable[[str], Home]
ERASE = "\r\x1b[2K"

TRAINING = SessionStatus(
    "home", "i", "difference-push", "exponential", "spoken-digits", "training", round=1234, loss=0.2134,
    metrics={"accuracy": 0.9533}, members=3, bytes_sent=12_500_010, reduction=475.6,
    links=(LinkStatus("p-b", "b", "out", "alive"), LinkStatus("p-b", "b", "in", "alive")),
)  # fmt: skip


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(foreground, "sys", SimpleNamespace(stdout=shown))  # pytest changes the real one
    monkeypatch.setattr(foreground, "REFRESH_S", 0.01)
    monkeypatch.setenv("COLUMNS", "40")
    return shown


async def shows(screen: Screen, text: str) -> None:
    """Wait until this was written."""
    while text not in screen.getvalue():
        screen.written.clear()
        await screen.written.wait()


def creation(name: str = "home") -> foreground.Request:
    return {"op": "create", "descriptor": session(name).to_dict(), "options": here().to_dict()}


def joining(key: str | None, **changes: object) -> foreground.Request:
    return {"op": "join", "name": "home", "key": key, "options": here(**changes).to_dict()}


def test_a_row_has_the_most_important_words_that_it_has_room_for() -> None:
    parts = summary(TRAINING)
    assert fitted(parts, 79) == (
        "home: round 1234, loss 0.21, accuracy 0.953, sent 12.5 MB, 476x less, 2 links"
    )
    assert fitted(parts, 40) == "home: round 1234, loss 0.21"
    assert fitted(parts, 8) == "home: ro"
    assert fitted(parts, 200).endswith("476x less, 2 links, 3 devices")
    assert summary(SessionStatus("home", "i", state="waiting"))[0] == "home: waiting"


async def test_what_is_overwritten_is_never_wider_than_the_terminal(
    home: Make, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "summary", lambda status: summary(TRAINING))
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        running = asyncio.create_task(foreground.run(a.daemon, creation()))
        await shows(screen, "loss 0.21")
        a.daemon.stopping.set()
        await running
    rows = [row for row in screen.getvalue().split(ERASE) if not row.endswith("\n")]
    assert any("loss" in row for row in rows)
    assert max(len(row) for row in rows) < 40


async def test_it_ends_with_its_last_session_and_not_with_its_own(home: Make, screen: Screen) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session("other"), here())
        running = asyncio.create_task(foreground.run(a.daemon, creation()))
        await shows(screen, "taken up as well: other")
        await a.daemon.leave("home", forget=False)
        await shows(screen, "'home' has ended; still here: other")
        await shows(screen, f"{ERASE}other: waiting")
        assert not running.done()
        await a.daemon.leave("other", forget=False)
        await running


async def test_a_failure_is_raised_at_the_end(home: Make, screen: Screen) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        await a.daemon.create(session("other"), here())
        running = asyncio.create_task(foreground.run(a.daemon, creation()))
        await shows(screen, "taken up")
        a.daemon.sessions["home"].fail(PeerdError("no luck"))
        await shows(screen, "! home: no luck\n")
        a.daemon.sessions["other"].fail(PeerdError("none here"))
        with pytest.raises(PeerdError, match="no luck"):
            await running


async def test_a_health_sentence_is_shown_when_it_comes(home: Make, screen: Screen) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        running = asyncio.create_task(foreground.run(a.daemon, creation()))
        await shows(screen, "home: waiting")
        a.daemon.sessions["home"].folder.problem = "its\x1b[2J disk is full"
        await shows(screen, f"{ERASE}! home: its[2J disk is full\n")
        a.daemon.stopping.set()
        await running
    assert screen.getvalue().count("disk is full") == 1


def test_a_health_sentence_with_another_count_is_the_same() -> None:
    out = io.StringIO()
    view = View(out)
    view.complain(["home: the last 3 rounds were closed alone"])
    view.complain(["home: the last 4 rounds were closed alone", "--peer pi-2: refused"])
    view.complain(["--peer pi-3: refused"])
    view.complain(["home: the last 3 rounds were closed alone"])
    assert out.getvalue().splitlines() == [
        "! home: the last 3 rounds were closed alone",
        "! --peer pi-2: refused",
        "! --peer pi-3: refused",
        "! home: the last 3 rounds were closed alone",
    ]


def test_where_nobody_reads_nothing_is_shown_and_nothing_fails() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    view = View(out)
    view.say("one")
    view.say("two")
    with pytest.raises(BrokenPipeError):
        out.close()


async def test_a_wrong_key_ends_it_and_it_says_nothing_of_waiting(home: Make, screen: Screen) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a, b = home("a"), home("b")
        await a.daemon.create(session(), here(insecure=False, listen="127.0.0.1:0"))
        await Puppet.attach(a.socket, "home")
        discovery = a.daemon.sessions["home"].discovery
        assert discovery is not None
        away = {
            "insecure": False,
            "listen": "127.0.0.1:0",
            "timeout_s": 3.0,
            "peers": discovery.addresses[:1],
        }
        with pytest.raises(WrongKeyError, match="did not recognise this key; compare it") as refused:
            await foreground.run(b.daemon, joining(format_key(new_key()), **away))
    assert "wait" not in str(refused.value)
    assert "nothing is kept of this one" in str(refused.value)
    assert (b.daemon.sessions, b.daemon.store.sessions()) == ({}, [])


async def test_a_session_not_known_asks_for_its_key(home: Make, screen: Screen) -> None:
    with pytest.raises(UnknownSessionError, match="give its key with --key-file or PEERD_KEY") as refused:
        await foreground.run(home("a").daemon, joining(None))
    assert "peerd sessions" not in str(refused.value)


async def test_nobody_found_is_said_and_waited_for(home: Make, screen: Screen, tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        asked = joining(format_key(new_key()), timeout_s=0.1)
        running = asyncio.create_task(foreground.run(a.daemon, asked))
        await shows(screen, "no member of 'home' was found")
        await shows(screen, f"{ERASE}home: waiting")
        assert not running.done()
        a.daemon.stopping.set()
        await running
