"""How many buffers messages to neighbors take on their way to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from peer.compression.bodies import Body, Dense, Layout
from peer.compression.codec import DENSE_HEAD_BYTES, Encoded, Message, decode, encode, in_parts
from peer.events import Key
from peer.learner.outbox import Outbox, Rooms
from peer.shared_buffer import WORTH_KEEPING, Reserve, SharedBuffer


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
    with Outbox(Rooms(Reserve())) as outbox:
        buffers = {outbox.put(in_parts(message(body))) for _ in range(3)}
        assert len(buffers) == 1
        assert payloads() == before + 1
        assert buffers.pop().read(0, 100) == encode(message(body))
    assert payloads() == before


def test_of_unlike_messages_one_is_held_at_a_time() -> None:
    bodies, before = [Dense(torch.full((4,), float(i))) for i in range(3)], payloads()
    with Outbox(Rooms(Reserve())) as outbox:
        for body in bodies:
            for round_ in (1, 2):
                assert put(outbox, in_parts(message(body, round_))) == encode(message(body, round_))
                assert payloads() == before + 1
    assert payloads() == before


def test_a_model_that_lies_in_a_room_is_its_message_and_is_copied_for_nobody() -> None:
    before, rooms = payloads(), Rooms(Reserve())
    model = rooms.lay([torch.arange(3.0), torch.full((2,), -7.0)], 5, torch.float32)
    assert model.tolist() == [0, 1, 2, -7, -7]
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
    rooms = Rooms(Reserve())
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


def test_a_model_lies_where_an_earlier_one_lay_when_nobody_has_that_any_more() -> None:
    size = WORTH_KEEPING // 4
    reserve = Reserve()
    rooms = Rooms(reserve)

    def laid(value: float) -> torch.Tensor:
        return rooms.lay([torch.full((size,), value)], size, torch.float32)

    def sent(model: torch.Tensor) -> SharedBuffer:
        buffer = Outbox(rooms).put(in_parts(message(Dense(model), int(model[0]))))
        return SharedBuffer.from_fd(os.dup(buffer.fileno()), len(buffer))

    first = laid(1.0)
    at_daemon = sent(first)
    memory = os.fstat(at_daemon.fileno()).st_ino
    del first
    second = laid(2.0)  # the daemon still sends the first
    assert decode(bytes(at_daemon.view()), Layout((size,))).body.dense()[-1] == 1.0
    del second
    at_daemon.close()
    assert reserve.size == 2 * (DENSE_HEAD_BYTES + 4 * size)
    third, fourth = laid(3.0), laid(4.0)
    with sent(third) as one, sent(fourth) as other:
        assert memory in (os.fstat(one.fileno()).st_ino, os.fstat(other.fileno()).st_ino)
        assert one.read(0, len(one)) == encode(message(Dense(torch.full((size,), 3.0)), 3))
    assert reserve.size == 2 * (DENSE_HEAD_BYTES + 4 * size)
    reserve.close()


def inode(buffer: SharedBuffer) -> int:
    return os.fstat(buffer.fileno()).st_ino


def test_a_model_is_laid_over_one_that_was_given_to_nobody() -> None:
    before, rooms = payloads(), Rooms(Reserve())
    first = rooms.lay([torch.arange(4.0)], 4, torch.float32)
    second = rooms.lay([torch.zeros(1), torch.ones(3)], 4, torch.float32, over=first)
    assert second is first
    assert rooms.torn, "neither model is there before it is laid"
    rooms.finish()
    assert not rooms.torn
    assert second.tolist() == [0, 1, 1, 1]
    assert payloads() == before + 1
    with Outbox(rooms) as outbox:
        sent = outbox.put(in_parts(message(Dense(second))))
        third = rooms.lay([torch.full((4,), 5.0)], 4, torch.float32, over=second)
        assert third is not second
        assert sent.read(0, 100) == encode(message(Dense(torch.tensor([0.0, 1, 1, 1]))))


def test_what_lies_in_no_room_or_is_no_such_model_is_left_as_it_is() -> None:
    rooms = Rooms(Reserve())
    room = rooms.lay([torch.arange(4.0)], 4, torch.float32)
    for other in (torch.zeros(4), room[:3], room.double()):
        kept = other.clone()
        laid = rooms.lay([torch.full((4,), 5.0)], 4, torch.float32, over=other)
        assert laid is not other
        assert torch.equal(other, kept)
    assert room.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("again", [False, True])
def test_what_came_is_a_room_while_its_model_is_looked_at(again: bool) -> None:
    """Memory that comes again is mapped by the reserve, and the room goes with each use of it."""
    before, rooms = payloads(), Rooms(Reserve())
    size = WORTH_KEEPING // 4
    for value in (1.0, 2.0):
        with SharedBuffer.of(encode(message(Dense(torch.full((size,), value))))) as theirs:
            for _ in range(3 if again else 1):
                with rooms.reserve.taken(os.dup(theirs.fileno()), len(theirs)) as came:
                    rooms.came(came)
                    model = decode(came.view(), Layout((size,)), lasting=True).body.dense()
                laid = rooms.lay([torch.full((size,), 3 * value)], size, torch.float32, over=model)
                assert laid is model
                sent = Outbox(rooms).put(in_parts(message(Dense(laid), 2)))
                assert inode(sent) == inode(theirs)
                assert sent.read(0, len(sent)) == encode(message(Dense(torch.full((size,), 3 * value)), 2))
                del model, laid
                assert sent.closed
    rooms.reserve.close()
    assert payloads() == before


def test_what_came_and_is_no_model_makes_no_room() -> None:
    before, rooms = payloads(), Rooms(Reserve())
    for length in (0, 1, DENSE_HEAD_BYTES, DENSE_HEAD_BYTES + 1):
        with SharedBuffer.of(bytes(length)) as came:
            rooms.came(came)
        del came
        assert payloads() == before
