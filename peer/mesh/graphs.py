"""Graphs without direction, for algorithms whose members must all mean the same one: trees, and gossip's.

Members stand in places 0 … n-1 of an ordered view that they agreed on (events.Generation), and everything
here is a function of its arguments alone. Which graphs there are says peer/graphs.py; a spanning tree is the
least by measured costs, nobody with more than four neighbors, and travels as parents.

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

from peer.errors import RemoteError
from peer.events import PeerId
from peer.graphs import (
    Graph,
    Parents,
    beside_on,
    diameter,
    hops,
    hops_on,
    mean_delay,
    metropolis,
    neighbors,
    trees_of,
)

Costs = Mapping[PeerId, Mapping[PeerId, int]]  # what each member says of its links

MAX_DEGREE = 4  # of a spanning tree: reliability note e; a binary tree has 3
UNKNOWN = 4  # the class of a link that nobody has measured, the dearest
# Upper ends of the classes of round-trip times, all guesses: a cable (0.5 ms on loopback, measured), good
# Wi-Fi, busy Wi-Fi, power save or another house.
CLASS_ENDS_S = (0.005, 0.020, 0.080)
MAX_ENTRIES = 64  # of a record: 320 bytes, and more choice than a tree needs (guess)
_MARK = 4  # bytes of hash that stand for a peer


# --- spanning trees --------------------------------------------------------------------------------------


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


def unmeasured(view: Sequence[PeerId], parents: Sequence[int], costs: Costs) -> list[set[PeerId]]:
    """The ends of the links of this tree that nobody has measured."""
    said = _said(view, costs)
    links = [(min(w, parent), max(w, parent)) for w, parent in enumerate(parents) if w != parent]
    return [{view[a], view[b]} for a, b in links if (a, b) not in said]


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
    if max(map(len, beside_on(tree))) > cap:
        raise RemoteError(f"a place of the tree has more than {cap} neighbors")


# --- what a node asks ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """One member's part of a graph. trees: its neighbors on each tree, () where the graph is none.

    out: Metropolis weights of all its neighbors; it keeps 1 - their sum. mean_delay: mean over the trees,
    0 without one. diameter: of the graph; of double trees the larger of the two.
    """

    graph: Graph
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
    graph, trees = Graph(spec, n, here, parents), trees_of(spec, n, parents)
    adjacency = graph.adjacency
    weights = metropolis(adjacency)[here]
    return Place(
        graph=graph,
        trees=tuple(tuple(view[place] for place in neighbors(tree, here)) for tree in trees),
        out=MappingProxyType({view[place]: weights[place] for place in adjacency[here]}),
        n=n,
        mean_delay=sum(map(mean_delay, trees)) / max(len(trees), 1),
        # from place 0 is from everywhere where there are no trees: every place is as good as another
        diameter=max(map(diameter, trees)) if trees else max(hops_on(adjacency, 0)),
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
