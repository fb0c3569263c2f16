"""Health sentences: what is wrong on this device or with one of its sessions, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peer.daemon import clocks
from peer.daemon.disk import disk_in_use
from peer.events import Record
from peer.mesh.greeting import PROTOCOL_MAX

if TYPE_CHECKING:
    from peer.daemon.session import SessionDriver
    from peer.mesh.node import Node

LONELY_S = 15.0  # until it is said that no other peerd is heard; mDNS takes 2 s, a Pi boots in 60 (guess)
ALONE_ROUNDS = 3  # rounds closed alone in a row until it is said: one may be a Wi-Fi stall (guess)
STUCK_S, STUCK_ROUNDS = 60.0, 10.0  # a round that takes so long, and so many times the usual, is said (guess)
MUCH_CONTROL = 0.5  # of the budget: with so much for control it is said (guess)
FEW_ROUNDS = 0.5  # of the last ones: with fewer that send anything it is said (guess)
LOW_BYTES = 1 << 18  # free on the state folder's disk: less holds no checkpoint of any built-in task


def of_device(state: Path) -> Iterator[str]:
    """Sentences about the clock and the state folder."""
    if clocks.is_unset():
        yield (
            "the clock is unset: it shows a time before this peerd was written; training does not mind, log "
            "lines are dated wrongly until the network sets it"
        )
    facts = disk_in_use(state)
    if facts["problem"] is not None:
        yield f"the state folder {state} cannot be looked at: {facts['problem']}; is its disk still there?"
    elif facts["read_only"]:
        yield f"{state} has become read-only: nothing is saved; a worn-out SD card does that, replace it"
    elif not facts["writable"]:
        yield f"{state} cannot be written: nothing is saved; make it writable for user {facts['uid']}"
    elif facts["free_bytes"] < LOW_BYTES:
        yield f"no space left on the disk of {state}: checkpoints are not saved; free some"


def of_session(session: SessionDriver, now: float) -> Iterator[str]:
    """Sentences about one session, each beginning with its name."""
    for sentence in (
        *_failure(session),
        *_finding(session, now),
        *_others(session),
        *_copies(session),
        *_blocked(session),
        *_learner(session),
        *_silent(session, now),
        *_stuck(session, now),
        *_memory(session),
        *_budget(session),
        *_rounds(session, now),
    ):
        yield f"{session.name}: {sentence}"


def _failure(session: SessionDriver) -> Iterator[str]:
    if session.failure is not None:
        yield str(session.failure)
    if session.folder.problem:
        yield session.folder.problem


def _finding(session: SessionDriver, now: float) -> Iterator[str]:
    finder, discovery = session.finder, session.discovery
    for address, problem in sorted(finder.unanswered.items()):
        yield f"--peer {address}: {problem}"
    if session.has_met():
        if session.descriptor is None and session.failure is None:
            yield (
                "members with the right key are here, and none of them knows the session yet; start the "
                "device that created it, or one that has trained in it"
            )
        return
    if finder.foreign and session.descriptor is None:
        yield (
            f"{len(finder.foreign)} peerd device(s) are seen and none recognises this key; compare it with "
            "'peerd key' on a member"
        )
    if discovery is None or session.options.insecure:
        return
    if discovery.problem:
        yield f"no multicast is possible: {discovery.problem}"
    elif not discovery.multicast_heard and now - session.started_at > LONELY_S:
        yield (
            "no multicast of any other peerd is heard; if others run on this network, it may be blocked (AP "
            "isolation, VLANs, a firewall on UDP 5353): name a member with --peer HOST:PORT"
        )


def _others(session: SessionDriver) -> Iterator[str]:
    for peer, version in sorted(session.finder.other_versions.items()):
        spoken = f"protocol {version}" if version else "another protocol"
        yield (f"{peer} speaks {spoken}, this device {PROTOCOL_MAX}; upgrade the one with the lower number")
    if session.node is None:
        return
    mine = session.node.members.me.task_digest
    for record in session.node.members.alive():
        who = record.device or record.peer
        if record.task_digest != mine:
            yield (
                f"{who} trains with another task file; give every device the same, unless this is on purpose"
            )
    rejections = {peer: (count, "") for peer, count in session.node.faults.items()}
    for contact in session.transport.contacts:
        if contact.rejected:
            rejections[contact.peer] = (
                contact.rejected + session.node.faults.get(contact.peer, 0),
                contact.last_rejection,
            )
    for peer, (count, reason) in sorted(rejections.items()):
        because = f" ({reason})" if reason else ""
        yield f"{count} message(s) of {peer} broke a rule{because}; is it of another version, or broken?"


def _copies(session: SessionDriver) -> Iterator[str]:
    if session.node is None or session.failure is not None:
        return
    for _, (earlier, later) in sorted(session.node.members.copies.items()):
        yield copied(earlier, later)


def _blocked(session: SessionDriver) -> Iterator[str]:
    """On a graph that all agree on, the others count on a device that is blocked here."""
    node = session.node
    if node is None or node.agreement is None or session.failure is not None:
        return
    current = node.agreement.generations.current
    seated = sorted(session.blocked.intersection(current.view)) if current is not None else []
    for peer in seated:
        record = node.members.record(peer)
        who = (record.device if record is not None else "") or peer
        yield (
            f"{who} is blocked here, and on the graph that all members agree on: rounds do not wait for it, "
            "and where the two are neighbors nothing passes between them; "
            f"'peerd rekey {session.name}' keeps it out for everybody"
        )


def copied(earlier: Record, later: Record) -> str:
    """Two devices run with one key."""
    return (
        f"two running devices have the identity {earlier.peer}: {_named(earlier)}, and started later "
        f"{_named(later)}, which is not to train; is its disk a copy of the other's? On one of them stop "
        "peerd, delete device.pem in its state folder (~/.local/state/peerd, or what --state says), and "
        "start it again"
    )


def _named(record: Record) -> str:
    where = f" at {' and '.join(record.addresses)}" if record.addresses else ""
    return f"'{record.device}'{where}"


def _learner(session: SessionDriver) -> Iterator[str]:
    if session.figures.checkpoint_problem:
        yield session.figures.checkpoint_problem
    if session.failure is not None or session.state in ("stopped", "paused"):
        return
    supervisor = session.learning.supervisor
    if session.learning.end is None and supervisor.running:
        if supervisor.problem:
            yield f"{supervisor.problem}; it is tried again, and 'peerd logs {session.name}' says more"
        elif supervisor.restarts:
            yield (
                f"the learner died with exit code {supervisor.last_code} and is started again (restarts so "
                f"far: {supervisor.restarts}); 'peerd logs {session.name}' says why"
            )
        elif supervisor.last_code is not None and supervisor.pid is None:  # its first pause
            yield (
                f"the learner died with exit code {supervisor.last_code} and is started again soon; "
                f"'peerd logs {session.name}' says why"
            )
    elif session.learning.end is None and session.learning.needs_script:
        yield f"no script trains here now; start one that calls peer.attach('{session.name}', …)"
    elif session.learning.end is None and session.learning.scripted:
        yield f"the script that trained has ended; start it again, or run 'peerd join {session.name}'"


def _silent(session: SessionDriver, now: float) -> Iterator[str]:
    silent_s, end = session.learning.silent_s(now), session.learning.end
    if end is None or not silent_s:
        return
    if end.child:
        yield (f"the learner (pid {end.pid}) has said nothing for {silent_s:.0f} s; another is started")
    else:
        yield (
            f"the script that trains (pid {end.pid}) has said nothing for {silent_s:.0f} s; is it stopped? "
            f"In a debugger? peerd ends no script: end it, and run 'peerd join {session.name}'"
        )


def _stuck(session: SessionDriver, now: float) -> Iterator[str]:
    if session.learning.silent_s(now):
        return  # said already
    node, end = session.node, session.learning.end
    usual_s = session.figures.usual_s(node.key.round) if node is not None else None
    if node is None or usual_s is None or end is None:
        return
    at_learner_s = node.rounds.at_learner_s(now)
    if at_learner_s > max(STUCK_S, STUCK_ROUNDS * usual_s):
        yield (
            f"the learner (pid {end.pid}) has worked on round {node.key.round} for {at_learner_s:.0f} s, and "
            f"rounds took {usual_s:.1f} s before; is it stopped, short of memory, or waiting for its data?"
        )


def _memory(session: SessionDriver) -> Iterator[str]:
    figures = session.figures
    without, here_mb = figures.links_without_replica, figures.replica_mb
    if without and here_mb is not None and session.learning.end is not None:
        yield (
            f"memory is short: {without} link(s) do without what both ends remember of each other, for which "
            f"{here_mb:.3g} MB are free here, or too little at the other end; they send more bytes and less "
            "exact models. End other programs, or raise the memory limit, and start peerd again"
        )


def _budget(session: SessionDriver) -> Iterator[str]:
    """Does the budget leave enough to train with the others?"""
    node, spending = session.node, session.spending
    limit = spending.bytes_per_min
    if limit is None or node is None or session.failure is not None:
        return
    control, recent = spending.control_last_min, spending.recent
    remedy = f"raise it with 'peerd join {session.name} --budget …'"
    if control > MUCH_CONTROL * limit:
        yield (
            f"the budget is {_kb(limit)} per minute, and what {len(node.members.alive())} members tell each "
            f"other of themselves took {_kb(control)} in the last one; {remedy}, above {_kb(3 * control)}"
        )
    elif len(recent) == recent.maxlen and sum(recent) < FEW_ROUNDS * len(recent):
        yield (
            f"the budget of {_kb(limit)} per minute let {sum(recent)} of the last {len(recent)} rounds send "
            f"anything; {remedy}, or take more local steps in a session of your own"
        )
    if node.giving.short_for:
        yield (
            f"{len(node.giving.short_for)} newcomer(s) wait for a model of {_kb(node.giving.whole)}, for "
            f"which the budget of {_kb(limit)} per minute has no room yet; another device may give it, or "
            f"{remedy}"
        )


def _kb(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def _rounds(session: SessionDriver, now: float) -> Iterator[str]:
    node = session.node
    if node is None or node.phase != "training" or node.rounds.alone < ALONE_ROUNDS:
        return
    if lead := node.rounds.pace.lead(now):
        yield f"it is {lead} round(s) ahead of the others, and waits until they are there"
    elif why := _why_alone(session, node):
        yield f"the last {node.rounds.alone} rounds were closed alone: {why}"


def _why_alone(session: SessionDriver, node: Node) -> str:
    """Of the devices that this one knows, whom it misses; "" where one is there, and rests until it trains
    again by itself."""
    known = [r for r in node.members.members() if r.peer != node.me]
    free = [r for r in known if r.peer not in session.blocked]
    gone, rests = sum(map(_has_gone, free)), any(map(_rests, free))
    missed, blocked = len(free) - gone - sum(map(_rests, free)), len(known) - len(free)
    if missed:  # the others said so, and are not missed
        return f"none of {missed} other device(s) was heard in time; are they on, and is the network up?"
    if rests:
        return ""
    if gone:
        which = " that are not blocked here" if blocked else ""
        return (
            f"all {gone} other device(s){which} have left, paused or finished; this one trains on by itself "
            f"until one is back. Start one again, or end it here with 'peerd leave {session.name}'"
        )
    if blocked:
        return f"all {blocked} other device(s) are blocked here; 'peerd unblock PEER' lets one in again"
    if node.company:  # whoever is dead or has left for a day is forgotten, the session is not
        return "nobody else of this session was there for a day; are the others on, and is the network up?"
    return ""


def _has_gone(record: Record) -> bool:
    """Has it said goodbye, or is it about to?"""
    return record.state in ("left", "paused") or (
        record.state == "alive" and record.phase in ("leaving", "finished")
    )


def _rests(record: Record) -> bool:
    """Is it there without a learner, as in its quiet hours?"""
    return (record.state, record.phase) == ("alive", "idle")
