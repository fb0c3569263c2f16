"""What a round's messages may take: fewer links where there is no room for all, and nothing tried in vain."""

from __future__ import annotations

from peer.algorithms.base import Links
from peer.events import Key
from peer.learner.portions import Portions, on_wire

OPENING, USUAL, EACH_ROUND = 1000, 2000, 300  # bytes


def links(*dsts: str) -> Links:
    return Links(Key(), dict.fromkeys(dsts, 0.25), frozenset(), clear=frozenset(dsts))


def test_with_room_for_one_of_two_they_take_turns() -> None:
    portions, reached = Portions(), []
    for round_ in range(6):
        allowed = portions.affordable(links("b", "c"), on_wire(500), least=500, word=0)
        sizes = dict.fromkeys(allowed.clear, 500)
        sent, _ = portions.within(sizes, on_wire(500), Key(0, round_), at_any_rate=False)
        reached += sent
    assert reached == ["b", "c"] * 3


def test_what_had_no_room_is_waited_for_in_its_own_size() -> None:
    """A link that begins anew sends something smaller first; what comes back un-sent begins it anew."""
    portions, saved, knows, sent = Portions(), 0, False, {OPENING: 0, USUAL: 0}
    for round_ in range(100):
        saved += EACH_ROUND
        allowed = portions.affordable(links("b"), saved, least=0, word=0)
        if not allowed.clear:
            continue
        size = USUAL if knows else OPENING
        chosen, left = portions.within({"b": size}, saved, Key(0, round_), at_any_rate=False)
        knows = bool(chosen)
        if chosen:
            saved, sent[size] = left, sent[size] + 1
    assert sent[OPENING] <= 2
    assert sent[USUAL] >= 0.8 * (100 * EACH_ROUND - 2 * OPENING) // on_wire(USUAL)
