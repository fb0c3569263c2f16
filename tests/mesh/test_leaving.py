"""A node that has been told to leave: what it says of the mass it held."""

from __future__ import annotations

import pytest

from peer.events import Effect, Gone, Holds, Leave, Met, Note, Ready, Record, Tick
from peer.mesh.leaving import HAND_OVER_S
from peer.mesh.node import Node
from peer.mesh.terms import Terms

ME, OTHER = "p-" + 26 * "a", "p-" + 26 * "b"
UNCONFIRMED = "leaves without confirmation that its mass was taken over"


@pytest.mark.parametrize("confirmed", [True, False])
def test_what_is_confirmed_by_the_event_with_which_its_time_is_up_is_confirmed(confirmed: bool) -> None:
    node = Node(Record(ME, 1, 1 << 20), Terms("complete", 0, founder=True))
    node.handle(Ready((1 << 20) + 1), 0.0)
    node.handle(Holds((), 1.0), 0.0)
    node.handle(Met(Record(OTHER, 1, 1 << 20, phase="training", life=9, weight=1.0)), 0.0)
    node.handle(Leave(), 0.0)
    assert node._leaving is not None
    node._leaving.heir = OTHER
    node._leaving.pushed(OTHER)
    for second in range(int(HAND_OVER_S)):
        assert said(node.handle(Tick(), float(second))) == []
    effects = node.handle(Holds((), 0.0) if confirmed else Tick(), HAND_OVER_S + 0.1)
    assert any(isinstance(effect, Gone) for effect in effects)
    assert said(effects) == ([] if confirmed else [UNCONFIRMED])


def said(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Note) and effect.level == "warning"]
