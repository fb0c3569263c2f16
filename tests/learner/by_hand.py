"""Exchanges that a test drives as their nodes would: it tells them what happens, and takes parcels across."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from peer.events import Deliver, FromLearner, Held, Push, Rejected, ToLearner
from peer.learner.exchange import Exchange


class ByHand:
    """Devices "0" to "n-1". said: what each has answered. waiting: parcels on their way, and to whom."""

    def __init__(self, devices: Sequence[Exchange]) -> None:
        self.devices = devices
        self.said: list[list[FromLearner]] = [[] for _ in devices]
        self.waiting: deque[tuple[int, Deliver]] = deque()
        self.number = 0

    def tell(self, i: int, *commands: ToLearner) -> None:
        for command in commands:
            self.hear(i, self.devices[i].handle(command, 0.0))

    def hear(self, i: int, answers: Sequence[FromLearner]) -> None:
        self.said[i] += answers
        for answer in answers:
            assert not isinstance(answer, Rejected | Held), answer
            if isinstance(answer, Push):
                self.number += 1
                message = answer.key, answer.payload, answer.delivery
                self.waiting.append((int(answer.dst), Deliver(str(i), answer.epoch, self.number, *message)))
