"""What a node does to be on the others' generation: telling, correcting, sorting messages, measuring."""

import pytest

from peer.errors import RemoteError
from peer.events import Deliver, Generation, Key, Note, Record, Tell
from peer.mesh import graphs
from peer.mesh.agreement import CORRECT_S, WEIGHED_S, Agreement
from peer.mesh.generations import BETTER_S, STABLE_S, TURN_S, TURNS, number

VIEW = ("a", "b", "c", "d")
OLD, NEW = Generation(1, "a", VIEW), Generation(2, "b", VIEW)
PROPOSED_S = STABLE_S + TURN_S * TURNS


def trained(me: str = "a", topology: str = "binary-tree") -> Agreement:
    agreement = Agreement(me, topology, "tree")
    agreement.generations.trains(0.0)
    agreement.generations.watch(VIEW, 0.0)
    return agreement


def on(generation: Generation, me: str = "a") -> Agreement:
    agreement = trained(me)
    agreement.hear("b", generation, 0.0)
    agreement.take_up()
    return agreement


def told(effects: list) -> dict[str, Generation]:
    return {effect.peer: effect.message for effect in effects if isinstance(effect, Tell)}


def message(generation: Generation, src: str = "b", number_: int = 1) -> Deliver:
    return Deliver(src, 1, number_, Key(number(generation), 5), b"m", "latest")


def test_a_proposal_is_told_to_all_its_members() -> None:
    effects = trained().propose([], VIEW, PROPOSED_S)
    assert told(effects) == dict.fromkeys("bcd", Generation(1, "a", VIEW))


def test_a_newer_generation_is_passed_on_to_the_neighbors_on_its_graph() -> None:
    assert told(on(OLD, "b").hear("c", NEW, 1.0)) == dict.fromkeys("acd", NEW)
    assert told(on(OLD, "a").hear("c", NEW, 1.0)) == {"b": NEW}


def test_who_tells_of_an_older_one_is_corrected_now_and_then() -> None:
    agreement = on(NEW)
    assert told(agreement.hear("d", OLD, 10.0)) == {"d": NEW}
    assert agreement.hear("d", OLD, 10.0 + CORRECT_S / 2) == []
    assert told(agreement.hear("d", OLD, 10.0 + CORRECT_S)) == {"d": NEW}
    assert agreement.hear("c", NEW, 10.0) == []


def test_a_generation_that_makes_no_tree_is_refused() -> None:
    with pytest.raises(RemoteError):
        trained(topology="spanning-tree").hear("b", Generation(1, "b", VIEW, (0, 2, 3, 1)), 0.0)


def test_messages_of_the_open_rounds_generation_go_to_the_learner_and_older_ones_are_refused() -> None:
    agreement = on(NEW)
    key = Key(number(NEW), 7)
    assert agreement.judge(message(NEW), key, trains=True) == "deliver"
    assert agreement.judge(message(OLD), key, trains=True) == "refuse"
    assert agreement.is_news(message(OLD)) and not agreement.is_news(message(NEW))


def test_a_message_of_the_generation_to_be_taken_up_next_is_kept_until_then() -> None:
    agreement = on(OLD)
    agreement.hear("b", NEW, 1.0)
    assert agreement.judge(message(NEW), Key(number(OLD), 7), trains=True) == "keep"
    assert agreement.overdue(trains=True) == []
    agreement.take_up()
    assert agreement.early() == [message(NEW)] and agreement.early() == []


def test_one_that_sends_messages_of_a_later_generation_is_not_expected_until_it_is_on_this_one() -> None:
    """Also where this node does not take that generation over."""
    first, later = Generation(1, "a", tuple("abc")), Generation(2, "b", tuple("abc"))
    node = on(first)
    key = Key(number(first))
    assert node.judge(message(later, "b"), key, trains=True) == "keep"
    assert len(node.overdue(trains=True)) == 1
    assert node.gone_on(key) == {"b"} and not node.gone_on(Key(number(later)))
    assert node.judge(message(first, "b", 2), key, trains=True) == "deliver"
    assert not node.gone_on(key)


def test_one_of_a_generation_that_is_not_known_is_answered_soon_and_one_on_a_node_without_model_at_once() -> (
    None
):
    agreement = on(OLD)
    assert agreement.judge(message(NEW), Key(number(OLD), 7), trains=True) == "keep"
    assert agreement.overdue(trains=True) == [message(NEW)]
    assert agreement.early() == []
    assert agreement.judge(message(NEW), Key(), trains=False) == "refuse"


def test_link_costs_are_published_when_their_class_changes_and_only_for_a_tree_made_of_them() -> None:
    agreement = trained(topology="spanning-tree")
    first = agreement.measured("b", 0.001, VIEW, 0.0)
    assert first is not None and graphs.unpack_costs(first, VIEW) == {"b": 0}
    assert agreement.measured("c", 0.5, VIEW, 1.0) is None  # not too often
    second = agreement.measured("b", 0.002, VIEW, WEIGHED_S)
    assert second is not None and graphs.unpack_costs(second, VIEW) == {"b": 0, "c": 3}
    assert agreement.measured("b", 0.001, VIEW, 3 * WEIGHED_S) is None
    assert trained().measured("b", 0.001, VIEW, 0.0) is None


def test_a_spanning_tree_is_made_of_what_the_records_say_and_made_anew_when_another_costs_less() -> None:
    agreement = trained(topology="spanning-tree")
    chain = {"a": {"b": 0}, "b": {"c": 0}, "c": {"d": 0}}

    def records(costs: dict[str, dict[str, int]]) -> list[Record]:
        return [Record(p, 1, 1, costs=graphs.pack_costs(costs.get(p, {}))) for p in VIEW]

    agreement.propose(records(chain), VIEW, PROPOSED_S)
    agreement.take_up()
    assert agreement.generations.current is not None
    assert agreement.generations.current.parents == (0, 0, 1, 2)
    assert agreement.propose(records(chain), VIEW, PROPOSED_S + 2 * BETTER_S) == []
    star = {"a": {"b": 0, "c": 0, "d": 0}, "b": {"c": 3}, "c": {"d": 3}}
    effects = agreement.propose(records(star), VIEW, PROPOSED_S + 4 * BETTER_S)
    assert set(told(effects)) == {"b", "c", "d"}
    agreement.take_up()
    assert agreement.generations.current.parents == (0, 0, 0, 0)


def test_of_a_link_whose_other_end_is_out_of_reach_nothing_is_said() -> None:
    agreement = trained(topology="spanning-tree")
    agreement.measured("b", 0.001, VIEW, 0.0)
    agreement.measured("c", 0.001, VIEW, 1.0)
    said = agreement.measured("c", 0.001, ("a", "c", "d"), WEIGHED_S)
    assert said is not None and graphs.unpack_costs(said, VIEW) == {"c": 0}


def test_a_tree_with_a_link_that_nobody_measures_any_more_is_made_anew_however_little_that_saves() -> None:
    agreement = trained(topology="spanning-tree")
    dear = {"a": {"b": 3, "d": 3}, "b": {"c": 3}, "c": {"d": 3}}

    def propose(costs: dict[str, dict[str, int]], now: float) -> bool:
        records = [Record(p, 1, 1, costs=graphs.pack_costs(costs.get(p, {}))) for p in VIEW]
        return bool(told(agreement.propose(records, VIEW, now)))

    assert propose(dear, PROPOSED_S)
    assert not propose(dear, PROPOSED_S + 2 * BETTER_S)
    del dear["b"]["c"]
    assert propose(dear, PROPOSED_S + 4 * BETTER_S)
    assert agreement.generations.latest is not None
    assert agreement.generations.latest.parents == (0, 0, 3, 0)
    del dear["c"]["d"]  # and nothing is known that is better
    assert not propose(dear, PROPOSED_S + 6 * BETTER_S)


def test_costs_that_make_no_sense_are_as_if_nothing_was_said() -> None:
    agreement = trained(topology="spanning-tree")
    effects = agreement.propose([Record("b", 1, 1, costs=b"xyz")], VIEW, PROPOSED_S)
    assert [e.text for e in effects if isinstance(e, Note)] == ["link costs refused", "proposes a generation"]
