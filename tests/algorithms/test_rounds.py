"""When mail counts, who becomes a member by it, and which models can be named."""

from __future__ import annotations

import pytest
import torch

from algorithms.swarm import F64, randoms
from peer.algorithms import make
from peer.algorithms.base import SHARE, SNAPSHOT, Links, Message
from peer.algorithms.bases import HELD_ROUNDS, MAX_HELD, USABLE_ROUNDS, Bases, digest
from peer.algorithms.difference_push import DIFFERENCE, REPLICA, DifferencePush
from peer.algorithms.push_sum import PushSum
from peer.algorithms.sgp import SGP
from peer.compression.bodies import Dense, Empty, Layout
from peer.errors import RemoteError, UnknownBaseError
from peer.events import Key

LAYOUT = Layout((8,))
ONES, ZEROS = torch.ones(8, dtype=F64), torch.zeros(8, dtype=F64)


def member(*, lockstep: bool = True) -> SGP:
    node = SGP(LAYOUT, F64, lockstep=lockstep)
    node.know(ZEROS)
    node.begin(ZEROS, 1.0)
    return node


def opened(node: PushSum, round_: int, *expected: str) -> None:
    node.open(Links(Key(0, round_), {}, frozenset(expected)))


def share(round_: int, weight: float = 1.0) -> Message:
    return Message(Key(0, round_), SHARE, Dense(ONES), weight)


def test_mail_of_a_later_round_waits_for_it() -> None:
    node = member()
    opened(node, 3, "a")
    node.receive("a", share(4), 0.0)
    assert torch.equal(node.mix(), ZEROS)
    opened(node, 4, "a")
    assert node.ready()
    assert torch.equal(node.mix(), ONES / 2)


def test_who_is_already_further_is_waited_for_no_longer() -> None:
    """Parcels of a link come in order: nothing of this round follows."""
    node = member()
    opened(node, 3, "a")
    assert not node.ready()
    node.receive("a", share(4), 0.0)
    assert node.ready()
    assert node.heard == {"a"}


def test_late_mail_counts_at_the_next_mix_and_is_not_heard() -> None:
    node = member()
    opened(node, 3, "a")
    node.receive("a", share(2), 0.0)
    assert not node.ready()
    assert torch.equal(node.x, ZEROS), "it waits for this round's own step"
    assert torch.equal(node.mix(), ONES / 2)


def test_a_round_is_ready_without_those_no_longer_expected() -> None:
    node = member()
    opened(node, 1, "a", "b")
    node.receive("a", share(1), 0.0)
    assert not node.ready()
    node.expect(frozenset({"a"}))
    assert node.ready()


def test_free_pace_folds_everything_at_once_and_waits_for_nobody() -> None:
    node = member(lockstep=False)
    opened(node, 3, "a", "b")
    node.receive("a", share(90), 0.0)
    assert torch.equal(node.x, ONES)
    assert node.ready()
    assert node.heard == {"a"}


def test_a_node_without_weight_becomes_a_member_by_any_mass() -> None:
    node = SGP(LAYOUT, F64)
    assert node.model is None
    node.receive("a", share(7, weight=0.5), 0.0)
    assert node.weight == 0.5
    assert node.model is not None
    assert torch.equal(node.model, ONES / 0.5)


def test_a_sponsor_halves_its_weight_and_both_have_its_model() -> None:
    sponsor, newcomer = member(), SGP(LAYOUT, F64)
    sponsor.begin(3 * ONES, 1.0)
    message = sponsor.sponsor("b", Key(0, 9), ())
    newcomer.receive("a", message, 0.0)
    assert (sponsor.weight, newcomer.weight) == (0.5, 0.5)
    assert torch.equal(sponsor.estimate(), newcomer.estimate())
    assert torch.equal(sponsor.x + newcomer.x, 3 * ONES)


def test_a_snapshot_of_a_model_the_newcomer_holds_is_empty() -> None:
    sponsor, newcomer = member(), SGP(LAYOUT, F64)
    for node in (sponsor, newcomer):
        node.know(ONES)
    sponsor.begin(ONES, 1.0)
    message = sponsor.sponsor("b", Key(), newcomer.bases)
    assert isinstance(message.body, Empty)
    newcomer.receive("a", message, 0.0)
    assert torch.equal(newcomer.estimate(), ONES)
    sponsor.returned("b", message)
    assert (sponsor.weight, sponsor.x.tolist()) == (1.0, ONES.tolist())


def test_a_snapshot_of_an_unknown_model_changes_nothing() -> None:
    newcomer = SGP(LAYOUT, F64)
    with pytest.raises(UnknownBaseError, match="not held"):
        newcomer.receive("a", Message(Key(), SNAPSHOT, Empty(8, F64), 0.5, digest(ONES)), 0.0)
    assert newcomer.weight == 0
    assert newcomer.heard == frozenset()


def test_a_snapshot_with_a_wrong_digest_is_refused() -> None:
    with pytest.raises(RemoteError, match="digest"):
        SGP(LAYOUT, F64).receive("a", Message(Key(), SNAPSHOT, Dense(ONES), 0.5, digest(ZEROS)), 0.0)


def test_a_meaning_of_another_algorithm_is_refused() -> None:
    with pytest.raises(RemoteError, match="meaning 99"):
        member().receive("a", Message(Key(), 99, Dense(ONES), 0.5), 0.0)


def test_bases_are_named_while_recent_and_held_a_while_longer() -> None:
    held = Bases()
    name = held.hold(ONES, 5)
    held.advance(5 + USABLE_ROUNDS)
    assert held.names == (name,)
    assert held.newest_of([name]) == name
    held.advance(5 + USABLE_ROUNDS + 1)
    assert held.names == ()
    assert held.newest_of([name]) is None
    assert held.get(name) is ONES
    held.advance(5 + HELD_ROUNDS + 1)
    with pytest.raises(UnknownBaseError):
        held.get(name)


def test_only_so_many_bases_are_held_the_newest() -> None:
    held = Bases()
    names = [held.hold(model, t) for t, model in enumerate(randoms(MAX_HELD + 2, 8, 0))]
    assert held.names == tuple(reversed(names[2:]))


def test_the_digest_is_of_little_endian_values() -> None:
    """So that machines of either byte order name the same model alike."""
    assert digest(torch.tensor([1.0, -2.0])).hex() == "ee4ac73c2bd27756ab82780f27c73a7b"


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("peak", "weight", "says"),
    [
        (1.0, 1e300, "weight of at most 1e.06"),
        (1.0, 1.1e6, "weight of at most 1e.06"),
        (0.5, 1.0, "values of at most"),
        (0.5, 1e-3, "values of at most"),
    ],
)
@pytest.mark.parametrize("meaning", [SHARE, SNAPSHOT, REPLICA, DIFFERENCE])
def test_numbers_that_would_overflow_are_refused_and_nothing_is_applied(
    dtype: torch.dtype, peak: float, weight: float, says: str, meaning: int
) -> None:
    """Finite, and yet a sum or a product with them would not be."""
    node = make("difference-push", {}, LAYOUT, dtype)
    assert isinstance(node, DifferencePush)
    node.know(ZEROS)
    node.begin(ZEROS.to(dtype), 1.0)
    opened(node, 1, "a")
    body = Dense(peak * (torch.finfo(dtype).max if peak < 1 else 1.0) * ONES.to(dtype))
    with pytest.raises(RemoteError, match=says) as refused:
        node.receive("a", Message(Key(0, 1), meaning, body, weight, node.x0_digest), 0.0)
    assert not isinstance(refused.value, UnknownBaseError), "it is the neighbor's fault"
    assert node.mass()[1] == 1.0
    assert torch.equal(node.mix(), ZEROS.to(dtype))
    assert node.heard == frozenset()
    assert node.replicas.into == {}


def test_a_large_weight_of_a_large_model_is_refused_where_each_alone_is_not() -> None:
    node = SGP(LAYOUT, torch.float32)
    node.begin(ZEROS.float(), 1.0)
    large = Dense(1e15 * ONES.float())
    node.receive("a", Message(Key(0, 1), SHARE, large, 1.0), 0.0)
    with pytest.raises(RemoteError, match="after weighing"):
        node.receive("a", Message(Key(0, 1), SHARE, large, 1e6), 0.0)
    assert node.mass()[1] == 2.0
