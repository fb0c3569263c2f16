"""How many buffers messages to neighbors take on their way to the daemon."""

from __future__ import annotations

from pathlib import Path

import torch

from peer.compression.bodies import Body, Dense
from peer.compression.codec import Encoded, Message, encode, in_parts
from peer.events import Key
from peer.learner.outbox import Outbox, Rooms


def message(body: Body, round_: int = 1) -> Message:
    return Message(Key(0, round_), 16, body, 0.5)


def payloads() -> int:
    """Shared buffers that this process has; one that is looked at has a second descriptor."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return len({link.stat().st_ino for link in links if "peerd-payload" in str(link.readlink())})


def put(outbox: Outbox, encoded: Encoded) -> bytes:
    return outbox.put(encoded).read(0, len(encoded) + 1)


def test_one_message_to_three_neighbors_lies_in_one_buffer() -> None:
    body, before = Dense(torch.arange(4.0)), payloads()
    with Outbox() as outbox:
        buffers = {outbox.put(in_parts(message(body))) for _ in range(3)}
        assert len(buffers) == 1
        assert payloads() == before + 1
        assert buffers.pop().read(0, 100) == encode(message(body))
    assert payloads() == before


def test_of_unlike_messages_one_is_held_at_a_time() -> None:
    bodies, before = [Dense(torch.full((4,), float(i))) for i in range(3)], payloads()
    with Outbox() as outbox:
        for body in bodies:
            for round_ in (1, 2):
                assert put(outbox, in_parts(message(body, round_))) == encode(message(body, round_))
                assert payloads() == before + 1
    assert payloads() == before


def test_a_model_that_lies_in_a_room_is_its_message_and_is_copied_for_nobody() -> None:
    before, rooms = payloads(), Rooms()
    model = rooms.lay([torch.arange(3.0), torch.full((2,), 7.0)], 5, torch.float32)
    assert model.tolist() == [0, 1, 2, 7, 7]
    said = Message(Key(0, 1), 16, Dense(model), delivery="latest")
    for _ in range(2):  # the second one to a neighbor whose link comes up later
        with Outbox(rooms) as outbox:
            buffers = {outbox.put(in_parts(said)) for _ in range(3)}
            assert payloads() == before + 1
        assert len(buffers) == 1
        buffer = buffers.pop()
        assert buffer.read(0, 100) == encode(said)
    del model, said
    assert payloads() == before
    assert buffer.closed


def test_a_room_is_one_message_and_what_else_is_made_of_its_model_is_copied() -> None:
    rooms = Rooms()
    model = rooms.lay([torch.arange(4.0, dtype=torch.float64)], 4, torch.float64)
    body = Dense(model)
    with Outbox(rooms) as outbox:
        first = outbox.put(in_parts(message(body, 1)))
        assert first.read(0, 100) == encode(message(body, 1))
        for other in (
            message(body, 2),
            message(Dense(model[:2]), 1),
            Message(Key(0, 1), 0, body, 0.5, b"its digest here!"),
        ):
            assert put(outbox, in_parts(other)) == encode(other)
        assert first.read(0, 100) == encode(message(body, 1)), "the daemon may be sending it still"
        assert outbox.put(in_parts(message(body, 1))) is first
