"""Who is in the session: one record per member, merged by (boot, incarnation); liveness judged locally.

Only its owner raises a record's incarnation, (boot << 20) + n, so that a restart outranks its past without
a clock; a member that hears something newer, or something wrong, said about itself outranks it, unless it is
so far ahead (`implausible`) that nobody can have written it honestly: nobody takes that in. "left" and
"paused" are states a member gives itself. "dead" is each node's own verdict on silence: it is never merged,
never gossiped, and any sign of life heals it. A sign of life is a frame, an answer, or a record with a higher
incarnation, which its owner must have been alive to write. A member known from gossip alone counts as alive
from its first sign of life on. The words are SWIM's (Das, Gupta, Motivala, DSN 2002).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from peer.errors import RemoteError
from peer.events import MemberState, PeerId, Record

DEAD_AFTER_S = 8.0  # reliability note, section e: shortest suspicion time on Wi-Fi; a link is down in 8-15 s
MAX_MEMBERS = 256  # architecture, section 9
PROBE_AGAIN_S, PROBE_DEAD_S = 1.0, 5.0  # reliability note, section e (probe timeout); guess
PROBES = 3  # members probed at a time: memberlist's gossip fan-out
WEIGHT_STEP = 0.2  # relative change of a push-sum weight that is worth telling: w̄ to 20 %, few records; guess
MAX_NAME, MAX_ADDRESS, MAX_ADDRESSES, MAX_DIGEST = 64, 280, 16, 64  # characters, entries, bytes
MAX_COUNTER = 1 << 63
# A record ahead of what is known by more than this was not written by its owner: it is a million boots, or as
# many changes as one per millisecond makes in 35 years (guess)
MAX_AHEAD = 1 << 40
# By what others say, a node is driven no higher than this: above it a lifetime of changes of its own fits
MAX_DRIVEN = 1 << 62

RANK: dict[MemberState, int] = {"alive": 0, "paused": 1, "left": 2}


class Membership:
    """`me` is this node's record as it is published; its weight may lag behind by up to WEIGHT_STEP."""

    def __init__(self, me: Record, dead_after_s: float = DEAD_AFTER_S) -> None:
        self.me = replace(me, incarnation=max(me.incarnation, (me.boot << 20) + 1))
        self.dead_after_s = dead_after_s
        self.contested = 0  # how often others said about this node what it had not
        self._weight = me.weight
        self._records: dict[PeerId, Record] = {}  # of the others
        self._heard: dict[PeerId, float] = {}  # last sign of life, s
        self._probed: dict[PeerId, float] = {}
        self._dead: set[PeerId] = set()
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
        self._dead.discard(peer)
        self.version += revived
        return revived and self._is_alive(peer)

    def silent(self, now: float) -> list[PeerId]:
        """Those taken for dead from now on: not heard for `dead_after_s`."""
        silent = [p for p in sorted(self._records) if self._is_alive(p)]
        silent = [p for p in silent if now - self._heard[p] > self.dead_after_s]
        self._dead.update(silent)
        self.version += bool(silent)
        return silent

    def stalled(self, seconds: float) -> None:
        """This node itself did not run for so long (suspended, stopped): nobody else was silent then."""
        self._heard = {peer: at + seconds for peer, at in self._heard.items()}

    def update_me(self, **fields: Any) -> bool:
        """Change fields of the own record. True, and a higher incarnation, if the others should know."""
        assert not fields.keys() & {"peer", "boot", "incarnation"}, (
            "identity and incarnation are not settable"
        )
        changed = replace(self.me, **fields)
        self._weight = changed.weight
        step = WEIGHT_STEP * abs(self.me.weight)
        heavy = abs(changed.weight - self.me.weight) > step
        if not heavy and replace(changed, weight=self.me.weight) == self.me:
            return False
        self.me = replace(changed, incarnation=self.me.incarnation + 1)
        self.version += 1
        return True

    # --- questions -----------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Everybody's record as its owner wrote it, sorted by id, this node's included."""
        return sorted([self.me, *self._records.values()], key=lambda r: r.peer)

    def members(self) -> list[Record]:
        """The same as this node sees it: "dead" for those not heard."""
        lost = {p for p, r in self._records.items() if r.state == "alive" and not self._is_alive(p)}
        return [replace(r, state="dead") if r.peer in lost else r for r in self.records()]

    def alive(self) -> list[Record]:
        """Records of the living, sorted by id, this node's included unless it has left."""
        return [r for r in self.records() if self._is_alive(r.peer)]

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
        """8 bytes over (peer, boot, incarnation, state) of all records: equal on nodes that know the same."""
        known = "\n".join(f"{r.peer} {r.boot} {r.incarnation} {r.state}" for r in self.records())
        return hashlib.blake2b(known.encode(), digest_size=8).digest()

    def records_for(self, view: bytes) -> tuple[Record, ...]:
        """What to tell a peer whose digest is `view`: nothing if it is ours, else all we have."""
        return () if view == self.digest() else tuple(self.records())

    def probe_targets(self, now: float, k: int = PROBES) -> list[PeerId]:
        """Up to `k` members heard or probed longest ago and noted as probed; at most one dead one."""
        new = {p for p in self._records if self._expects(p) and p not in self._probed}
        living = {p for p in self._records if self._is_alive(p)}
        hopeful = [p for p in new | living if now - self._probed.get(p, -math.inf) >= PROBE_AGAIN_S]
        lost = {p for p in self._records if self._expects(p)} - new - living
        dead = [p for p in lost if now - self._probed[p] >= PROBE_DEAD_S]
        targets = sorted(dead, key=self._waited)[:1]
        targets = sorted(hopeful, key=self._waited)[: k - len(targets)] + targets
        self._probed.update(dict.fromkeys(targets, now))
        return targets

    # --- inside --------------------------------------------------------------------------------------

    def _merge(self, record: Record, now: float) -> bool:
        if record.peer == self.me.peer:
            self._outrank(record)
            return False
        if record.state == "dead":  # somebody's verdict, not its owner's word
            return False
        known = self._records.get(record.peer)
        if known is not None and (_order(record) <= _order(known) or implausible(record, known)):
            return False
        if known is None and not self._make_room():
            return False
        self._records[record.peer] = record
        self.version += 1
        if known is not None and (record.boot, record.incarnation) > (known.boot, known.incarnation):
            self.heard(record.peer, now)
        return True

    def _outrank(self, record: Record) -> None:
        theirs, mine = (record.boot, record.incarnation), (self.me.boot, self.me.incarnation)
        if theirs < mine or (theirs == mine and record.state == self.me.state):
            return
        self.contested += 1
        if implausible(record, self.me) or record.incarnation > MAX_DRIVEN:
            return
        self.version += 1
        boot = max(self.me.boot, record.boot)
        self.me = replace(self.me, boot=boot, incarnation=max(self.me.incarnation, record.incarnation) + 1)

    def _make_room(self) -> bool:
        """Forget one who left, else one paused, else the one dead longest, when full; the living are kept."""
        if len(self._records) + 1 < MAX_MEMBERS:
            return True
        gone = [r for p, r in self._records.items() if not self._is_alive(p)]
        if not gone:
            return False
        oldest = min(gone, key=lambda r: (-RANK[r.state], self.heard_at(r.peer), r.peer)).peer
        del self._records[oldest]
        self._heard.pop(oldest, None)
        self._probed.pop(oldest, None)
        self._dead.discard(oldest)
        return True

    def _is_alive(self, peer: PeerId) -> bool:
        if peer == self.me.peer:
            return self.me.state == "alive"
        return self._expects(peer) and peer in self._heard and peer not in self._dead

    def _expects(self, peer: PeerId) -> bool:
        return self._records[peer].state == "alive"

    def _waited(self, peer: PeerId) -> tuple[float, PeerId]:
        return max(self.heard_at(peer), self._probed.get(peer, -math.inf)), peer


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
        and all(0 <= n < MAX_COUNTER for n in (record.boot, record.incarnation, record.life))
        and -1 <= record.round < MAX_COUNTER
        and math.isfinite(record.weight)
        and record.weight >= 0
    )
    if not sane:
        raise RemoteError(f"a record of {record.peer[:MAX_NAME]!r} is out of bounds; it is not merged")
