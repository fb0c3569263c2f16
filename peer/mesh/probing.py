"""Whom to ask for a sign of life, and when; asking others to ask, and asking for others. SWIM's probes.

    living, silent for 2 s   in a shuffled round, one each 2 s; and one of the suspects, in turn
    not answered in time     up to 3 of those heard last are asked whether they hear it (`ProbeFor`)
    nor vouched for          suspected
    never heard yet          at once; then like the dead, again and again: a partition heals from both sides

What `due` names is to be sent a Probe. Anything heard of a member afterwards is its answer. A member whose
word nobody asked for vouches for nobody.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from peer.events import PeerId, ProbeFor, Tell, Vouch
from peer.mesh.membership import Membership
from peer.mesh.suspicion import INTERVAL_S

TIMEOUT_S = 1.0  # reliability note, section e: Wi-Fi power save, and stalls of 240 ms
ANSWER_S = 0.5  # who does not answer for so long is not waited for in a round: above those stalls; guess
CUT_OFF_S = 10.0  # who answers others and not this node for so long is out of its reach: five probes; guess
HELPERS = 3  # same
NEW_AT_ONCE = 3  # members never heard that are asked in one go: memberlist's gossip fan-out
LOST_S, LOST_AGAIN_S = 1.0, 5.0  # between any two probes of the lost, and of the same one; guess
ASKERS = 16  # that are answered about one member; whoever asks later asks somebody else


@dataclass(slots=True)
class _Asked:
    """A probe that is out. helpers: asked, since `asked_at`, whether they hear the member."""

    at: float
    helpers: tuple[PeerId, ...] = ()
    asked_at: float = math.inf
    failed: bool = False  # late words still count


class Probing:
    """Reads who is alive from `members`, which is told what comes of it elsewhere (gossip.py)."""

    def __init__(self, members: Membership) -> None:
        self._members = members
        self._asked: dict[PeerId, _Asked] = {}
        self._probed: dict[PeerId, float] = {}
        self._unanswered: dict[PeerId, float] = {}  # since the first probe after the last sign of life
        self._round: list[PeerId] = []  # who is still to come in this one
        self._rounds = 0
        self._next_at = self._suspect_at = self._lost_at = -math.inf
        self._askers: dict[PeerId, dict[PeerId, float]] = {}  # of a member, whom they wait for until then

    def due(self, now: float) -> list[PeerId]:
        """Who is to be sent a Probe now."""
        targets = [*self._living(now), *self._suspects(now), *self._lost(now)]
        for peer in targets:
            self.probed(peer, now)
        return targets

    def probed(self, peer: PeerId, now: float) -> None:
        """A Probe goes out to this member."""
        self._sent(peer, now)
        asked = self._asked.get(peer)
        if asked is None or asked.failed:
            self._asked[peer] = _Asked(now)

    def probed_at(self, peer: PeerId) -> float:
        """When this member was last sent a Probe, s; -inf if never."""
        return self._probed.get(peer, -math.inf)

    def unanswered(self, peer: PeerId, now: float) -> bool:
        """Has it been asked, and given no sign of life since, for longer than a member that runs takes?"""
        return now - self._unanswered.get(peer, now) >= ANSWER_S * (1 + self._members.awareness.score)

    def waits(self, peer: PeerId) -> bool:
        """Has it been asked, and given no sign of life since?"""
        return peer in self._unanswered

    def cut_off(self, peer: PeerId, now: float) -> bool:
        """Has it given no sign of life to this node itself for long, whatever others say of it?"""
        return now - self._unanswered.get(peer, now) >= CUT_OFF_S

    def stood(self) -> None:
        """This device did not run: what was not answered meanwhile may have been, and not heard."""
        self._asked.clear()
        self._unanswered.clear()

    def check(self, now: float) -> tuple[list[Tell], list[PeerId]]:
        """Whom to ask about those who have not answered; and whom nobody that was asked has heard."""
        tells: list[Tell] = []
        unheard: list[PeerId] = []
        patience = TIMEOUT_S * (1 + self._members.awareness.score)
        for peer, asked in list(self._asked.items()):
            if asked.failed or now - asked.at < patience:
                continue
            if not asked.helpers and math.isinf(asked.asked_at):
                asked.asked_at, asked.helpers = now, self._helpers(peer)
                tells += [Tell(helper, ProbeFor(peer)) for helper in asked.helpers]
            if not asked.helpers or now - asked.asked_at >= patience:
                asked.failed = True
                self._judge(asked)
                unheard.append(peer)
        self._forget(now)
        return tells, unheard

    def heard(self, peer: PeerId, now: float) -> list[Tell]:
        """A sign of life: whoever asked about it is told."""
        self.vouched(peer)
        self._unanswered.pop(peer, None)
        askers = self._askers.pop(peer, None) or {}
        return [Tell(asker, Vouch(peer)) for asker, until in askers.items() if now <= until]

    def vouched(self, peer: PeerId) -> None:
        """Somebody hears it: it need not be asked."""
        asked = self._asked.pop(peer, None)
        if asked is not None and not asked.failed:
            self._members.awareness.better()

    def asked_for(self, asker: PeerId, target: PeerId, now: float) -> tuple[list[Tell], bool]:
        """Somebody does not hear a member: what to answer, and whether to send it a Probe."""
        if target == asker or self._members.record(target) is None:
            return [], False
        if now - self._members.heard_at(target) <= TIMEOUT_S:
            return [Tell(asker, Vouch(target))], False
        askers = self._askers.setdefault(target, {})
        if len(askers) >= ASKERS and asker not in askers:
            return [], False
        askers[asker] = now + 2 * TIMEOUT_S
        again = now - self.probed_at(target) >= TIMEOUT_S
        if again:
            self._sent(target, now)
        return [], again

    def is_asked(self, helper: PeerId, target: PeerId) -> bool:
        """Does this node want to know of that member from this one?"""
        asked = self._asked.get(target)
        return asked is not None and helper in asked.helpers

    # --- inside --------------------------------------------------------------------------------------

    def _sent(self, peer: PeerId, now: float) -> None:
        self._probed[peer] = now
        self._unanswered.setdefault(peer, now)

    def _living(self, now: float) -> list[PeerId]:
        if now - self._next_at < INTERVAL_S:
            return []
        since = INTERVAL_S if self._members.awareness.score == 0 else 0.0  # in doubt it tests itself
        silent = {p for p in self._members.others() if now - self._members.heard_at(p) >= since}
        silent -= {p for p, asked in self._asked.items() if not asked.failed}
        silent -= set(self._members.suspects())  # they have a turn of their own
        if not silent:
            return []
        while True:
            while self._round:
                if (peer := self._round.pop(0)) in silent:
                    self._next_at = now
                    return [peer]
            self._rounds += 1
            self._round = shuffled(self._members.others(), self._members.me.peer, self._rounds)

    def _suspects(self, now: float) -> list[PeerId]:
        if now - self._suspect_at < INTERVAL_S:
            return []
        # by its own probes: those for others, who ask again and again, would put off a verdict of its own
        asked = {p: self._asked.get(p) for p in self._members.suspects()}
        idle = {p: -math.inf if a is None else a.at for p, a in asked.items() if a is None or a.failed}
        waited = sorted((at, p) for p, at in idle.items())
        due = [p for at, p in waited if now - at >= INTERVAL_S][:1]
        if due:
            self._suspect_at = now
        return due

    def _lost(self, now: float) -> list[PeerId]:
        lost = self._members.lost()
        new = [p for p in lost if p not in self._probed and not self._members.is_dead(p)][:NEW_AT_ONCE]
        if now - self._lost_at < LOST_S:
            return new
        waited = sorted((self._probed.get(p, -math.inf), p) for p in lost if p not in new)
        again = [p for at, p in waited[:1] if now - at >= LOST_AGAIN_S]
        if again:
            self._lost_at = now
        return new + again

    def _helpers(self, target: PeerId) -> tuple[PeerId, ...]:
        """Those heard last, since they can most likely be heard now; none for one dead already."""
        if self._members.is_dead(target):
            return ()
        others = [p for p in self._members.others() if p != target and self._members.suspicion(p) is None]
        others.sort(key=lambda p: (-self._members.heard_at(p), p))
        return tuple(shuffled(others[: 2 * HELPERS], target, self._rounds)[:HELPERS])

    def _judge(self, asked: _Asked) -> None:
        """Helpers answer the question itself. Where none has, it is this node that hears nobody."""
        if asked.helpers and all(self._members.heard_at(p) < asked.asked_at for p in asked.helpers):
            self._members.awareness.worse()

    def _forget(self, now: float) -> None:
        for target, askers in list(self._askers.items()):
            if all(now > until for until in askers.values()):
                del self._askers[target]
        for peer in [p for p in self._probed if self._members.record(p) is None]:
            del self._probed[peer]
            self._unanswered.pop(peer, None)
            self._asked.pop(peer, None)


def shuffled(peers: list[PeerId], *seed: object) -> list[PeerId]:
    """In an order that looks random and is the same for the same seed."""
    return sorted(peers, key=lambda p: hashlib.blake2b(f"{seed} {p}".encode(), digest_size=8).digest())
