"""Connected graphs without direction, as algorithms see them: places 0 … n-1, and who is beside whom.

A function of its arguments alone, so that a daemon draws a graph for its links and its learner the same one
for its constants. A tree is each place's parent, the root's its own.

    chain           0 - 1 - … - n-1
    binary-tree     0 hangs off 1, the others off w // 2 (Vogels et al., RelaySum, NeurIPS 2021: their code)
    double-tree     that one, and the same with w called n - 1 - w: leaves of one are inner in the other
    spanning-tree   known by its parents alone
    ring, complete  each with the one before and behind; with everybody
    grid            a torus as square as n allows: a ring where n is prime
    exponential     each with those 1, 2, 4, … < n places before and behind

Who stands where, and how a tree is made of measured costs, is mesh/graphs.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from peer.errors import UsageError

Parents = tuple[int, ...]
Adjacency = tuple[tuple[int, ...], ...]  # of each place, the places beside it, sorted

TREES = ("chain", "binary-tree", "double-tree", "spanning-tree")
KNOWN = ("ring", "grid", "exponential", "complete", *TREES)


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph by name, and the place on it that is meant. parents: of a spanning tree, else ()."""

    spec: str
    n: int
    place: int
    parents: Parents = ()

    @property
    def adjacency(self) -> Adjacency:
        """Raises UsageError for a name that is none."""
        trees = trees_of(self.spec, self.n, self.parents)
        return united(trees) if trees else adjacency(self.spec, self.n)


# --- trees ---------------------------------------------------------------------------------------------


def chain(n: int) -> Parents:
    return (0, *range(n - 1))


def binary_tree(n: int) -> Parents:
    return (0,) if n == 1 else (1, 1, *(w // 2 for w in range(2, n)))


def double_tree(n: int) -> tuple[Parents, Parents]:
    tree = binary_tree(n)
    return tree, tuple(n - 1 - parent for parent in reversed(tree))


@lru_cache(maxsize=64)
def beside_on(parents: Parents) -> Adjacency:
    beside: list[list[int]] = [[] for _ in parents]
    for place, parent in enumerate(parents):
        if place != parent:
            beside[place].append(parent)
            beside[parent].append(place)
    return tuple(tuple(sorted(places)) for places in beside)


def neighbors(parents: Parents, place: int) -> tuple[int, ...]:
    """The places beside this one on the tree, sorted."""
    return beside_on(parents)[place]


def hops(parents: Parents, place: int) -> tuple[int, ...]:
    """How far each place is from this one on the tree; -1 where no way leads."""
    return hops_on(beside_on(parents), place)


def hops_on(beside: Adjacency, place: int) -> tuple[int, ...]:
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
    trees = trees_of(spec, n, ())
    if trees:
        return united(trees)
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


def trees_of(spec: str, n: int, parents: Parents) -> tuple[Parents, ...]:
    """The trees of a topology that is made of them, else ()."""
    if spec == "double-tree":
        return double_tree(n)
    if spec == "spanning-tree":
        return (parents,) if parents else ()
    return (chain(n),) if spec == "chain" else (binary_tree(n),) if spec == "binary-tree" else ()


def united(trees: tuple[Parents, ...]) -> Adjacency:
    beside = zip(*(beside_on(tree) for tree in trees), strict=True)
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


@lru_cache(maxsize=64)
def grid_shape(n: int) -> tuple[int, int]:
    """Rows and columns of the torus as square as n allows: 2 x 11 for 22, and a ring where n is prime."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows
