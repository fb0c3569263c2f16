"""Where a peer is looked for."""

from __future__ import annotations

from peer.mesh.contacts import Contact


def test_a_hint_stands_behind_what_has_answered() -> None:
    contact = Contact("p-x")
    contact.learn(["10.0.0.1:7"], proven=True)
    contact.learn(["10.0.0.2:7"])
    contact.lists(["10.0.0.3:7"])
    assert contact.addresses == ["10.0.0.1:7", "10.0.0.3:7", "10.0.0.2:7"], "a port that is forwarded, say"


def test_where_a_peer_has_moved_from_it_is_looked_for_no_more() -> None:
    contact = Contact("p-x")
    contact.lists(["10.0.0.1:7", "[fd00::1]:7"])
    contact.learn(["10.0.0.1:7"], proven=True)
    contact.lists(["10.0.0.2:7", "[fd00::1]:7"])
    assert contact.addresses == ["[fd00::1]:7", "10.0.0.2:7"]


def test_one_that_moves_back_is_found_there() -> None:
    contact = Contact("p-x")
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        contact.lists([f"{host}:7"])
        assert contact.addresses == [f"{host}:7"]
