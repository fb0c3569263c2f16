"""A stream that never ends: each device learns from its own sensor, as it comes, until Ctrl-C.

    peerd create hum --task script                    # on one device; prints the join key
    peerd join hum --key peerd1-…                     # on the other
    python examples/sensor_stream.py hum --hertz 50   # on one
    python examples/sensor_stream.py hum --hertz 60   # on the other

The model predicts a sensor's next reading from the last sixteen; together it learns machines that run at
either speed. Readings are taken by a thread of their own into a queue of a few batches. When training does
not keep up the queue is full and the thread waits, as a driver's own buffer would make it: memory stays
bounded, and nothing is trained on that is old. Ctrl-C ends the loop after the current step, and the session
goes on without this device: what it knows is handed over first.
"""

import argparse
import math
import queue
import random
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn import functional

import peer

PAST = 16  # readings that the next one is predicted from
SAMPLES_HZ = 800


def sensor(hertz: float) -> Iterator[float]:
    """Stands in for an accelerometer on a machine that hums: read yours here, for as long as there is one."""
    chance, phase = random.Random(hertz), 0.0
    while True:
        phase += 2 * math.pi * hertz / SAMPLES_HZ
        yield math.sin(phase) + 0.3 * math.sin(3 * phase) + chance.gauss(0, 0.02)


class Stream:
    """Batches of (past, next) from a sensor, without end. A queue of `depth` batches is what it may be ahead.

    `waited`: batches for which the reader had to wait until there was room.
    """

    def __init__(self, readings: Iterator[float], batch: int, depth: int = 4) -> None:
        self._readings, self._batch = readings, batch
        self._ready: queue.Queue[tuple[Tensor, Tensor]] = queue.Queue(depth)
        self._over = threading.Event()
        self.waited = 0
        self._reader = threading.Thread(target=self._read, name="sensor")
        self._reader.start()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self._ready.get()

    def close(self) -> None:
        """No more is read. The reader may be waiting for room: make some."""
        self._over.set()
        while self._reader.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._reader.join(0.05)

    def _read(self) -> None:
        window = [next(self._readings) for _ in range(PAST)]
        while not self._over.is_set():
            pasts, nexts = [], []
            for _ in range(self._batch):
                reading = next(self._readings)
                pasts.append(window)
                nexts.append([reading])
                window = [*window[1:], reading]
            self.waited += self._ready.full()
            self._ready.put((torch.tensor(pasts), torch.tensor(nexts)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("session")
    parser.add_argument("--hertz", type=float, default=50.0, help="how fast this device's machine runs")
    parser.add_argument("--pace", choices=["free", "lockstep"], default="free")
    asked = parser.parse_args()

    model = nn.Sequential(nn.Linear(PAST, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    with peer.attach(asked.session, model, optimizer, pace=asked.pace) as swarm:

        def end(number: int, frame: FrameType | None) -> None:
            swarm.stop()  # the loop sees it after the current step

        signal.signal(signal.SIGINT, end)
        signal.signal(signal.SIGTERM, end)
        stream = Stream(sensor(asked.hertz), batch=16)
        print("reading; Ctrl-C ends it", flush=True)
        try:
            for past, coming in stream:
                loss = functional.mse_loss(model(past), coming)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if swarm.step(loss.item()) and swarm.round % 100 == 0:
                    print(f"round {swarm.round}: squared error {loss.item():.4f}", flush=True)
                if swarm.done:
                    break
        finally:
            stream.close()
    print(f"the sensor had to wait for {stream.waited} batches")
    print(f"{swarm.round + 1} rounds closed, {swarm.rounds_with_others} of them here and with others")


if __name__ == "__main__":
    main()
