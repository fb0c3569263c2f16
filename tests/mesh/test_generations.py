"""Agreement on one graph: proposals coincide, the newest holds, none comes too often."""

import itertools

import pytest

from peer.errors import RemoteError
from peer.events import Generation
from peer.mesh import generations as module
from peer.mesh.generations import AGAIN_S, RETURN_S, STABLE_MOST_S, STABLE_S, Generations, number

LATE_S = module.TURN_S * module.TURNS  # the last in the view proposes so much later


class Home:
    """Nodes that see a view and tell each other what they propose, at once or not at all."""

    def __init__(self, peers, spec="binary-tree", costs=None):
        self.now, self.told, self.costs = 0.0, 0, costs or {}
        self.nodes = {peer: Generations(peer, spec, "tree") for peer in peers}
        self.groups = [set(peers)]
        for peer in peers:
            self.nodes[peer].trains(0.0)
        self.look()

    def look(self, *groups):
        """Everybody sees those of its group."""
        self.groups = list(map(set, groups)) or self.groups
        for group in self.groups:
            for peer in group:
                self.nodes[peer].watch(sorted(group), self.now)

    def run(self, seconds, step=0.25):
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for group in self.groups:
                for peer in sorted(group):
                    proposed = self.nodes[peer].propose(self.costs, self.now)
                    if proposed is not None:
                        self.told += 1
                        for other in group - {peer}:
                            self.nodes[other].take(proposed, peer, self.now)
                    self.nodes[peer].install()

    def numbers(self, peers=None):
        return {self.nodes[peer].number for peer in peers or set().union(*self.groups)}

    def epoch(self, peer):
        current = self.nodes[peer].current
        return current.epoch if current else 0


def test_a_view_that_stands_still_becomes_a_generation_and_one_proposal_is_enough():
    home = Home("abcdefgh")
    home.run(STABLE_S - 0.25)
    assert home.numbers() == {0}
    home.run(0.5 + LATE_S)
    assert home.numbers() == {number(Generation(1, "", tuple("abcdefgh")))}
    assert home.told == 1
    home.run(300)
    assert home.told == 1


def test_who_proposes_the_same_view_proposes_the_same_generation():
    a, b = (Generations(me, "chain", "tree") for me in "ab")
    for node in (a, b):
        node.trains(0.0)
        node.watch(("a", "b"), 0.0)
    first, second = (node.propose({}, STABLE_S + LATE_S) for node in (a, b))
    assert first is not None and second is not None and number(first) == number(second)
    assert not a.take(second, "b", 10.0)


def test_a_view_that_never_stands_still_is_used_after_ten_seconds():
    node = Generations("a", "chain", "tree")
    node.trains(0.0)
    came = iter("bcdefghijklmnop")
    view = ["a"]
    for tick in itertools.count():
        now = tick * 0.5
        if tick % 4 == 0:
            view.append(next(came))
            node.watch(sorted(view), now)
        if node.propose({}, now) is not None:
            break
    assert STABLE_MOST_S <= now <= STABLE_MOST_S + LATE_S + 1


def test_no_generation_is_proposed_with_one_that_is_suspected_until_ten_seconds_have_passed() -> None:
    """It may be gone from the view in a moment."""
    node = Generations("a", "chain", "tree")
    node.trains(0.0)
    node.watch(("a", "b"), 0.0)
    assert node.propose({}, 0.0) is None
    assert node.propose({}, STABLE_MOST_S - 0.5, doubt=True) is None
    proposed = node.propose({}, STABLE_MOST_S + LATE_S, doubt=True)
    assert proposed is not None and proposed.view == ("a", "b")


def test_newcomers_wait_until_fifteen_seconds_after_the_last_generation():
    home = Home("abc")
    home.run(STABLE_S + LATE_S)
    assert home.epoch("a") == 1
    began = home.now
    home.nodes["d"] = Generations("d", "binary-tree", "tree")
    home.nodes["d"].take(home.nodes["a"].latest, "a", home.now)  # its sponsor tells it
    home.nodes["d"].trains(home.now)
    home.look("abcd")
    home.run(AGAIN_S - LATE_S - 0.5)
    assert home.epoch("a") == 1
    home.run(2 * LATE_S + 0.5)
    assert home.now - began >= AGAIN_S and home.epoch("a") == home.epoch("d") == 2
    assert len(home.numbers()) == 1


def test_a_known_device_that_returns_has_its_old_seat_at_once():
    home = Home("abcdef")
    home.run(20)
    before = home.nodes["c"].current
    home.look("abdef")
    home.run(20)
    assert home.nodes["a"].current.view == tuple("abdef")
    home.nodes["c"].trains(None)
    home.nodes["c"].trains(home.now)
    home.look("abcdef")
    home.run(RETURN_S + 0.5)
    assert home.nodes["c"].current.view == before.view
    assert len(home.numbers()) == 1


def test_a_new_life_within_the_same_view_begins_the_next_generation_on_the_same_tree_at_once():
    home = Home("abcd")
    home.run(20)
    old = home.nodes["b"].current
    home.nodes["b"].trains(None)
    home.look("acd", "b")
    home.run(1)
    assert home.numbers("acd") == {number(old)}
    home.nodes["b"].trains(home.now)
    home.look("abcd")
    home.run(0.5)
    new = home.nodes["a"].current
    assert (new.epoch, new.view) == (old.epoch + 1, old.view)
    assert len(home.numbers()) == 1
    told = home.told
    home.run(60)
    assert home.told == told


def restart(home, peer, off_s=1.0):
    """A new process, which knows nothing; the others do, and tell it of the newest generation they have."""
    home.look(set(home.nodes) - {peer}, {peer})
    home.nodes[peer].trains(None)
    home.run(off_s)
    home.nodes[peer] = fresh = Generations(peer, home.nodes[peer].spec, "tree")
    latest = max((node.latest for node in home.nodes.values() if node.latest), key=number)
    fresh.take(latest, "a", home.now)
    home.now += 0.1
    fresh.trains(home.now)
    home.look(home.nodes)


@pytest.mark.parametrize(("spec", "at"), [("binary-tree", -1), ("double-tree", 0), ("spanning-tree", -1)])
def test_one_that_restarts_again_and_again_ends_at_the_leaves_and_makes_no_more_generations_than_others(
    spec, at
):
    home = Home("abcdefgh", spec)
    home.run(60)
    began, installed = home.now, {home.nodes["a"].number}
    while home.now < began + 120.0:
        restart(home, "d")
        for _ in range(20):
            home.run(0.25)
            installed.add(home.nodes["a"].number)
    assert len(installed) - 1 <= 120 / AGAIN_S + 1
    home.run(AGAIN_S + LATE_S)
    assert len(home.numbers()) == 1
    assert home.nodes["a"].current.view[at] == "d"
    assert {len(tree) for tree in home.nodes["d"].place().trees} == {1}


def test_one_restart_is_answered_at_once_and_the_next_soon_after_only_when_it_is_time():
    home = Home("abcd")
    home.run(60)
    restart(home, "b")
    home.run(0.5)
    assert len(home.numbers()) == 1 and home.nodes["a"].current.view == tuple("abcd")
    home.run(2.0)
    restart(home, "b")
    adopted = home.now - 3.6  # a second of it off
    home.run(adopted + AGAIN_S - 1.0 - home.now)
    assert len(home.numbers("acd")) == 1 and home.numbers("b") != home.numbers("acd")
    home.run(1.0 + LATE_S)
    assert len(home.numbers()) == 1 and home.nodes["b"].current.view == tuple("acdb")
    told = home.told
    home.run(60)
    assert home.told == told


def test_what_somebody_else_has_taken_over_is_taken_though_its_proposer_comes_and_goes():
    """This node may be alone with that opinion."""
    home = Home("abcd")
    home.run(60)
    restart(home, "b")
    home.run(2.0)
    restart(home, "b")
    proposed = home.nodes["b"].propose({}, home.now)
    assert proposed is not None
    assert not home.nodes["a"].take(proposed, "b", home.now)
    assert home.nodes["a"].take(proposed, "c", home.now)


def test_a_node_that_sees_half_of_all_come_and_go_refuses_nothing():
    home = Home("abcd")
    home.run(60)
    alone = home.nodes["d"]
    for _ in range(2):
        alone.watch(("d",), home.now)
        alone.watch(tuple("abcd"), home.now)
    assert alone.flapping(home.now) == set("abc")
    restart(home, "b")
    assert alone.take(home.nodes["b"].propose({}, home.now), "b", home.now)


def test_a_learner_that_restarts_again_and_again_under_its_daemon_waits_itself():
    home = Home("abcd")
    home.run(60)
    began, first = home.now, home.epoch("a")
    while home.now < began + 120.0:
        home.nodes["b"].trains(None)
        home.look("acd")
        home.nodes["b"].watch(tuple("acd"), home.now)
        home.run(0.75)
        home.nodes["b"].trains(home.now)
        home.look("abcd")
        home.run(3.25)
    assert home.epoch("a") - first <= 120 / AGAIN_S + 1
    assert home.nodes["a"].current.view == tuple("acdb")


def test_a_device_that_comes_and_goes_ends_at_the_leaves_and_gets_no_second_look():
    home = Home("abcdefg")
    home.run(20)
    for _ in range(2):
        home.look("acdefg")
        home.run(STABLE_S + AGAIN_S + LATE_S)
        home.look("abcdefg")
        home.run(20)
    assert home.nodes["a"].flapping(home.now) == {"b"}
    view = home.nodes["a"].current.view
    assert view == tuple("acdefgb")
    assert len(home.nodes["b"].place().out) == 1
    home.look("acdefg")
    home.run(AGAIN_S + STABLE_S + LATE_S)
    home.look("abcdefg")
    home.run(STABLE_S - 0.5)
    assert "b" not in home.nodes["a"].current.view
    home.run(LATE_S)
    assert home.nodes["a"].current.view[-1] == "b"
    home.run(module.FLAPPING_S)
    assert home.nodes["a"].flapping(home.now) == set()


def test_on_double_trees_it_is_put_where_both_have_a_leaf():
    home = Home("abcdefgh", "double-tree")
    home.run(20)
    for _ in range(2):
        home.look("abdefgh")
        home.run(20)
        home.look("abcdefgh")
        home.run(20)
    place = home.nodes["c"].place()
    assert [len(tree) for tree in place.trees] == [1, 1]


def test_two_halves_run_two_generations_and_become_one():
    home = Home("abcdefgh")
    home.run(20)
    home.look("abcd", "efgh")
    home.run(30)
    assert len(home.numbers("abcd")) == len(home.numbers("efgh")) == 1
    assert home.numbers("abcd") != home.numbers("efgh")
    home.look("abcdefgh")
    home.run(10)
    assert len(home.numbers()) == 1
    assert set(home.nodes["a"].current.view) == set("abcdefgh")


def test_the_last_one_left_goes_on_in_a_generation_of_its_own():
    home = Home("ab")
    home.run(20)
    home.look("a", "b")
    home.run(20)
    assert home.nodes["a"].current.view == ("a",)
    assert home.nodes["a"].place().n == 1 and not home.nodes["a"].place().out


def test_generations_come_at_most_every_fifteen_seconds_however_the_view_changes():
    home = Home("abcdefgh")
    home.run(20)
    seen = {home.nodes["a"].number}
    for tick in range(120):
        home.look("abcdefgh"[: 4 + tick % 4])
        home.run(1)
        seen.add(home.nodes["a"].number)
    assert 1 < len(seen) <= 1 + 120 / AGAIN_S + 3  # the first two returns are before anybody flaps


@pytest.mark.parametrize(
    "bad",
    [
        Generation(1 << 30, "x", ("a", "b")),
        Generation(2, "x", ("a", "a")),
        Generation(2, "x", ("a", "b"), (0, 0)),
    ],
)
def test_nonsense_is_refused_and_nothing_changes(bad):
    node = Generations("a", "binary-tree", "tree")
    with pytest.raises(RemoteError):
        node.take(bad, "x", 0.0)
    assert node.latest is None


def test_a_cycle_in_the_parents_of_a_spanning_tree_is_refused():
    node = Generations("a", "spanning-tree", "tree")
    with pytest.raises(RemoteError):
        node.take(Generation(1, "x", ("a", "b", "c"), (0, 2, 1)), "x", 0.0)
    assert node.take(Generation(1, "x", ("a", "b", "c"), (0, 0, 1)), "x", 0.0)


def test_a_spanning_tree_follows_the_costs():
    costs = {"b": {"a": 0, "c": 0, "d": 0}}
    node = Generations("a", "spanning-tree", "tree")
    node.trains(0.0)
    node.watch(tuple("abcd"), 0.0)
    proposed = node.propose(costs, STABLE_S + LATE_S)
    assert proposed.parents == (0, 0, 1, 1)
    node.install()
    assert node.place().trees == (("b",),)


def test_a_spanning_tree_has_no_flapping_device_in_the_middle_where_by_its_costs_it_would_be():
    """The others' links are as the costs have them; when it stays it is in the middle again."""
    order = {frozenset(pair): 1 for pair in ("ad", "de", "ce")} | {frozenset("b" + o): 0 for o in "acde"}
    costs = {p: {o: order.get(frozenset(p + o), 2) for o in "abcde" if o != p} for p in "abcde"}
    home = Home("abcde", "spanning-tree", costs)
    home.run(20)
    assert set(home.nodes["b"].place().out) == set("acde")
    for _ in range(2):
        home.look("acde")
        home.run(STABLE_S + AGAIN_S + LATE_S)
        home.look("abcde")
        home.run(20)
    assert len(home.numbers()) == 1
    assert [sorted(set(home.nodes[peer].place().out) - {"b"}) for peer in "acde"] == [
        ["d"], ["e"], ["a", "e"], ["c", "d"],
    ]  # fmt: skip
    epoch = home.epoch("a")
    while "b" in home.nodes["a"].flapping(home.now + 1):
        assert home.nodes["a"].current.view == tuple("acdeb")
        assert home.epoch("a") == home.epoch("b") == epoch, "b, who does not know, proposes no better tree"
        assert 4 not in home.nodes["a"].current.parents, "b is nobody's parent, not for a better tree either"
        home.run(1)
    assert home.now > module.FLAPPING_S
    home.run(module.BETTER_S + AGAIN_S + LATE_S)
    assert len(home.numbers()) == 1
    assert set(home.nodes["b"].place().out) == set("acde")


def test_one_that_only_this_node_still_sees_is_not_one_that_returns() -> None:
    """Else whoever misses a crash proposes the dead device again and again, each time at once."""
    home = Home("abcd")
    home.run(20)
    for peer in "abc":
        home.nodes[peer].watch(("a", "b", "c") if peer != "c" else tuple("abcd"), home.now)
    home.groups = [set("abc")]
    epochs = [home.epoch("a")]
    for _ in range(60):
        home.run(1)
        epochs.append(home.epoch("a"))
    assert epochs[-1] - epochs[0] <= 1 + 60 / AGAIN_S


def cheap(*pairs):
    """What members say of their links: these are cheap, and the others are measured and dear."""
    peers = sorted(set("".join(pairs)))
    return {
        peer: {other: 0 if {peer, other} in map(set, pairs) else 1 for other in peers if other != peer}
        for peer in peers
    }


def returned(costs, costs_without_c, *, broken=()):
    """The tree of a to e, and the one after c was away: nobody has measured its links yet."""
    node = Generations("a", "spanning-tree", "tree")
    node.trains(0.0)
    node.watch(tuple("abcde"), 0.0)
    first = node.propose(costs, 10.0)
    node.watch(tuple("abde"), 100.0)
    assert node.propose(costs_without_c, 120.0).view == tuple("abde")
    node.watch(tuple("abcde"), 200.0)
    said = {
        peer: {o: c for o, c in says.items() if {peer, o} not in broken}
        for peer, says in costs_without_c.items()
    }
    again = node.propose(said, 200.0 + RETURN_S)
    assert again is not None and again.view == first.view
    return node, first, again


def test_who_returns_to_a_tree_of_costs_has_its_old_seat_though_its_links_are_not_measured_yet():
    chain, without = cheap("ab", "bc", "cd", "de"), cheap("ab", "de", "ad", "ae")
    node, first, again = returned(chain, without)
    assert first.parents == again.parents == (0, 0, 1, 2, 3)
    assert node.propose(cheap("ab", "ac", "ad", "ae"), 231.5).parents == (0, 0, 0, 0, 0), "improved in time"


def test_a_tree_with_a_link_that_nobody_measures_any_more_is_not_taken_again():
    chain, without = cheap("ab", "bc", "cd", "de"), cheap("ab", "de", "ad", "ae")
    _, first, again = returned(chain, without, broken=[{"d", "e"}])
    assert again.parents != first.parents


def test_only_a_few_trees_are_remembered():
    node = Generations("a", "spanning-tree", "tree")
    for epoch in range(1, 30):
        node.take(Generation(epoch, "x", ("a", f"b{epoch}"), (0, 0)), "x", float(epoch))
    assert len(node._trees) == module.KEPT_TREES
