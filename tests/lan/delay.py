"""A delay line between two interfaces: what comes in at one goes out at the other so much later, both ways.

    delay.py ONE OTHER SECONDS      as root of the namespace that has them; says `ready`, ends on SIGTERM

In place of netem, which not every kernel has. With each frame comes the kernel's own header (virtio_net_hdr),
which says how much of a checksum is still to be written, and goes out with it: between virtual interfaces
nobody writes them. Frames keep their order. None is dropped but by a full queue of the kernel; how many is
the last thing it says.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import struct
import sys
from collections import deque

ETH_P_ALL = 0x0003  # packet(7), as the next line
SOL_PACKET, PACKET_STATISTICS, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 6, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # socket(7)
QUEUE_BYTES = 8 << 20  # far more than tests send while this process has no turn
FRAME_BYTES = 1 << 17  # the longest there is, offloads included


def end_of(interface: str) -> socket.socket:
    """What arrives at this interface, and a way out of it."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)  # binding starts it
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    for size in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        end.setsockopt(socket.SOL_SOCKET, size, QUEUE_BYTES)
    end.bind((interface, ETH_P_ALL))
    return end


class Line:
    """One way. dropped: frames that the kernel could not queue on their way out."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        self._source, self._sink, self._delay_s = source, sink, delay_s
        self._held: deque[tuple[float, bytes]] = deque()  # with the time when it is to leave
        self._loop = asyncio.get_running_loop()
        self.dropped = 0
        self._loop.add_reader(source, self._arrive)

    def _arrive(self) -> None:
        idle = not self._held
        try:
            while True:
                frame = self._source.recv(FRAME_BYTES)
                self._held.append((self._loop.time() + self._delay_s, frame))
        except BlockingIOError:
            pass
        if idle:
            self._leave()

    def _leave(self) -> None:
        while self._held and self._held[0][0] <= self._loop.time():
            _, frame = self._held.popleft()
            try:
                self._sink.send(frame)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
                self.dropped += 1
        if self._held:
            self._loop.call_at(self._held[0][0], self._leave)


async def delay(one: str, other: str, delay_s: float) -> None:
    ends = end_of(one), end_of(other)
    lines = [Line(*ends, delay_s), Line(*ends[::-1], delay_s)]
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await over.wait()
    dropped = sum(line.dropped for line in lines)
    for end in ends:
        dropped += struct.unpack("II", end.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    sys.stdout.write(f"{dropped}\n")


if __name__ == "__main__":
    asyncio.run(delay(sys.argv[1], sys.argv[2], float(sys.argv[3])))
