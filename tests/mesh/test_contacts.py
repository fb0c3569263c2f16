"""Where a peer is looked for."""

from __future__ import annotations

from peer.mesh.contacts import MAX_CONTACTS, Contact, Contacts


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


def test_what_one_has_cost_counts_after_it_has_made_room() -> None:
    contacts = Contacts()
    first = contacts.of("p-0")
    first.bytes_sent, first.frame_bytes_sent, first.bytes_received = 5, 3, 2
    for n in range(1, MAX_CONTACTS + 1):
        contacts.of(f"p-{n}").bytes_sent = 1
    assert contacts.get("p-0") is None
    assert len(list(contacts)) == MAX_CONTACTS
    assert sum(contact.bytes_sent for contact in contacts.ever()) == MAX_CONTACTS + 5
    assert sum(contact.frame_bytes_sent for contact in contacts.ever()) == 3
    assert sum(contact.bytes_received for contact in contacts.ever()) == 2
