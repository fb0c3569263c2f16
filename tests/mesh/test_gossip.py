"""SWIM in virtual time: who is found dead and when, who is not, and what it costs."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest

from peer.config import MAX_MEMBERS
from peer.events import Control, Effect, Note, PeerId, Probe, ProbeFor, Record, Suspicion, Tell, Vouch
from peer.mesh.gossip import (
    COMPARE_S,
    PUSH_PULL_S,
    RECORDS_PER_S,
    SPREAD_S,
    Gossip,
)
from peer.mesh.membership import MAX_DRIVEN
from peer.mesh.probing import ANSWER_S, LOST_AGAIN_S, TIMEOUT_S
from peer.mesh.suspicion import INTERVAL_S, bounds

TICK_S = 0.25
BEFORE_SUSPICION_S = 2 * INTERVAL_S + 2 * TIMEOUT_S  # until it is probed, and has not answered twice


def name(i: int) -> str:
    return f"p{i:02d}"


def record(peer: PeerId, boot: int = 1, **fields: object) -> Record:
    made = Record(peer, boot, (boot << 20) + 1, phase="training", weight=1.0, addresses=(f"{peer}:1",))
    return replace(made, **fields)  # type: ignore[arg-type]


@dataclass
class Network:
    """Control calls with latency, each request and each answer lost with probability `loss`; members that
    `cut` says cannot reach each other. Nothing but membership runs: no data frame is ever heard."""

    seed: int = 0
    loss: float = 0.0
    latency_s: tuple[float, float] = (0.005, 0.1)
    cut: Callable[[PeerId, PeerId], bool] = lambda a, b: False
    now: float = 0.0
    nodes: dict[PeerId, Gossip] = field(default_factory=dict)
    off: set[PeerId] = field(default_factory=set)
    paused: set[PeerId] = field(default_factory=set)
    sent: Counter[PeerId] = field(default_factory=Counter)
    records_sent: int = 0
    notes: list[tuple[float, PeerId, Note]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def home(self, n: int, **of_first: object) -> Network:
        """All have met all."""
        for i in range(n):
            self.add(name(i), record(name(i), **(of_first if i == 0 else {})))
        for a, b in itertools.permutations(self.nodes, 2):
            if not self.cut(a, b):
                self.nodes[a].met(self.nodes[b].members.me, self.now)
            else:
                self.nodes[a].merge([self.nodes[b].members.me], self.now)
        return self

    def add(self, peer: PeerId, made: Record | None = None) -> Gossip:
        self.nodes[peer] = node = Gossip(made or record(peer))
        self.at(self.rng.uniform(0, TICK_S), lambda: self._tick(peer, node))
        return node

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            if until():
                return True
        self.now = end
        return until()

    def perform(self, me: PeerId, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Note):
                self.notes.append((self.now, me, effect))
            if isinstance(effect, Tell):
                self.sent[me] += 1
                if isinstance(effect.message, Probe):
                    self.records_sent += len(effect.message.records)
                self._call(me, effect.peer, effect.message)

    def deaths(self) -> list[tuple[float, PeerId, object]]:
        return [(at, by, n.fields["peer"]) for at, by, n in self.notes if "taken for dead" in n.text]

    def _runs(self, peer: PeerId) -> bool:
        return peer not in self.off and peer not in self.paused

    def _lost(self, src: PeerId, dst: PeerId) -> bool:
        return self.cut(src, dst) or self.rng.random() < self.loss

    def _tick(self, peer: PeerId, node: Gossip) -> None:
        if self.nodes[peer] is node and peer not in self.off:
            if self._runs(peer):
                self.perform(peer, node.tick(self.now))
            self.at(TICK_S, lambda: self._tick(peer, node))

    def _call(self, src: PeerId, dst: PeerId, message: Control) -> None:
        """The first Probe told to the caller meanwhile is the answer; another answer is a bare sign of
        life."""
        if dst not in self.nodes or self._lost(src, dst):
            return

        def arrive() -> None:
            if not self._runs(dst) or not isinstance(message, Probe | ProbeFor | Vouch):
                return
            node, answer = self.nodes[dst], None
            for effect in [*node.heard(src, self.now), *node.told(src, message, self.now)]:
                said = effect.message if isinstance(effect, Tell) and effect.peer == src else None
                if answer is None and isinstance(said, Probe):
                    answer = said
                    self.records_sent += len(said.records)
                else:
                    self.perform(dst, [effect])
            if not self._lost(dst, src):
                self.at(self._latency(), lambda: self._answered(src, dst, answer))

        self.at(self._latency(), arrive)

    def _answered(self, src: PeerId, dst: PeerId, answer: Probe | None) -> None:
        if self._runs(src):
            node = self.nodes[src]
            self.perform(src, node.heard(dst, self.now))
            if answer is not None:
                self.perform(src, node.told(dst, answer, self.now))

    def _latency(self) -> float:
        return self.rng.uniform(*self.latency_s)


def views(net: Network) -> set[tuple[PeerId, ...]]:
    return {tuple(n.members.view()) for p, n in net.nodes.items() if p not in net.off}


def state(net: Network, at: PeerId, of: PeerId) -> str:
    return {r.peer: r.state for r in net.nodes[at].members.members()}[of]


# --- the dead ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 64])
def test_everybody_finds_out_who_has_crashed_within_the_longest_suspicion(n: int) -> None:
    for seed in range(5 if n <= 16 else 1):
        net = Network(seed).home(n)
        net.run(20.0)
        assert net.deaths() == []
        net.off.add(name(1))
        crashed = net.now
        net.run(bounds(n)[1] + BEFORE_SUSPICION_S)
        deaths = net.deaths()
        assert {(by, dead) for _, by, dead in deaths} == {(p, name(1)) for p in net.nodes if p != name(1)}
        assert min(at for at, _, _ in deaths) - crashed >= bounds(n)[0]
        assert views(net) == {tuple(p for p in net.nodes if p != name(1))}


def test_one_of_eight_is_missed_after_the_shortest_suspicion_since_the_others_agree() -> None:
    for seed in range(10):
        net = Network(seed).home(8)
        net.run(20.0)
        net.off.add(name(1))
        crashed = net.now
        net.run(60.0)
        assert max(at for at, _, _ in net.deaths()) - crashed < bounds(8)[0] + 10.0


@pytest.mark.parametrize(("loss", "seeds"), [(0.05, 10), (0.2, 50)])
def test_packet_loss_kills_nobody_in_ten_minutes(loss: float, seeds: int) -> None:
    for seed in range(seeds):
        net = Network(seed, loss=loss).home(8)
        net.run(600.0)
        assert net.deaths() == [], f"seed {seed}"
    assert len(views(net)) == 1


def test_a_member_that_stands_still_for_less_than_a_suspicion_refutes_it() -> None:
    net = Network(loss=0.05).home(8)
    net.run(10.0)
    net.paused.add(name(3))
    net.run(bounds(8)[0])
    assert {state(net, p, name(3)) for p in net.nodes if p != name(3)} <= {"alive", "suspect"}
    assert any(state(net, p, name(3)) == "suspect" for p in net.nodes)
    before = net.nodes[name(3)].members.me.incarnation
    net.paused.clear()
    net.run(3.0)
    assert {state(net, p, name(3)) for p in net.nodes} == {"alive"}
    assert net.nodes[name(3)].members.me.incarnation > before
    assert net.deaths() == []


# --- indirect ------------------------------------------------------------------------------------------


def between(a: PeerId, b: PeerId) -> Callable[[PeerId, PeerId], bool]:
    return lambda src, dst: {src, dst} == {a, b}


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_one_broken_pair_is_vouched_for_by_the_others(loss: float) -> None:
    for seed in range(5):
        net = Network(seed, loss=loss, cut=between(name(0), name(1))).home(8)
        net.run(300.0)
        assert net.deaths() == []
        assert views(net) == {tuple(net.nodes)}


def test_who_cannot_be_reached_by_one_member_is_known_to_it_through_the_others() -> None:
    """In both directions, one direction at a time as well; and its news comes round."""
    for cuts in ({(name(0), name(1))}, {(name(0), name(1)), (name(1), name(0))}):
        net = Network(cut=lambda a, b, cuts=cuts: (a, b) in cuts)  # type: ignore[misc]
        net.home(5)
        net.run(60.0)
        net.perform(name(1), net.nodes[name(1)].publish(weight=3.0))
        net.run(PUSH_PULL_S + 2 * COMPARE_S)
        known = net.nodes[name(0)].members.record(name(1))
        assert known is not None
        assert known.weight == 3.0
        assert net.deaths() == []


@pytest.mark.parametrize("n", [6, 8, 12])
def test_where_half_of_the_network_is_out_of_reach_nobody_waits_for_confirmations_in_vain(n: int) -> None:
    """Rumors that go there are heard by nobody: they do not count as passed on."""
    for seed in range(10):
        net, here = Network(seed).home(n), {name(i) for i in range(n // 2)}
        net.run(20.0)
        net.cut, at = (lambda a, b, here=here: (a in here) != (b in here)), net.now  # type: ignore[misc]
        net.run(BEFORE_SUSPICION_S + bounds(n)[0] + 4.0)
        half = [tuple(p for p in net.nodes if (p in here) == there) for there in (True, False)]
        assert views(net) == set(half), f"{seed=}, {net.now - at} s after the cut"


def test_a_word_that_nobody_asked_for_heals_nobody() -> None:
    node = Gossip(record("a"))
    for peer in ("b", "c"):
        node.met(record(peer), 0.0)
    node.members.suspect("b", record("b").incarnation, "a", 9.0)
    assert node.members.silent(99.0) == ["b"]
    node.told("c", Vouch("b"), 99.0)
    assert node.members.is_dead("b")


def test_a_helper_answers_at_once_for_whom_it_has_just_heard_and_asks_the_others() -> None:
    node = Gossip(record("a"))
    for peer in ("b", "c"):
        node.met(record(peer), 0.0)
    assert node.told("c", ProbeFor("b"), 0.5) == [Tell("c", Vouch("b"))]
    [probe] = node.told("c", ProbeFor("b"), 9.0)
    assert isinstance(probe, Tell)
    assert (probe.peer, type(probe.message)) == ("b", Probe)
    assert node.told("c", ProbeFor("b"), 9.1) == []  # it has been asked
    assert Tell("c", Vouch("b")) in node.heard("b", 9.5)
    assert node.heard("b", 9.6) == []
    assert node.told("c", ProbeFor("nobody"), 9.7) == []


# --- refuting and lying --------------------------------------------------------------------------------


def test_a_liar_can_start_suspicions_and_nothing_more() -> None:
    """p00 says in every message that it does not hear p01, whatever p01 answers; two more agree."""
    net = Network().home(8)
    liar, victim = net.nodes[name(0)], net.nodes[name(1)]
    for _ in range(400):
        net.run(0.25)
        lies = tuple(Suspicion(name(1), victim.members.me.incarnation, name(i)) for i in (0, 2, 3))
        for peer in net.nodes:
            if peer != name(0):
                net.perform(name(0), [Tell(peer, Probe(liar.members.digest(), (), lies))])
    assert net.deaths() == []
    assert victim.members.me.incarnation < MAX_DRIVEN
    changes = victim.members.me.incarnation - record(name(1)).incarnation
    assert changes <= 100 / SPREAD_S + 1


def test_nobody_says_whom_this_node_does_not_hear() -> None:
    node = Gossip(record("a"))
    node.met(record("b"), 0.0)
    node.told("c", Probe(b"", (), (Suspicion("b", record("b").incarnation, "a"),)), 1.0)
    assert node.members.suspects() == []


def test_members_cannot_speak_for_others_in_the_first_place() -> None:
    """ "dead" and "suspect" in a record are nobody's word; the rest is signed (test_transport.py)."""
    node = Gossip(record("a"))
    node.met(record("b"), 0.0)
    for told in ("dead", "suspect"):
        forged = replace(record("b"), incarnation=record("b").incarnation + 5, state=told)  # type: ignore[arg-type]
        node.told("c", Probe(b"", (forged,)), 1.0)
    assert node.members.record("b") == record("b")
    assert not node.members.is_dead("b")


# --- awareness and standing still ----------------------------------------------------------------------


def test_who_hears_nobody_doubts_itself_and_regains_its_trust() -> None:
    net = Network(cut=lambda a, b: name(0) in (a, b)).home(2)
    for peer in (name(2), name(3), name(4)):
        net.add(peer)
    cut, net.cut = net.cut, lambda a, b: False
    for a, b in itertools.permutations(net.nodes, 2):
        net.nodes[a].met(net.nodes[b].members.me, net.now)
    net.run(10.0)
    assert net.nodes[name(0)].members.awareness.score == 0
    net.cut = cut
    net.run(25.0)
    doubts = {p: n.members.awareness.score for p, n in net.nodes.items()}
    assert doubts[name(0)] >= 2
    assert max(doubts[p] for p in net.nodes if p != name(0)) == 0
    net.cut = lambda a, b: False
    net.run(120.0)
    assert net.nodes[name(0)].members.awareness.score <= 1
    assert views(net) == {tuple(net.nodes)}


@pytest.mark.parametrize("clock_ran", [True, False])
def test_who_stood_still_speaks_anew_and_asks_what_has_happened(clock_ran: bool) -> None:
    node = Gossip(record("a"))
    for peer in "bcdefg":
        node.met(record(peer), 0.0)
    before = node.members.me.incarnation
    now = 600.0 if clock_ran else 1.0
    effects = node.stood(599.0, clock_ran=clock_ran)
    assert node.members.me.incarnation == before + 1
    assert node.members.awareness.score == 1
    assert len(effects) == 3
    for effect in effects:
        assert isinstance(effect, Tell)
        assert isinstance(effect.message, Probe)
        assert effect.message.pull
        assert len(effect.message.records) == 7
    assert node.members.heard_at("b") == (599.0 if clock_ran else 0.0)
    node.tick(now + 0.25)
    assert node.members.suspects() == []


def test_who_was_stopped_knows_within_seconds_what_has_happened_meanwhile() -> None:
    net = Network().home(8)
    net.run(10.0)
    net.paused.add(name(0))
    net.run(20.0)
    net.off.add(name(7))
    net.perform(name(1), net.nodes[name(1)].publish(weight=5.0))
    net.run(30.0)
    net.paused.clear()
    net.perform(name(0), net.nodes[name(0)].stood(50.0, clock_ran=True))
    net.run(1.0)
    known = net.nodes[name(0)].members.record(name(1))
    assert known is not None
    assert known.weight == 5.0
    assert {state(net, p, name(0)) for p in net.nodes if p != name(7)} == {"alive"}
    net.run(60.0)
    assert views(net) == {tuple(p for p in net.nodes if p != name(7))}
    assert not [d for d in net.deaths() if d[1] == name(0) and d[2] != name(7)]


# --- partitions and views ------------------------------------------------------------------------------


def halves(a: PeerId, b: PeerId) -> bool:
    return (int(a[1:]) < 4) != (int(b[1:]) < 4)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_halves_give_each_other_up_within_40_s_and_find_each_other_again_in_seconds(loss: float) -> None:
    for seed in range(10):
        net = Network(seed, loss=loss).home(8)
        net.run(10.0)
        net.cut = halves
        assert net.run(40.0, until=lambda n=net: {len(v) for v in views(n)} == {4})
        net.run(30.0)
        net.perform(name(1), net.nodes[name(1)].publish(round=7))
        net.perform(name(6), net.nodes[name(6)].publish(round=8))
        net.cut = lambda a, b: False
        assert net.run(3 * LOST_AGAIN_S, until=lambda n=net: views(n) == {tuple(n.nodes)})
        converged = lambda n=net: len({m.members.digest() for m in n.nodes.values()}) == 1  # noqa: E731
        assert net.run(30.0, until=converged)
        rounds = {p: [r.round for r in n.members.records()] for p, n in net.nodes.items()}
        assert {tuple(r) for r in rounds.values()} == {(-1, 7, -1, -1, -1, -1, 8, -1)}


def test_what_nobody_has_told_is_found_by_comparing_views() -> None:
    net = Network().home(6)
    net.run(10.0)
    stale = net.nodes[name(0)].members
    newer = replace(record("x"), incarnation=record("x").incarnation + 9)
    stale.merge([newer], net.now)  # without a word to anybody
    net.run(PUSH_PULL_S + 3 * COMPARE_S)
    assert {n.members.record("x") for n in net.nodes.values()} == {newer}


def test_a_copy_of_a_running_device_is_named_within_30_s_by_both_and_by_others() -> None:
    """p00 and p00' answer to one id; each calls the others, who reach one of the two."""
    for seed in range(5):
        net = Network(seed).home(4, instance=100)
        first = net.nodes[name(0)]
        net.run(10.0)
        copy = Gossip(record(name(0), instance=200))
        twins = Twins(net, first, copy)
        for p in (1, 2, 3):
            twins.second.perform(name(0), copy.met(net.nodes[name(p)].members.me, net.now))
        for _ in range(120):
            twins.run(0.25)
        assert (first.members.yields, copy.members.yields) == (False, True)
        assert set(first.members.copies) == set(copy.members.copies) == {name(0)}
        assert any(name(0) in net.nodes[name(p)].members.copies for p in (1, 2, 3))


class Twins:
    """A second p00, which calls the others and hears their answers; what they say of their own accord reaches
    the first."""

    def __init__(self, net: Network, first: Gossip, copy: Gossip) -> None:
        self.net, self.copy = net, copy
        self.second = replace_calls(net, copy)

    def run(self, seconds: float) -> None:
        self.second.perform(name(0), self.copy.tick(self.net.now))
        self.net.run(seconds)


def replace_calls(net: Network, copy: Gossip) -> Network:
    """The same network as the copy sees it: calls go to the others, answers come to the copy."""
    seen = Network(seed=net.seed)
    calling: list[tuple[PeerId, Control]] = []

    def call(src: PeerId, dst: PeerId, message: Control) -> None:
        assert isinstance(message, Probe | ProbeFor | Vouch)
        calling.append((dst, message))
        if len(calling) > 1:
            return  # the call before is being answered
        while calling:
            to, said = calling[0]
            node, answers = net.nodes[to], []
            for effect in [*node.heard(src, net.now), *node.told(src, said, net.now)]:
                if isinstance(effect, Tell) and effect.peer == src and not answers:
                    answers.append(effect.message)
                else:
                    net.perform(to, [effect])
            effects = copy.heard(to, net.now)
            for answer in answers:
                effects += copy.told(to, answer, net.now)  # type: ignore[arg-type]
            seen.perform(src, effects)
            calling.pop(0)

    seen._call = call  # type: ignore[method-assign]
    return seen


# --- who is not waited for in a round ------------------------------------------------------------------


def test_who_is_missed_is_asked_and_absent_when_it_does_not_answer_until_it_is_heard() -> None:
    net = Network().home(4)
    net.run(20.0)
    me, silent = net.nodes[name(0)], name(1)
    net.off.add(silent)
    net.run(0.5)
    assert not me.absent(silent, net.now)
    effects = me.missing(silent, net.now, quiet_s=0.5)
    assert [effect.peer for effect in effects if isinstance(effect, Tell)] == [silent]
    assert me.missing(silent, net.now, quiet_s=0.5) == [], "it has just been asked"
    net.perform(name(0), effects)
    net.run(ANSWER_S - 0.01)
    assert not me.absent(silent, net.now)
    net.run(0.02)
    assert me.absent(silent, net.now)
    net.run(6.0)
    others = [net.nodes[peer].absent(silent, net.now) for peer in (name(2), name(3))]
    assert all(others), "what one suspects, all have heard of"
    assert not any(me.absent(peer, net.now) for peer in (name(2), name(3)))
    net.off.discard(silent)
    me.heard(silent, net.now)
    assert not me.absent(silent, net.now)


def test_who_was_heard_a_moment_ago_is_not_asked() -> None:
    net = Network().home(2)
    net.run(20.0)
    me = net.nodes[name(0)]
    me.heard(name(1), net.now)
    assert me.missing(name(1), net.now + 0.4, quiet_s=0.5) == []
    assert me.missing(name(1), net.now + 0.5, quiet_s=0.5) != []


# --- what it costs -------------------------------------------------------------------------------------


def test_64_members_cost_each_other_little_when_nothing_happens_and_when_all_weights_change() -> None:
    net = Network().home(64)
    net.run(20.0)
    net.sent.clear()
    net.run(60.0)
    assert max(net.sent.values()) / 60 < 1.5
    net.sent.clear()
    net.records_sent = 0
    for step in range(12):
        for i, node in enumerate(net.nodes.values()):
            net.perform(name(i), []) if node.members.update_me(weight=1.0 + 0.5 * (step % 2)) else None
        net.run(5.0)
    assert max(net.sent.values()) / 60 <= 10.0
    assert net.records_sent / 64 / 60 <= RECORDS_PER_S + 10.0


@pytest.mark.parametrize("gone", [0, MAX_MEMBERS - 2, 2 * MAX_MEMBERS])
def test_gossip_rests_though_there_was_no_room_for_all_that_was_heard_of(gone: int) -> None:
    """Among four that hear each other: what is forgotten is not to be passed on for ever."""
    node, others = Gossip(record("me")), ["a", "b", "c"]
    for peer in others:
        node.met(record(peer), 0.0)
    node.merge([record(f"gone{i:04d}", state="left") for i in range(gone)], 0.5)
    told = 0
    for now in itertools.takewhile(lambda now: now < 300.0, itertools.count(1.0, TICK_S)):
        for peer in others:
            node.heard(peer, now)
        told += sum(isinstance(effect, Tell) for effect in node.tick(now)) if now >= 240.0 else 0
    assert told < 2 * 60.0 / COMPARE_S


def test_a_crash_among_64_is_no_storm() -> None:
    net = Network().home(64)
    net.run(20.0)
    net.sent.clear()
    net.off.add(name(9))
    net.run(60.0)
    assert max(net.sent.values()) / 60 <= 10.0
    assert len(net.deaths()) == 63
