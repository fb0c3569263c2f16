"""kill -9 of a sender in the middle of a parcel, again and again: the reliability note's test plan, row 3.

A gRPC stream of a killed process ends like one that is finished. Sender and receiver are processes of their
own, with mutual TLS on a real socket, and the moment is random. $PEERD_KILLS says how often; `make soak` has
the plan's 500.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import re

from mesh.sending import EPOCH, SIZE, content_of, send_for_ever
from mesh.test_transport import LOOPBACK, Member
from peer.events import Ack, FrameHeard, Parcel, PeerId, StreamDown, StreamUp
from peer.keys import new_key
from peer.mesh.transport import Event

log = logging.getLogger(__name__)

KILLS = int(os.environ.get("PEERD_KILLS", "20"))
LATEST_S = 0.15  # after its stream is up; several parcels
PATIENCE_S = 60.0
CUT_SHORT = re.compile(rf"(\d+) of {SIZE} bytes of parcel (\d+) had come")


class Receiver(Member):
    """Acknowledges every parcel, as a node does whose learner takes it."""

    def hear(self, event: Event) -> None:
        if isinstance(event, FrameHeard) and isinstance(event.frame, Parcel):
            assert self.transport.send(event.peer, "in", Ack(EPOCH, event.frame.number))
        super().hear(event)

    async def sender(self) -> PeerId:
        async with self.changed:
            await self.changed.wait_for(lambda: any(isinstance(event, StreamUp) for event in self.events))
        return next(event.peer for event in self.events if isinstance(event, StreamUp))


async def test_of_senders_killed_in_mid_parcel_only_whole_parcels_are_heard() -> None:
    key, dice, processes = new_key(), random.Random(3), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mesh.sending"])
    receiver, whole, cut = Receiver(key), 0, 0
    receiver.port = await receiver.transport.start(LOOPBACK)
    try:
        for _ in range(KILLS):
            process = processes.Process(target=send_for_ever, args=(key, receiver.address), daemon=True)
            process.start()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    peer = await receiver.sender()
                    await asyncio.sleep(dice.uniform(0, LATEST_S))
                    process.kill()
                    await receiver.until_down(peer, "in")
            finally:
                process.kill()
                process.join()
            heard = receiver.parcels()
            assert [parcel.number for parcel in heard] == list(range(1, len(heard) + 1))
            for parcel in heard:
                payload = parcel.payload
                assert payload in receiver.buffers
                assert payload.data == content_of(parcel.number)  # type: ignore[attr-defined]
            [down] = [event for event in receiver.events if isinstance(event, StreamDown)]
            found = CUT_SHORT.search(down.reason)
            cut += found is not None
            whole += len(heard)
            assert len(receiver.buffers) == len(heard) + (found is not None)
            assert sum(buffer.closed for buffer in receiver.buffers) == (found is not None)
            if found is not None:
                assert int(found[2]) == len(heard) + 1
            assert receiver.rejections() == {}
            receiver.events.clear()
            receiver.buffers.clear()
    finally:
        await receiver.transport.stop()
    log.info("%d kills: %d parcels cut short, %d whole ones heard", KILLS, cut, whole)
    assert cut > KILLS // 4
    assert whole > KILLS // 4
