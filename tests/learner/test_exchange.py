"""Exchanges of whole models, driven by hand as their nodes would drive them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from algorithms.swarm import randoms
from algorithms.trees import F64, around, chain, delays
from learner.by_hand import ByHand
from peer.algorithms import make
from peer.compression.bodies import Layout
from peer.events import (
    FINAL,
    TRAIN,
    Acked,
    Closed,
    Deadline,
    Finish,
    Found,
    FromLearner,
    HandOver,
    Holds,
    Key,
    LinkUp,
    OpenRound,
    Pushed,
    Sponsor,
    Taken,
)
from peer.learner.exchange import Exchange, Resume
from peer.learner.look import mixes
from reference.relay_sum import relay_sum_round

LAYOUT = Layout((5, 4))
ZEROS, ONES = torch.zeros(LAYOUT.d, dtype=F64), torch.ones(LAYOUT.d, dtype=F64)
GENERATION = 1 << 62


class Home(ByHand):
    """n devices on a chain."""

    def __init__(
        self, n: int, algorithm: str = "relay-sum", *, links: bool = True, free: bool = False
    ) -> None:
        self.n, self.near = n, around(n, chain(n))
        built = [make(algorithm, {}, LAYOUT, F64, lockstep=not free) for _ in range(n)]
        super().__init__([Exchange(one, LAYOUT, ZEROS, lockstep=not free) for one in built])
        for i in range(n):
            self.tell(i, Found(resume=False))
            for j in self.near[i] if links else ():
                self.tell(i, LinkUp(str(j), "out", 1))
                self.tell(i, LinkUp(str(j), "in", 1))

    def deliver(self) -> None:
        while self.waiting:
            j, parcel = self.waiting.popleft()
            self.tell(j, parcel)

    def open(self, i: int, t: int, phase: int = TRAIN) -> None:
        near = tuple(str(j) for j in self.near[i])
        out = {j: 1 / (len(near) + 1) for j in near}
        delay = float(delays(self.n, chain(self.n)).double().mean())
        self.tell(i, OpenRound(Key(GENERATION, t, phase), out, near, self.n, 1.0, (near,), delay))

    def round(self, t: int, U: Sequence[Tensor]) -> list[Tensor]:
        for i, device in enumerate(self.devices):
            self.open(i, t)
            self.hear(i, device.submit(U[i], 0.1, 0.0))
        self.deliver()
        return self.taken()

    def taken(self) -> list[Tensor]:
        mixed = [device.take() for device in self.devices]
        return [z for z in mixed if z is not None]


def closed(said: Sequence[FromLearner]) -> list[tuple[int, tuple[str, ...]]]:
    return [(answer.key.round, answer.heard) for answer in said if isinstance(answer, Closed)]


def test_rounds_over_exchanges_are_relay_sum() -> None:
    n, Y = 3, list[Tensor]()
    home = Home(n)
    assert len(home.taken()) == n
    X = torch.zeros(n, LAYOUT.d, dtype=F64)
    for t in range(6):
        U = randoms(n, LAYOUT.d, t)
        Y.append(X + torch.stack(U))
        X = relay_sum_round(Y, delays(n, chain(n)), X)
        torch.testing.assert_close(torch.stack(home.round(t, U)), X, rtol=1e-12, atol=1e-12)
    assert closed(home.said[1]) == [(t, ("0", "2")) for t in range(6)]
    assert {device.lr_scale for device in home.devices} == {1 + 2 / 9}


def test_the_final_rounds_end_with_the_same_mean_on_all() -> None:
    home = Home(3)
    home.round(0, randoms(3, LAYOUT.d, 0))
    X = torch.stack([device.estimate() for device in home.devices])
    for t in (1, 2):
        for i in range(3):
            home.open(i, t, FINAL)
        home.deliver()
    for i in range(3):
        home.tell(i, Finish())
    torch.testing.assert_close(torch.stack(home.taken()), X.mean(0).expand(3, -1), rtol=1e-12, atol=1e-12)


def test_a_message_for_a_link_that_is_not_up_goes_when_it_is_if_its_round_is_still_open() -> None:
    home = Home(2, links=False)
    for i in (0, 1):
        home.open(i, 0)
        home.hear(i, home.devices[i].submit(ONES, 0.1, 0.0))
    assert not home.waiting
    assert any(isinstance(answer, Pushed) for answer in home.said[0])
    home.tell(0, LinkUp("1", "out", 1))
    home.deliver()
    assert (closed(home.said[0]), closed(home.said[1])) == ([], [(0, ("0",))])
    home.tell(0, Deadline(Key(GENERATION, 0)))
    home.open(1, 1)
    home.tell(1, LinkUp("0", "out", 1))
    assert not home.waiting


def test_a_newcomer_gets_its_sponsors_model_and_the_sponsor_keeps_it() -> None:
    home = Home(2)
    home.round(0, [ONES, ONES])
    newcomer = Exchange(make("relay-sum", {}, LAYOUT, F64), LAYOUT, ZEROS)
    home.tell(0, LinkUp("9", "out", 1, newcomer.algorithm.bases), Sponsor("9"))
    _, parcel = home.waiting.popleft()
    assert parcel.delivery == "mass"
    answers = newcomer.handle(parcel, 0.0)
    assert [type(answer) for answer in answers] == [Holds, Taken]
    assert newcomer.state == "training"
    z = newcomer.take()
    assert z is not None
    assert torch.equal(z, home.devices[0].estimate())
    assert home.devices[0].algorithm.weight == 1.0
    home.tell(0, Acked("9", 1, parcel.number))
    assert len(home.round(1, [ONES, ONES])) == 2, "and rounds go on"


def test_a_leavers_model_is_taken_over_and_changes_nothing_where_there_is_one() -> None:
    home = Home(2)
    home.round(0, [ONES, -ONES])
    before = home.devices[0].estimate()
    home.tell(1, HandOver("0"))
    home.deliver()
    assert any(isinstance(answer, Taken) for answer in home.said[0])
    assert home.said[1][-1] == Holds((), 0.0)
    assert torch.equal(home.devices[0].estimate(), before)


def test_a_node_that_stood_still_hears_the_round_it_goes_on_with() -> None:
    """Whole models that come meanwhile are all taken over, and the newest counts when its round opens."""
    home = Home(2)
    for t in range(4):
        home.open(0, t)
        home.hear(0, home.devices[0].submit(ONES, 0.1, 0.0))
        home.tell(0, Deadline(Key(GENERATION, t)))
        home.deliver()
    taken = [answer for answer in home.said[1] if isinstance(answer, Taken)]
    assert len(taken) == 4
    home.open(1, 3)
    home.hear(1, home.devices[1].submit(ZEROS, 0.1, 0.0))
    home.deliver()
    assert closed(home.said[1]) == [(3, ("0",))]


@pytest.mark.parametrize("algorithm", ["relay-sum", "d-psgd"])
def test_with_pace_free_nobody_waits_and_models_meet(algorithm: str) -> None:
    """Device 2 is three times as slow; after the last local step all agree."""
    home = Home(3, algorithm, free=True)
    home.taken()
    for t in range(60):
        for i, device in enumerate(home.devices):
            if i < 2 or t % 3 == 0:
                home.open(i, t)
                home.hear(i, device.submit(ONES * (i + 1) if t < 12 else ZEROS, 0.1, 0.0))
                assert closed(home.said[i])[-1][0] == t, "a round closes as soon as it is pushed"
        home.deliver()
    assert [len([a for a in said if isinstance(a, Taken)]) for said in home.said] == [60, 80, 60]
    models = torch.stack([device.estimate() for device in home.devices])
    torch.testing.assert_close(models, models.mean(0).expand(3, -1), rtol=1e-3, atol=0)
    assert float(models.min()) > 1


@pytest.mark.parametrize(
    ("theirs", "midpoint", "may_be"),
    [
        (ONES, None, True),
        (1.4 * ONES, None, True),
        (2.1 * ONES, None, False),
        (-ONES, None, False),
        (1.4 * ONES, 1.1, True),
        (1.4 * ONES, 1.3, False),
        (2.1 * ONES, 0.1, False),
    ],
)
def test_models_mix_if_they_are_near_and_the_loss_half_way_is_not_much_worse(
    theirs: Tensor, midpoint: float | None, may_be: bool
) -> None:
    def loss(model: Tensor) -> float:
        return 1.0 if torch.equal(model, ONES) or torch.equal(model, theirs) else midpoint or 0.0

    assert mixes(ONES, theirs, loss if midpoint is not None else None) == may_be


def test_after_a_resume_the_next_change_is_for_the_round_after_the_checkpoints() -> None:
    one = Exchange(make("sgp", {}, LAYOUT, F64), LAYOUT, ZEROS, resume=Resume(ZEROS + 1, 7))
    one.handle(Found(resume=True), 0.0)
    assert one.position == 8
    one.handle(OpenRound(Key(0, 8), {}, (), 1, 1.0), 0.0)
    assert one.open
    assert one.position == 8
    one.submit(ZEROS, 0.1, 0.0)
    assert one.position == 9
