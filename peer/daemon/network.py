"""What this daemon knows of the network and of its own disk, for `peerd doctor`: the answer to one request.

Facts and no verdicts: what they mean is told in peer/doctor. Fields are added, never renamed, since the
doctor of another version may ask.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer.daemon import health
from peer.daemon.disk import disk_in_use

if TYPE_CHECKING:
    from peer.daemon.session import SessionDriver
    from peer.mesh.contacts import Contact

Frame = dict[str, Any]


def network(peer: str, state: Path, drivers: Iterable[SessionDriver], now: float) -> Frame:
    """peer: this device's id. state: its state folder. now: of the event loop's clock."""
    sessions = [of_session(driver, now) for driver in drivers]
    return {"peer": peer, "disk": disk_in_use(state), "sessions": sessions}


def of_session(driver: SessionDriver, now: float) -> Frame:
    """What one session has seen and met. Ages are None for what has not happened."""
    finder, discovery, node = driver.finder, driver.discovery, driver.node
    known = driver.descriptor or driver.folder.descriptor
    contacts = list(driver.transport.contacts)
    heard = discovery.last_heard if discovery is not None else None
    copies = sorted(node.members.copies.items()) if node is not None else []
    return {
        "name": driver.name,
        "id": known.id if known is not None else None,
        "state": driver.state,
        "failure": str(driver.failure) if driver.failure is not None else None,
        "founder": driver.folder.note.founder,
        "insecure": driver.options.insecure,
        "asked_interfaces": list(driver.options.interfaces),
        "interfaces": [one.name for one in discovery.interfaces] if discovery is not None else [],
        "port": discovery.port if discovery is not None else None,
        "discovery_problem": discovery.problem if discovery is not None else None,
        "heard_s": now - heard if heard is not None else None,
        "runs_s": now - driver.started_at,
        "met": driver.has_met(),
        "strangers": sorted(finder.foreign),
        "wrong_key": sorted(finder.wrong_key),
        "unanswered": dict(sorted(finder.unanswered.items())),
        "unmet": dict(sorted(finder.unmet.items())),
        "other_versions": dict(sorted(finder.other_versions.items())),
        "other_sessions": {c.peer: c.other_session for c in contacts if c.other_session},
        "copies": [health.copied(earlier, later) for _, (earlier, later) in copies],
        "members": _members(driver, contacts, now),
    }


def _members(driver: SessionDriver, contacts: list[Contact], now: float) -> list[Frame]:
    """Members that are alive, but for this device, as far as it has met them."""
    if driver.node is None:
        return []
    me = driver.node.me
    alive = {r.peer: r for r in driver.node.members.alive() if r.peer != me}
    return [
        {
            "peer": contact.peer,
            "device": alive[contact.peer].device or None,
            "addresses": contact.addresses,
            "met_s": now - contact.met_at if contact.met_at is not None else None,
            "calls": contact.calls,
            "unreached": contact.unreached or None,
            "blocked": contact.blocked,
        }
        for contact in contacts
        if contact.peer in alive
    ]
