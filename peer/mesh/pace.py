"""How far the neighbors are, and how long the open round waits for whom.

    opened --local steps--> [held: what was sent before is unacknowledged] --> pushed --> [halfway] --> closed

A round is held until the links it sends on are free, and stays open after its push until all who are to send
have been heard, either for no longer than is worth it: as long as the link has taught (patience.py), not at
all for one that gives no sign of life, and in final rounds once much longer. A round may have two halves,
with a message of each neighbor in either, and each half is waited for by itself. Times are of the node's
`now`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from peer.events import FINAL, Held, Key, PeerId
from peer.mesh.patience import Patience

# A learner that has heard all that can be expected closes at once, unless its algorithm cannot do without one
# that is gone; it is told to after this; guess
CLOSE_S = 10.0
FINAL_S = 20.0  # at the end a slow neighbor is worth this much more waiting, once; guess
# For so long after somebody has gone members' views may differ: each judges for itself who is dead, by what
# it hears of the others. Where late messages count. In cuts of 30 s of 4 + 4, 24 seeds, rounds go on at .94
# of their rate (least .83), with 3 s at .90 (.77).
UNSETTLED_S = 12.0
UNSETTLED_IF_LATE_IS_LOST_S = 3.0  # neighbors are agreed on, and all that is late is missed; guess
RECENT = 4  # rounds, or a cycle of links: who has not been heard in them may be anywhere by now (guess)
STEPS = 3  # of others that come after, to one of this node: so it does not stand still (guess)
NEARLY = 2  # rounds more behind: it is waited for as before, so that it can come into step (guess)
GOING_S = 1.0  # how much later than usual a message of a graph that is about to go may come; guess
OPENINGS = 16  # rounds whose opening is remembered: the longest cycle, of 256 members, has 8
PUSHES = 32  # rounds whose push is remembered: later than that a message teaches nothing

# (neighbor, does it need asking for a sign of life, for how long must it have been quiet) -> is it absent?
Absent = Callable[[PeerId, bool, float], bool]


class Pace:
    """Of one node. Read-only from outside: `patience`, `held`, `pushed_at`, `halfway`, `stood_s`."""

    def __init__(self, *, late_is_lost: bool) -> None:
        self.patience = Patience(late_is_lost=late_is_lost)
        self._second = Patience(late_is_lost=late_is_lost)  # of second halves
        self._unsettled_s = UNSETTLED_IF_LATE_IS_LOST_S if late_is_lost else UNSETTLED_S
        self.held: Held | None = None
        self.pushed_at: float | None = None  # the open half
        self.stood_s = 0.0  # of the open round, for which this device stood still
        self.overdue = False  # the learner has been told to close this round as it is
        self._acks = Patience()  # for out-neighbors' acknowledgements that hold a round up
        self._late_is_lost = late_is_lost
        self._followed: dict[PeerId, int] = {}  # messages in the open round, of those that come after
        self._key = Key()
        self._opened_at = self._held_at = 0.0
        self._openings: list[float] = []  # of the last rounds, s
        self.halfway = False  # the second half of the open round is pushed
        self._pushes: dict[Key, float] = {}
        self._second_pushes: dict[Key, float] = {}
        self._teaches = True  # the open round: not if it turns out to have no local steps
        self._heard: dict[PeerId, Key] = {}  # the newest round of each
        self._half_heard: dict[PeerId, Key] = {}  # the newest that had two halves
        self._whole: dict[PeerId, Key] = {}  # the newest of which nothing more is to come
        self._heard_at: dict[PeerId, float] = {}
        self._lost_at = -math.inf  # somebody went from the view
        self._final_spent = False  # a final round has waited that much longer

    # --- the open round ------------------------------------------------------------------------------

    def open(self, key: Key, now: float) -> None:
        self._key, self._opened_at, self.stood_s = key, now, 0.0
        self._teaches, self._followed = True, {}
        self.pushed_at, self.held, self.overdue, self.halfway = None, None, False, False
        self._openings = [*self._openings[-OPENINGS + 1 :], now]

    def close(self) -> None:
        self.pushed_at, self.held = None, None

    def began(self, now: float) -> float:
        """For how long the round has been open, s, without what this device stood still."""
        return now - self._opened_at - self.stood_s

    def uses(self, at: float) -> bool:
        """Was a link that was needed then needed by the open round?"""
        return at >= self._opened_at

    def hold(self, event: Held, now: float) -> None:
        self._held_at = self._held_at if self.held is not None else now
        self.held = event

    def push(
        self,
        key: Key,
        unacked: Callable[[PeerId], bool],
        now: float,
        *,
        still: bool = False,
        worked_s: float = 0.0,
    ) -> None:
        """still: the round had no local steps, so it teaches nothing about those that have. worked_s: how
        long they took, which with pace "overlap" is longer than this round has been open."""
        self._teaches = not still
        if still:
            self.held, self.pushed_at = None, now
            return
        done_at = now  # with the local steps: what it was held up after them says nothing of this device
        if self.held is not None and self.held.key == key:
            done_at = self._held_at
            for dst in self.held.dsts:
                if not unacked(dst):
                    self._acks.came(dst, now - self._held_at)
        self.held = None
        for patience in (self.patience, self._second, self._acks):
            patience.worked(max(done_at - self._opened_at - self.stood_s, worked_s))
        self.pushed_at = now
        self._pushes = _remembered(self._pushes, key, now)

    def push_second(self, key: Key, now: float) -> None:
        """The second half of the open round: its messages are waited for from now on."""
        self.halfway, self.overdue, self.pushed_at = True, False, now
        self._second_pushes = _remembered(self._second_pushes, key, now)

    def gives_up_acks(
        self, late: Collection[PeerId], alive: Collection[PeerId], absent: Absent, now: float
    ) -> bool:
        """Is a held round to be pushed without these links? Of the dead nothing will come."""
        assert self.held is not None
        here = [
            dst
            for dst in late
            if dst in alive and not self._is_absent(dst, self._acks, self._held_at, absent, now)
        ]
        waits = [self._extra_s() + self._acks.until(dst, self._held_at) for dst in here]
        if not late or now < max(waits, default=now):
            return False
        for dst in here:  # for the others nobody waits, until they give a sign of life
            self._acks.missed(dst)
        self.held = None
        return True

    def gives_up(
        self,
        expected: Collection[PeerId],
        absent: Absent,
        now: float,
        *,
        going: bool = False,
        whole: bool = False,
    ) -> list[PeerId] | None:
        """Whom a pushed round is to be closed without, once that is due. going: it is the last one on its
        graph, which some may have left already: nobody is worth a long wait. whole: in rounds without local
        steps the algorithm waits for what it cannot do without, so that to close them brings nobody on."""
        if self.pushed_at is None or self.overdue:
            return None
        waits_on = whole and not self._teaches and not self._is_final
        if waits_on and now < self.pushed_at + (0.0 if going else CLOSE_S):
            return None
        late = self.lacks(expected)
        here = [src for src in late if not self._is_absent(src, self._patience, self.pushed_at, absent, now)]
        waits = [self._extra_s() + self._until(src, self.pushed_at, now) for src in here]
        if going and not self._is_final:
            usual = [GOING_S + self._patience.late(src, self.pushed_at) for src in here]
            waits = [min(wait, late) for wait, late in zip(waits, usual, strict=True)]
        complete = self._complete_at(expected) + (GOING_S if going else CLOSE_S)
        if now < max(waits, default=now if late else complete):
            return None
        for src in here:
            self._patience.missed(src)
        self.overdue = True
        self._final_spent = self._final_spent or self._is_final
        return late

    def put_off(self, now: float) -> None:
        """Waiting for the neighbors of a pushed round counts from now on."""
        if self.pushed_at is not None:
            self.pushed_at = now

    def lacks(self, expected: Iterable[PeerId]) -> list[PeerId]:
        """Those who have not been heard in the open half of the open round, nor in a later round."""
        heard, key = self._whole if self.halfway else self._heard, self._key
        here = [src for src in expected if heard.get(src, Key(-1)) < key]
        return sorted(src for src in here if self._heard.get(src, Key(-1)) <= key)

    # --- the neighbors -------------------------------------------------------------------------------

    def took(
        self,
        src: PeerId,
        key: Key,
        at: Key,
        now: float,
        *,
        behind: int,
        view: Collection[PeerId] = (),
        half: bool = False,
    ) -> None:
        """The learner has accepted a message of round `key` from `src`, while this node is at `at`. One that
        is more than so many rounds behind is not worth so long a wait: it teaches nothing. view: unless most
        of these are, which this node has come ahead of then. half: of that round another one is to come, of
        its second half."""
        before, every_s = self._heard.get(src), now - self._heard_at.get(src, now)
        self._heard[src] = max(key, self._heard.get(src, Key(-1)))
        self._heard_at[src] = now
        is_second = not half and self._half_heard.get(src) == key
        for patience in (self.patience, self._second):
            patience.landed(src)
        if half:
            self._half_heard[src] = key
        else:
            self._whole[src] = max(key, self._whole.get(src, Key(-1)))
        patience = self._second if is_second else self.patience
        pushes = self._second_pushes if is_second else self._pushes
        if key > at or (key == at and not self._teaches):
            patience.early(src)
        elif (pushed := pushes.get(key)) is not None:
            if key.round >= at.round - behind:
                patience.came(src, now - pushed)
            elif key.round >= at.round - behind - NEARLY:
                patience.early(src)
        elif key == at:
            patience.came(src, 0.0)
        # a slow one goes to the round of most, or of the furthest, and is as far behind again with the next
        comes_after = before is not None and (self._late_is_lost or key.round - before.round <= behind)
        far = at.round - behind
        if comes_after and key.round < far and self._leads(view, far, behind):
            self._followed[src] = steps = self._followed.get(src, 0) + 1
            patience.follows(src, now, every_s if steps < STEPS else None)

    def moving(self, src: PeerId, now: float) -> None:
        """Bytes from this neighbor are on their way."""
        self.patience.moving(src, now)
        self._second.moving(src, now)

    def reached(self, src: PeerId) -> int | None:
        """The newest round that a message of this neighbor has come of; None: of none yet."""
        key = self._heard.get(src)
        return key.round if key is not None else None

    def forget_rounds(self, src: PeerId | None = None) -> None:
        """Rounds may go backwards: of one whose link begins anew, or of everybody."""
        for peer in [src] if src is not None else list(self._heard):
            for known in (self._heard, self._half_heard, self._whole):
                known.pop(peer, None)
            self._heard_at.pop(peer, None)

    def view_changed(self, gone: Collection[PeerId], now: float) -> None:
        """gone: from the view. Who comes, all know soon; who has died, each judges for itself."""
        if gone:
            self._lost_at = now
        for peer in gone:
            for patience in (self.patience, self._second, self._acks):
                patience.forget(peer)

    def furthest(self, generation: int) -> int:
        """The round of the neighbor that is furthest on in this generation; 0 without one."""
        return max((key.round for key in self._heard.values() if key.generation == generation), default=0)

    def lead(self, now: float) -> int:
        """How far those are behind that this node waits for until they are there, in rounds; 0: for none."""
        rounds = [self._heard[src].round for src in self.patience.following(now) if src in self._heard]
        return max(0, self._key.round - max(rounds, default=self._key.round))

    def median(self, view: Iterable[PeerId], cycle: int, waiting: Mapping[PeerId, int]) -> int:
        """The round that half of the neighbors heard in the last `cycle` rounds have reached; 0 without any.
        What is older says where they were, not where they are. waiting: rounds of messages that the learner
        has not taken yet."""
        since = self._openings[-cycle:][0]
        known = {
            peer: self._heard[peer].round for peer in view if self._heard_at.get(peer, -math.inf) >= since
        }
        known |= {peer: round_ for peer, round_ in waiting.items() if round_ > known.get(peer, -1)}
        heard = sorted(known.values())
        return heard[(len(heard) - 1) // 2] if heard else 0

    # --- inside --------------------------------------------------------------------------------------

    def _leads(self, view: Iterable[PeerId], at: int, cycle: int) -> bool:
        """Are most neighbors heard of late before this round?"""
        since = min(self._openings[-max(cycle, RECENT) :], default=math.inf)  # none: nobody leads yet
        known = [self._heard[peer].round for peer in view if self._heard_at.get(peer, -math.inf) >= since]
        return sum(round_ < at for round_ in known) > len(known) / 2

    def _complete_at(self, expected: Iterable[PeerId]) -> float:
        """When the last of the pushed round's neighbors was heard; the learner closes it about then."""
        assert self.pushed_at is not None
        return max([self.pushed_at, *(self._heard_at.get(src, -math.inf) for src in expected)])

    @property
    def _is_final(self) -> bool:
        return self._key.phase == FINAL

    @property
    def _patience(self) -> Patience:
        return self._second if self.halfway else self.patience

    def _extra_s(self) -> float:
        return FINAL_S if self._is_final and not self._final_spent else 0.0

    def _until(self, src: PeerId, since: float, now: float) -> float:
        """Until when this neighbor is waited for. While members still learn who has gone, it may send this
        round's message to somebody else: then for no longer than it is usually late."""
        unsettled = not self._is_final and now - self._lost_at <= self._unsettled_s
        return self._patience.until(src, since, brief=unsettled)

    def _is_absent(self, peer: PeerId, patience: Patience, since: float, absent: Absent, now: float) -> bool:
        """One later than usual is asked for a sign of life. In final rounds everybody is worth the wait."""
        return not self._is_final and absent(peer, now >= patience.late(peer, since), patience.quiet_s())


def _remembered(pushes: Mapping[Key, float], key: Key, now: float) -> dict[Key, float]:
    return dict(list({**pushes, key: now}.items())[-PUSHES:])
