"""RelaySGD, with RelaySum on a tree (Vogels, He, Koloskova, Lin, Karimireddy, Stich, Jaggi, NeurIPS 2021).

    y_i = x_i + u_i
    m_ij = y_i + sum_{k != j} m_ki      c_ij = 1 + sum_{k != j} c_ki     of the round before; sent to j
    c_i = 1 + sum_j c_ji                                                 of this round
    x_i <- (y_i + sum_j m_ji + (n - c_i) fill_i) / n                     or without fill, divided by c_i

x_i: model; u_i: the change of x_i by local steps, -gamma grad F_i(x_i) in the paper; k, j: i's neighbors on
the tree, of n nodes; m, c: sums of models, and of how many. In words: x_i becomes the mean over all nodes of
y, as old as the way is long: of round t - max(hops - 1, 0). Exact, without bias from unlike data.

fill is what stands in for nodes not heard of, at the start and after losses. x0: the initial model (the
paper's analysis); prev: x_i before the local steps (the authors' runs with lost messages; the default); half:
y_i (their README); counts: nothing, divide by c_i (their pseudo-code). A message that is lost, or late, is
neither used nor relayed.

Old models make the effective step smaller, by exactly 1 + the mean of max(hops - 1, 0) over ordered pairs, as
the authors' pulse test finds. `lr_scale` says so, and the training loop corrects for it.

Double binary trees: coordinates 0, 2, 4, .. are relayed on one tree, 1, 3, 5, .. on another, where the leaves
of the first are inner nodes.

The paper's: all of the above. Ours: the message carries c and the mean m/c, not the sum, so that fp16 and
int8 lose no bits to its size; several local steps per round, whose change is one u; pace "free" (see
whole_model.py); a new tree starts with nothing stored, and where models may be unlike then, with their mean
(alignment.py); in the final rounds each node relays the model it had at the first of them, exactly, so that
after as many rounds as the tree is wide all hold the same mean.

With H > 1 local steps a round and unlike data, models come to rest off the minimum by an error of order
gamma, as those of local SGD do; a larger gamma, by the correction, adds to it, one that falls takes it along.
Stable at H = 16 with and without the correction (measured on quadratics, 8 nodes, gamma 0.1).

Rounding is not fed back and comes anew at every hop. Measured on quadratics, 7 nodes on a heap, 120 rounds:
the error is 0.047 exactly and in fp16, 0.119 in bf16, 0.097 in int8, and 2.6 in int4, whose steps are larger
than what late local steps change (tests/algorithms/test_whole_model.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from peer.algorithms import alignment, relay
from peer.algorithms.alignment import Alignment
from peer.algorithms.base import Links, Message
from peer.algorithms.relay import Relay, counts_of
from peer.algorithms.whole_model import Values, WholeModel
from peer.compression.bodies import Layout
from peer.errors import RemoteError
from peer.events import PeerId

Fill = Literal["prev", "x0", "half", "counts"]
FILLS: tuple[Fill, ...] = ("prev", "x0", "half", "counts")


class RelaySum(WholeModel):
    """correction: does `lr_scale` make up for the delay?"""

    name = "relay-sum"
    MEANING = 17  # body: m/c of y, base: c
    MEANINGS = (MEANING, alignment.MEANING)
    LETS_GO = frozenset({"u", "x0"})

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        Q: Values = None,
        *,
        fill: Fill = "prev",
        correction: bool = True,
        lockstep: bool = True,
    ) -> None:
        super().__init__(layout, dtype, Q, lockstep=lockstep)
        self.fill, self.correction = fill, correction
        self.relay = Relay()
        self.fixed: Tensor | None = None  # what the final rounds relay
        self.alignment: Alignment | None = None  # RelaySum has not begun on this tree

    @property
    def lr_scale(self) -> float:
        return 1 + self.links.mean_delay if self.correction else 1.0

    @property
    def still(self) -> bool:
        return self.alignment is not None

    def open(self, links: Links) -> None:
        super().open(links)
        self.relay.grow(links)
        if self.is_final:
            self.alignment = None
        elif self.alignment is not None:
            self.alignment.relay.grow(links)
            if self.alignment.is_over(links.key.round):
                self.x, self.alignment = self.alignment.mean(), None
        self.fixed = (self.fixed if self.fixed is not None else self.x) if self.is_final else None

    def begin_generation(self) -> None:
        self.relay.clear()
        begins = self.links.aligning > 0 and self.lockstep and not self.is_final
        self.alignment = Alignment(self.estimate(), self.links) if begins else None
        for mail in self._mail.values():
            for message in (mail.now, mail.ahead):
                if message is not None:
                    self._notice_beginning(message)

    def stepped(self, x: Tensor, u: Tensor) -> Tensor:
        """y, or what the final rounds average."""
        return x + u if self.fixed is None else self.fixed

    def stepped_to(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return super().stepped_to(x, z, y) if self.fixed is None else self.fixed

    @property
    def needs_x0(self) -> bool:
        return self.fill == "x0" or super().needs_x0

    @property
    def least_part(self) -> int:
        trees = self.relay.trees
        on_all = frozenset[PeerId].intersection(*map(frozenset, trees))
        return len(trees) if any(on_all < frozenset(tree) for tree in trees) else 1

    def push(self, y: Tensor) -> dict[PeerId, Message]:
        if self.alignment is not None:
            return self.alignment.messages(self.links, self.packed)
        return self.relay.messages(self.key, self.MEANING, y, self.packed)

    def average(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        if self.alignment is not None:
            return self._align(self.alignment, heard)
        return self.sum_up(x, y, {j: m for j, m in heard.items() if m.meaning == self.MEANING})

    def _align(self, start: Alignment, heard: dict[PeerId, Message]) -> Tensor:
        start.hear(heard)
        if not start.close(self.links):
            return start.model
        self.alignment = None
        return start.mean()

    def sum_up(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        n, mixed = self.links.n, torch.empty_like(x)
        fill = self._filling(x, y)
        for part, S, c in self.relay.sums(y, heard):
            mixed[part] = S / c if fill is None else (S + (n - c) * fill[part]) / n
        return mixed

    def _filling(self, x: Tensor, y: Tensor) -> Tensor | None:
        fill = "prev" if self.is_final else self.fill
        return {"prev": x, "x0": self.x0, "half": y, "counts": None}[fill]

    def fault(self, src: PeerId, message: Message) -> str:
        late = alignment.fault(message, self.links) if message.meaning == alignment.MEANING else ""
        return relay.fault(message, self.links) or late

    def _keep(self, src: PeerId, message: Message) -> None:
        counts_now = message.key == self.key or (not self.lockstep and self._is_of_this_generation(message))
        if counts_now and message.meaning in self.MEANINGS and not self.fault(src, message):
            self._refuse_excess(src, message)
        super()._keep(src, message)
        self._notice_beginning(message)
        late = self._is_of_this_generation(message) and message.key < self.key
        if self.alignment is not None and late:
            self.alignment.hear({src: message})

    def _notice_beginning(self, message: Message) -> None:
        relays = message.meaning == self.MEANING and self._is_of_this_generation(message)
        if relays and self.alignment is not None:
            self.alignment.has_begun(message.key.round)

    def _refuse_excess(self, src: PeerId, message: Message) -> None:
        """Raises RemoteError if this round's messages together count more nodes than there are."""
        now = {j: mail.now for j, mail in self._mail.items() if j != src and mail.now is not None}
        alike = {j: counts_of(m) for j, m in now.items() if m.meaning == message.meaning}
        alike[src] = counts_of(message)
        for k, tree in enumerate(self.relay.trees):
            total = 1 + sum(counts[k] for j, counts in alike.items() if j in tree)
            if total > self.links.n:
                said = f"{total} models of {self.links.n} nodes"
                raise RemoteError(f"message from {src}: {said}: a false count, or the tree has a cycle")


class RelayGrad(RelaySum):
    """RelaySum/Grad: changes are relayed, not models.

        m_ij = u_i + sum_{k != j} m_ki      x_i <- x_i + (u_i + sum_j m_ji) / n

    Every change enters every model once, so nothing is filled in and no step corrected. Nor is anything
    repaired before the next tree: models that a lost message or rounding has set apart stay apart.
    """

    name = "relay-sum-grad"
    MEANING = 18  # body: m/c of u, base: c
    MEANINGS = (MEANING, alignment.MEANING)
    LETS_GO = frozenset({"x0"})

    def __init__(self, layout: Layout, dtype: torch.dtype, Q: Values = None) -> None:
        super().__init__(layout, dtype, Q, correction=False)

    def stepped(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def sum_up(self, x: Tensor, y: Tensor, heard: dict[PeerId, Message]) -> Tensor:
        mixed = x.clone()
        for part, S, _ in self.relay.sums(y, heard):
            mixed[part] += S / self.links.n
        return mixed
