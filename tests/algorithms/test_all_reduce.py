"""The mean of all models in every round, in parts: what is sent, and what becomes of what does not come."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import pytest
import torch
from torch import Tensor

from peer.algorithms import make
from peer.algorithms.all_reduce import LEAST_BYTES, AllReduce
from peer.algorithms.base import Links, Message
from peer.compression.bodies import Dense, Layout, Portion
from peer.compression.codec import decode, encode
from peer.compression.compressor import compressor
from peer.errors import RemoteError
from peer.events import FINAL, TRAIN, Key
from peer.grammar import parse_compression
from peer.graphs import Graph

F64 = torch.float64
D = 23  # no number of members divides it
LAYOUT = Layout((20, 3), (5, 1))
Lost = Collection[tuple[int, int]]


def members(n: int, compression: str = "", parts: str = "on") -> list[AllReduce]:
    made = [make("all-reduce", {"parts": parts}, LAYOUT, F64, compression) for _ in range(n)]
    models = models_of(n)
    for i, one in enumerate(made):
        one.know(models[0])
        one.begin(models[i], 1.0)
    return cast("list[AllReduce]", made)


def models_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=F64)


def links(i: int, n: int, key: Key, clear: Collection[str] | None = None) -> Links:
    out = {str(j): 1 / n for j in range(n) if j != i}
    reached = frozenset(out if clear is None else clear)
    return Links(key, out, frozenset(out), n, clear=reached, graph=Graph("complete", n, i))


def part(place: int, n: int, t: int = 0) -> slice:
    owned = (place + t) % n
    return slice(D * owned // n, D * (owned + 1) // n)


def came(message: Message) -> Message:
    return decode(encode(message, LAYOUT), LAYOUT, F64)


def push(swarm: list[AllReduce], t: int, u: Tensor, phase: int = TRAIN) -> list[dict[str, Message]]:
    n, key = len(swarm), Key(1, t, phase)
    return [one.step(u[i], 0.1, links(i, n, key), 0.0) for i, one in enumerate(swarm)]


def deliver(swarm: list[AllReduce], sent: list[Mapping[str, Message]], lost: Lost = ()) -> None:
    for i, messages in enumerate(sent):
        for j, message in messages.items():
            if (i, int(j)) not in lost:
                assert not swarm[int(j)].receive(str(i), came(message), 0.0)


def second(swarm: list[AllReduce], *, late: bool = False) -> list[Mapping[str, Message]]:
    found = [one.second(late=late) for one in swarm]
    assert None not in found
    return [messages for messages in found if messages is not None]


def mixed(swarm: list[AllReduce]) -> Tensor:
    return torch.stack([one.mix().clone() for one in swarm])


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_all_have_the_mean_of_all_to_the_last_bit(n: int) -> None:
    swarm, X = members(n), models_of(n)
    for t in range(4):
        u = models_of(n, seed=t + 1)
        deliver(swarm, [*push(swarm, t, u)])
        assert not any(one.ready() for one in swarm), "the means are still to come"
        deliver(swarm, second(swarm))
        assert all(one.ready() for one in swarm)
        found = mixed(swarm)
        assert (found == found[0]).all()
        torch.testing.assert_close(found[0], (X + u).mean(0), rtol=1e-12, atol=1e-12)
        X = found


@pytest.mark.parametrize("n", [3, 4, 8])
def test_a_device_sends_two_models_less_twice_its_part(n: int) -> None:
    swarm = members(n)
    first = push(swarm, 0, models_of(n))
    deliver(swarm, [*first])
    numbers = [0] * n
    for sent in (first, second(swarm)):
        for i, messages in enumerate(sent):
            bodies = [message.body for message in messages.values()]
            numbers[i] += sum(body.values.numel() for body in bodies if isinstance(body, Portion))
    assert sum(numbers) == 2 * (n - 1) * D
    assert max(numbers) <= 2 * D - 2 * (D // n) + n


def test_what_is_lost_in_the_first_half_is_left_out_of_one_part_and_all_stay_equal() -> None:
    n, u = 4, models_of(4, seed=1)
    swarm, y = members(n), models_of(4) + u
    deliver(swarm, [*push(swarm, 0, u)], lost=[(1, 2)])
    assert swarm[2].second(late=False) is None, "it waits for 1"
    deliver(swarm, second(swarm, late=True))
    found, whole = mixed(swarm), y.mean(0)
    whole[part(2, n)] = y[[0, 2, 3], part(2, n)].mean(0)
    assert (found == found[0]).all()
    torch.testing.assert_close(found[0], whole)


def test_where_a_mean_does_not_come_a_member_keeps_what_it_has() -> None:
    n, u = 4, models_of(4, seed=1)
    swarm, y = members(n), models_of(4) + u
    deliver(swarm, [*push(swarm, 0, u)])
    deliver(swarm, second(swarm), lost=[(1, 2)])
    assert [one.ready() for one in swarm] == [True, True, False, True]
    assert swarm[2].heard == {"0", "3"}
    found = mixed(swarm)
    torch.testing.assert_close(found[0], y.mean(0))
    torch.testing.assert_close(found[2, part(1, n)], y[2, part(1, n)], rtol=0, atol=0)
    found[2, part(1, n)] = found[0, part(1, n)]
    assert (found == found[0]).all()


def test_a_round_that_ends_before_its_second_half_leaves_a_member_with_its_own_model() -> None:
    swarm, u = members(3), models_of(3, seed=1)
    deliver(swarm, [*push(swarm, 0, u)])
    swarm[0].open(links(0, 3, Key(1, 1)))
    torch.testing.assert_close(swarm[0].estimate(), models_of(3)[0] + u[0], rtol=0, atol=0)
    assert swarm[0].second(late=True) is None, "nothing is pushed"


def test_who_is_a_round_further_is_waited_for_in_neither_half() -> None:
    n = 3
    swarm, u = members(n), models_of(3, seed=1)
    first = push(swarm, 0, u)
    ahead = swarm[2].step(u[2], 0.1, links(2, n, Key(1, 1)), 0.0)
    swarm[0].receive("1", came(first[1]["0"]), 0.0)
    assert swarm[0].second(late=False) is None
    swarm[0].receive("2", came(ahead["0"]), 0.0)
    assert swarm[0].second(late=False) is not None
    assert not swarm[0].ready() and swarm[0].heard == {"2"}
    mean = Portion(D, torch.ones(len(range(D)[part(1, n)]), dtype=F64))
    swarm[0].receive("1", Message(Key(1, 0), AllReduce.MEAN, mean, delivery="latest"), 0.0)
    assert swarm[0].heard == {"1", "2"} and swarm[0].ready()
    swarm[0].mix()
    swarm[0].step(u[0], 0.1, links(0, n, Key(1, 1)), 0.0)
    assert swarm[0].second(late=False) is None, "1 is still to be heard"
    assert swarm[0].second(late=True) is not None


def test_the_second_half_begins_once_and_not_before_the_first() -> None:
    swarm = members(3)
    assert swarm[0].second(late=True) is None, "nothing is pushed"
    deliver(swarm, [*push(swarm, 0, models_of(3))])
    assert swarm[0].second(late=False) is not None
    assert swarm[0].second(late=False) is None and swarm[0].second(late=True) is None


def test_who_is_not_expected_any_more_is_not_waited_for() -> None:
    swarm, u = members(3), models_of(3, seed=1)
    first = push(swarm, 0, u)
    swarm[0].receive("1", came(first[1]["0"]), 0.0)
    assert swarm[0].second(late=False) is None
    swarm[0].expect(frozenset({"1"}))
    assert swarm[0].second(late=False) is not None
    assert not swarm[0].ready()


def test_a_round_has_two_halves_for_its_readers_where_it_has_parts() -> None:
    swarm = members(3)
    first = push(swarm, 0, models_of(3))
    deliver(swarm, [*first])
    means = second(swarm)
    assert swarm[0].has_second(first[1]["0"])
    assert not swarm[0].has_second(means[1]["0"])
    assert not swarm[0].has_second(swarm[0].sponsor("1", Key(1, 0), ()))


def test_two_that_never_hear_each_other_stay_near_since_parts_change_owners() -> None:
    n, zeros = 4, torch.zeros(4, D, dtype=F64)
    swarm, lost = members(n), [(0, 1), (1, 0)]
    found = models_of(n)
    for t in range(2 * n):
        deliver(swarm, [*push(swarm, t, zeros)], lost)
        deliver(swarm, second(swarm, late=True), lost)
        found = mixed(swarm)
    assert float((found - found.mean(0)).abs().max()) < 0.05 * float((models_of(n)).abs().max())


@pytest.mark.parametrize(
    ("n", "compression", "parts", "phase"),
    [(4, "", "on", FINAL), (2, "", "on", TRAIN), (4, "fp16", "on", TRAIN), (4, "", "off", TRAIN)],
)
def test_models_go_whole(n: int, compression: str, parts: str, phase: int) -> None:
    swarm, u = members(n, compression, parts), models_of(n, seed=1)
    first = push(swarm, 0, u, phase)
    assert all(isinstance(m.body, Dense) for messages in first for m in messages.values())
    deliver(swarm, [*first])
    assert [one.second(late=True) for one in swarm] == [None] * n
    assert all(one.ready() for one in swarm)
    found = mixed(swarm)
    torch.testing.assert_close(found, (models_of(n) + u).mean(0).expand(n, D), rtol=2e-3, atol=2e-3)


def test_long_models_have_parts_by_themselves() -> None:
    def sent(d: int) -> object:
        one = make("all-reduce", {}, Layout((d,)), torch.float32)
        one.begin(torch.zeros(d), 1.0)
        return one.step(torch.ones(d), 0.1, links(0, 3, Key(1, 0)), 0.0)["1"].body

    assert isinstance(sent(LEAST_BYTES // 4), Portion)
    assert isinstance(sent(LEAST_BYTES // 4 - 1), Dense)


def test_parts_of_a_graph_that_is_not_open_yet_wait_for_it() -> None:
    n = 4
    swarm, u = members(n), models_of(4, seed=1)
    deliver(swarm, [*push(swarm[:3], 0, u)])
    key = Key(2, 1)
    early = [swarm[i].step(u[i], 0.1, links(i, n, key), 0.0)["0"] for i in (1, 2, 3)]
    for i, message in zip("123", early, strict=True):
        swarm[0].receive(i, came(message), 0.0)
    swarm[0].mix()
    before = swarm[0].estimate().clone()
    swarm[0].step(u[0], 0.1, links(0, n, key), 0.0)
    means = swarm[0].second(late=False)
    assert means is not None
    theirs = torch.stack([m.body.numbers() for m in early if isinstance(m.body, Portion)]).sum(0)
    body = means["3"].body
    assert isinstance(body, Portion)
    torch.testing.assert_close(body.numbers(), ((before + u[0])[part(0, n, 1)] + theirs) / n)


def test_what_waits_for_its_link_stays_what_it_was() -> None:
    n, key = 3, Key(1, 0)
    swarm, u = members(n), models_of(3, seed=1)
    waits = swarm[0].step(u[0], 0.1, links(0, n, key, clear=["1"]), 0.0)["2"].body
    assert isinstance(waits, Portion)
    before = waits.values.clone()
    deliver(swarm, [{}, *push(swarm, 0, u)[1:]])
    deliver(swarm, [{}, *second(swarm, late=True)[1:]])
    after = swarm[0].mix()[part(2, n)]
    assert not torch.equal(after, before)
    assert torch.equal(waits.values, before)


def test_a_model_that_is_shown_in_a_round_stays_what_it_was() -> None:
    swarm, u = members(3), models_of(3, seed=1)
    deliver(swarm, [*push(swarm, 0, u)])
    shown = swarm[0].show(Key(1, 0)).body.dense()
    before = shown.clone()
    deliver(swarm, second(swarm))
    assert not torch.equal(swarm[0].mix(), before)
    assert torch.equal(shown, before)


@pytest.mark.parametrize(
    ("meaning", "body", "phase", "why"),
    [
        (AllReduce.PART, Portion(D, torch.ones(3, dtype=F64)), TRAIN, "that part has 7 numbers"),
        (AllReduce.MEAN, Portion(D, torch.ones(7, dtype=F64)), TRAIN, "that part has 8 numbers"),
        (AllReduce.PART, Dense(torch.ones(D, dtype=F64)), TRAIN, "that part has 7 numbers, as they are"),
        (AllReduce.PART, Portion(D, torch.ones(7, dtype=F64)), FINAL, "models go whole in this round"),
        (AllReduce.MEANING, Dense(torch.ones(D, dtype=F64)), TRAIN, "models go in parts"),
    ],
)
def test_what_nobody_sends_is_refused_and_changes_nothing(
    meaning: int, body: Dense | Portion, phase: int, why: str
) -> None:
    swarm = members(3)
    push(swarm, 0, models_of(3))
    with pytest.raises(RemoteError, match=why):
        swarm[0].receive("1", Message(Key(1, 0, phase), meaning, body, delivery="latest"), 0.0)
    assert swarm[0].heard == frozenset()
    assert swarm[0].second(late=False) is None


def test_parts_with_rounded_values_are_refused() -> None:
    swarm = members(3)
    push(swarm, 0, models_of(3))
    seven = Layout((7,))
    rounded = compressor(parse_compression("fp16"), seven, F64)(torch.ones(7, dtype=F64))
    assert isinstance(rounded, Dense)
    body = Portion(D, rounded.values, F64, rounded.coding)
    with pytest.raises(RemoteError, match="as they are"):
        swarm[0].receive("1", Message(Key(1, 0), AllReduce.PART, body, delivery="latest"), 0.0)


def test_who_is_not_on_the_graph_has_no_part() -> None:
    swarm = members(3)
    push(swarm, 0, models_of(3))
    body = Portion(D, torch.ones(7, dtype=F64))
    with pytest.raises(RemoteError, match="no place on this graph"):
        swarm[0].receive("9", Message(Key(1, 0), AllReduce.PART, body, delivery="latest"), 0.0)
