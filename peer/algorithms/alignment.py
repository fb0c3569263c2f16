"""One model for all nodes before RelaySum begins on a tree: the exact mean of those they have.

RelaySum counts each node's model of the start as often as the others are far from it, so from unlike models
it does not come to their mean. The paper begins with equal ones. So the first rounds on a tree take no local
steps and relay the models that the nodes had at its beginning, as they are, until each node has all n.

    m_ij = x_i + sum_{k != j} m_ki        after round T: x_i <- (x_i + sum_j m_ji + (n - c_i) x_i) / n

RelaySum loses what is sent to one that has not begun, so all begin in the same round, T + 1. Who has all n
models first sets T so late that they, and T, get from it to everybody; each message names the earliest T
known. A lost message is made up for by the next. A node that nothing new has come to in PATIENCE rounds sets
T with what it has: for models that are missing after T the own one stands in. Who takes up the tree late,
when neighbors relay sums already, begins with those it knows as soon as it hears so.

This is not in the paper: it is how what the paper begins with comes about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.algorithms.relay import Packing, Relay, counts_of
from peer.events import PeerId

PATIENCE = 3  # rounds; on a line that loses many messages two in a row may be lost; guess
MEANING = 20  # body: the mean of models of the start, base: of how many, weight: rounds left with this, or 0


def fault(message: Message, links: Links) -> str:
    """What is wrong with the rounds that a neighbor says are left; "" for nothing."""
    most = links.aligning + 1
    return "" if 0 <= message.weight <= most else f"from 0 to {most} rounds are left, not {message.weight:g}"


class Alignment:
    """Of one node. model: x_i at the beginning. last: T, once it is known."""

    def __init__(self, model: Tensor, links: Links) -> None:
        self.model = model
        self.last: int | None = None
        self.relay = Relay()
        self.relay.grow(links)
        self._stale = 0  # rounds in which nothing new came

    def messages(self, links: Links, pack: Packing) -> dict[PeerId, Message]:
        left = 0 if self.last is None else self.last - links.key.round + 1
        messages = self.relay.messages(links.key, MEANING, self.model, pack)
        return {j: replace(message, weight=float(max(left, 0))) for j, message in messages.items()}

    def hear(self, messages: Mapping[PeerId, Message]) -> None:
        """Late ones too: they say nothing that has changed. One that knows of fewer than before is older."""
        for j, message in messages.items():
            if message.meaning == MEANING:
                if message.weight:
                    self._set_last(message.key.round + int(message.weight) - 1)
                if self._is_more(j, counts_of(message)):
                    self.relay.store({j: message})
                    if not self._is_more(j, counts_of(message)):  # else it was not believed
                        self._stale = -1  # and the round is not over

    def has_begun(self, round_: int) -> None:
        """A neighbor relays sums in that round: whoever comes late to a tree does not wait for all means."""
        self._set_last(round_ - 1)

    def is_over(self, round_: int) -> bool:
        """Is that round one of RelaySum?"""
        return self.last is not None and round_ > self.last

    def close(self, links: Links) -> bool:
        """A round is over. Is that the last one before RelaySum?"""
        self._stale += 1
        if self._all_are_known() or self._stale >= PATIENCE:
            self._set_last(links.key.round + links.aligning)
        return self.last is not None and links.key.round >= self.last

    def _set_last(self, round_: int) -> None:
        self.last = round_ if self.last is None else min(self.last, round_)

    def _all_are_known(self) -> bool:
        return all(self.relay.counts(k) == self.relay.links.n for k in range(len(self.relay.trees)))

    def _is_more(self, j: PeerId, counts: Sequence[int]) -> bool:
        known = [stored[j][1] if j in stored else 0 for stored in self.relay.stored]
        return all(c >= k for c, k in zip(counts, known, strict=True)) and sum(counts) > sum(known)

    def mean(self) -> Tensor:
        """Of all models of the start: equal on all nodes, if nothing is missing."""
        mixed, n = torch.empty_like(self.model), self.relay.links.n
        for part, S, c in self.relay.totals(self.model):
            mixed[part] = (S + (n - c) * self.model[part]) / n
        return mixed
