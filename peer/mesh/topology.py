"""Who sends to whom in which round: pure functions of (sorted view, round, seed), the same on every node.

    ring          i -> i + 1
    exponential   one peer per round, i -> i + 2^(k mod L), L = floor(log2(n - 1)) + 1: hops 1, 2, 4, ... < n
                  (Assran et al., Stochastic Gradient Push, ICML 2019, section 4 and appendix A)
    random-K      every node draws K others anew in every round
    complete      i -> everybody
    grid          to the right and down on a torus: two links, of the four neighbors a grid has

Indices are places in the view, modulo n. Weights are uniform, 1 / (out-degree + 1), and a node keeps the same
share itself, so columns sum to 1 whatever the others believe: push-sum tolerates members whose views differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from peer.errors import UsageError
from peer.events import PeerId
from peer.graphs import grid_shape

KNOWN = ("ring", "exponential", "random-K", "complete", "grid")


def parse(spec: str) -> tuple[str, int]:
    """("ring" | "exponential" | "random" | "complete" | "grid", K of random-K, else 0). Raises UsageError."""
    if spec in ("ring", "exponential", "complete", "grid"):
        return spec, 0
    kind, _, k = spec.partition("-")
    if kind == "random" and k.isascii() and k.isdigit() and int(k) > 0:
        return kind, int(k)
    raise UsageError(f"no topology is called '{spec}'; there are {', '.join(KNOWN)} (as in 'random-2')")


def out_neighbors(
    spec: str, view: Sequence[PeerId], me: PeerId, round_: int, seed: int
) -> dict[PeerId, float]:
    """Mixing weights of those `me` sends to; it keeps 1 - their sum. Empty for one outside of the view."""
    peers = _targets(spec, tuple(view), me, round_, seed)
    return {peer: 1.0 / (len(peers) + 1) for peer in peers}


def in_neighbors(spec: str, view: Sequence[PeerId], me: PeerId, round_: int, seed: int) -> tuple[PeerId, ...]:
    """Those of the view that send to `me` in this round, sorted, if their view is the same."""
    view = tuple(view)
    if me not in view:
        return ()
    kind, k = parse(spec)
    if kind == "random":
        return _random_graph(k, view, round_, seed)[1][me]
    return _along(kind, view, me, round_, -1)


def cycle(spec: str, n: int) -> int:
    """Rounds whose links together connect everybody to everybody; for exponential its period.

    random-K has no period; ceil(log2 n) rounds of it connect everybody with high probability.
    """
    kind, _ = parse(spec)
    return max(1, _log2(n)) if kind in ("exponential", "random") else 1


def final_spec(spec: str) -> str:
    """The graph of the final rounds. A ring would need about 0.93 n^2 of them to agree to a hundredth, a grid
    of a prime number of nodes is a ring."""
    return "complete" if parse(spec)[0] == "complete" else "exponential"


def final_rounds(spec: str, n: int) -> int:
    """Rounds without local steps on `final_spec`, after which the nodes agree.

    complete: 1, exact. exponential: one period; exact if n is a power of 2 (the product of its matrices is
    then 1/n everywhere), else at most a quarter of the slowest mode is left. ring, grid and random-K come to
    the exponential graph with new links: difference-push opens them in a first period, averages in a second.
    """
    kind, _ = parse(spec)
    if n < 2 or kind == "complete":
        return min(n - 1, 1)
    return _log2(n) if kind == "exponential" else 2 * _log2(n)


def _targets(spec: str, view: tuple[PeerId, ...], me: PeerId, round_: int, seed: int) -> tuple[PeerId, ...]:
    kind, k = parse(spec)
    if me not in view:
        return ()
    if kind == "random":
        drawn = _draw(k, len(view), view.index(me), f"{seed}/{round_}/{me}")
        return tuple(view[place] for place in drawn)
    return _along(kind, view, me, round_, 1)


def _along(kind: str, view: tuple[PeerId, ...], me: PeerId, round_: int, way: int) -> tuple[PeerId, ...]:
    """The far ends of links that leave `me` (way 1) or come to it (way -1), sorted; not for random-K."""
    here, n = view.index(me), len(view)
    if kind == "grid":
        rows, columns = grid_shape(n)
        row, column = divmod(here, columns)
        right, down = row * columns + (column + way) % columns, (row + way) % rows * columns + column
        places = {right, down} - {here}
    else:
        places = {(here + way * hop) % n for hop in _hops(kind, n, round_)}
    return tuple(sorted(view[place] for place in places))


def _hops(kind: str, n: int, round_: int) -> Sequence[int]:
    if n < 2:
        return ()
    if kind == "exponential":
        return (2 ** (round_ % _log2(n)),)
    return (1,) if kind == "ring" else range(1, n)


def _log2(n: int) -> int:
    """ceil(log2 n), which is floor(log2(n - 1)) + 1."""
    return max(n - 1, 0).bit_length()


def _draw(k: int, n: int, here: int, salt: str) -> list[int]:
    """min(k, n - 1) distinct places other than `here`, uniformly, from a hash in counter mode."""
    if k >= n - 1:
        return [place for place in range(n) if place != here]
    places: set[int] = set()
    counter = 0
    while len(places) < k:
        block = hashlib.blake2b(f"{salt}/{counter}".encode()).digest()
        counter += 1
        for at in range(0, len(block), 8):
            place = int.from_bytes(block[at : at + 8], "big") % n  # bias n / 2^64
            if place != here and len(places) < k:
                places.add(place)
    return sorted(places)


@lru_cache(maxsize=4)  # a rehearsal asks for every node of the same round
def _random_graph(
    k: int, view: tuple[PeerId, ...], round_: int, seed: int
) -> tuple[dict[PeerId, tuple[PeerId, ...]], dict[PeerId, tuple[PeerId, ...]]]:
    """Everybody's out-neighbors, and in-neighbors, of one round."""
    out = {peer: _targets(f"random-{k}", view, peer, round_, seed) for peer in view}
    into: dict[PeerId, list[PeerId]] = {peer: [] for peer in view}
    for src, targets in out.items():
        for dst in targets:
            into[dst].append(src)
    return out, {dst: tuple(sources) for dst, sources in into.items()}
