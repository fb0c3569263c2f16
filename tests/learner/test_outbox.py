"""How many buffers messages to neighbors take on their way to the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from peer.compression.bodies import Body, Dense
from peer.compression.codec import Encoded, Message, encode, in_parts
from peer.events import Key
from peer.learner.outbox import Outbox


def message(body: Body, round_: int = 1) -> Message:
    return Message(Key(0, round_), 16, body, 0.5)


def payloads() -> int:
    """Descriptors of shared buffers that this process has."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("peerd-payload" in link for link in links)


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
