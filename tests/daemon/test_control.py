"""The control socket: who may connect, what is answered, what becomes of a socket that is there already."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.conftest import PATIENCE_S, Home, here, session
from daemon.puppet import ask, dial
from peer.daemon.control import ControlServer
from peer.errors import ConfigError, PeerdError, UnknownSessionError, UsageError
from peer.local import Connection

Make = Callable[[str], Home]


async def test_the_socket_is_for_its_owner_alone_and_gone_after_the_end(home: Make) -> None:
    a = home("a")
    assert stat.S_IMODE(a.socket.stat().st_mode) == 0o600
    await a.control.stop()
    assert not a.socket.exists()


async def test_a_folder_made_for_the_socket_is_private(home: Make, tmp_path: Path) -> None:
    a = home("a")
    a.daemon.socket = tmp_path / "run" / "deep.sock"
    server = ControlServer(a.daemon)
    server.start()
    assert stat.S_IMODE(a.daemon.socket.parent.stat().st_mode) == 0o700
    await server.stop()


async def test_a_stale_socket_is_replaced(home: Make, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "a.sock"))
    a = home("a")
    assert (await ask(a.socket, "sessions"))[0]["sessions"] == []


async def test_a_second_daemon_on_the_same_socket_is_an_error(home: Make) -> None:
    a = home("a")
    with pytest.raises(ConfigError, match="--socket"):
        ControlServer(a.daemon).start()
    assert (await ask(a.socket, "sessions"))[0]["sessions"] == [], "the first one is not disturbed"


async def test_a_file_in_the_sockets_place_is_not_removed(home: Make, tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_text("precious")
    a = None
    with pytest.raises(ConfigError, match="no socket"):
        a = home("a")
    assert a is None
    assert (tmp_path / "a.sock").read_text() == "precious"


async def test_another_protocol_is_told_to_restart_the_daemon(home: Make) -> None:
    a = home("a")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(a.socket))
    connection = Connection(sock, asyncio.get_running_loop())
    connection.send({"op": "hello", "protocol": 99, "role": "cli"})
    answer, _ = await connection.receive()
    assert (answer["op"], answer["code"]) == ("error", 70)
    assert "restart" in answer["message"]
    with pytest.raises(EOFError):
        await connection.receive()
    connection.close()


async def test_requests_that_make_no_sense_are_answered_and_the_connection_lives_on(home: Make) -> None:
    a = home("a")
    connection = await dial(a.socket)
    for request, code in (
        ({"op": "dance"}, 70),
        ({"op": "key"}, 2),
        ({"op": "key", "name": "nosuch"}, 66),
        ({"op": "create", "descriptor": {}, "options": {}}, 78),
        ({"op": "join", "name": "home", "key": "peerd1-AAAA", "options": here().to_dict()}, 2),
        ({"op": "join", "name": "home", "key": None, "options": here().to_dict()}, 66),
        ({"op": "status", "name": "nosuch"}, 66),
        ({"op": "logs", "name": "nosuch"}, 66),
    ):
        connection.send(request)
        answer, _ = await connection.receive()
        while answer["op"] == "progress":
            answer, _ = await connection.receive()
        assert (answer["op"], answer["code"]) == ("error", code), request
    connection.close()


async def test_an_unknown_session_cannot_be_attached_to(home: Make) -> None:
    a = home("a")
    connection = await dial(a.socket, "learner")
    connection.send({"op": "attach", "session": "nosuch", "child": False, "pid": 1})
    answer, _ = await connection.receive()
    assert (answer["op"], answer["code"]) == ("error", 66)
    connection.close()


async def test_a_name_can_be_taken_once(home: Make) -> None:
    a = home("a")
    descriptor, options = session().to_dict(), here().to_dict()
    made, _ = await ask(a.socket, "create", descriptor=descriptor, options=options)
    assert (await ask(a.socket, "key", name="home"))[0]["key"] == made["key"]
    with pytest.raises(UsageError, match="leave home --forget"):
        await ask(a.socket, "create", descriptor=descriptor, options=options)


async def test_logs_end_where_the_log_ends_and_follow_goes_on(home: Make) -> None:
    async with asyncio.timeout(PATIENCE_S):
        a = home("a")
        log = logging.getLogger("peer.test")
        log.warning("first")
        following = await dial(a.socket)
        following.send({"op": "logs", "name": None, "follow": True})
        lines = [(await following.receive())[0]["text"]]
        while "first" not in lines[-1]:
            lines.append((await following.receive())[0]["text"])
        log.warning("second", extra={"peer": "p-a"})
        line = (await following.receive())[0]["text"]
        assert line.endswith("second peer=p-a")
        following.close()
        assert (await ask(a.socket, "logs", name=None, follow=False))[0] == {"op": "done"}


async def test_leaving_what_was_never_joined_is_66(home: Make) -> None:
    a = home("a")
    with pytest.raises(UnknownSessionError):
        await ask(a.socket, "leave", name="home", forget=False)


async def test_stop_ends_the_daemon(home: Make) -> None:
    a = home("a")
    await ask(a.socket, "stop")
    assert a.daemon.stopping.is_set()


async def test_a_role_nobody_knows_is_refused(home: Make) -> None:
    a = home("a")
    with pytest.raises(PeerdError, match="CLI or a learner"):
        await dial(a.socket, "intruder")


async def test_whoever_leaves_the_last_session_is_told_and_it_is_forgotten_though_the_daemon_ends_with_it(
    home: Make,
) -> None:
    a = home("a")
    await a.daemon.create(session("last"), here())
    [driver] = a.daemon.sessions.values()
    leaving = asyncio.create_task(ask(a.socket, "leave", name="last", forget=True))
    async with asyncio.timeout(PATIENCE_S):
        await driver.ended.wait()
        await a.control.stop()  # as a daemon in the foreground does now
        frame, _ = await leaving
    assert frame["op"] == "done"
    assert not driver.folder.path.exists()
