"""Graphs without direction: connected, symmetric, and the same for everybody who holds the same view."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import RemoteError, UsageError
from peer.graphs import (
    KNOWN,
    TREES,
    Parents,
    adjacency,
    binary_tree,
    chain,
    diameter,
    double_tree,
    hops,
    mean_delay,
    metropolis,
    neighbors,
)
from peer.mesh.graphs import (
    MAX_DEGREE,
    MAX_ENTRIES,
    UNKNOWN,
    check_graph,
    check_parents,
    cost_class,
    graph_of,
    pack_costs,
    spanning_tree,
    unpack_costs,
)

Said = dict[str, dict[str, int]]
GOSSIP = [spec for spec in KNOWN if spec != "spanning-tree"]


def peers(n: int) -> tuple[str, ...]:
    return tuple(f"p-{i:03d}" for i in range(n))


def said(n: int, seed: int, share: float = 0.5) -> Said:
    """Each of n members speaks of about so many of the others."""
    rng = random.Random(seed)
    return {
        peer: {other: rng.randrange(UNKNOWN) for other in peers(n) if other != peer and rng.random() < share}
        for peer in peers(n)
    }


def cost(costs: Said, a: str, b: str) -> int:
    words = [costs[x][y] for x, y in ((a, b), (b, a)) if y in costs.get(x, {})]
    return max(words, default=UNKNOWN)


def edges(parents: Parents) -> list[tuple[int, int]]:
    return [(place, parent) for place, parent in enumerate(parents) if place != parent]


def degrees(parents: Parents) -> list[int]:
    return [len(neighbors(parents, place)) for place in range(len(parents))]


# --- trees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 257))
def test_every_tree_spans_with_few_neighbors_each(n: int) -> None:
    for tree, most in ((chain(n), 2), (binary_tree(n), 3), *((tree, 3) for tree in double_tree(n))):
        assert len(tree) == n and len(edges(tree)) == n - 1
        check_parents(tree, cap=most)


def test_the_numbering_is_the_papers() -> None:
    assert chain(4) == (0, 0, 1, 2)
    assert binary_tree(8) == (1, 1, 1, 1, 2, 2, 3, 3)
    first, second = double_tree(7)
    assert first == binary_tree(7)
    assert set(edges(second)) == {(6 - a, 6 - b) for a, b in edges(first)}


@pytest.mark.parametrize("n", range(4, 257))
def test_leaves_of_one_double_tree_are_inner_in_the_other(n: int) -> None:
    first, second = (degrees(tree) for tree in double_tree(n))
    inner_nowhere = {place for place in range(n) if first[place] == second[place] == 1}
    assert inner_nowhere == {0, n - 1}  # the first hangs off the root of its tree beside the heap


@pytest.mark.parametrize(
    ("tree", "delay", "far"),
    [
        (chain(16), 4.375, 15),
        (binary_tree(16), 2.3203125, 6),
        (double_tree(16)[1], 2.3203125, 6),
        (chain(8), 1.75, 7),
        (binary_tree(8), 1.15625, 4),
        (chain(32), 9.6875, 31),
        ((0,) * 32, 0.908203125, 2),
        ((0,), 0.0, 0),
    ],
)
def test_mean_delays_are_those_of_the_papers_rate_corrections(tree: Parents, delay: float, far: int) -> None:
    assert mean_delay(tree) == delay
    assert diameter(tree) == far


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_delay_and_diameter_are_over_all_pairs(n: int, seed: int) -> None:
    rng = random.Random(seed)
    tree = (0, *(rng.randrange(place) for place in range(1, n)))
    far = [hops(tree, place) for place in range(n)]
    assert diameter(tree) == max(map(max, far))
    assert mean_delay(tree) == pytest.approx(sum(max(h - 1, 0) for row in far for h in row) / n**2)
    assert all(far[a][b] == far[b][a] for a, b in product(range(n), repeat=2))


@given(st.integers(1, 256), st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_a_spanning_tree_spans_within_its_cap_whatever_the_costs(n: int, seed: int, share: float) -> None:
    tree = spanning_tree(peers(n), said(n, seed, min(share, 40 / n)))
    check_graph("spanning-tree", peers(n), tree)
    assert tree[0] == 0 and max(degrees(tree)) <= MAX_DEGREE


def test_a_spanning_tree_around_one_cheap_member_stays_within_its_cap() -> None:
    costs = {"p-005": dict.fromkeys(peers(256), 0)}
    tree = spanning_tree(peers(256), costs)
    check_parents(tree)
    assert degrees(tree)[5] == MAX_DEGREE


@given(st.integers(2, 30), st.integers(0, 2**32))
def test_the_order_in_which_costs_are_told_does_not_matter(n: int, seed: int) -> None:
    costs = said(n, seed)
    shuffled = list(costs)
    random.Random(seed).shuffle(shuffled)
    other = {peer: dict(reversed(costs[peer].items())) for peer in shuffled}
    other["stranger"] = dict.fromkeys(peers(n), 0)
    assert spanning_tree(peers(n), other) == spanning_tree(peers(n), costs)


@given(st.integers(2, 6), st.integers(0, 2**32))
def test_without_a_cap_no_spanning_tree_is_cheaper(n: int, seed: int) -> None:
    view, costs = peers(n), said(n, seed, 0.8)
    least = min(total for tree in trees_of(n) if (total := weight(tree, view, costs)) is not None)
    assert weight(spanning_tree(view, costs, cap=n), view, costs) == least


def trees_of(n: int) -> list[Parents]:
    """All trees of n places rooted at 0, as parents."""
    return [tree for rest in product(range(n), repeat=n - 1) if spans(tree := (0, *rest))]


def spans(tree: Parents) -> bool:
    try:
        check_parents(tree, cap=len(tree))
    except RemoteError:
        return False
    return True


def weight(tree: Parents, view: tuple[str, ...], costs: Said) -> int:
    return sum(cost(costs, view[a], view[b]) for a, b in edges(tree))


def test_a_link_costs_the_most_its_ends_say_and_one_end_is_enough() -> None:
    view = ("a", "b", "c")
    costs = {"a": {"b": 0, "c": 1}, "b": {"a": 2}}
    assert edges(spanning_tree(view, costs)) == [(1, 0), (2, 0)]  # b - c is unknown, so dearer than 2
    assert edges(spanning_tree(view, {**costs, "c": {"b": 1}})) == [(1, 2), (2, 0)]


@pytest.mark.parametrize(
    ("parents", "words"),
    [
        ((), "one root, and this has 0"),
        ((0, 1), "one root, and this has 2"),
        ((1, 0), "one root, and this has 0"),
        ((0, 2, 1), "not all"),
        ((0, 2, 3, 1), "not all"),
        ((0, 3), "parents 0 to 1"),
        ((0, -1), "parents 0 to 1"),
        ((0, 0, 0, 0, 0, 0), "more than 4 neighbors"),
    ],
)
def test_a_strangers_parents_that_make_no_tree_are_refused(parents: Parents, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        check_parents(parents)


@given(st.lists(st.integers(-1, 7), min_size=1, max_size=7))
def test_what_passes_as_a_tree_is_one(parents: list[int]) -> None:
    try:
        check_parents(parents)
    except RemoteError:
        return
    tree = tuple(parents)
    for place in range(len(tree)):
        for _ in tree:
            place = tree[place]
        assert tree[place] == place
    assert len(edges(tree)) == len(tree) - 1 and max(degrees(tree)) <= MAX_DEGREE


@pytest.mark.parametrize(
    ("spec", "view", "parents", "words"),
    [
        ("chain", ("a", "b", "a"), (), "once"),
        ("chain", (), (), "once"),
        ("chain", ("a", "b"), (0, 0), "no parents"),
        ("spanning-tree", ("a", "b"), (0,), "has no 1 parents"),
        ("spanning-tree", ("a", "b"), (), "has no 0 parents"),
        ("spanning-tree", ("a", "b", "c"), (0, 2, 1), "not all"),
    ],
)
def test_a_strangers_graph_that_fits_no_view_is_refused(
    spec: str, view: tuple[str, ...], parents: Parents, words: str
) -> None:
    with pytest.raises(RemoteError, match=words):
        check_graph(spec, view, parents)
    check_graph("chain", ("a", "b"), ())
    check_graph("spanning-tree", ("a", "b"), (0, 0))


# --- graphs for gossip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", GOSSIP)
@pytest.mark.parametrize("n", [*range(1, 34), 97, 128, 256])
def test_graphs_are_symmetric_and_connected(spec: str, n: int) -> None:
    graph = adjacency(spec, n)
    assert len(graph) == n
    for place, beside in enumerate(graph):
        assert list(beside) == sorted(set(beside) - {place})
        assert all(place in graph[other] for other in beside)
    reached, frontier = {0}, [0]
    for here in frontier:
        frontier += set(graph[here]) - reached
        reached |= set(graph[here])
    assert reached == set(range(n))


def test_graphs_are_what_their_names_say() -> None:
    assert adjacency("ring", 5)[0] == (1, 4)
    assert adjacency("chain", 5)[0] == (1,)
    assert adjacency("complete", 4)[2] == (0, 1, 3)
    assert adjacency("exponential", 16)[0] == (1, 2, 4, 8, 12, 14, 15)
    assert adjacency("grid", 12)[0] == (1, 3, 4, 8)  # 3 rows of 4
    assert adjacency("grid", 13) == adjacency("ring", 13)
    assert adjacency("binary-tree", 8)[1] == (0, 2, 3)
    assert adjacency("double-tree", 8)[0] == (1, 4)  # a leaf, and 7 of the other one
    with pytest.raises(UsageError, match="ring, grid, exponential, complete, chain"):
        adjacency("random-2", 8)


@given(st.sampled_from(GOSSIP), st.integers(1, 64))
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(spec: str, n: int) -> None:
    graph = adjacency(spec, n)
    rows = metropolis(graph)
    for place, row in enumerate(rows):
        assert set(row) == {place, *graph[place]}
        assert sum(row.values()) == pytest.approx(1, abs=1e-12)
        assert all(rows[other][place] == share for other, share in row.items())
        assert min(row.values()) > 0
    assert metropolis(adjacency("chain", 3))[1] == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert metropolis(adjacency("chain", 3))[0] == pytest.approx({0: 2 / 3, 1: 1 / 3})


@given(st.sampled_from(KNOWN), st.integers(1, 24), st.integers(0, 99))
def test_members_places_fit_together(spec: str, n: int, seed: int) -> None:
    view = tuple(random.Random(seed).sample(peers(n), n))
    parents = spanning_tree(view, said(n, seed)) if spec == "spanning-tree" else ()
    places = {me: graph_of(spec, view, me, parents) for me in view}
    for me, place in places.items():
        assert place.n == n and me not in place.out
        assert all(places[other].out[me] == share for other, share in place.out.items())
        assert len(place.trees) == (2 if spec == "double-tree" else 1 if spec in TREES else 0)
        for which, beside in enumerate(place.trees):
            assert all(me in places[other].trees[which] for other in beside)
        if place.trees:
            assert {other for beside in place.trees for other in beside} == set(place.out)
        assert place.mean_delay >= 0 and (place.diameter >= 1 or n == 1)


def test_a_place_says_how_far_the_graph_reaches() -> None:
    view = peers(16)
    assert graph_of("double-tree", view, "p-003").mean_delay == 2.3203125
    assert [graph_of(spec, view, "p-003").diameter for spec in KNOWN[:6]] == [8, 4, 2, 1, 15, 6]
    assert graph_of("chain", view, "p-003").trees == (("p-002", "p-004"),)
    assert graph_of("spanning-tree", view[:3], "p-001", (0, 0, 0)).trees == (("p-000",),)


# --- costs of links --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rtt_s", "expected"), [(0, 0), (0.0049, 0), (0.005, 1), (0.02, 2), (0.0799, 2), (0.08, 3), (9, 3)]
)
def test_costs_are_classes_of_round_trip_times(rtt_s: float, expected: int) -> None:
    assert cost_class(rtt_s) == expected


@given(st.dictionaries(st.sampled_from(peers(256)), st.integers(0, 3)), st.integers(0, 99))
def test_costs_come_out_as_they_went_in_the_cheapest_64(classes: dict[str, int], seed: int) -> None:
    shuffled = list(classes.items())
    random.Random(seed).shuffle(shuffled)
    packed = pack_costs(classes)
    assert packed == pack_costs(dict(shuffled)) and len(packed) <= 5 * MAX_ENTRIES
    found = unpack_costs(packed, peers(256))
    assert found.items() <= classes.items() and len(found) == min(len(classes), MAX_ENTRIES)
    left_out = [cost for peer, cost in classes.items() if peer not in found]
    assert not found or all(cost >= max(found.values()) for cost in left_out)
    assert unpack_costs(packed, peers(3)) == {p: c for p, c in found.items() if p in peers(3)}


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"1234", "at most 64 times 5 bytes"),
        (b"123456", "at most 64 times 5 bytes"),
        (b"".join(bytes([0, 0, 0, i, 1]) for i in range(65)), "at most 64 times 5 bytes"),
        (b"1234\x04", "class from 0 to 3"),
        (b"1234\x00" * 2, "one cost"),
    ],
)
def test_malformed_costs_are_refused(packed: bytes, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        unpack_costs(packed, peers(4))


def test_of_two_peers_with_one_mark_nothing_is_said() -> None:
    one, other = "p-70729", "p-139116"
    assert unpack_costs(pack_costs({one: 1}), (one, "x")) == {one: 1}
    assert unpack_costs(pack_costs({one: 1, "x": 2}), (one, other, "x")) == {"x": 2}
    assert pack_costs({one: 1, other: 2}) == b""
