"""Who is in the session: one record per member, merged by (boot, incarnation); liveness judged locally.

Only its owner raises a record's incarnation, (boot << 20) + n, so that a restart outranks its past without
a clock; a member that hears something newer, or something wrong, said about itself outranks it, unless it is
so far ahead (`implausible`) that nobody can have written it honestly: nobody takes that in. "left" and
"paused" are states a member gives itself. "dead" is each node's own verdict on a suspicion that nobody has
refuted in time (suspicion.py): it is never merged, never gossiped, and any sign of life heals it. A suspect
is still alive. A sign of life is a frame, an answer, another's word for it that this node has asked for, or a
record with a higher incarnation, which its owner must have been alive to write. A member known from gossip
alone counts as alive from its first sign of life on. The words are SWIM's (Das, Gupta, Motivala, DSN 2002).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from peer.config import MAX_MEMBERS
from peer.errors import RemoteError
from peer.events import MemberState, PeerId, Record
from peer.mesh.copies import Copies, differ
from peer.mesh.suspicion import INTERVAL_S, Awareness, Suspicion

KEPT_S = 24 * 3600.0  # a dead member's record, as memberlist keeps it
REFUTE_S = 0.5  # a member refutes at most once in this time: no faster than news is spread
WEIGHT_STEP = 0.2  # relative change of a push-sum weight that is worth telling: w̄ to 20 %, few records; guess
MAX_NAME, MAX_ADDRESS, MAX_ADDRESSES, MAX_DIGEST = 64, 280, 16, 64  # characters, entries, bytes
MAX_COUNTER = 1 << 63
# A record ahead of what is known by more than this was not written by its owner: it is a million boots, or as
# many changes as one per millisecond makes in 35 years (guess)
MAX_AHEAD = 1 << 40
# By what others say, a node is driven no higher than this: above it a lifetime of changes of its own fits
MAX_DRIVEN = 1 << 62

# How far a member outranks a copy of itself: so that the copy's own news, which it goes on telling until it
# hears of this, are not above it; guess
COPY_STEP = 1 << 10

RANK: dict[MemberState, int] = {"alive": 0, "paused": 1, "left": 2}


class Membership:
    """`me` is this node's record as it is published; its weight may lag behind by up to WEIGHT_STEP."""

    def __init__(self, me: Record) -> None:
        self.me = replace(me, incarnation=max(me.incarnation, (me.boot << 20) + 1), proof=b"")
        self.awareness = Awareness()
        self.contested = 0  # how often others said about this node what it had not
        self.yields = False  # is this device a copy of one that runs already?
        self.blocked: frozenset[PeerId] = frozenset()  # members as others see them, out of reach of this node
        self._copies = Copies()
        self._weight = me.weight
        self._records: dict[PeerId, Record] = {}  # of the others
        self._heard: dict[PeerId, float] = {}  # last sign of life, s
        self._suspicions: dict[PeerId, Suspicion] = {}
        self._dead: dict[PeerId, float] = {}  # since when
        self._learned: dict[PeerId, float] = {}  # when a record came first
        self._forgotten: dict[PeerId, tuple[int, int]] = {}  # what was dead too long; not taken in again
        self._refuted_at = -math.inf
        self._digest: tuple[int, bytes] = (-1, b"")
        self._parts: tuple[int, list[PeerId], list[PeerId]] = (-1, [], [])
        self.version = 0  # rises whenever any record or verdict changes

    # --- what comes in -------------------------------------------------------------------------------

    def merge(self, records: Iterable[Record], now: float) -> list[Record]:
        """Take the newer records in; returns those. RemoteError, and nothing taken, if one is out of bounds.

        A first record is no sign of life (call `heard` when it came from its owner); a newer one is.
        """
        records = list(records)
        for record in records:
            check(record)
        return [record for record in records if self._merge(record, now)]

    def heard(self, peer: PeerId, now: float) -> bool:
        """A sign of life. True if the member was not alive before. A member that left stays so."""
        if peer not in self._records:
            return False
        revived = not self._is_alive(peer)
        self._heard[peer] = max(now, self._heard.get(peer, now))
        self._dead.pop(peer, None)
        self._suspicions.pop(peer, None)
        self.version += revived
        return revived and self._is_alive(peer)

    def met(self, peer: PeerId) -> None:
        """Its owner is about to say who it is: whatever was forgotten, it counts."""
        self._forgotten.pop(peer, None)

    def suspect(self, peer: PeerId, incarnation: int, by: PeerId, now: float) -> bool:
        """`by` does not hear this member. True if that is news here: a suspicion, or one more for it.

        A rumor about a member that this node has just heard itself is none.
        """
        record = self._records.get(peer)
        if record is None or record.incarnation != incarnation or not self._is_alive(peer):
            return False
        if by == peer:
            return False
        if by != self.me.peer and now - self._heard[peer] < INTERVAL_S:
            return False
        suspicion = self._suspicions.get(peer)
        if suspicion is not None and suspicion.incarnation == incarnation:
            return suspicion.confirm(by)
        self._suspicions[peer] = Suspicion(incarnation, by, len(self.alive()), now)
        return True

    def refute(self, incarnation: int, now: float) -> bool:
        """Others suspect this node's record of that incarnation. True if it speaks up with a higher one."""
        if (
            incarnation != self.me.incarnation
            or incarnation > MAX_DRIVEN
            or now - self._refuted_at < REFUTE_S
        ):
            return False
        self._refuted_at = now
        self.awareness.worse()
        self.renew()
        return True

    def silent(self, now: float) -> list[PeerId]:
        """Those taken for dead from now on: suspected for as long as that takes."""
        able = len(self.others()) - len(self._suspicions)
        over = [p for p, s in self._suspicions.items() if now >= s.until(self.awareness.score, able)]
        for peer in over:
            del self._suspicions[peer]
        silent = sorted(peer for peer in over if self._is_alive(peer))
        self._dead |= dict.fromkeys(silent, now)
        self.version += bool(silent)
        self._forget_old(now)
        return silent

    def stalled(self, seconds: float) -> None:
        """This node itself did not run for so long (suspended, stopped): nobody else was silent then."""
        self._heard = {peer: at + seconds for peer, at in self._heard.items()}
        for suspicion in self._suspicions.values():
            suspicion.since += seconds

    def update_me(self, **fields: Any) -> bool:
        """Change fields of the own record. True, and a higher incarnation, if the others should know."""
        assert not fields.keys() & {"peer", "boot", "incarnation", "proof"}, (
            "identity and incarnation are not settable"
        )
        changed = replace(self.me, **fields)
        self._weight = changed.weight
        step = WEIGHT_STEP * abs(self.me.weight)
        heavy = abs(changed.weight - self.me.weight) > step
        if not heavy and replace(changed, weight=self.me.weight) == self.me:
            return False
        self.me = changed
        self.renew()
        return True

    def renew(self) -> None:
        """Say the same anew, above all that was said."""
        self.me = replace(self.me, incarnation=self.me.incarnation + 1)
        self.version += 1

    # --- questions -----------------------------------------------------------------------------------

    def record(self, peer: PeerId) -> Record | None:
        """A member's record as its owner wrote it."""
        return self.me if peer == self.me.peer else self._records.get(peer)

    def records(self) -> list[Record]:
        """Everybody's record as its owner wrote it, sorted by id, this node's included."""
        return sorted([self.me, *self._records.values()], key=lambda r: r.peer)

    def members(self) -> list[Record]:
        """The same as this node sees it: "dead" for those not heard, "suspect" for those who may be."""
        return [replace(r, state=self._seen_as(r)) for r in self.records()]

    def alive(self) -> list[Record]:
        """Records of the living, sorted by id, this node's included unless it has left."""
        return [r for r in self.records() if self._is_alive(r.peer)]

    def others(self) -> list[PeerId]:
        """Ids of the living, without this node's, sorted."""
        return self._sorted()[0]

    def lost(self) -> list[PeerId]:
        """Ids of the dead and of those never heard, sorted: they have not said that they go."""
        return self._sorted()[1]

    @property
    def copies(self) -> dict[PeerId, tuple[Record, Record]]:
        """Ids that two running devices have, with a record of each; of the earlier one first."""
        return self._copies.found

    def suspicion(self, peer: PeerId) -> Suspicion | None:
        return self._suspicions.get(peer)

    def suspects(self) -> list[PeerId]:
        """Ids of those suspected, sorted."""
        return sorted(self._suspicions)

    def is_dead(self, peer: PeerId) -> bool:
        return peer in self._dead

    def view(self) -> list[PeerId]:
        """Ids of the living that have mass and train, sorted: what a topology is a function of."""
        return [r.peer for r in self.alive() if r.phase == "training"]

    def mean_weight(self, without: Collection[PeerId] = ()) -> float:
        """w̄: mean push-sum weight over the view, this node's own exact; 1 while there is no view."""
        view = [
            self._weight if r.peer == self.me.peer else r.weight
            for r in self.alive()
            if r.phase == "training" and r.peer not in without
        ]
        return sum(view) / len(view) if view else 1.0

    def heard_at(self, peer: PeerId) -> float:
        """When this member last gave a sign of life, s; -inf if never."""
        return self._heard.get(peer, -math.inf)

    def digest(self) -> bytes:
        """8 bytes over (peer, boot, incarnation, instance, state) of all records: equal on nodes that know
        the same."""
        if self._digest[0] != self.version:
            known = "\n".join(
                f"{r.peer} {r.boot} {r.incarnation} {r.instance} {r.state}" for r in self.records()
            )
            self._digest = self.version, hashlib.blake2b(known.encode(), digest_size=8).digest()
        return self._digest[1]

    # --- inside --------------------------------------------------------------------------------------

    def _sorted(self) -> tuple[list[PeerId], list[PeerId]]:
        """The others that live, and those lost: asked for many times between two changes."""
        if self._parts[0] != self.version:
            expected = sorted(p for p in self._records if self._expects(p))
            living = [p for p in expected if self._is_alive(p)]
            self._parts = self.version, living, [p for p in expected if not self._is_alive(p)]
        return self._parts[1:]

    def _merge(self, record: Record, now: float) -> bool:
        if record.peer == self.me.peer:
            self._outrank(record)
            return False
        if record.state not in RANK:  # somebody's verdict, not its owner's word
            return False
        known = self._records.get(record.peer)
        if known is not None and (_order(record) <= _order(known) or implausible(record, known)):
            return False
        if (record.boot, record.incarnation) <= self._forgotten.get(record.peer, (-1, -1)):
            return False
        if known is None and not self._make_room():
            return False
        self._forgotten.pop(record.peer, None)
        self._records[record.peer] = record
        self.version += 1
        if known is None:
            self._learned[record.peer] = now
        elif (record.boot, record.incarnation) > (known.boot, known.incarnation):
            if differ(known, record):
                self._copies.of_another(known, record)
            self.heard(record.peer, now)
        return True

    def _outrank(self, record: Record) -> None:
        theirs, mine = (record.boot, record.incarnation), (self.me.boot, self.me.incarnation)
        another = differ(self.me, record)
        if theirs < mine or (theirs == mine and record.state == self.me.state and not another):
            return
        self.contested += 1
        if self.yields or implausible(record, self.me) or record.incarnation > MAX_DRIVEN:
            return
        if another:
            self._copies.of_me(self.me, record)
            self.yields = self.me.peer in self.copies and record.instance < self.me.instance
        self.version += 1
        above = max(self.me.incarnation, record.incarnation) + (COPY_STEP if another else 1)
        self.me = replace(self.me, boot=max(self.me.boot, record.boot), incarnation=above)

    def _make_room(self) -> bool:
        """Forget one who left, else one paused, else the one dead longest, when full; the living are kept."""
        if len(self._records) + 1 < MAX_MEMBERS:
            return True
        gone = [r for p, r in self._records.items() if not self._is_alive(p)]
        if not gone:
            return False
        self._forget(min(gone, key=lambda r: (-RANK[r.state], self.heard_at(r.peer), r.peer)).peer)
        return True

    def _forget_old(self, now: float) -> None:
        """What is dead for a day; others may have learned of it later, so it is not taken from them again."""
        old = [p for p in self.lost() if now - self._dead.get(p, self._learned.get(p, now)) > KEPT_S]
        for peer in old:
            record = self._records[peer]
            self._forgotten[peer] = record.boot, record.incarnation
            self._forgotten = dict(list(self._forgotten.items())[-MAX_MEMBERS:])
            self._forget(peer)

    def _forget(self, peer: PeerId) -> None:
        del self._records[peer]
        self._copies.forget(peer)
        for known in (self._heard, self._dead, self._learned, self._suspicions):
            known.pop(peer, None)
        self.version += 1

    def _is_alive(self, peer: PeerId) -> bool:
        if peer == self.me.peer:
            return self.me.state == "alive"
        return self._expects(peer) and peer in self._heard and peer not in self._dead

    def _expects(self, peer: PeerId) -> bool:
        return self._records[peer].state == "alive"

    def _seen_as(self, record: Record) -> MemberState:
        if record.peer == self.me.peer or record.state != "alive":
            return record.state
        if not self._is_alive(record.peer):
            return "dead"
        return "suspect" if record.peer in self._suspicions else "alive"


def _order(record: Record) -> tuple[int, int, int]:
    return record.boot, record.incarnation, RANK[record.state]


def implausible(record: Record, known: Record) -> bool:
    """Is it too far ahead of another record of the same member to be its owner's? To outrank such a one step
    by step would use the counter up, and with it the member's say about itself.
    """
    boots = record.boot - known.boot
    return boots > MAX_AHEAD >> 20 or record.incarnation - known.incarnation > MAX_AHEAD


def check(record: Record) -> None:
    """Raises RemoteError for a record no honest member writes."""
    texts = (record.peer, record.device)
    sane = (
        record.peer != ""
        and all(len(text) <= MAX_NAME for text in texts)
        and len(record.addresses) <= MAX_ADDRESSES
        and all(len(address) <= MAX_ADDRESS for address in record.addresses)
        and len(record.task_digest) <= MAX_DIGEST
        and all(0 <= n < MAX_COUNTER for n in (record.boot, record.incarnation, record.life, record.instance))
        and -1 <= record.round < MAX_COUNTER
        and math.isfinite(record.weight)
        and record.weight >= 0
    )
    if not sane:
        raise RemoteError(f"a record of {record.peer[:MAX_NAME]!r} is out of bounds; it is not merged")
