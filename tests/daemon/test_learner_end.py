"""What the daemon tells a learner of a parcel that is still coming."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peer.daemon.learner_end import LearnerEnd
from peer.event_frames import EventAssembler
from peer.events import Deliver, Key
from peer.local import Client, Connection
from peer.shared_buffer import Reserve, SharedBuffer


@pytest.fixture
async def ends() -> AsyncIterator[tuple[LearnerEnd, Client]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    connection = Connection(ours, asyncio.get_running_loop())
    client = Client(theirs, Path("pair"))
    yield LearnerEnd(connection, 1, True, os.getpid(), Reserve()), client
    connection.close()
    client.close()


def parcel(content: bytes) -> tuple[Deliver, SharedBuffer]:
    buffer = SharedBuffer.of(content)
    return Deliver("p-a", 1, 2, Key(round=3), buffer, "latest"), buffer


async def test_a_parcel_is_seen_as_it_comes_and_counts_when_it_is_delivered(
    ends: tuple[LearnerEnd, Client],
) -> None:
    end, client = ends
    command, buffer = parcel(b"12345")
    end.coming(command, 2)
    end.coming(command, 4)
    end.send(command)
    buffer.close()
    frames = client.receive_ready()
    assert [frame["op"] for frame, _ in frames] == ["begin", "progress", "progress", "Deliver"]
    assembler = EventAssembler()
    begun, _, _, whole = (assembler.take(*frame) for frame in frames)
    assert isinstance(begun, Deliver) and isinstance(whole, Deliver)
    assert (whole, whole.payload) == (begun, begun.payload)
    assert bytes(whole.payload.view()) == b"12345"  # type: ignore[attr-defined]  # a SharedBuffer


async def test_a_parcel_that_never_becomes_whole_is_given_up(ends: tuple[LearnerEnd, Client]) -> None:
    end, client = ends
    (command, buffer), (later, again) = parcel(b"12345"), parcel(b"67890")
    end.coming(command, 2)
    buffer.close()  # its stream broke off, or its round is over
    end.coming(later, 3)
    again.close()
    assert [frame["op"] for frame, _ in client.receive_ready()] == ["begin", "progress", "end"] * 2


async def test_nothing_is_said_once_the_learner_is_gone(ends: tuple[LearnerEnd, Client]) -> None:
    end, client = ends
    command, buffer = parcel(b"12345")
    end.coming(command, 2)
    client.close()
    end.close()
    end.coming(command, 4)
    buffer.close()
