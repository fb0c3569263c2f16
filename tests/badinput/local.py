"""Decoders of what this device's own processes hand each other, and of files: frames of the local socket with
their descriptors, the events in them, requests, and checkpoints."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
import torch

from badinput.damage import damaged, damaged_plain
from badinput.decoding import Case, Decoder, assert_short
from peer.config import Descriptor, JoinOptions
from peer.daemon.foreground import read_request
from peer.errors import ConfigError, DataError, PeerdError
from peer.event_frames import EventAssembler, from_frame, to_frame
from peer.events import (
    Closed,
    Deadline,
    Deliver,
    Expect,
    Found,
    FromLearner,
    Held,
    Holds,
    Key,
    LinkUp,
    OpenRound,
    Push,
    Pushed,
    Ready,
    Rejected,
    Taken,
    ToLearner,
)
from peer.framing import MAX_FRAME, FrameReader
from peer.learner.checkpoint import Checkpoint, pack, unpack
from peer.shared_buffer import SharedBuffer

PEERS = ("p-" + "a" * 26, "p-" + "b" * 26)
EVENTS: list[FromLearner | ToLearner] = [
    Ready(1, 5, (b"a" * 16,), False),
    Push(PEERS[0], 1, Key(1, 2, 0), b"p" * 24, "latest"),
    Held(Key(1, 2), PEERS),
    Pushed(Key(1, 2), PEERS[:1], True),
    Closed(Key(1, 2), PEERS, 0.5),
    Taken(PEERS[0], 1, 2),
    Rejected(PEERS[0], 1, 2, "why not", False),
    Holds((b"a" * 16,), 0.5, True, 99),
    Found(True),
    OpenRound(Key(1, 2), {PEERS[0]: 0.5}, PEERS, 3, 1.0),
    Expect(Key(1, 2), PEERS[:1]),
    Deadline(Key(1, 2)),
    Deliver(PEERS[0], 1, 2, Key(1, 2), b"p" * 24),
    LinkUp(PEERS[0], "out", 3, (b"a" * 16,)),
]
FRAMES: list[Any] = [to_frame(event) for event in EVENTS]
OTHERS: list[Any] = [
    {"op": "hello", "protocol": 2, "role": "cli"},
    {"op": "begin", "fd": True, "event": FRAMES[1]},
    {"op": "progress", "filled": 12},
    {"op": "end", "sha256": hashlib.sha256(b"p" * 24).digest()},
    {"op": "end"},
    {"op": "large", "size": 24, "fd": True},
]
ODD_KEYS = (b"bytes", "fd", "op", "size", "payload")


def packed(value: Any) -> bytes:
    """As msgpack, however deep or large."""
    try:
        return msgpack.packb(value)
    except (ValueError, OverflowError):
        return msgpack.packb({"op": "Ready"})


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def damaged_frame(random: Random, frame: Any) -> bytes:
    """One frame: as it is, with its fields changed, or with its bytes."""
    if random.random() < 0.3:
        return framed(packed(frame))
    frame = damaged_plain(random, frame, FRAMES + OTHERS, [b"", b"a" * 16, b"x" * 99, [1, 2, 3], PEERS[0]])
    if isinstance(frame, dict) and random.random() < 0.1:
        frame = {**frame, random.choice(ODD_KEYS): random.choice((True, 1, None)), b"x": 1}
    body = packed(frame)
    if random.random() < 0.2:
        body = damaged(random, body)
    data = framed(body)
    return damaged(random, data) if random.random() < 0.1 else data


class LocalEvents(Decoder):
    """One event of a learner, or for one, without its descriptor."""

    def case(self, random: Random) -> Case:
        return Case((damaged_frame(random, random.choice(FRAMES))[4:],))

    def accepts(self, case: Case) -> bool:
        reader = FrameReader()
        try:
            reader.feed(framed(case.data[0]), [])
            event: Any = None
            for frame, _ in reader.frames():
                event = from_frame(frame, b"p" * 24)
        except PeerdError as error:
            assert_short(error, 6000)
            return False
        again = msgpack.unpackb(packed(to_frame(event)))
        assert from_frame(again, b"p" * 24) == event
        return True

    def most_bytes(self, case: Case) -> int:
        return (1 << 19) + 64 * case.size  # half of that is msgpack's own, when it writes


class LocalSocket(Decoder):
    """A connection: frames in pieces, descriptors of all kinds beside them. The first bytes of a case say
    which come; none of them may stay open."""

    def __init__(self) -> None:
        self.fds = _open_fds()
        self.plain = os.open("/dev/null", os.O_RDONLY)

    def case(self, random: Random) -> Case:
        parts = [bytes(random.choices(range(5), k=random.choice((0, 1, 1, 2, 3))))]
        for _ in range(random.choice((1, 2, 3))):
            frames = [random.choice(FRAMES + OTHERS)]
            if random.random() < 0.4:
                event = random.choice((FRAMES[1], FRAMES[12]))
                frames = [{"op": "begin", "fd": True, "event": event}, *OTHERS[2:4]]
            if random.random() < 0.3:
                frames = [{**random.choice((FRAMES[1], FRAMES[12])), "fd": True}]
            spoiled = random.randrange(len(frames) + 1)
            for at, frame in enumerate(frames):
                parts.append(damaged_frame(random, frame) if at == spoiled else framed(packed(frame)))
        return Case(tuple(parts))

    def accepts(self, case: Case) -> bool:
        which, *parts = case.data
        fds = [self._descriptor(kind) for kind in which]
        reader, assembler = FrameReader(), EventAssembler()
        try:
            for part in parts:
                reader.feed(part, fds)
                fds = []
                for frame, fd in reader.frames():
                    event = assembler.take(frame, fd)
                    payload = getattr(event, "payload", None)
                    if isinstance(payload, SharedBuffer):
                        assert len(payload) == 24
                        payload.close()
            fine = True
        except PeerdError as error:
            assert_short(error, 6000)
            fine = False
        reader.close()
        assembler.close()
        return fine

    def _descriptor(self, kind: int) -> int:
        """A good one, one that can shrink, one of another length, no memfd; 0 as well as 1 is the first."""
        if kind == 4:
            return os.dup(self.plain)
        size = 5 if kind == 3 else 24
        fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, packed({"op": "x", "y": b"z" * 13}).ljust(size, b"p")[:size])
        if kind != 2:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    def most_bytes(self, case: Case) -> int:
        return (1 << 18) + 64 * case.size + 4 * MAX_FRAME

    def close(self) -> None:
        os.close(self.plain)
        assert _open_fds() == self.fds, "descriptors were left open"


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Requests(Decoder):
    """What a command hands to the daemon that it becomes."""

    def __init__(self) -> None:
        descriptor = Descriptor(name="home", nonce="0" * 32, options={"sgp.min-weight": "0.1"})
        options = JoinOptions(
            peers=("10.0.0.1:7000",), device="cpu", listen=":7000", interfaces=("eth0",), budget="2MB/min"
        ).to_dict()
        self.good: list[Any] = [
            {"op": "create", "descriptor": descriptor.to_dict(), "options": options},
            {"op": "join", "name": "home", "key": "peerd1-AAAA", "options": options},
        ]
        self.words = ["none", "1MB/h", "0B/min", "[::1]:1", "host:99999", "cuda"]

    def case(self, random: Random) -> Case:
        body = packed(damaged_plain(random, random.choice(self.good), self.good, self.words))
        return Case((damaged(random, body) if random.random() < 0.2 else body,))

    def accepts(self, case: Case) -> bool:
        fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.write(fd, case.data[0])
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            request = read_request(fd)
        except PeerdError:
            return False
        told = [(JoinOptions, "options"), (Descriptor, "descriptor")][: 1 + (request["op"] == "create")]
        for kind, key in told:
            try:
                found = kind.from_dict(request.get(key) or {})
            except ConfigError:
                return False
            assert kind.from_dict(found.to_dict()) == found
        return True

    def most_bytes(self, case: Case) -> int:
        return (1 << 21) + 64 * case.size


class Checkpoints(Decoder):
    """Files; half of them with a digest that holds, as a foreign or an older peerd may have written them."""

    def __init__(self) -> None:
        signature = [("w", [2, 3], "torch.float32")]
        model = torch.arange(6.0)
        rng = torch.zeros(8, dtype=torch.uint8)
        self.good = [
            pack(Checkpoint("home", "sgp", 5, 1.0, signature, model, b"opt", rng), 1),
            pack(Checkpoint("home", "sparse-push", 6, 0.5, signature, model, b"", rng, {"e": model}), 2),
        ]

    def case(self, random: Random) -> Case:
        data = random.choice(self.good)
        if random.random() < 0.5:
            return Case((damaged(random, data, self.good),))
        serial, payload = random.getrandbits(63), damaged(random, data[60:], [one[60:] for one in self.good])
        version, size = random.choice((1, 1, 1, 1, 2, 0)), len(payload) + random.choice((0, 0, 0, 0, 1))
        header = struct.pack(">8sIQQ", b"peerd-ck", version, serial, size)
        return Case((header + hashlib.sha256(header + payload).digest() + payload,))

    def accepts(self, case: Case) -> bool:
        try:
            found, serial = unpack(case.data[0], "the file")
        except DataError as error:
            assert_short(error, 1000)
            return False
        assert isinstance(found, Checkpoint) and serial >= 0
        return True

    def most_bytes(self, case: Case) -> int:
        return (1 << 20) + 64 * case.size


DECODERS: dict[str, Callable[[], Decoder]] = {
    "local events": LocalEvents,
    "local socket": LocalSocket,
    "requests": Requests,
    "checkpoints": Checkpoints,
}
