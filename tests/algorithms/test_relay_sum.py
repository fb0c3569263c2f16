"""What the paper says of RelaySum, and what goes wrong in implementations of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algorithms.swarm import randoms
from algorithms.trees import F64, Grove, authors_tree, chain, delays, double_tree, heap, hops
from peer.algorithms import alignment, make
from peer.algorithms.base import Links, Message
from peer.algorithms.relay import Relay
from peer.algorithms.relay_sum import FILLS, Fill, RelayGrad, RelaySum
from peer.compression.bodies import Dense, Layout, Strided
from peer.compression.codec import encode
from peer.compression.compressor import compressor
from peer.compression.values import VALUE_TYPES
from peer.errors import RemoteError
from peer.events import FINAL, Key
from peer.grammar import Compression
from reference.relay_sum import relay_grad_round, relay_sum_round

LAYOUT = Layout((30, 4, 7))
D = LAYOUT.d
ZEROS, ONES = torch.zeros(D, dtype=F64), torch.ones(D, dtype=F64)
TREES = [
    pytest.param(6, [chain(6)], id="chain6"),
    pytest.param(7, [heap(7)], id="heap7"),
    pytest.param(8, [authors_tree(8)], id="authors8"),
    pytest.param(7, double_tree(7), id="double7"),
    pytest.param(8, double_tree(8), id="double8"),
    pytest.param(2, double_tree(2), id="double2"),
]
every_tree = pytest.mark.parametrize(("n", "trees"), TREES)
Trees = list[list[tuple[int, int]]]


def grove(n: int, trees: Trees, fill: Fill = "prev", seed: int = 0, layout: Layout = LAYOUT) -> Grove:
    return Grove([RelaySum(layout, F64, fill=fill) for _ in range(n)], layout, trees, seed=seed)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def random_tree(n: int, seed: int) -> list[tuple[int, int]]:
    g = torch.Generator().manual_seed(seed)
    return [(int(torch.randint(0, w, (), generator=g)), w) for w in range(1, n)]


def closed_form(Y: Sequence[Tensor], trees: Trees, fill: Tensor | None) -> Tensor:
    """Coordinates k, k + T, ... by the k-th of T trees."""
    n, T = len(Y[0]), len(trees)
    X = torch.empty_like(Y[0])
    for k, edges in enumerate(trees):
        part = slice(k, None, T)
        X[:, part] = relay_sum_round(
            [y[:, part] for y in Y], delays(n, edges), None if fill is None else fill[:, part]
        )
    return X


# --- against the closed form -------------------------------------------------------------------------


@every_tree
@pytest.mark.parametrize("fill", FILLS)
def test_models_are_means_over_the_past_of_all_nodes(n: int, trees: Trees, fill: Fill) -> None:
    """x_i^{t+1} = 1/n sum_j y_j^{t - tau_ij}, whatever order messages come in."""
    x0 = torch.stack(randoms(n, D, 5))
    swarm = grove(n, trees, fill).begin(list(x0), initial=x0[0])
    U = [0.1 * torch.stack(randoms(n, D, 100 + t)) for t in range(12)]
    found = swarm.run(12, lambda i, x, t: U[t][i])
    X, Y = x0, list[Tensor]()
    for t in range(12):
        Y.append(X + U[t])
        fills = {"x0": x0[:1].expand(n, -1), "prev": X, "half": Y[-1], "counts": None}
        X = closed_form(Y, trees, fills[fill])
        close(found[t], X)


@given(n=st.integers(1, 7), tree=st.integers(0, 99), seed=st.integers(0, 99), fill=st.sampled_from(FILLS))
@settings(max_examples=max(10, settings.default.max_examples // 5))
def test_so_they_are_on_any_tree(n: int, tree: int, seed: int, fill: Fill) -> None:
    edges = random_tree(n, tree)
    x0 = torch.stack(randoms(n, D, seed))
    swarm = grove(n, [edges], fill, seed).begin(list(x0), initial=x0[0])
    U = [0.1 * torch.stack(randoms(n, D, 100 + t)) for t in range(7)]
    found = swarm.run(7, lambda i, x, t: U[t][i])
    X, Y = x0, list[Tensor]()
    for t in range(7):
        Y.append(X + U[t])
        fills = {"x0": x0[:1].expand(n, -1), "prev": X, "half": Y[-1], "counts": None}
        X = closed_form(Y, [edges], fills[fill])
        close(found[t], X)
    assert swarm.counts == [(hops(n, edges) <= t + 1).sum(1).tolist() for t in range(7)]


@every_tree
def test_relayed_changes_enter_every_model_once(n: int, trees: Trees) -> None:
    x0 = torch.stack(randoms(n, D, 5))
    swarm = Grove([RelayGrad(LAYOUT, F64) for _ in range(n)], LAYOUT, trees).begin(list(x0))
    U = [0.1 * torch.stack(randoms(n, D, 100 + t)) for t in range(9)]
    found = swarm.run(9, lambda i, x, t: U[t][i])
    X, T = x0, len(trees)
    for t in range(9):
        X = X.clone()
        for k, edges in enumerate(trees):
            part = slice(k, None, T)
            X[:, part] = relay_grad_round(X[:, part], [u[:, part] for u in U[: t + 1]], delays(n, edges))
        close(found[t], X)
    # in the final rounds nobody steps, and what is still on its way arrives
    after = swarm.average(n)[-1]
    close(after, x0 + torch.stack(U).sum(0).mean(0))


@every_tree
def test_local_adam_is_relay_adam(n: int, trees: Trees) -> None:
    """torch's optimizer on each node, against Adam written out for all nodes at once."""
    target = torch.stack(randoms(n, D, 8))
    parameters = [torch.nn.Parameter(ZEROS.clone()) for _ in range(n)]
    optimizers = [torch.optim.Adam([parameter], lr=0.05) for parameter in parameters]

    def update(i: int, x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            parameters[i].copy_(x)
            parameters[i].grad = x - target[i]
        optimizers[i].step()
        return parameters[i].detach() - x

    found = grove(n, trees).begin([ZEROS] * n).run(8, update)
    X, Y = torch.zeros(n, D, dtype=F64), list[Tensor]()
    first, second = torch.zeros_like(X), torch.zeros_like(X)
    for t in range(1, 9):
        G = X - target
        first, second = 0.9 * first + 0.1 * G, 0.999 * second + 0.001 * G**2
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        Y.append(X - 0.05 * step)
        X = closed_form(Y, trees, X)
        close(found[t - 1], X)


# --- exactness ---------------------------------------------------------------------------------------


@every_tree
@pytest.mark.parametrize("trained", [0, 3])
def test_the_mean_is_exact_after_tau_max_rounds_and_no_sooner(n: int, trees: Trees, trained: int) -> None:
    """Of fixed models, as the final rounds relay them: in the round numbered tau_max, the first being 0."""
    swarm = grove(n, trees).begin(randoms(n, D, 5))
    before = swarm.run(trained, lambda i, x, t: 0.1 * randoms(1, D, 10 * t + i)[0])
    X = before[-1] if before else torch.stack([node.estimate() for node in swarm.nodes])
    wide = max(int(delays(n, edges).max()) for edges in trees) + 1
    after = swarm.average(wide + 2)
    for t, Z in enumerate(after, 1):
        off = (Z - X.mean(0)).abs().max()
        assert (float(off) < 1e-12) == (t >= wide), f"round {t} of {wide}: {off}"


def test_the_final_rounds_are_not_compressed() -> None:
    layout, n = LAYOUT, 5
    nodes = [make("relay-sum", {}, layout, F64, "int8") for _ in range(n)]
    swarm = Grove([node for node in nodes if isinstance(node, RelaySum)], layout, [chain(n)])
    swarm.begin(randoms(n, D, 5)).run(3, lambda i, x, t: ZEROS)
    X = torch.stack([node.estimate() for node in swarm.nodes])
    close(swarm.average(4)[-1], X.mean(0).expand(n, -1))


@every_tree
def test_counts_are_of_the_nodes_within_as_many_hops_as_rounds(n: int, trees: Trees) -> None:
    swarm = grove(n, trees).begin([ZEROS] * n)
    swarm.run(9, lambda i, x, t: ZEROS)
    assert swarm.counts == [(hops(n, trees[0]) <= t + 1).sum(1).tolist() for t in range(9)]


# --- what goes wrong ---------------------------------------------------------------------------------


def test_what_comes_in_a_round_is_relayed_in_the_next_whatever_came_first() -> None:
    """Not in the same one, where it would be relayed to those only whose turn came later."""
    for seed in range(10):
        swarm = grove(3, [chain(3)], seed=seed).begin([ZEROS] * 3)
        X = swarm.run(2, lambda i, x, t: ONES if (i, t) == (0, 0) else ZEROS)
        assert X[0][:, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 0])
        assert X[1][2, 0] == pytest.approx(1 / 3 + 1 / 9), "1's own model, and what 0 sent it in round 0"


def test_a_message_of_this_round_before_the_own_step_is_not_relayed_in_it() -> None:
    node = RelaySum(LAYOUT, F64)
    node.know(ZEROS)
    node.begin(ZEROS, 1.0)
    links = Links(Key(1, 0), {}, frozenset("ab"), 3, trees=(("a", "b"),))
    node.open(links)
    node.receive("a", relayed(Key(1, 0), ONES, 1), 0.0)
    out = node.step(ZEROS, 0.1, links, 0.0)
    assert (out["b"].base, float(out["b"].body.dense().max())) == (b"\x01\x00", 0.0)
    node.receive("b", relayed(Key(1, 0), ONES, 1), 0.0)
    assert torch.equal(node.mix(), 2 * ONES / 3)
    out = node.step(ZEROS, 0.1, Links(Key(1, 1), {}, frozenset("ab"), 3, trees=(("a", "b"),)), 0.0)
    assert out["b"].base == b"\x02\x00"


@pytest.mark.parametrize("fill", FILLS)
def test_counts_begin_at_nothing_so_that_equal_models_stay_as_they_are(fill: Fill) -> None:
    """Counts that began at 1 with vectors of zero would pull the first models towards zero."""
    swarm = grove(6, [chain(6)], fill).begin([3 * ONES] * 6)
    for X in swarm.run(6, lambda i, x, t: ZEROS):
        close(X, 3 * ONES.expand(6, -1))
    assert swarm.counts[0] == [2, 3, 3, 3, 3, 2]


def test_nothing_is_sent_back_to_where_it_came_from() -> None:
    swarm = grove(2, [chain(2)]).begin([ZEROS, ONES])
    swarm.run(5, lambda i, x, t: ZEROS)
    assert {message.base for _, _, message in swarm.sent} == {b"\x01\x00"}


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_cycle_counts_double_for_ever_and_is_noticed(n: int) -> None:
    """1 + the counts of both ways around grow past n."""
    nodes = [RelaySum(LAYOUT, F64) for _ in range(n)]
    swarm = Grove(list(nodes), LAYOUT, [chain(n)])
    swarm.near = [[((i - 1) % n, (i + 1) % n) for i in range(n)]]
    swarm.begin([ZEROS] * n)
    with pytest.raises(RemoteError, match="the tree has a cycle"):
        swarm.run(2 * n, lambda i, x, t: ZEROS)


# --- a new tree --------------------------------------------------------------------------------------


def test_a_new_generation_starts_with_nothing_stored_and_the_models_as_they_are() -> None:
    swarm = grove(6, [chain(6)]).begin([ONES] * 6)
    swarm.run(6, lambda i, x, t: 0.1 * ONES)
    before = torch.stack([node.estimate() for node in swarm.nodes])
    first = len(swarm.sent)
    swarm.generation, swarm.trees, swarm.near = 2, [heap(6)], grove(6, [heap(6)]).near
    after = swarm.run(1, lambda i, x, t: ZEROS)[0]
    assert {message.base for _, _, message in swarm.sent[first:]} == {b"\x01\x00"}
    assert swarm.counts[-1] == (hops(6, heap(6)) <= 1).sum(1).tolist()
    close(after, closed_form([before], [heap(6)], before))


@pytest.mark.parametrize("trees", [[heap(7)], double_tree(7)], ids=["one", "two"])
def test_the_mean_model_does_not_move_towards_the_initial_one_when_trees_change(trees: Trees) -> None:
    """Far from x0, a fill of x0 would take most of the way back at once."""
    n, away = 7, 10 * ONES
    models = [away + 0.1 * x for x in randoms(n, D, 6)]
    swarm = grove(n, [chain(n)]).begin(models, initial=ZEROS)
    swarm.run(5, lambda i, x, t: ZEROS)
    for generation in range(2, 6):
        swarm.generation, swarm.trees = generation, trees if generation % 2 == 0 else [chain(n)]
        swarm.near = grove(n, swarm.trees).near
        for X in swarm.run(3, lambda i, x, t: ZEROS):
            assert float((X.mean(0) - torch.stack(models).mean(0)).abs().max()) < 0.1
            assert float(X.min()) > 9.5


@pytest.mark.parametrize("lockstep", [True, False])
def test_counts_that_together_exceed_the_nodes_are_their_senders_fault(lockstep: bool) -> None:
    node = RelaySum(LAYOUT, F64, lockstep=lockstep)
    node.know(ZEROS)
    node.begin(ZEROS, 1.0)
    node.open(Links(Key(1, 4), {"b": 0.3, "c": 0.3}, frozenset("bc"), 4, trees=(("b", "c"),)))
    at = Key(1, 4) if lockstep else Key(1, 2)  # with pace "free" any round of the generation counts
    node.receive("b", relayed(at, ONES, 2), 0.0)
    with pytest.raises(RemoteError, match="5 models of 4 nodes"):
        node.receive("c", relayed(at, ONES, 2), 0.0)
    node.receive("c", relayed(at, ONES, 1), 0.0)


def test_one_that_comes_a_round_early_with_such_a_count_is_left_out() -> None:
    node = RelaySum(LAYOUT, F64)
    node.know(ZEROS)
    node.begin(ZEROS, 1.0)
    links = Links(Key(1, 4), {"b": 0.3, "c": 0.3}, frozenset("bc"), 4, trees=(("b", "c"),))
    node.open(links)
    for src in "bc":
        node.receive(src, relayed(Key(1, 5), ONES, 2), 0.0)
    node.step(ZEROS, 0.1, replace(links, key=Key(1, 5)), 0.0)
    close(node.mix(), ONES / 2)


def test_a_sum_of_more_models_than_there_are_nodes_is_an_assertion() -> None:
    """Whatever way it has got there."""
    relay = Relay()
    relay.grow(Links(Key(1, 4), {"b": 0.5}, frozenset("b"), 3, trees=(("b",),)))
    relay.stored[0]["b"] = ONES, 3
    with pytest.raises(AssertionError, match="4 models of 3 nodes: the tree has a cycle, or n is old"):
        relay.totals(ONES)


# --- the correction of the learning rate -------------------------------------------------------------

PULSES = [
    pytest.param([chain(8)], 8, 120, 2.75, id="chain8"),
    pytest.param([chain(16)], 16, 600, 5.375, id="chain16"),
    pytest.param([authors_tree(8)], 8, 120, 2.156, id="tree8"),
    pytest.param([authors_tree(16)], 16, 400, 3.320, id="tree16"),
    pytest.param(double_tree(8), 8, 120, 2.156, id="double8"),
]


@pytest.mark.parametrize(("trees", "n", "rounds", "correction"), PULSES)
def test_the_correction_is_what_a_unit_pulse_comes_to(
    trees: Trees, n: int, rounds: int, correction: float
) -> None:
    """The authors' test: a change of n at one node ends as 1/correction everywhere, whichever node it is.

    Node i's goes into coordinates 2i and 2i + 1, so that every node's is relayed on either of two trees.
    """
    layout = Layout((2 * n,))
    swarm = grove(n, trees, "x0", layout=layout).begin([torch.zeros(2 * n, dtype=F64)] * n)

    def pulse(i: int, x: Tensor, t: int) -> Tensor:
        u = torch.zeros_like(x)
        u[2 * i : 2 * i + 2] = float(n * (t == 0))
        return u

    end = swarm.run(rounds, pulse)[-1]
    scale = swarm.nodes[0].lr_scale
    assert scale == pytest.approx(correction, abs=5e-4)
    torch.testing.assert_close(end, torch.full_like(end, 1 / scale), rtol=1e-4, atol=0)


def test_the_correction_may_be_off_and_is_for_models_alone() -> None:
    links = Links(Key(1, 0), {"b": 0.5}, frozenset("b"), 8, trees=(("b",),), mean_delay=1.75)
    for built, scale in [
        (make("relay-sum", {}, LAYOUT, F64), 2.75),
        (make("relay-sum", {"lr-correction": "off"}, LAYOUT, F64), 1.0),
        (make("relay-sum-grad", {}, LAYOUT, F64), 1.0),
        (make("d-psgd", {}, LAYOUT, F64), 1.0),
    ]:
        assert built.lr_scale == 1.0
        built.open(links)
        assert built.lr_scale == scale


# --- unlike models at the start ----------------------------------------------------------------------


def width(n: int, trees: Trees) -> int:
    return max(int(hops(n, edges).max()) for edges in trees)


def radius(n: int, trees: Trees) -> int:
    """From the node that is nearest to its furthest."""
    return int(torch.stack([hops(n, edges).amax(1) for edges in trees]).amax(0).min())


def unlike(kind: type[RelaySum], n: int, trees: Trees, spare: int = 0, **drops: object) -> Grove:
    """Models apart, and time to bring them together."""
    nodes = [kind(LAYOUT, F64) for _ in range(n)]
    swarm = Grove(nodes, LAYOUT, trees, aligning=width(n, trees) + spare, **drops)
    return swarm.begin(randoms(n, D, 5))


def models(swarm: Grove) -> Tensor:
    return torch.stack([node.estimate() for node in swarm.nodes])


@every_tree
@pytest.mark.parametrize("kind", [RelaySum, RelayGrad])
@pytest.mark.parametrize("spare", [0, 2])
def test_from_unlike_models_it_begins_with_their_exact_mean(
    n: int, trees: Trees, kind: type[RelaySum], spare: int
) -> None:
    swarm = unlike(kind, n, trees, spare)
    x0, first = models(swarm), radius(n, trees) + width(n, trees) + spare
    U = [0.1 * torch.stack(randoms(n, D, 100 + t)) for t in range(first + 20)]
    found = swarm.run(first + 20, lambda i, x, t: U[t][i] if t >= first else ZEROS)
    for X in found[: first - 1]:
        close(X, x0)
    close(found[first - 1], x0.mean(0).expand(n, -1))
    equal = Grove([kind(LAYOUT, F64) for _ in range(n)], LAYOUT, trees).begin([x0.mean(0)] * n)
    for X, Y in zip(found[first:], equal.run(20, lambda i, x, t: U[first + t][i]), strict=True):
        close(X, Y)


def test_all_begin_together_though_they_come_to_the_tree_one_after_the_other() -> None:
    """Node 5, at the end of a chain, is where the others have been for three rounds."""
    n = 6
    swarm = unlike(RelaySum, n, [chain(n)])
    x0 = models(swarm)
    alone = [(5, 4), (4, 5)]
    swarm.drops = dict.fromkeys(range(3), alone)
    found = swarm.run(3, lambda i, x, t: ZEROS)
    swarm.nodes[5].begin_generation()
    found = swarm.run(10, lambda i, x, t: ZEROS)
    assert [node.alignment for node in swarm.nodes] == [None] * n
    close(found[-1], x0.mean(0).expand(n, -1))


def test_who_is_not_heard_of_is_not_waited_for() -> None:
    n, cut = 6, [(0, 1), (1, 0)]  # node 0 is at the end of a chain
    swarm = unlike(RelaySum, n, [chain(n)], drops=dict.fromkeys(range(60), cut))
    x0 = models(swarm)
    swarm.run(2 * swarm.aligning, lambda i, x, t: ZEROS)
    assert [node.alignment for node in swarm.nodes] == [None] * n
    X = swarm.run(40, lambda i, x, t: ZEROS)[-1]
    close(X[0], x0[0])
    assert float((X[1:] - x0[1:].mean(0)).norm(dim=1).max()) < 0.3 * float(x0.norm(dim=1).max())
    assert float((X[1:] - X[1]).norm(dim=1).max()) < 0.05


def test_a_lost_message_of_the_start_is_made_up_for_by_the_next_one() -> None:
    drops = {0: [(0, 1)], 1: [(3, 1)], 2: [(0, 2), (6, 2)], 3: [(1, 3)]}
    swarm = unlike(RelaySum, 7, [heap(7)], spare=2, drops=drops)
    x0 = models(swarm)
    close(swarm.run(9, lambda i, x, t: ZEROS)[-1], x0.mean(0).expand(7, -1))


@pytest.mark.parametrize("rounds", range(1, 6))
def test_another_tree_or_the_end_may_come_before_it_has_begun(rounds: int) -> None:
    n = 3
    for final in (False, True):
        swarm = unlike(RelaySum, n, [chain(n)])
        x0 = models(swarm)
        swarm.run(rounds, lambda i, x, t: ZEROS)
        assert swarm.nodes[1].still == (rounds < 3)
        if final:
            X = swarm.average(2)[-1]
        else:
            swarm.generation += 1
            X = swarm.run(6, lambda i, x, t: ZEROS)[-1]
        close(X, x0.mean(0).expand(n, -1))
        assert not any(node.still for node in swarm.nodes)


@pytest.mark.parametrize("early", [False, True])
def test_who_comes_late_to_a_tree_begins_when_it_hears_that_others_have(early: bool) -> None:
    """early: their sums came before it had taken up the tree."""
    swarm = unlike(RelaySum, 7, [heap(7)])
    node, x = swarm.nodes[0], swarm.nodes[0].estimate()
    message = Message(Key(1, 8), RelaySum.MEANING, Dense(ZEROS), base=b"\x01\x00", delivery="latest")
    if early:
        node.receive("1", message, 0.0)
    node.step(ZEROS, 0.0, swarm.links(0, 5), 0.0)
    if not early:
        node.receive("1", message, 0.0)
    assert node.still
    node.mix()
    for t, still in ((7, True), (8, False)):
        node.open(swarm.links(0, t))
        assert node.still == still
    close(node.estimate(), x)  # nobody has told it another model of the start


@pytest.mark.parametrize("left", [-1.0, 6.0, float("nan"), 1e300])
def test_who_says_that_more_rounds_are_left_than_there_can_be_is_at_fault(left: float) -> None:
    swarm = unlike(RelaySum, 7, [heap(7)])
    swarm.nodes[0].open(swarm.links(0, 7))
    message = Message(Key(1, 8), alignment.MEANING, Dense(ZEROS), left, b"\x01\x00", "latest")
    with pytest.raises(RemoteError, match=r"rounds are left|weight"):
        swarm.nodes[0].receive("1", message, 0.0)
    swarm.nodes[0].receive("1", replace(message, weight=5.0), 0.0)


# --- messages ----------------------------------------------------------------------------------------


def relayed(key: Key, v: Tensor, count: int) -> Message:
    return Message(key, RelaySum.MEANING, Dense(v), base=count.to_bytes(2, "little"), delivery="latest")


def test_nobody_sends_more_than_two_models_a_round_on_double_trees() -> None:
    """Leaves of one are inner nodes of the other, and who is a neighbor on one tree alone gets a half."""
    n, layout = 16, Layout((2000,))
    swarm = grove(n, double_tree(n), layout=layout).begin([torch.ones(2000, dtype=F64)] * n)
    swarm.run(1, lambda i, x, t: torch.zeros_like(x))
    model = 2000 * 8
    for i in range(n):
        bodies = [message.body for src, _, message in swarm.sent if src == i]
        assert sum(len(encode(message)) for src, _, message in swarm.sent if src == i) < 2.02 * model
        assert any(isinstance(body, Strided) for body in bodies)


def test_the_mean_travels_so_that_fp16_rounds_as_finely_as_of_one_model() -> None:
    """The sum of 15 models around 1 would be rounded 8 times as coarsely."""
    n, fp16 = 16, compressor(Compression(values="fp16"), LAYOUT, F64)
    models = [ONES + 0.001 * x for x in randoms(n, D, 5)]
    swarm = Grove([RelaySum(LAYOUT, F64, fp16) for _ in range(n)], LAYOUT, [chain(n)]).begin(models)
    swarm.run(16, lambda i, x, t: ZEROS)
    counts = [int.from_bytes(message.base, "little") for _, _, message in swarm.sent]
    assert max(counts) == n - 1
    values = [message.body.dense() for _, _, message in swarm.sent]
    assert 0.99 < float(torch.stack(values).min()) <= float(torch.stack(values).max()) < 1.01
    off = (torch.stack([node.estimate() for node in swarm.nodes]) - torch.stack(models).mean(0)).abs().max()
    assert float(off) < 0.003, "the models' own spread: rounding is below it"


@pytest.mark.parametrize(("values", "most"), [("fp16", 0.003), ("bf16", 0.03), ("int8", 0.06), ("int4", 1.1)])
def test_halves_are_rounded_like_wholes(values: str, most: float) -> None:
    """Of models of size 3: fp16 rounds by 0.001 at most, int8 by 0.012, int4 by 0.2; anew at each hop."""
    n, Q = 8, compressor(Compression(values=values), LAYOUT, F64)
    models = randoms(n, D, 5)
    swarm = Grove([RelaySum(LAYOUT, F64, Q) for _ in range(n)], LAYOUT, double_tree(n)).begin(models)
    exact = grove(n, double_tree(n)).begin(models)
    for X, Y in zip(swarm.run(5, lambda i, x, t: ZEROS), exact.run(5, lambda i, x, t: ZEROS), strict=True):
        assert 0 < float((X - Y).abs().max()) < most
    stored = {message.body.values.dtype for _, _, message in swarm.sent if isinstance(message.body, Strided)}
    assert stored == {VALUE_TYPES[values].stored}


def test_auto_weighs_what_a_double_trees_messages_are_and_not_whole_models() -> None:
    """To a neighbor on one of both trees goes every second entry."""
    layout = Layout((1000,))
    node = make("relay-sum", {}, layout, F64, "auto")
    node.know(torch.zeros(1000, dtype=F64))
    node.begin(torch.linspace(-1, 1, 1000, dtype=F64), 1.0)
    v, fp16 = torch.zeros(1000, dtype=F64), compressor(Compression(values="fp16"), layout, F64)
    half = len(encode(Message(Key(1, 1), 17, fp16.every(v, 0, 2))))
    for trees, of_each, least in (
        ((("a", "b"), ("a",)), {"a": "int8", "b": "fp16"}, 1000 // 2),
        ((("a",), ("a",)), {"a": "int8"}, 1000),
    ):
        out = dict.fromkeys(of_each, 0.3)
        links = Links(Key(1, 1), out, frozenset(out), 4, trees=trees, most_bytes=half + 100)
        messages = node.step(v, 0.1, links, 0.0)
        stored = {j: message.body.values.dtype for j, message in messages.items()}
        assert stored == {j: VALUE_TYPES[values].stored for j, values in of_each.items()}
        assert least < node.least_bytes < 1.3 * least
        node.mix()
    node.open(Links(Key(1, 9, FINAL), out, frozenset(out), 4, trees=trees))
    assert node.least_bytes == 0, "exact"
