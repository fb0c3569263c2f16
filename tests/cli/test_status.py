from __future__ import annotations

import errno
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from cli import view
from cli.text import clean, size, span
from peer.errors import UnknownSessionError
from peer.status import BudgetStatus, DeviceStatus, LinkStatus, MemberStatus, SessionStatus

Run = Callable[..., Result]

LINKS = (
    LinkStatus("p-bbbb", "pi-2", "in", "alive", "10.0.0.2:7", 3.4, 10, 2_000, 7, 0, 0.4, 0),
    LinkStatus("p-bbbb", "pi-2", "out", "suspect", "10.0.0.2:7", 3.4, 1_500_000, 20, 7, 1, 12.0, 0),
)
HOME = SessionStatus(
    "home", "i", "difference-push", "exponential", "spoken-digits", "training", round=41, local_steps=16,
    loss=0.2134, metrics={"accuracy": 0.9533}, members=3, bytes_sent=1_500_010, bytes_received=2_020,
    reduction=475.6, step_s=0.004, round_s=0.2, checkpoint_age_s=75.0, links=LINKS,
    budget=BudgetStatus(2_000_000, 1_200_000, 1_728_000_000, 3), pace_share=0.25, pace_reason="on battery",
)  # fmt: skip
STATUS = DeviceStatus("p-aaaa", "pi-1", "0.1.0", 12, 3700.0, 84.2, ("eth0 is down; plug it in",), (HOME,))


def drawn(status: DeviceStatus, **how: Any) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120, **how).print(view.rich_view(status, 120))
    return screen.getvalue()


@pytest.fixture
def told(daemon: Any) -> Any:
    daemon.answers["status"] = lambda _: [{"op": "done", "status": STATUS.to_dict()}]
    return daemon


def test_json_is_the_daemons_status_unchanged(run: Run, told: Any) -> None:
    done = run("status", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(json.dumps(STATUS.to_dict()))
    assert told.asked == [{"op": "status", "name": None}]


def test_a_name_asks_for_one_session(run: Run, told: Any) -> None:
    assert run("status", "home").exit_code == 0
    assert told.asked == [{"op": "status", "name": "home"}]


def test_sentences_that_want_something_done_come_first(run: Run, told: Any) -> None:
    lines = run("status").stdout.splitlines()
    assert lines[0] == "! eth0 is down; plug it in"
    assert lines[1].startswith("pi-1  p-aaaa  peerd 0.1.0, up 1 h 1 min, 84 MB")


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_a_person_sees_what_matters(picture: Callable[[DeviceStatus], str]) -> None:
    seen = picture(STATUS)
    for word in (
        "home",
        "training",
        "round 41",
        "loss 0.213",
        "accuracy 0.953",
        "3 members",
        "476x",
        "16 local",
        "budget 2.0 MB per minute, spent 1.2 MB in the last one, 1.7 GB a day at this rate",
        "3 rounds held back",
        "25% of the time: on battery",
    ):
        assert word in seen
    out, back = (line for line in seen.splitlines() if "10.0.0.2:7" in line)
    assert "→" in out
    assert "1.5 MB" in out
    assert "suspect" in out
    assert "←" in back
    assert "3 ms" in back


@pytest.mark.parametrize(
    ("share", "reason", "until", "line"),
    [
        (0.0, "quiet hours 22:00-07:00", "07:00", "paused: quiet hours 22:00-07:00, until 07:00"),
        (1 / 16, "hot", None, "6% of the time: hot"),
        (
            1.0,
            "hot; the script that trains is not held back",
            None,
            "hot; the script that trains is not held back",
        ),
    ],
)
def test_why_a_device_trains_less_and_how_much_is_a_line_of_its_own(
    share: float, reason: str, until: str | None, line: str
) -> None:
    session = SessionStatus("home", pace_share=share, pace_reason=reason, pace_until=until)
    assert view.session_lines(session)[1] == line
    assert len(view.session_lines(SessionStatus("home", pace_share=1.0))) == 4


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_what_is_not_known_yet_is_no_crash(picture: Callable[[DeviceStatus], str]) -> None:
    seen = picture(DeviceStatus("p", sessions=(SessionStatus("home", "i", links=(LinkStatus("p-b"),)),)))
    assert "waiting" in seen
    assert "None" not in seen


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_what_it_trains_on_is_said_where_it_is_known(picture: Callable[[DeviceStatus], str]) -> None:
    assert "step 4 ms, round" in picture(STATUS)
    on_gpu = replace(STATUS, sessions=(replace(HOME, computes_on="Orin (nvgpu)"),))
    assert "step 4 ms on Orin (nvgpu), round" in picture(on_gpu)


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_without_a_checkpoint_it_says_so(picture: Callable[[DeviceStatus], str]) -> None:
    assert ", checkpoint 1 min 15 s old" in picture(STATUS)
    without = replace(STATUS, sessions=(replace(HOME, checkpoint_age_s=None),))
    assert ", no checkpoint" in picture(without)
    assert " old" not in picture(without)


@pytest.mark.parametrize("picture", [view.plain, drawn])
@pytest.mark.parametrize(
    ("rounds", "line"),
    [(None, ""), (0, ""), (1, "1 round closed alone"), (1234, "1234 rounds closed alone")],
)
def test_rounds_without_any_neighbor_are_a_line_of_their_own(
    rounds: int | None, line: str, picture: Callable[[DeviceStatus], str]
) -> None:
    seen = picture(replace(STATUS, sessions=(replace(HOME, rounds_alone=rounds),)))
    assert [text.strip() for text in seen.splitlines() if "alone" in text] == ([line] if line else [])


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_words_of_others_cannot_drive_the_terminal(picture: Callable[[DeviceStatus], str]) -> None:
    evil = "\x1b[2Jpi\r\n\u202e[red]x[/red]\x07"
    session = SessionStatus(
        evil, "i", evil, evil, evil, metrics={evil: 1.0}, links=(LinkStatus(evil, evil),),
        pace_reason=evil, pace_until=evil,
    )  # fmt: skip
    seen = picture(DeviceStatus(evil, evil, evil, health=(evil,), sessions=(session,)))
    assert not {"\x1b", "\r", "\x07", "\u202e"} & set(seen)
    assert "[red]x[/red]" in seen


@pytest.mark.parametrize(("width", "lacking"), [(120, []), (80, ["address"]), (60, ["address", "rtt"])])
def test_a_narrow_terminal_leaves_out_addresses_first(width: int, lacking: list[str]) -> None:
    screen = io.StringIO()
    links = tuple(replace(link, address="192.168.100.101:40000") for link in LINKS)
    status = replace(STATUS, sessions=(replace(HOME, links=links),))
    Console(file=screen, width=width).print(view.rich_view(status, width))
    head = next(line for line in screen.getvalue().splitlines() if "peer " in line and "state" in line)
    columns = head.split()
    assert not set(lacking) & set(columns)
    assert columns[:2] == ["peer", "state"]
    if width > 70:
        assert {"rtt", "heard", "parcels"} < set(columns)
        assert "pi-2" in screen.getvalue()
        assert "…" not in screen.getvalue()


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_bits_of_the_newest_messages_are_a_column_where_they_are_known(
    picture: Callable[[DeviceStatus], str],
) -> None:
    """What `auto` or a budget came to on each link."""
    assert "bits" not in picture(STATUS).split()
    links = (replace(LINKS[0], bits_per_parameter=8.25), replace(LINKS[1], bits_per_parameter=1.0127))
    seen = picture(replace(STATUS, sessions=(replace(HOME, links=links),)))
    back, out = sorted((line for line in seen.splitlines() if "10.0.0.2:7" in line), key=lambda r: "→" in r)
    assert "bits" in seen.split() and "8.25" in back.split() and "1.01" in out.split()


def test_on_the_narrowest_terminal_state_and_bytes_stay() -> None:
    head, *_ = view.narrowed([view._LINK_HEAD, *view.link_rows(LINKS)], 10)
    assert list(head) == ["", "peer", "state", "sent", "received"]


def test_colors_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in drawn(STATUS, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in drawn(STATUS, force_terminal=True, color_system="standard")


@pytest.mark.parametrize("picture", [view.plain, drawn])
def test_how_far_apart_the_models_are_is_said_of_all_and_of_each(
    picture: Callable[[DeviceStatus], str],
) -> None:
    links = (
        replace(LINKS[0], round=39, behind=1, verdict="late"),
        replace(LINKS[1], state="blocked", verdict="blocked"),
    )
    members = (
        MemberStatus("p-bbbb", "pi-2", distance=0.05, distance_relative=0.0123, distance_age_s=8.0),
        MemberStatus("p-cccc", "pi-3", "suspect", distance_relative=0.2),
        *(MemberStatus(f"p-d{i}", f"pi-1{i}") for i in range(20)),
    )
    home = replace(
        HOME, links=links, peers=members, weight=0.5, mean_weight=0.9821,
        consensus_distance=0.04321, consensus_relative=0.00987,
    )  # fmt: skip
    seen = picture(replace(STATUS, sessions=(home,)))
    assert "weight 0.5 (mean 0.982)" in seen
    assert "consensus distance 0.0432, 0.99 % of the norm (by sketches, give or take 9 %)" in seen
    back, out = sorted((line for line in seen.splitlines() if "10.0.0.2:7" in line), key=lambda r: "→" in r)
    for word in ("late", "1 round", "1.2 %"):
        assert word in back
    assert "blocked" in out
    assert "without a link now: pi-3 (suspect, 20 % apart), pi-10, pi-11" in " ".join(seen.split())
    assert "and 9 more" in " ".join(seen.split())


def test_two_devices_of_one_name_are_told_apart_by_their_ids() -> None:
    rows = view.link_rows([*LINKS, replace(LINKS[0], peer="p-cccccccccc")])
    assert [row[1] for row in rows] == ["pi-2 p-bbbb", "pi-2 p-bbbb", "pi-2 p-cccccc"]
    assert {row[1] for row in view.link_rows(LINKS)} == {"pi-2"}


def test_columns_of_which_nothing_is_known_are_not_there() -> None:
    head, *_ = view.link_table(HOME)
    assert not {"behind", "apart"} & set(head)
    known = replace(HOME, peers=(MemberStatus("p-bbbb", distance_relative=0.01),))
    assert "apart" in view.link_table(known)[0]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watching_refreshes_in_place_and_gives_the_terminal_back(told: Any, how: int, code: int) -> None:
    """On a terminal of its own: an alternate screen is entered once, each picture begins at the top, and
    however it ends the screen of before and the cursor are there again."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "cli.main", "status", "--watch"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    watching = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"pi-1") < 2:
            shown += os.read(ours, 65536)
        watching.send_signal(how)
        _, said = watching.communicate(timeout=60)
        shown += drained(ours)
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)
    assert watching.returncode == code, said
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1
    assert shown.rindex(b"\x1b[?1049l") > shown.rindex(b"pi-1"), "nothing is left on the screen of before"
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert shown.count(b"\x1b[H") >= 2, "each from the top: nothing scrolls"


def drained(terminal: int) -> bytes:
    """What is still there to be read, to the end."""
    found = b""
    while select.select([terminal], [], [], 0)[0]:
        try:
            found += os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # the other end is closed
                raise
            break
    return found


def test_watching_into_a_pipe_prints_one_picture_after_the_other(
    run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([STATUS.to_dict(), STATUS.to_dict()])

    def status(_: dict[str, Any]) -> Any:
        found = next(answers, None)
        if found is None:
            raise UnknownSessionError("no session 'home' on this device any more")
        return [{"op": "done", "status": found}]

    daemon.answers["status"] = status
    monkeypatch.setattr("cli.status.WATCH_S", 0.0)
    done = run("status", "home", "--watch")
    assert done.exit_code == 66
    pictures = done.stdout.split("\n\n! ")
    assert len(pictures) == 2
    assert "\x1b" not in done.stdout


def test_no_session_says_how_to_get_one() -> None:
    assert "peerd create NAME" in view.plain(DeviceStatus("p"))


def test_watching_goes_on_until_the_daemon_goes(
    run: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([STATUS.to_dict(), STATUS.to_dict()])

    def status(_: dict[str, Any]) -> Any:
        found = next(answers, None)
        if found is None:
            raise UnknownSessionError("no session 'home' on this device any more")
        return [{"op": "done", "status": found}]

    daemon.answers["status"] = status
    monkeypatch.setattr("cli.status.WATCH_S", 0.0)
    done = run("status", "home", "--json", "--watch")
    assert done.exit_code == 66
    assert [json.loads(line)["peer"] for line in done.stdout.splitlines()] == ["p-aaaa"] * 2


def test_figures_read_well() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 99_400, 150_000, 1_500_000, 2e12)] == [
        "–", "0 B", "999 B", "1.0 kB", "99.4 kB", "150 kB", "1.5 MB", "2.0 TB",
    ]  # fmt: skip
    assert [span(s) for s in (None, 0.25, 9.99, 59, 60, 3_700, 90_000)] == [
        "–", "250 ms", "10.0 s", "59 s", "1 min 0 s", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip
    assert clean("a\tb\x00c\u200bd é 漢") == "abcd é 漢"


def test_the_plain_view_has_no_escape_sequences(run: Run, told: Any) -> None:
    assert "\x1b" not in run("status").stdout
    assert os.environ["PEERD_SOCKET"] == str(told.path)
