"""Relaying sums along the edges of a tree: what one node stores of its neighbors, and what it sends them.

On one tree everything is relayed; on two, every second coordinate on each. A neighbor on both gets a whole
vector, one on a single tree every second value of one. `base` of a message holds the counts, little-endian
u16 for each tree, 0 where its receiver is no neighbor on that tree; its body the means that go with them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from peer.algorithms.base import Links, Message
from peer.compression.bodies import Body, Dense, Strided
from peer.events import Key, PeerId

Packing = Callable[[Tensor, tuple[int, int] | None, PeerId], Body]  # start and step, if not of all; for whom
Trees = tuple[tuple[PeerId, ...], ...]


def trees_of(links: Links) -> Trees:
    """Where nobody has named a tree, those this node exchanges with are its neighbors on it."""
    return links.trees or (tuple(sorted(links.expected | links.out.keys())),)


def counts_of(message: Message) -> tuple[int, ...]:
    """How many nodes' values are in each tree's mean."""
    return struct.unpack(f"<{len(message.base) // 2}H", message.base)


def fault(message: Message, links: Links) -> str:
    """What is wrong with the counts or the body of a neighbor's message; "" for nothing."""
    T = len(trees_of(links))
    if len(message.base) != 2 * T:
        return f"counts for {T} trees take {2 * T} bytes, not {len(message.base)}"
    counts = counts_of(message)
    used = [k for k, c in enumerate(counts) if c > 0]
    if not used or max(counts) >= links.n:
        return f"counts from 1 to {links.n - 1}, not {counts}"
    body = message.body
    if len(used) == T:
        fits = isinstance(body, Dense)
    else:
        fits = isinstance(body, Strided) and (body.start, body.step) == (used[0], T)
    return "" if fits else f"counts {counts} with a body of other values"


class Relay:
    """For each tree: the neighbors on it, and the last m and c of each."""

    def __init__(self) -> None:
        self.links = Links(Key(), {}, frozenset())
        self.trees: Trees = ((),)
        self.stored: list[dict[PeerId, tuple[Tensor, int]]] = [{}]

    def grow(self, links: Links) -> None:
        """The open round's trees. What is stored of neighbors that are on them still is kept."""
        self.links, self.trees = links, trees_of(links)
        before = self.stored if len(self.stored) == len(self.trees) else [{}] * len(self.trees)
        self.stored = [
            {j: stored[j] for j in tree if j in stored}
            for tree, stored in zip(self.trees, before, strict=True)
        ]

    def clear(self) -> None:
        self.stored = [{} for _ in self.trees]

    def messages(self, key: Key, meaning: int, v: Tensor, pack: Packing) -> dict[PeerId, Message]:
        """For every neighbor j the mean of v and what is stored, without what came from j itself."""
        return {
            j: self._message(j, key, meaning, v, pack)
            for j in sorted({j for tree in self.trees for j in tree})
        }

    def _message(self, j: PeerId, key: Key, meaning: int, v: Tensor, pack: Packing) -> Message:
        means, counts = torch.zeros_like(v), []
        for k, tree in enumerate(self.trees):
            counts.append(0)
            if j in tree:
                m, counts[k] = self._sum(k, v, but=j)
                means[k :: len(self.trees)] = m / counts[k]
        used = [k for k, count in enumerate(counts) if count]
        body = pack(means, None if 0 not in counts else (used[0], len(counts)), j)
        return Message(key, meaning, body, base=struct.pack(f"<{len(counts)}H", *counts), delivery="latest")

    def sums(self, v: Tensor, heard: Mapping[PeerId, Message]) -> list[tuple[slice, Tensor, int]]:
        """As `totals`, after storing what was heard in the place of all that was stored before."""
        self.clear()
        self.store(heard)
        return self.totals(v)

    def store(self, heard: Mapping[PeerId, Message]) -> None:
        """In the place of what was stored of the same neighbors. Of neighbors that together count more nodes
        than there are, the last ones are not believed."""
        T = len(self.trees)
        for j, message in heard.items():
            means, counts = message.body.dense(), counts_of(message)
            for k, tree in enumerate(self.trees):
                if j in tree and counts[k] and self.counts(k, but=j) + counts[k] <= self.links.n:
                    self.stored[k][j] = counts[k] * means[k::T], counts[k]

    def counts(self, k: int, but: PeerId | None = None) -> int:
        """Of how many nodes' values those stored on tree k and the own one are made."""
        return 1 + sum(count for j, (_, count) in self.stored[k].items() if j != but)

    def totals(self, v: Tensor) -> list[tuple[slice, Tensor, int]]:
        """For each tree its coordinates, v and what is stored summed up, and of how many nodes."""
        T = len(self.trees)
        return [(slice(k, None, T), *self._sum(k, v)) for k in range(T)]

    def _sum(self, k: int, v: Tensor, but: PeerId | None = None) -> tuple[Tensor, int]:
        """On tree k: v and what is stored, but for what came from one neighbor."""
        others = [self.stored[k][j] for j in self.trees[k] if j in self.stored[k] and j != but]
        S = v[k :: len(self.trees)] + sum(m for m, _ in others)
        c = self.counts(k, but)
        assert c <= self.links.n, f"{c} models of {self.links.n} nodes: the tree has a cycle, or n is old"
        return S, c
