"""A network of Links objects under faults: nothing is applied twice, nothing is lost, nothing hangs.

Streams break and lose what is on them, each end notices on its own; frames come twice or change places;
learners crash and restart; whole devices reboot; goodbyes are said and arrive late. Between every node and
its learner lie two queues, so that pushes cross link changes. Payload buffers are counted: each is disposed
of once, and none while a learner reads it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from peer.events import (
    Acked,
    Connect,
    Deliver,
    Direction,
    Disconnect,
    Dispose,
    Effect,
    Farewell,
    ForLearner,
    Frame,
    Key,
    LinkDown,
    LinkUp,
    Note,
    Parcel,
    Returned,
    Send,
    ToLearner,
)
from peer.mesh.links import Links


@dataclass(eq=False)
class Buffer:
    """A copy of a parcel in the memory of one device. uid names the message, value is its mass."""

    uid: int
    value: int
    freed: bool = False

    def __len__(self) -> int:
        return 1


@dataclass
class Fate:
    """What has become of one mass message."""

    src: str
    life: int
    dst: str
    value: int
    applied: list[int] = field(default_factory=list)  # receiver lives
    returned: bool = False


@dataclass(eq=False)
class Stream:
    """src -> dst; what an end puts on a broken one is lost."""

    src: str
    dst: str
    broken: bool = False
    queues: dict[Direction, deque[Frame]] = field(default_factory=lambda: {"out": deque(), "in": deque()})


@dataclass
class Learner:
    """The far end of the local socket: takes commands one by one, keeps mass x."""

    life: int
    x: int
    inbox: deque[ToLearner] = field(default_factory=deque)
    epochs: dict[str, int] = field(default_factory=dict)  # of out-links that are up
    up_in: dict[str, int] = field(default_factory=dict)
    out: dict[str, int] = field(default_factory=dict)  # unacknowledged uid per out-neighbor
    latest: dict[str, int] = field(default_factory=dict)  # newest whole-model message applied per in-neighbor


class Net:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.lives = 0
        self.links = {name: Links(name) for name in names}
        self.learners: dict[str, Learner | None] = dict.fromkeys(names)
        self.ends: dict[tuple[str, str, Direction], Stream] = {}
        self.streams: list[Stream] = []  # in the order of dialing; the receiver attaches to the newest
        self.dials: set[tuple[str, str]] = set()
        self.buffers: dict[str, set[Buffer]] = {name: set() for name in names}
        self.fates: dict[int, Fate] = {}
        self.uids = 0
        self.injected = self.lost = 0
        self.order: dict[tuple[str, int, int], int] = {}  # (src, its life, receiver's life) -> last uid
        self.goodbyes: list[tuple[str, str, Farewell]] = []
        self.breaches: list[Note] = []
        self.sent_latest: dict[tuple[str, str], int] = {}
        self.written_off: set[int] = set()

    # --- effects ---------------------------------------------------------------------------------

    def perform(self, me: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, direction, frame):
                    key = (me, peer) if direction == "out" else (peer, me)
                    stream = self.ends.get((*key, direction))
                    if stream is not None and not stream.broken:
                        stream.queues["in" if direction == "out" else "out"].append(frame)
                case ForLearner(command):
                    learner = self.learners[me]
                    assert learner is not None, f"{command} for nobody"
                    learner.inbox.append(command)
                case Dispose(payload):
                    assert isinstance(payload, Buffer) and not payload.freed
                    payload.freed = True
                    self.buffers[me].remove(payload)
                case Connect(peer, "out"):
                    assert (me, peer) not in self.dials
                    self.dials.add((me, peer))
                case Disconnect(peer, "out"):
                    self.dials.remove((me, peer))
                    self.hang_up((me, peer, "out"))
                case Note() if effect.text == "link protocol breach":
                    self.breaches.append(effect)

    # --- streams ---------------------------------------------------------------------------------

    def dial(self, src: str, dst: str) -> None:
        if (src, dst) in self.dials and (src, dst, "out") not in self.ends:
            stream = Stream(src, dst)
            self.streams.append(stream)
            self.ends[src, dst, "out"] = stream
            self.perform(src, self.links[src].stream_up(dst, "out"))

    def attach(self, src: str, dst: str) -> None:
        """The receiver accepts the newest stream, and so gives up an older one."""
        newest = next((s for s in reversed(self.streams) if (s.src, s.dst) == (src, dst)), None)
        if newest is None or newest.broken or self.ends.get((src, dst, "in")) is newest:
            return
        self.hang_up((src, dst, "in"))
        self.ends[src, dst, "in"] = newest
        self.perform(dst, self.links[dst].stream_up(src, "in"))

    def hang_up(self, end: tuple[str, str, Direction]) -> None:
        stream = self.ends.pop(end, None)
        if stream is not None:
            self.cut(stream)
            src, dst, direction = end
            me, peer = (src, dst) if direction == "out" else (dst, src)
            self.perform(me, self.links[me].stream_down(peer, direction))

    def cut(self, stream: Stream) -> None:
        stream.broken = True
        for queue in stream.queues.values():
            queue.clear()

    def notice(self, end: tuple[str, str, Direction]) -> None:
        if end in self.ends and self.ends[end].broken:
            self.hang_up(end)

    def hear(self, end: tuple[str, str, Direction]) -> bool:
        """One frame arrives; a parcel is copied into the receiver's memory."""
        stream = self.ends.get(end)
        if stream is None or not stream.queues[end[2]]:
            return False
        frame = stream.queues[end[2]].popleft()
        me, peer = (end[0], end[1]) if end[2] == "out" else (end[1], end[0])
        if isinstance(frame, Parcel):
            assert isinstance(frame.payload, Buffer)
            copy = self.buffer(me, frame.payload.uid, frame.payload.value)
            frame = Parcel(frame.epoch, frame.number, frame.key, copy, frame.delivery)
        self.perform(me, self.links[me].heard(peer, end[2], frame, 0.0))
        return True

    def buffer(self, me: str, uid: int, value: int) -> Buffer:
        made = Buffer(uid, value)
        self.buffers[me].add(made)
        return made

    # --- learners --------------------------------------------------------------------------------

    def start(self, me: str) -> None:
        self.crash(me)
        self.lives += 1
        self.learners[me] = Learner(self.lives, 1000)
        self.injected += 1000
        self.perform(me, self.links[me].learner_started(self.lives))

    def crash(self, me: str) -> None:
        learner, self.learners[me] = self.learners[me], None
        if learner is not None:
            self.lost += learner.x
            self.perform(me, self.links[me].learner_gone())

    def reboot(self, me: str) -> None:
        """The whole device: its daemon forgets everything, its streams break."""
        self.crash(me)
        self.links[me] = Links(me)
        self.buffers[me].clear()
        for end in [e for e in self.ends if me == (e[0] if e[2] == "out" else e[1])]:
            self.cut(self.ends.pop(end))
        self.dials = {(src, dst) for src, dst in self.dials if src != me}

    def push(self, src: str, dst: str) -> None:
        learner = self.learners[src]
        if learner is None or dst in learner.out or dst not in learner.epochs:
            return
        self.uids += 1
        value = 1 + self.uids % 7
        self.fates[self.uids] = Fate(src, learner.life, dst, value)
        learner.x -= value
        learner.out[dst] = self.uids
        self._push(src, dst, "mass", self.uids, value)

    def push_latest(self, src: str, dst: str) -> None:
        learner = self.learners[src]
        if learner is not None and dst in learner.epochs:
            self.uids += 1
            self.sent_latest[src, dst] = self.uids
            self._push(src, dst, "latest", self.uids, 0)

    def _push(self, src: str, dst: str, delivery: str, uid: int, value: int) -> None:
        learner = self.learners[src]
        assert learner is not None and delivery in ("mass", "latest")
        made = self.buffer(src, uid, value)
        kind = "mass" if delivery == "mass" else "latest"
        self.perform(src, self.links[src].push(dst, learner.epochs[dst], Key(round=uid), made, kind, 0.0))

    def learn(self, me: str, reject: bool = False) -> bool:
        """The learner takes its next command."""
        learner = self.learners[me]
        if learner is None or not learner.inbox:
            return False
        links = self.links[me]
        match learner.inbox.popleft():
            case LinkUp(peer, "out", epoch):
                assert learner.epochs.get(peer) is None
                learner.epochs[peer] = epoch
            case LinkUp(peer, "in", epoch):
                assert learner.up_in.get(peer) is None
                learner.up_in[peer] = epoch
            case LinkDown(peer, "out"):
                del learner.epochs[peer]
            case LinkDown(peer, "in"):
                del learner.up_in[peer]
            case Deliver(src, epoch, number, _, payload):
                assert isinstance(payload, Buffer) and not payload.freed
                assert learner.up_in[src] == epoch
                if reject:
                    self.perform(me, links.rejected(src, epoch, number, "no such base", False))
                else:
                    self.apply(learner, src, payload)
                    self.perform(me, links.taken(src, epoch, number))
            case Acked(dst):
                uid = learner.out.pop(dst)
                assert self.fates[uid].applied or uid in self.written_off
            case Returned(dst):
                fate = self.fates[learner.out.pop(dst)]
                assert not fate.returned and not set(fate.applied) & self.alive
                fate.returned = True
                learner.x += fate.value
                if fate.applied:
                    self.lost -= fate.value  # the life that had applied it is lost, this part of it is not
        return True

    @property
    def alive(self) -> set[int]:
        return {learner.life for learner in self.learners.values() if learner is not None}

    def apply(self, learner: Learner, src: str, payload: Buffer) -> None:
        if payload.uid not in self.fates:
            assert payload.uid > learner.latest.get(src, 0), "an older model after a newer one"
            learner.latest[src] = payload.uid
            return
        fate = self.fates[payload.uid]
        assert not fate.applied and not fate.returned
        fate.applied.append(learner.life)
        learner.x += fate.value
        key = (src, fate.life, learner.life)
        assert payload.uid > self.order.get(key, 0), "out of order"
        self.order[key] = payload.uid

    # --- leaving ---------------------------------------------------------------------------------

    def leave(self, me: str) -> None:
        """As a node does: nothing more is applied, what is at the learner is finished, then goodbyes."""
        learner = self.learners[me]
        if learner is None:
            return
        links = self.links[me]
        self.perform(me, links.refuse_all())
        while links.in_hand() and self.learn(me):
            pass
        assert not links.in_hand()
        for peer in self.names:
            if peer != me:
                self.goodbyes.append((me, peer, links.farewell(peer, learner.life)))
        self.crash(me)

    def hear_goodbye(self, index: int) -> None:
        me, peer, last = self.goodbyes.pop(index)
        self.perform(peer, self.links[peer].goodbye(me, last))

    def write_off(self, me: str, peer: str) -> None:
        for item in self.links[me].ledger():
            if item.dst == peer and isinstance(item.payload, Buffer):
                self.written_off.add(item.payload.uid)
        self.perform(me, self.links[me].write_off(peer))

    # --- claims ----------------------------------------------------------------------------------

    def check(self) -> None:
        assert not self.breaches
        limbo = {uid: f for uid, f in self.fates.items() if not f.applied and not f.returned}
        x = sum(learner.x for learner in self.learners.values() if learner is not None)
        assert x + self.lost + sum(f.value for f in limbo.values()) == self.injected
        for uid, fate in limbo.items():
            learner = self.learners[fate.src]
            if learner is None or learner.life != fate.life:
                continue  # lost with the sender's life, or still on its way
            listed = {
                item.payload.uid for item in self.links[fate.src].ledger() if isinstance(item.payload, Buffer)
            }
            told = any(isinstance(c, Returned) and c.dst == fate.dst for c in learner.inbox)
            assert uid in listed or (told and learner.out[fate.dst] == uid) or uid in self.written_off

    def settle(self) -> None:
        """No more faults: everything that can happen happens, until nothing can."""
        while self.goodbyes:
            self.hear_goodbye(0)
        for stream in self.streams:
            if stream.broken:
                for direction in ("out", "in"):
                    self.notice((stream.src, stream.dst, direction))
        for _ in range(10_000):
            moved = False
            for src, dst in sorted(self.dials):
                self.dial(src, dst)
                self.attach(src, dst)
            for end in list(self.ends):
                self.notice(end)
                moved |= self.hear(end)
            for name in self.names:
                moved |= self.learn(name)
            self.check()
            if not moved and all((*pair, "out") in self.ends for pair in self.dials):
                return
        raise AssertionError("frames without end")


class Faults:
    """A seeded schedule: progress most of the time, faults in between, everything healed at the end."""

    def __init__(self, names: tuple[str, ...], seed: int, calm: int) -> None:
        self.names, self.random, self.calm = names, Random(seed), calm
        self.pairs = [(src, dst) for src in names for dst in names if src != dst]
        self.net = Net(names)
        for name in names:
            self.net.start(name)
        self.want_all()
        self.net.settle()

    def want_all(self) -> None:
        for src, dst in self.pairs:
            self.net.perform(src, self.net.links[src].want(dst))

    def step(self) -> None:
        src, dst = self.random.choice(self.pairs)
        direction: Direction = self.random.choice(("out", "in"))
        faults = [self.reconnect, self.push_and_break, self.cut, self.restart, self.reboot, self.leave]
        faults += [self.unwant, self.renew, self.write_off, self.goodbye, self.reject, self.duplicate]
        faults += [self.reorder, self.hear_of]
        match self.random.randrange(10 + self.calm):
            case 0:
                self.random.choice(faults)(src, dst)
            case 1:
                self.net.notice((src, dst, direction))
            case 2 | 3:
                self.net.dial(src, dst)
                self.net.attach(src, dst)
            case 4:
                self.net.push_latest(src, dst)
            case 5 | 6:
                self.net.push(src, dst)
            case 7:
                self.net.learn(src)
            case 8:
                while self.net.learn(src):
                    pass
            case _:
                self.net.hear((src, dst, direction))
        self.net.check()

    def duplicate(self, src: str, dst: str) -> None:
        """The next frame comes twice."""
        for queue in self.queues(src, dst):
            queue.appendleft(queue[0])

    def reorder(self, src: str, dst: str) -> None:
        """The next two frames of a stream change places."""
        for queue in self.queues(src, dst):
            first = queue.popleft()
            queue.insert(1, first)

    def queues(self, src: str, dst: str) -> list[deque[Frame]]:
        stream = self.net.ends.get((src, dst, "out"))
        return [queue for queue in stream.queues.values() if queue] if stream is not None else []

    def reject(self, src: str, dst: str) -> None:
        self.net.learn(dst, reject=True)

    def cut(self, src: str, dst: str) -> None:
        stream = self.net.ends.get((src, dst, "out"))
        if stream is not None:
            self.net.cut(stream)

    def reconnect(self, src: str, dst: str) -> None:
        """Cut, noticed by the sender, dialed again: frames are lost on the way, parcels sent again."""
        self.cut(src, dst)
        self.net.notice((src, dst, "out"))
        self.net.dial(src, dst)
        self.net.attach(src, dst)

    def push_and_break(self, src: str, dst: str) -> None:
        """A parcel gets so far (sent, heard, applied), its stream breaks, and its receiver may change."""
        self.net.push(src, dst)
        far = self.random.randrange(4)
        for _ in range(4 if far > 0 else 0):
            self.net.hear((src, dst, "in"))
        while far > 1 and self.net.learn(dst):
            pass
        if far < 3:
            self.cut(src, dst)
        self.random.choice(
            (self.write_off, self.restart, self.leave, self.reconnect, self.reboot, self.renew)
        )(dst, src)
        if self.random.random() < 0.3:
            self.hear_of(src, dst)
        if self.random.random() < 0.5:
            self.net.push_latest(src, dst)
        self.reconnect(src, dst)

    def restart(self, me: str, _: str) -> None:
        self.random.choice((self.net.start, self.net.crash))(me)
        if self.random.random() < 0.7:
            self.net.start(me)

    def reboot(self, me: str, _: str) -> None:
        self.net.reboot(me)
        self.want_all()
        if self.random.random() < 0.7:
            self.net.start(me)

    def leave(self, me: str, _: str) -> None:
        self.net.leave(me)
        if self.random.random() < 0.7:
            self.net.start(me)

    def goodbye(self, _src: str, _dst: str) -> None:
        if self.net.goodbyes:
            self.net.hear_goodbye(self.random.randrange(len(self.net.goodbyes)))

    def unwant(self, src: str, dst: str) -> None:
        self.net.perform(src, self.net.links[src].unwant(dst))
        if self.random.random() < 0.7:
            self.net.perform(src, self.net.links[src].want(dst))

    def renew(self, src: str, dst: str) -> None:
        self.net.perform(src, self.net.links[src].renew(dst))

    def hear_of(self, me: str, peer: str) -> None:
        """Its record says which life its learner is in."""
        learner = self.net.learners[peer]
        life = 0 if learner is None else learner.life
        self.net.perform(me, self.net.links[me].lives({peer: life}))

    def write_off(self, me: str, peer: str) -> None:
        self.net.write_off(me, peer)
        if self.random.random() < 0.7:
            self.net.perform(me, self.net.links[me].want(peer))

    def heal(self) -> None:
        """After faults stop everything is delivered: what is out, and a new message on every link."""
        net = self.net
        for name in self.names:
            if net.learners[name] is None:
                net.start(name)
        self.want_all()
        net.settle()
        first_new = net.uids + 1
        for src, dst in self.pairs:
            assert net.links[src].clear(dst), (src, dst)
            net.push(src, dst)
            net.push_latest(src, dst)
        net.settle()
        assert not any(net.links[name].ledger() for name in self.names)
        assert not any(net.buffers.values()), "payloads nobody has disposed of"
        new = [fate for uid, fate in net.fates.items() if uid >= first_new]
        assert len(new) == len(self.pairs) and all(fate.applied for fate in new)
        for src, dst in self.pairs:
            receiver = net.learners[dst]
            assert receiver is not None and receiver.latest[src] == net.sent_latest[src, dst]


@given(
    names=st.sampled_from((("a", "b"), ("a", "b", "c"))),
    seed=st.integers(0, 2**32 - 1),
    calm=st.sampled_from((0, 10, 40)),
)
def test_under_any_faults_mass_is_conserved_nothing_comes_twice_and_nothing_hangs(
    names: tuple[str, ...], seed: int, calm: int
) -> None:
    faults = Faults(names, seed, calm)
    for _ in range(200):
        faults.step()
    faults.heal()
