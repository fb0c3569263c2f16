"""Graphs without direction, for algorithms whose members must all mean the same one: trees, and gossip's.

Members stand in places 0 … n-1 of an ordered view that they agreed on (events.Generation), and everything
here is a function of its arguments alone. A tree is each place's parent, the root's its own.

    chain           0 - 1 - … - n-1
    binary-tree     0 hangs off 1, the others off w // 2 (Vogels et al., RelaySum, NeurIPS 2021: their code)
    double-tree     that one, and the same with w called n - 1 - w: leaves of one are inner in the other
    spanning-tree   the least by measured costs, nobody with more than four neighbors; travels as parents
    ring, complete  each with the one before and behind; with everybody
    grid            a torus as square as n allows (topology.grid_shape): a ring where n is prime
    exponential     each with those 1, 2, 4, … < n places before and behind

Weights are Metropolis', on trees too: a gossip average needs them, RelaySum does not look at them. How
directed topologies go is topology.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

from peer.errors import RemoteError, UsageError
from peer.events import PeerId
from peer.mesh.topology import grid_shape

Parents = tuple[int, ...]
Adjacency = tuple[tuple[int, ...], ...]  # of each place, the places beside it, sorted
Costs = Mapping[PeerId, Mapping[PeerId, int]]  # what each member says of its links

TREES = ("chain", "binary-tree", "double-tree", "spanning-tree")
KNOWN = ("ring", "grid", "exponential", "complete", *TREES)
MAX_DEGREE = 4  # of a spanning tree: reliability note e; a binary tree has 3
UNKNOWN = 4  # the class of a link that nobody has measured, the dearest
# Upper ends of the classes of round-trip times, all guesses: a cable (0.5 ms on loopback, measured), good
# Wi-Fi, busy Wi-Fi, power save or another house.
CLASS_ENDS_S = (0.005, 0.020, 0.080)
MAX_ENTRIES = 64  # of a record: 320 bytes, and more choice than a tree needs (guess)
_MARK = 4  # bytes of hash that stand for a peer


# --- trees ---------------------------------------------------------------------------------------------


def chain(n: int) -> Parents:
    return (0, *range(n - 1))


def binary_tree(n: int) -> Parents:
    return (0,) if n == 1 else (1, 1, *(w // 2 for w in range(2, n)))


def double_tree(n: int) -> tuple[Parents, Parents]:
    tree = binary_tree(n)
    return tree, tuple(n - 1 - parent for parent in reversed(tree))


class TreeCost(NamedTuple):
    """What the links of a tree cost together, and how many of them nobody has measured."""

    classes: int
    unmeasured: int


def spanning_tree(view: Sequence[PeerId], costs: Costs, cap: int = MAX_DEGREE) -> Parents:
    """A spanning tree with at most `cap` >= 2 neighbors each, as Kruskal finds it: links by class, then by
    pair of places. The least there is, unless the cap is in the way.

    One pass is enough. If it ended with two parts, each would have a place below the cap, since k places of
    a tree have 2k - 2 ends between them; the link between these two was looked at when both had room.
    """
    n = len(view)
    assert cap >= 2, "two places with one neighbor each and a third between them"
    part = list(range(n))
    beside: list[list[int]] = [[] for _ in view]
    missing = n - 1
    for a, b in _by_cost(view, costs):
        if not missing:
            break
        if len(beside[a]) < cap and len(beside[b]) < cap and _find(part, a) != _find(part, b):
            part[_find(part, a)] = _find(part, b)
            beside[a].append(b)
            beside[b].append(a)
            missing -= 1
    return _rooted(beside)


def tree_cost(view: Sequence[PeerId], parents: Sequence[int], costs: Costs) -> TreeCost:
    """What the links of this tree cost together."""
    said = _said(view, costs)
    pairs = [(min(w, parent), max(w, parent)) for w, parent in enumerate(parents) if w != parent]
    classes = sum(said.get(pair, UNKNOWN) for pair in pairs)
    return TreeCost(classes, sum(pair not in said for pair in pairs))


def _by_cost(view: Sequence[PeerId], costs: Costs) -> Iterator[tuple[int, int]]:
    """All pairs of places, the cheapest links first."""
    said = _said(view, costs)
    for cost in range(UNKNOWN):
        yield from sorted(pair for pair, most in said.items() if most == cost)
    for pair in combinations(range(len(view)), 2):
        if said.get(pair, UNKNOWN) >= UNKNOWN:
            yield pair


def _said(view: Sequence[PeerId], costs: Costs) -> dict[tuple[int, int], int]:
    """The cost by pair of places: the most that its ends say of it; the word of one end is enough."""
    place = {peer: at for at, peer in enumerate(view)}
    said: dict[tuple[int, int], int] = {}
    for peer, classes in costs.items():
        for other, cost in classes.items():
            if peer in place and other in place and peer != other:
                pair = min(place[peer], place[other]), max(place[peer], place[other])
                said[pair] = max(said.get(pair, 0), cost)
    return said


def _find(part: list[int], place: int) -> int:
    while part[place] != place:
        part[place] = part[part[place]]
        place = part[place]
    return place


def _rooted(beside: Sequence[Sequence[int]]) -> Parents:
    """The tree with place 0 as its root."""
    parents = [0] * len(beside)
    frontier = [(0, 0)]
    for here, parent in frontier:
        parents[here] = parent
        frontier += [(other, here) for other in beside[here] if other != parent]
    return tuple(parents)


def check_parents(parents: Sequence[int], cap: int = MAX_DEGREE) -> None:
    """Raises RemoteError unless this is a tree: one root, all come to it, nobody with more than `cap`
    neighbors."""
    n = len(parents)
    if not all(0 <= parent < n for parent in parents):
        raise RemoteError(f"a tree of {n} has parents 0 to {n - 1}")
    roots = [place for place, parent in enumerate(parents) if place == parent]
    if len(roots) != 1:
        raise RemoteError(f"a tree has one root, and this has {len(roots)}")
    tree = tuple(parents)
    if -1 in hops(tree, roots[0]):
        raise RemoteError("not all places of the tree are joined")
    if max(map(len, _beside(tree))) > cap:
        raise RemoteError(f"a place of the tree has more than {cap} neighbors")


@lru_cache(maxsize=64)
def _beside(parents: Parents) -> Adjacency:
    beside: list[list[int]] = [[] for _ in parents]
    for place, parent in enumerate(parents):
        if place != parent:
            beside[place].append(parent)
            beside[parent].append(place)
    return tuple(tuple(sorted(places)) for places in beside)


def neighbors(parents: Parents, place: int) -> tuple[int, ...]:
    """The places beside this one on the tree, sorted."""
    return _beside(parents)[place]


def hops(parents: Parents, place: int) -> tuple[int, ...]:
    """How far each place is from this one on the tree; -1 where no way leads."""
    return _hops(_beside(parents), place)


def _hops(beside: Adjacency, place: int) -> tuple[int, ...]:
    far = [-1] * len(beside)
    far[place] = 0
    frontier = [place]
    for here in frontier:
        for other in beside[here]:
            if far[other] < 0:
                far[other] = far[here] + 1
                frontier.append(other)
    return tuple(far)


@lru_cache(maxsize=64)
def mean_delay(parents: Parents) -> float:
    """Mean over ordered pairs, a place with itself included, of max(hops - 1, 0): the rounds that RelaySum is
    behind. Its learning rates are worth 1 / (1 + mean_delay)."""
    n = len(parents)
    far = sum(sum(hops(parents, place)) for place in range(n))
    return (far - n * (n - 1)) / n**2


@lru_cache(maxsize=64)
def diameter(parents: Parents) -> int:
    """Hops between the two places that are farthest apart."""
    far = hops(parents, 0)
    return max(hops(parents, far.index(max(far))))


# --- graphs for gossip -----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def adjacency(spec: str, n: int) -> Adjacency:
    """Connected for every n, and symmetric. A double tree is both its trees at once; a spanning tree is known
    by its parents alone. Raises UsageError for a name that is none."""
    trees = _trees(spec, n, ())
    if trees:
        return _united(trees)
    if spec == "grid":
        rows, columns = grid_shape(n)
        ahead = [
            {row * columns + (column + 1) % columns, (row + 1) % rows * columns + column}
            for row in range(rows)
            for column in range(columns)
        ]
    else:
        steps = {
            "ring": [1],
            "complete": list(range(1, n)),
            "exponential": [2**k for k in range((n - 1).bit_length())],
        }.get(spec)
        if steps is None:
            raise UsageError(f"no graph without direction is called '{spec}'; there are {', '.join(KNOWN)}")
        ahead = [{(place + step) % n for step in steps} for place in range(n)]
    beside: list[set[int]] = [set() for _ in range(n)]
    for place, others in enumerate(ahead):
        for other in others - {place}:
            beside[place].add(other)
            beside[other].add(place)
    return tuple(tuple(sorted(places)) for places in beside)


def _trees(spec: str, n: int, parents: Parents) -> tuple[Parents, ...]:
    """The trees of a topology that is made of them, else ()."""
    if spec == "double-tree":
        return double_tree(n)
    if spec == "spanning-tree":
        return (parents,) if parents else ()
    return (chain(n),) if spec == "chain" else (binary_tree(n),) if spec == "binary-tree" else ()


def _united(trees: tuple[Parents, ...]) -> Adjacency:
    beside = zip(*(_beside(tree) for tree in trees), strict=True)
    return tuple(tuple(sorted(set().union(*places))) for places in beside)


@lru_cache(maxsize=64)
def metropolis(graph: Adjacency) -> tuple[Mapping[int, float], ...]:
    """Of each place, {place: weight}, its own included: W_ij = 1 / (1 + max(deg i, deg j)), and the rest of 1
    on the diagonal. Symmetric, so rows and columns sum to 1 (Xiao, Boyd, Kim 2007, Metropolis-Hastings)."""
    rows: list[Mapping[int, float]] = []
    for place, beside in enumerate(graph):
        row = {other: 1.0 / (1 + max(len(beside), len(graph[other]))) for other in beside}
        rows.append(MappingProxyType({**row, place: 1.0 - sum(row.values())}))
    return tuple(rows)


# --- what a node asks ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """One member's part of a graph. trees: its neighbors on each tree, () where the graph is none.

    out: Metropolis weights of all its neighbors; it keeps 1 - their sum. mean_delay: mean over the trees,
    0 without one. diameter: of the graph; of double trees the larger of the two.
    """

    trees: tuple[tuple[PeerId, ...], ...]
    out: Mapping[PeerId, float]
    n: int
    mean_delay: float
    diameter: int


def check_graph(spec: str, view: Sequence[PeerId], parents: Sequence[int]) -> None:
    """Raises RemoteError unless a stranger's view and parents make a graph of this kind."""
    if not view or len(set(view)) != len(view):
        raise RemoteError("a view names each of its members once")
    if spec != "spanning-tree":
        if parents:
            raise RemoteError(f"the graph of topology {spec} has no parents")
        return
    if len(parents) != len(view):
        raise RemoteError(f"a tree of {len(view)} members has no {len(parents)} parents")
    check_parents(parents)


@lru_cache(maxsize=1024)  # a rehearsal asks for every node
def graph_of(spec: str, view: tuple[PeerId, ...], me: PeerId, parents: Parents = ()) -> Place:
    """The place of `me`, who is on the view. parents: of a spanning tree, and of no other topology.
    Raises UsageError for a topology that has a direction."""
    n, here = len(view), view.index(me)
    assert len(parents) == (n if spec == "spanning-tree" else 0), "see check_graph"
    trees = _trees(spec, n, parents)
    graph = _united(trees) if trees else adjacency(spec, n)
    weights = metropolis(graph)[here]
    return Place(
        trees=tuple(tuple(view[place] for place in neighbors(tree, here)) for tree in trees),
        out=MappingProxyType({view[place]: weights[place] for place in graph[here]}),
        n=n,
        mean_delay=sum(map(mean_delay, trees)) / max(len(trees), 1),
        # from place 0 is from everywhere where there are no trees: every place is as good as another
        diameter=max(map(diameter, trees)) if trees else max(_hops(graph, 0)),
    )


# --- costs of links --------------------------------------------------------------------------------------


def cost_class(rtt_s: float) -> int:
    """0 (cheap) to 3, so coarse that a tree does not change with every measurement."""
    return sum(rtt_s >= end for end in CLASS_ENDS_S)


def _mark(peer: PeerId) -> bytes:
    return hashlib.blake2b(peer.encode(), digest_size=_MARK).digest()


def pack_costs(classes: Mapping[PeerId, int]) -> bytes:
    """Of at most MAX_ENTRIES links, the cheapest, a mark of the peer and the class, for a record. Two peers
    with one mark are left out."""
    marked: dict[bytes, list[int]] = {}
    for peer, cost in classes.items():
        assert 0 <= cost < UNKNOWN, f"class {cost}"
        marked.setdefault(_mark(peer), []).append(cost)
    entries = sorted((costs[0], mark) for mark, costs in marked.items() if len(costs) == 1)
    return b"".join(mark + bytes([cost]) for cost, mark in entries[:MAX_ENTRIES])


@lru_cache(maxsize=8)  # one view, and a record of each of its members
def _marks(view: tuple[PeerId, ...]) -> Mapping[bytes, PeerId]:
    """Who is meant by a mark; marks of two are left out."""
    times = Counter(map(_mark, view))
    return {mark: peer for peer in view if times[mark := _mark(peer)] == 1}


def unpack_costs(packed: bytes, view: tuple[PeerId, ...]) -> dict[PeerId, int]:
    """{peer: class} of those of the view that a member speaks of. Raises RemoteError if it is not written as
    pack_costs does."""
    count, rest = divmod(len(packed), _MARK + 1)
    if rest or count > MAX_ENTRIES:
        raise RemoteError(f"costs of links come in at most {MAX_ENTRIES} times {_MARK + 1} bytes")
    entries = [(packed[at : at + _MARK], packed[at + _MARK]) for at in range(0, len(packed), _MARK + 1)]
    if any(cost >= UNKNOWN for _, cost in entries) or len({mark for mark, _ in entries}) < count:
        raise RemoteError(f"each link has one cost, a class from 0 to {UNKNOWN - 1}")
    marks = _marks(view)
    return {marks[mark]: cost for mark, cost in entries if mark in marks}
