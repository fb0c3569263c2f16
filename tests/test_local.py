"""The local protocol over real Unix sockets: frames, descriptors, events, owners."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer import places
from peer.errors import ConfigError, NoDaemonError, PeerdError, UnknownSessionError
from peer.event_frames import (
    EVENTS,
    Event,
    EventAssembler,
    begin_frame,
    end_frame,
    from_frame,
    progress_frame,
    to_frame,
)
from peer.events import Closed, Deliver, HandOver, Key, LinkUp, OpenRound, Push, Ready, Rejected
from peer.framing import MAX_FRAME
from peer.local import (
    Client,
    Connection,
    FrameReader,
    HungDaemonError,
    SharedBuffer,
    connect,
    error_frame,
    pack,
)

EXAMPLES = [
    Ready(7, 3, (b"a" * 32,), False),
    Push("p-a", 5, Key(1, 2, 0), b"mass", "latest"),
    Closed(Key(0, 9, 1), ("p-a", "p-b"), 0.75),
    Rejected("p-a", 1, 2, "not finite", False),
    OpenRound(Key(0, 1, 0), {"p-a": 0.5}, ("p-b",), 3, 1.0),
    Deliver("p-b", 4, 5, Key(0, 1, 0), b""),
    HandOver(None),
    HandOver("p-a"),
    LinkUp("p-a", "out", 3, (b"base",), True),
]


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Connection, Client]]:
    """A daemon's end and a client's, joined by a real socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours, asyncio.get_running_loop())
    client = Client(theirs, Path("pair"))
    yield connection, client
    connection.close()
    client.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Path, list[dict[str, object]]]]:
    """A socket that answers every connection's first frame with the front of a list of answers."""
    path = tmp_path / "d.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    answers: list[dict[str, object]] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with Client(sock, path) as client:
                client.receive(10)
                client.send(answers.pop(0))

    thread = threading.Thread(target=serve)
    thread.start()
    yield path, answers
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def feed(data: bytes) -> list[dict[str, object]]:
    reader = FrameReader()
    reader.feed(data, [])
    return [frame for frame, _ in reader.frames()]


def raw(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


# --- frames ---


@given(st.integers(1, 40))
def test_frames_survive_any_cut_of_the_byte_stream(cut: int) -> None:
    frames = [{"op": "a", "n": 1}, {"op": "b", "text": "ä" * 50}, {"op": "c"}]
    data = b"".join(pack(frame)[0] for frame in frames)
    reader, out = FrameReader(), []
    for start in range(0, len(data), cut):
        reader.feed(data[start : start + cut], [])
        out += [frame for frame, _ in reader.frames()]
    assert out == frames


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({"no": "op"}),
        msgpack.packb({"op": 7}),
        msgpack.packb({1: "x", "op": "x"}),
        msgpack.packb({"op": "x", "list": [0] * 4097}),
        msgpack.packb({"op": "x", "map": {str(i): i for i in range(257)}}),
        msgpack.packb({"op": "x"}) + b"\x00",
        b"\x91" * 3000,
        msgpack.packb({"op": "x", "fd": True}),
    ],
)
def test_a_frame_that_is_no_bounded_map_with_an_op_is_refused(body: bytes) -> None:
    with pytest.raises(PeerdError):
        feed(raw(body))


def test_a_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(PeerdError, match="65536"):
        feed(struct.pack(">I", MAX_FRAME + 1))


async def test_a_frame_too_long_to_travel_comes_in_a_buffer_and_looks_the_same(
    ends: tuple[Connection, Client],
) -> None:
    connection, client = ends
    long = {"op": "create", "text": "x" * 300_000}
    client.send(long)
    assert await connection.receive() == (long, None)
    connection.send(long)
    connection.send({"op": "short"})
    assert client.receive(10) == (long, None)
    assert client.receive(10) == ({"op": "short"}, None)


# --- descriptors and buffers ---


async def test_a_descriptor_travels_with_its_own_frame(ends: tuple[Connection, Client]) -> None:
    connection, client = ends
    with SharedBuffer.of(b"first") as a, SharedBuffer.of(b"second") as b:
        client.send({"op": "x", "n": 1})
        client.send({"op": "x", "n": 2}, a.fileno())
        client.send({"op": "x", "n": 3}, b.fileno())
    found = [await connection.receive() for _ in range(3)]
    assert found[0] == ({"op": "x", "n": 1}, None)
    for (frame, fd), content in zip(found[1:], (b"first", b"second"), strict=True):
        assert fd is not None
        with SharedBuffer.from_fd(fd, len(content)) as buffer:
            assert bytes(buffer.view()) == content, frame


def test_a_buffer_cannot_shrink_under_its_reader() -> None:
    with SharedBuffer.of(b"payload") as buffer, pytest.raises(PermissionError):
        os.ftruncate(buffer.fileno(), 1)


def test_a_buffer_of_another_size_or_without_seals_is_refused(tmp_path: Path) -> None:
    with SharedBuffer.create(10) as buffer, pytest.raises(PeerdError, match="11 bytes was announced"):
        SharedBuffer.from_fd(os.dup(buffer.fileno()), 11)
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4)
    with pytest.raises(PeerdError, match="not sealed"):
        SharedBuffer.from_fd(unsealed, 4)
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(PeerdError, match="no memfd"):
        SharedBuffer.from_fd(plain, 0)


def test_a_shared_buffer_is_written_and_read_in_parts() -> None:
    with SharedBuffer.create(8) as buffer, SharedBuffer.create(0) as empty:
        buffer.write(2, memoryview(b"abcd"))
        buffer.write(0, b"xy")
        buffer.write(8, b"")
        assert [buffer.read(0, 3), buffer.read(3, 9), buffer.read(8, 1)] == [b"xya", b"bcd\0\0", b""]
        assert bytes(buffer.view()) == b"xyabcd\0\0"
        buffer.view()[7:] = b"z"
        assert buffer.read(6, 2) == b"\0z"
        assert (empty.read(0, 1), bytes(empty.view())) == (b"", b"")
        with pytest.raises(AssertionError, match="3 bytes at 6 of 8"):
            buffer.write(6, b"abc")
    for closed in (lambda: buffer.read(0, 1), lambda: buffer.write(0, b"x"), buffer.view):
        with pytest.raises(PeerdError, match="closed"):
            closed()


def test_a_view_outlives_the_close_of_its_buffer() -> None:
    buffer = SharedBuffer.of(b"still ", b"here")
    view = buffer.view()
    buffer.close()
    assert bytes(view) == b"still here"
    with pytest.raises(PeerdError, match="closed"):
        buffer.view()


# --- events ---


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
async def test_an_event_comes_out_as_it_went_in(ends: tuple[Connection, Client], event: Push) -> None:
    connection, client = ends
    for send, receive in ((client.send_event, connection.receive), (connection.send_event, None)):
        send(event)
        frame, fd = await receive() if receive is not None else client.receive(10)
        back = EventAssembler().take(frame, fd)
        assert back is not None
        if hasattr(event, "payload"):
            payload = back.payload  # type: ignore[union-attr]
            assert bytes(payload.view()) == event.payload
            payload.close()
            back = from_frame(to_frame(back), event.payload)
        assert back == event


@pytest.mark.parametrize(
    ("frame", "names"),
    [
        ({"op": "Nonsense"}, "Nonsense"),
        ({"op": "Tick"}, "Tick"),
        ({"op": "Taken", "src": "a", "epoch": 1}, "Taken.number"),
        ({"op": "Taken", "src": "a", "epoch": 1, "number": True}, "Taken.number"),
        ({"op": "Taken", "src": "a", "epoch": 1, "number": 1 << 64}, "Taken.number"),
        ({"op": "Taken", "src": "a", "epoch": 1, "number": 1, "more": 0}, "more"),
        ({"op": "Pushed", "key": [1, 2]}, "Pushed.key"),
        ({"op": "Closed", "key": [0, 0, 0], "heard": "abc", "weight": 1.0}, "Closed.heard"),
        ({"op": "Closed", "key": [0, 0, 0], "heard": [], "weight": float("nan")}, "Closed.weight"),
        ({"op": "Holds", "bases": [b"x" * 65], "weight": 1.0}, "Holds.bases"),
        ({"op": "LinkDown", "peer": "a", "direction": "up"}, "LinkDown.direction"),
        ({"op": "Push", "dst": "a", "epoch": 1, "key": [0, 0, 0], "payload": 5}, "Push.payload"),
        ({"op": "OpenRound", "key": [0, 0, 0], "out": [], "expected": [], "n": 1, "mean_weight": 1}, "out"),
    ],
)
def test_a_frame_that_is_no_event_is_refused_and_the_error_names_the_field(
    frame: dict[str, object], names: str
) -> None:
    with pytest.raises(PeerdError, match=names):
        from_frame(frame)


def test_every_event_of_the_learner_can_be_checked() -> None:
    """No event has a field whose type the checks do not know."""
    for op, event in EVENTS.items():
        bare = not dataclasses.fields(event)
        with pytest.raises(PeerdError, match=None if bare else "missing"):
            from_frame({"op": op, "x": 1} if bare else {"op": op})


def begun(assembler: EventAssembler, event: Event, buffer: SharedBuffer) -> Event:
    found = assembler.take(begin_frame(event), os.dup(buffer.fileno()))
    assert found is not None
    return found


def test_a_payload_may_be_handed_on_while_it_is_filled() -> None:
    assembler, seen = EventAssembler(), list[int]()
    with SharedBuffer.create(5) as buffer:
        event = begun(assembler, Push("p-a", 1, Key(), buffer), buffer)
        assert isinstance(event, Push)
        payload, growth = event.payload, event.payload.growth  # type: ignore[attr-defined]  # a SharedBuffer
        growth.on_change = lambda: seen.append(growth.filled)
        buffer.write(0, b"123")
        assert assembler.take(progress_frame(buffer.memory, 3), None) is None
        buffer.write(3, b"45")
        assert assembler.take(progress_frame(buffer.memory, 5), None) is None
    assert seen == [3, 5]
    assert payload.growth is None  # type: ignore[attr-defined]  # as above
    assert bytes(payload.view()) == b"12345"  # type: ignore[attr-defined]  # as above
    with pytest.raises(PeerdError, match="without a 'begin'"):
        assembler.take({"op": "progress", "memory": 1, "filled": 5}, None)


def test_what_is_begun_is_the_same_buffer_when_its_event_comes() -> None:
    assembler, seen = EventAssembler(), list[int]()
    with SharedBuffer.of(b"12345") as buffer:
        event = Deliver("p-a", 1, 2, Key(), buffer)
        first = begun(assembler, event, buffer)
        assert isinstance(first, Deliver)
        growth = first.payload.growth  # type: ignore[attr-defined]  # a SharedBuffer
        growth.on_change = lambda: seen.append(growth.filled)
        assembler.take(progress_frame(buffer.memory, 3), None)
        whole = assembler.take(to_frame(event), os.dup(buffer.fileno()))
        assert isinstance(whole, Deliver) and whole.payload is first.payload
    assert seen == [3, 5]
    assert whole.payload.growth is None  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("closed", [False, True], ids=["given up", "the connection ends"])
def test_what_is_given_up_is_said_once(closed: bool) -> None:
    assembler, seen = EventAssembler(), list[bool]()
    with SharedBuffer.create(5) as buffer:
        event = begun(assembler, Push("p-a", 1, Key(), buffer), buffer)
        growth = event.payload.growth  # type: ignore[union-attr]  # a Push of a SharedBuffer
        growth.on_change = lambda: seen.append(growth.failed)
        if closed:
            assembler.close()
        else:
            assembler.take(end_frame(buffer.memory), None)
        event.payload.close()  # type: ignore[union-attr]  # as above
    assert seen == [True]


def test_what_is_begun_and_makes_no_sense_is_refused() -> None:
    assembler = EventAssembler()
    with SharedBuffer.create(5) as buffer:
        push = Push("p-a", 1, Key(), buffer)
        for frame in (
            {"op": "begin"},
            {"op": "begin", "event": 5},
            {"op": "begin", "event": {"op": "Ready"}},
        ):
            with pytest.raises(PeerdError, match="needs an event"):
                assembler.take(frame, os.dup(buffer.fileno()))
        with pytest.raises(PeerdError, match="needs an event"):
            assembler.take(begin_frame(push), None)
        begun(assembler, push, buffer)
        with pytest.raises(PeerdError, match="begun already"):
            assembler.take(begin_frame(push), os.dup(buffer.fileno()))
        assembler.take(progress_frame(buffer.memory, 3), None)
        for wrong in (2, 6, -1, None):
            with pytest.raises(PeerdError):
                assembler.take({"op": "progress", "memory": buffer.memory, "filled": wrong}, None)
        for memory in (None, "5", 1.0, buffer.memory + 1):
            with pytest.raises(PeerdError, match="without a 'begin'"):
                assembler.take({"op": "end", "memory": memory}, None)
        with pytest.raises(PeerdError, match="no use for one"):
            assembler.take(end_frame(buffer.memory), os.dup(buffer.fileno()))
    assembler.close()


# --- both ends ---


async def test_a_gone_client_ends_the_daemons_receive(ends: tuple[Connection, Client]) -> None:
    connection, client = ends
    client.send({"op": "last"})
    client.close()
    assert (await connection.receive())[0] == {"op": "last"}
    with pytest.raises(EOFError):
        await connection.receive()


async def test_a_client_that_reads_nothing_is_dropped_and_the_loop_never_waits_for_it(
    ends: tuple[Connection, Client],
) -> None:
    connection, _ = ends
    line = {"op": "progress", "text": "x" * 60_000}
    for _ in range(400):
        connection.send(line)
    assert connection.closed


async def test_what_the_kernel_does_not_take_at_once_arrives_later(ends: tuple[Connection, Client]) -> None:
    connection, client = ends
    for n in range(60):
        connection.send({"op": "x", "n": n, "pad": "x" * 60_000})
    assert connection.unsent > 0
    got = await asyncio.to_thread(lambda: [client.receive(10)[0]["n"] for _ in range(60)])
    assert got == list(range(60))


async def test_a_busy_learner_does_not_fill_the_daemons_memory(ends: tuple[Connection, Client]) -> None:
    connection, client = ends

    def chatter() -> None:
        for n in range(3000):
            client.send({"op": "x", "n": n})

    talking = asyncio.create_task(asyncio.to_thread(chatter))
    assert [(await connection.receive())[0]["n"] for n in range(3000)] == list(range(3000))
    await talking


def test_receive_ready_returns_what_is_there_and_then_says_that_the_daemon_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with Client(ours, Path("pair")) as client, Client(theirs, Path("pair")) as daemon:
        assert client.receive_ready() == []
        with pytest.raises(TimeoutError):
            client.receive(0)
        daemon.send({"op": "a"})
        daemon.send({"op": "b"})
        daemon.close()
        assert [frame["op"] for frame, _ in client.receive_ready()] == ["a", "b"]
        with pytest.raises(NoDaemonError):
            client.receive_ready()


# --- connecting ---


def test_connect_exchanges_hellos(daemon: tuple[Path, list[dict[str, object]]]) -> None:
    path, answers = daemon
    answers.append({"op": "hello", "protocol": 2})
    connect(path, timeout_s=10).close()


def test_an_error_comes_back_as_the_class_it_was_raised_as(
    daemon: tuple[Path, list[dict[str, object]]],
) -> None:
    path, answers = daemon
    answers.append(error_frame(UnknownSessionError("no session 'x' here")))
    with pytest.raises(UnknownSessionError, match="no session 'x' here"):
        connect(path, timeout_s=10)


def test_no_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match="start one with 'peerd daemon'"):
        connect(tmp_path / "none.sock")


class Hung:
    """A socket whose queue is full, since nobody takes anyone from it: the daemon is stopped or hangs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(0)
        self.queued: list[socket.socket] = []
        self._fill()

    def _fill(self) -> None:
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.setblocking(False)
            try:
                client.connect(str(self.path))
            except BlockingIOError:
                client.close()
                return
            self.queued.append(client)

    def recover(self) -> None:
        """Let those in the queue go, and greet the next."""
        for client in self.queued:
            self.listener.accept()[0].close()
            client.close()
        self.queued.clear()
        with Client(self.listener.accept()[0], self.path) as client:
            client.receive(10)
            client.send({"op": "hello", "protocol": 2})


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Hung]:
    made = Hung(tmp_path / "h.sock")
    yield made
    for sock in (made.listener, *made.queued):
        sock.close()


def in_a_thread(path: Path, timeout_s: float) -> tuple[threading.Thread, list[Client | PeerdError]]:
    """A `connect` that may hang without hanging the test; what it ended with."""
    ended: list[Client | PeerdError] = []

    def run() -> None:
        try:
            ended.append(connect(path, timeout_s=timeout_s))
        except PeerdError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, ended


def test_a_daemon_whose_queue_is_full_is_given_up_in_time_and_told_from_nobody(hung: Hung) -> None:
    thread, ended = in_a_thread(hung.path, timeout_s=0.1)
    thread.join(20)
    assert not thread.is_alive(), "connect waits forever"
    [error] = ended
    assert isinstance(error, HungDaemonError)
    assert error.exit_code == 69
    assert "restart it" in str(error)


def test_a_daemon_that_accepts_and_says_nothing_is_hung_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "d.sock"))
        listener.listen()
        with pytest.raises(HungDaemonError):
            connect(tmp_path / "d.sock", timeout_s=0.1)


def test_a_full_queue_that_clears_in_time_is_no_error(hung: Hung) -> None:
    thread, ended = in_a_thread(hung.path, timeout_s=20)
    hung.recover()
    thread.join(20)
    [client] = ended
    assert isinstance(client, Client)
    client.close()


def test_a_strangers_socket_is_refused_before_anything_is_sent(
    daemon: tuple[Path, list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = daemon
    monkeypatch.setattr(places.os, "getuid", lambda: 4242)
    monkeypatch.setattr(places, "_service_uid", lambda: None)
    if path.stat().st_uid == 0:  # root is trusted by everybody: act as if the socket were another user's
        monkeypatch.setattr(places, "_check_uid", places_refuse)
    with pytest.raises(ConfigError, match="trusted"):
        connect(path)


def places_refuse(uid: int, what: str) -> None:
    raise ConfigError(f"{what} user {uid + 1}, and only root and yourself are trusted")


@pytest.mark.parametrize(("uid", "trusted"), [(0, True), (1000, True), (998, True), (1001, False)])
def test_root_the_service_and_oneself_are_trusted_and_nobody_else(
    uid: int, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.os, "getuid", lambda: 1000)
    monkeypatch.setattr(places, "_service_uid", lambda: 998)
    if trusted:
        places._check_uid(uid, "it belongs to")
    else:
        with pytest.raises(ConfigError, match="it belongs to"):
            places._check_uid(uid, "it belongs to")


# --- which daemon ---


def test_socket_flag_beats_environment_beats_service_beats_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_service_uid", lambda: None)
    monkeypatch.setattr(places, "SYSTEM_SOCKET", tmp_path / "system.sock")
    env = {"PEERD_SOCKET": "/e.sock", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert places.default_socket("/f.sock", env) == Path("/f.sock")
    assert places.default_socket(None, env) == Path("/e.sock")
    del env["PEERD_SOCKET"]
    assert places.default_socket(None, env) == Path("/run/user/1/peerd/peerd.sock")
    (tmp_path / "system.sock").touch()
    assert places.default_socket(None, env) == tmp_path / "system.sock"
    assert places.own_socket(None, env) == Path("/run/user/1/peerd/peerd.sock")
    assert places.own_socket(None, {}, "/s") == Path("/s/run/peerd.sock")


def test_state_flag_beats_environment_beats_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_service_uid", lambda: None)
    env = {"PEERD_STATE": "/e", "XDG_STATE_HOME": "/x", "HOME": "/h"}
    assert places.state_folder("/f", env) == Path("/f")
    assert places.state_folder(None, env) == Path("/e")
    assert places.state_folder(None, {"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/peerd")
    assert places.state_folder(None, {"HOME": "/h"}) == Path("/h/.local/state/peerd")
    monkeypatch.setattr(places, "_service_uid", os.getuid)
    assert places.state_folder(None, {}) == Path("/var/lib/peerd")


def test_a_path_too_long_for_a_socket_says_so() -> None:
    with pytest.raises(ConfigError, match="--socket"):
        places.own_socket("/" + "x" * 100, {})


def test_the_clis_end_loads_neither_asyncio_nor_the_events() -> None:
    heavy = "{'asyncio', 'peer.events', 'torch', 'numpy'}"
    script = f"import sys, peer.local; print(*{heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
