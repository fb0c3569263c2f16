"""Devices with a budget of bytes per minute: no 60 s take more of it, the others go on, and models still come
together. Virtual time; each send is weighed."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from peer import catalogue
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import Control, Frame, FromLearner, Parcel, Pushed
from peer.learner.exchange import Exchange
from peer.mesh.frame_bytes import control_bytes, frame_bytes
from peer.mesh.node import Terms
from peer.rehearsal.driver import Device, Rehearsal, Witness, quadratics

D = 4096
LAYOUT = Layout((4000, 96))
MINIMISERS, _ = quadratics(16, D, seed=1)
INITIAL = torch.zeros(D, dtype=torch.float64)
RATE = 0.1


class Scales(Witness):
    """Weighs what one device sends. most: in any 60 s; over: parcels that were begun beyond the limit, when
    and with how much; held_back: rounds that left somebody out."""

    def __init__(self, peer: str) -> None:
        self.peer, self.r = peer, None
        self.most = self.control = self.total = self.rounds = self.held_back = 0
        self.over: list[tuple[float, int]] = []
        self.limit = 1 << 60
        self._log: deque[tuple[float, int]] = deque()
        self.sizes: list[int] = []

    def sent(self, device: Device, frame: Frame) -> None:
        if isinstance(frame, Parcel) and device.peer == self.peer:
            self.sizes.append(len(frame.payload))
        self._weigh(device, frame_bytes(frame), isinstance(frame, Parcel))

    def called(self, device: Device, message: Control) -> None:
        self.control += control_bytes(message) if device.peer == self.peer else 0
        self._weigh(device, control_bytes(message), False)

    def said(self, device: Device, events: tuple[FromLearner, ...]) -> None:
        for event in events:
            if isinstance(event, Pushed) and device.peer == self.peer:
                self.rounds += 1
                self.held_back += bool(event.held_back)

    def _weigh(self, device: Device, size: int, parcel: bool) -> None:
        if device.peer != self.peer:
            return
        now = self.r.now  # type: ignore[attr-defined]
        self._log.append((now, size))
        self.total += size
        while self._log[0][0] <= now - 60.0:
            self._log.popleft()
        spent = sum(size for _, size in self._log)
        self.most = max(self.most, spent)
        if spent > self.limit and parcel:
            self.over.append((now, spent))


def home(
    algorithm: str = "difference-push",
    topology: str = "exponential",
    *,
    watched: str = "p1",
    compression: str = "",
    rounds: int = 0,
    rate: float = RATE,
    seed: int = 0,
) -> tuple[Rehearsal, Scales]:
    def make_exchange(peer: str, resume: tuple[Tensor, int] | None) -> Exchange:
        learner = make(algorithm, {}, LAYOUT, torch.float64, compression)
        return Exchange(learner, LAYOUT, INITIAL, resume=resume)

    def train(peer: str, z: Tensor, round_: int) -> Tensor:
        return -rate / (1 + round_ / 60) * (z - MINIMISERS[int(peer[1:])])

    terms = Terms(topology, seed, rounds=rounds, graph=catalogue.algorithm(algorithm).graph)
    scales = Scales(watched)
    r = Rehearsal(terms, make_exchange, train, seed=seed, witness=scales)
    scales.r = r  # type: ignore[assignment]
    return r, scales
