"""Rounds in two halves, driven by hand as their nodes would drive them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.by_hand import ByHand
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import (
    Closed,
    Deadline,
    Expect,
    Found,
    Key,
    LinkUp,
    OpenRound,
    Pushed,
    Taken,
)
from peer.learner.exchange import Exchange

F64 = torch.float64
LAYOUT = Layout((9,))
N, KEY = 3, Key(1, 0)
PART = [slice(0, 3), slice(3, 6), slice(6, 9)]


class Three(ByHand):
    """Devices "0" to "2" that average in parts; device i hands over a model of i + 1."""

    def __init__(self, down: Sequence[tuple[int, int]] = ()) -> None:
        made = (make("all-reduce", {"parts": "on"}, LAYOUT, F64) for _ in range(N))
        super().__init__([Exchange(one, LAYOUT, torch.zeros(9, dtype=F64)) for one in made])
        for i in range(N):
            near = tuple(str(j) for j in range(N) if j != i)
            up = (LinkUp(j, "out", 1) for j in near if (i, int(j)) not in down)
            self.tell(i, Found(resume=False), *up)
            out = dict.fromkeys(near, 1 / N)
            self.tell(i, OpenRound(KEY, out, near, N, 1.0, graph="complete", place=i))

    def submit(self) -> None:
        for i, device in enumerate(self.devices):
            self.hear(i, device.submit(torch.full((9,), i + 1.0, dtype=F64), 0.1, 0.0))

    def deliver(self, lost: Sequence[tuple[int, int]] = ()) -> None:
        """What is on its way now."""
        for _ in range(len(self.waiting)):
            j, parcel = self.waiting.popleft()
            if (int(parcel.src), j) not in lost:
                self.tell(j, parcel)

    def pushed(self, i: int) -> list[bool]:
        return [answer.half for answer in self.said[i] if isinstance(answer, Pushed)]

    def taken(self, i: int) -> list[bool]:
        return [answer.half for answer in self.said[i] if isinstance(answer, Taken)]

    def closed(self, i: int) -> list[tuple[str, ...]]:
        return [answer.heard for answer in self.said[i] if isinstance(answer, Closed)]

    def mixed(self) -> list[Tensor | None]:
        return [device.take() for device in self.devices]


def test_the_second_half_goes_out_when_the_first_is_here_and_the_round_closes_after_it() -> None:
    three = Three()
    three.submit()
    assert [three.pushed(i) for i in range(N)] == [[False]] * N
    three.deliver()
    assert [three.pushed(i) for i in range(N)] == [[False, True]] * N
    assert [three.taken(i) for i in range(N)] == [[True, True]] * N
    assert [three.closed(i) for i in range(N)] == [[]] * N
    three.deliver()
    assert [three.taken(i) for i in range(N)] == [[True, True, False, False]] * N
    assert [three.closed(i) for i in range(N)] == [[("1", "2")], [("0", "2")], [("0", "1")]]
    for z in three.mixed():
        assert z is not None and torch.equal(z, torch.full((9,), 2.0, dtype=F64))


def test_a_deadline_ends_the_half_that_it_is_said_of() -> None:
    three = Three()
    three.submit()
    three.deliver(lost=[(2, 0), (2, 1), (0, 2), (1, 2)])
    three.tell(0, Deadline(KEY))
    assert three.pushed(0) == [False, True] and three.closed(0) == []
    three.tell(0, Deadline(KEY))  # said before the node knew of the second half
    assert three.closed(0) == []
    three.tell(1, Deadline(KEY))
    three.deliver()
    assert three.closed(0) == []
    three.tell(0, Deadline(KEY, half=True))
    assert three.closed(0) == [("1",)]
    z = three.devices[0].take()
    assert z is not None
    assert z.tolist() == [1.5] * 6 + [1.0] * 3, "where nobody has sent a mean it is its own model"


def test_who_is_not_expected_any_more_holds_up_neither_half() -> None:
    three = Three()
    three.submit()
    three.deliver(lost=[(2, 0), (2, 1), (0, 2), (1, 2)])
    for i, other in ((0, "1"), (1, "0")):
        three.tell(i, Expect(KEY, (other,)))
        assert three.pushed(i) == [False, True]
    three.deliver(lost=[(0, 2), (1, 2)])
    assert three.closed(0) == [("1",)] and three.closed(1) == [("0",)]


def test_both_messages_wait_for_a_link_that_comes_up_late() -> None:
    three = Three(down=[(0, 1)])
    three.submit()
    three.deliver()
    assert three.pushed(0) == [False, True] and three.pushed(1) == [False]
    three.tell(1, Deadline(KEY))
    three.deliver()
    three.tell(0, LinkUp("1", "out", 1))
    late = [parcel for j, parcel in three.waiting if j == 1]
    assert len(late) == 2 and {parcel.src for parcel in late} == {"0"}
    three.deliver()
    assert three.closed(1) == [("0", "2")]
    assert three.closed(0) == [("1", "2")]
    z = three.devices[1].take()
    assert z is not None
    assert z[PART[0]].tolist() == [2.0] * 3 and z[PART[1]].tolist() == [2.5] * 3
