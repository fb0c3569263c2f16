"""A member that sends one parcel after another until it is killed: a process of test_killed_sender.py."""

from __future__ import annotations

import asyncio
import hashlib
import itertools

from mesh.test_transport import LOOPBACK, Member
from peer.events import Ack, FrameHeard, Key, Parcel, StreamUp

EPOCH = 1
SIZE = 2 << 20  # bytes of a parcel: some hundredths of a second on loopback


def content_of(number: int) -> bytes:
    """Of the parcel of that number: no two have the same 32 bytes anywhere."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest() * (SIZE // 32)


def send_for_ever(key: bytes, address: str) -> None:
    """A process's whole work; key: the session's."""
    asyncio.run(_send(key, address))


async def _send(key: bytes, address: str) -> None:
    me = Member(key)
    await me.transport.start(LOOPBACK)
    other = await me.transport.hello(address)
    me.transport.connect(other, "out")
    await me.until(StreamUp(other, "out"))
    for number in itertools.count(1):
        parcel = Parcel(EPOCH, number, Key(), content_of(number), "mass")
        assert me.transport.send(other, "out", parcel), "the stream is gone"
        await me.until(FrameHeard(other, "out", Ack(EPOCH, number)))
