"""What this device sends, held against its budget of bytes per minute. No clock: `advance` tells the time.

    control     probes, records, acknowledgements: goes whenever it is due, and counts first
    a parcel    is begun if the last 60 s, it and all control included, stay within the budget; else it waits
    a round     is told how much it may send (`allowance`), so that its parcels do not have to wait

A parcel counts in full from its beginning until 60 s after it was answered, or its stream has ended: however
slow the line, no 60 s hold more than the budget. One that no minute has room for (a whole model, for a
newcomer) is begun when nothing but control has gone for a minute, and counts for as many minutes as it costs;
so is one of more than half the budget that for a minute found no room beside control. Where control alone
takes the budget, nothing else is sent.

A round's share is what the time since the last one is worth, or of what is free in this minute an even part
if that is more. What a round has to hold back is saved up for the next, a minute's worth at the most.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from peer.events import PeerId

WINDOW_S = 60.0
# Control traffic comes in bursts: so much of the budget, and no less than these bytes (ten records), parcels
# leave to it. Of the rest rounds plan with so much, since minutes are uneven. Guesses.
CONTROL, BURST, ROUNDS = 0.05, 4000, 0.9
ALONE = 0.5  # of the budget: what is larger goes by itself if control leaves no room for it; guess
ASKED_S = 5.0  # what waits for room asks at least so often (guess: rounds and ticks are shorter)
FIRST_ROUND_S = 5.0  # before one has closed; guess
ROUND_GAIN = 0.125  # of the newest round's time; as in patience.py
RECENT = 32  # rounds over which it is judged whether the budget lets them send


class Spending:
    """Of one device in one session, across its nodes. bytes_per_min: None is without a budget, and nothing is
    counted."""

    def __init__(self, bytes_per_min: int | None = None) -> None:
        self.bytes_per_min = bytes_per_min
        self.now = -math.inf
        self.rounds_held_back = 0  # that sent on fewer links than they had
        self.recent: deque[bool] = deque(maxlen=RECENT)  # of the last rounds: did it send anything?
        self.saving = False  # something else is to go first: rounds get nothing
        self._counted = {"control": 0, "parcels": 0}
        self._expiries: list[tuple[float, int, str]] = []  # heap: until when these bytes of that kind count
        self._open: dict[PeerId, int] = {}  # parcels on their way
        # since and until when control alone left no room for a large one
        self._crowded = -math.inf, -math.inf
        self._log: deque[tuple[float, int]] = deque()  # when how much has gone, for `spent_last_min`
        self._round_s: float | None = None
        self._opened_at = -math.inf
        self._saved = 0.0

    def limit(self, bytes_per_min: int | None) -> None:
        """Another budget from now on."""
        self.bytes_per_min = bytes_per_min
        if bytes_per_min is None:
            self._open, self.saving = {}, False

    def advance(self, now: float) -> None:
        self.now = max(self.now, now)
        while self._expiries and self._expiries[0][0] <= self.now:
            _, size, kind = heapq.heappop(self._expiries)
            self._counted[kind] -= size
        while self._log and self._log[0][0] <= self.now - WINDOW_S:
            self._log.popleft()

    # --- what goes -----------------------------------------------------------------------------------

    def control(self, size: int) -> None:
        """Control messages, or frames of a link that are no parcels."""
        if self.bytes_per_min is not None and size > 0:
            self._count(size, "control", WINDOW_S)

    def begin(self, dst: PeerId, size: int) -> None:
        """A parcel begins to go to `dst`."""
        if self.bytes_per_min is not None:
            self.end(dst)
            self._open[dst] = size
            self._crowded = -math.inf, -math.inf
            self._saved = max(0.0, self._saved - size)

    def end(self, dst: PeerId) -> None:
        """The parcel to `dst` is answered, or its stream is gone."""
        size = self._open.pop(dst, 0)
        if size and self.bytes_per_min is not None:
            self._count(size, "parcels", WINDOW_S * max(1.0, size / self._room))

    @property
    def under_way(self) -> tuple[PeerId, ...]:
        return tuple(self._open)

    # --- what may go ---------------------------------------------------------------------------------

    def lets(self, size: int) -> bool:
        """May a parcel of this size begin?"""
        if self.bytes_per_min is None or size <= self.free:
            return True
        if self._open or self._counted["parcels"]:
            return False
        return size > self._room or (size > ALONE * self.bytes_per_min and self._is_crowded())

    def _is_crowded(self) -> bool:
        """Has control left no room for a minute? Called where it does not."""
        since, until = self._crowded
        since = since if until >= self.now - ASKED_S else self.now
        self._crowded = since, self.now
        return self.now - since >= WINDOW_S

    @property
    def free(self) -> int:
        """Bytes that parcels may begin with now."""
        taken = sum(self._counted.values()) + sum(self._open.values())
        return max(0, self._room - taken)

    # --- rounds --------------------------------------------------------------------------------------

    def open_round(self, *, final: bool = False) -> int | None:
        """A round opens: how many bytes its messages may take in all. None: as many as they like. Of the few
        final ones each may take whatever is free."""
        if self.bytes_per_min is None:
            return None
        passed_s = FIRST_ROUND_S
        if self._opened_at > -math.inf:
            passed_s = min(self.now - self._opened_at, WINDOW_S)
            known_s = passed_s if self._round_s is None else self._round_s
            self._round_s = known_s + ROUND_GAIN * (passed_s - known_s)
        self._opened_at = self.now
        per_s = max(0.0, ROUNDS * self._room - self._counted["control"]) / WINDOW_S
        self._saved = min(self._saved + per_s * passed_s, per_s * WINDOW_S)
        if self.saving:
            return 0
        if final:
            return self.free
        even = self.free * (self._round_s or FIRST_ROUND_S) / WINDOW_S
        return int(min(self.free, max(self._saved, even)))

    def close_round(self, held_back: int, sent: int) -> None:
        """A round has sent on so many links, and on so many not for want of budget."""
        if self.bytes_per_min is None:
            return
        if held_back:
            self.rounds_held_back += 1
        elif sent:
            self._saved = 0.0
        if held_back or sent:
            self.recent.append(sent > 0)

    # --- what is shown -------------------------------------------------------------------------------

    @property
    def spent_last_min(self) -> int:
        """Bytes sent in the last 60 s, those of parcels on their way included."""
        return sum(size for _, size in self._log) + sum(self._open.values())

    @property
    def control_last_min(self) -> int:
        return self._counted["control"]

    @property
    def forecast_day(self) -> int:
        """Bytes in a day that goes on like the last 60 s."""
        return self.spent_last_min * 24 * 60

    @property
    def _room(self) -> int:
        """Bytes of a minute that parcels may fill."""
        limit = self.bytes_per_min or 0
        return max(1, int(limit - max(CONTROL * limit, BURST)))

    def _count(self, size: int, kind: str, for_s: float) -> None:
        self._counted[kind] += size
        heapq.heappush(self._expiries, (self.now + for_s, size, kind))
        self._log.append((self.now, size))
