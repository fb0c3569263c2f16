"""How long a lockstep round waits for each in-neighbor: learnt per link, never a fixed constant.

Lateness is the time from this node's own push to the neighbor's message of the same round. The wait is its
smoothed mean plus four mean deviations (the estimator of RFC 6298, section 2, gains 1/8 and 1/4), and at
least twice as long as this node's own rounds take: where the graph changes from round to round a healthy
neighbor can be a round and more behind. It is at most LONG_S, or so many times as long: after trouble
neighbors are some rounds apart, and who waits in vain for one that is further on makes itself late for
others; what they learn from that must not feed on itself. Where all go to the round of whoever is further on,
and a late message is lost, it may be longer. It is long at first: the first local steps of a process take
many times as long as later ones, and who closes the first rounds without messages that take longer than steps
hears none in time, and learns nothing. Each round closed without a neighbor halves the wait for it until it
is heard again, so that one that hangs costs the others a vanishing share of their time. But who has come
rounds ahead of most of its neighbors, alone or while they stood still, waits for them from message to
message, a round for some of theirs, until they are there: it would hear none of theirs in time again, and be
alone for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from peer.events import PeerId

FIRST_S = 5.0  # before anything is learnt; guess: a first step after importing torch on a busy Pi
# The least then. A founder's first neighbors are up to 1.9 s late where six begin on a busy machine. With 2 s
# one that returns costs eight a quarter of 15 s, and with 3 s, where rounds take .1 s, who waits for one that
# sends to somebody else yet lets others close 8 rounds alone; with 1 s neither.
NEW_S = 1.0
STALL_S = 0.25  # Wi-Fi power saving: measured 240 ms
FLOOR_S = 0.5  # guess: above these
CAP_S = 120.0  # guess: beyond this a device is not slow but gone
LEAST, MOST = 2.0, 4.0  # times as long as the local steps of a round; guesses
MOST_IF_LATE_IS_LOST = 16.0  # as above; guess
LONG_S = 3.0  # never too long to wait for a slow network; guess
PROGRESS_S = 3.0  # bytes of a parcel moved this recently count as life
NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class _Link:
    mean_s: float | None = None
    deviation_s: float = 0.0
    misses: int = 0
    progress_at: float = NEVER
    follows_until: float = NEVER


class Patience:
    """Learnt waiting times of one node's in-links, in seconds."""

    def __init__(self, *, late_is_lost: bool = False) -> None:
        self._most = MOST_IF_LATE_IS_LOST if late_is_lost else MOST
        self._new_s = LONG_S if late_is_lost else NEW_S
        self._links: dict[PeerId, _Link] = {}
        self._round_s = 0.0

    def worked(self, round_s: float) -> None:
        """From the opening of a round to this node's push it took this long."""
        self._round_s = round_s if not self._round_s else 0.875 * self._round_s + 0.125 * round_s

    def is_brief(self, src: PeerId) -> bool:
        """May one wait for this neighbor no longer than it is usually late? Not before that is known, nor
        where rounds are shorter than a stall of the network: there every one would pass for late."""
        link = self._links.get(src, _Link())
        return link.mean_s is not None and self._round_s >= STALL_S

    def quiet_s(self) -> float:
        """A neighbor that has said nothing for so long may be asked whether it is there."""
        return max(FLOOR_S, self._round_s)

    def late(self, src: PeerId, pushed_at: float) -> float:
        """From when on its message of the round pushed at `pushed_at` is later than usual."""
        link = self._links.get(src, _Link())
        return pushed_at + max(STALL_S, (link.mean_s or 0.0) + link.deviation_s)

    def came(self, src: PeerId, lateness_s: float) -> None:
        """The message of a round came this long after this node's own push (0 when it came before)."""
        link = self._links.get(src, _Link())
        if link.mean_s is None:
            mean, deviation = lateness_s, lateness_s / 2
        else:
            deviation = 0.75 * link.deviation_s + 0.25 * abs(link.mean_s - lateness_s)
            mean = 0.875 * link.mean_s + 0.125 * lateness_s
        moved = replace(link, progress_at=NEVER, follows_until=NEVER)  # what was on its way is here
        self._links[src] = replace(moved, mean_s=mean, deviation_s=deviation, misses=0)

    def early(self, src: PeerId) -> None:
        """A message of a round this node has not reached yet: it lives, and says nothing about lateness."""
        link = self._links.get(src, _Link())
        self._links[src] = replace(link, misses=0, progress_at=NEVER, follows_until=NEVER)

    def follows(self, src: PeerId, now: float, every_s: float | None) -> None:
        """This node is rounds ahead, and here is the next message of one that comes after it; the one before
        was so much earlier. Whose rounds take longer than one ever waits is not waited for. None: the next
        one is not."""
        until = now if every_s is None else now + min(CAP_S, PROGRESS_S + LEAST * every_s)
        if every_s is None or every_s <= self._most_s:
            self._links[src] = replace(self._links.get(src, _Link()), misses=0, follows_until=until)

    def missed(self, src: PeerId) -> None:
        """A round closed without this neighbor."""
        link = self._links.get(src, _Link())
        self._links[src] = replace(link, misses=link.misses + 1)

    def following(self, now: float) -> list[PeerId]:
        """Those that come after this node, and are waited for now."""
        return [src for src, link in self._links.items() if link.follows_until >= now]

    def moving(self, src: PeerId, now: float) -> None:
        """Bytes from this neighbor are on their way."""
        self._links[src] = replace(self._links.get(src, _Link()), progress_at=now)

    def landed(self, src: PeerId) -> None:
        """What was on its way is here."""
        if (link := self._links.get(src)) is not None:
            self._links[src] = replace(link, progress_at=NEVER)

    def until(self, src: PeerId, pushed_at: float, *, brief: bool = False) -> float:
        """When to stop waiting for this neighbor's message of the round pushed at `pushed_at`. brief: where
        that is known, once it is later than usual, unless it is on its way."""
        link = self._links.get(src, _Link())
        if link.mean_s is None:
            wait = min(FIRST_S, max(self._new_s, LEAST * self._round_s)) if self._round_s else FIRST_S
        else:
            wait = max(LEAST * self._round_s, link.mean_s + 4 * link.deviation_s)
            wait = min(wait, self._most_s)
        wait = max(FLOOR_S, wait)
        learnt = pushed_at + min(CAP_S, wait) * 0.5**link.misses
        if brief and self.is_brief(src):
            learnt = min(learnt, self.late(src, pushed_at))
        return max(learnt, link.progress_at + PROGRESS_S, link.follows_until)

    @property
    def _most_s(self) -> float:
        return max(LONG_S, self._most * self._round_s) if self._round_s else CAP_S

    def forget(self, src: PeerId) -> None:
        self._links.pop(src, None)
