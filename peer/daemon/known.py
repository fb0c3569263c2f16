"""Which sessions this device knows, which peerd devices it sees beside them, and what is said of a session
that does not run here."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from peer.daemon.finding import MAX_FOREIGN
from peer.errors import PeerdError, UnknownSessionError
from peer.events import PeerId
from peer.local import Frame
from peer.mesh.discovery import Discovery, Sighting
from peer.status import SessionStatus

if TYPE_CHECKING:
    from peer.daemon.session import SessionDriver
    from peer.daemon.store import SessionFolder, Store

LOOK_AROUND_S = 2.0  # a browser hears the others within 0.1 to 1.2 s (platform measurement)


async def known_and_seen(me: PeerId, store: Store, running: Mapping[str, SessionDriver]) -> list[Frame]:
    """What `peerd sessions` lists: known here, and one line for peerd devices of sessions not known here. A
    daemon that runs no session listens for LOOK_AROUND_S first. running: sessions, by name."""
    rows: list[Frame] = []
    foreign = set() if running else await look_around(me)
    strangers: set[tuple[str, PeerId]] | None = None
    for folder in store.sessions():
        driver = running.get(folder.note.name)
        described = folder.descriptor
        status = driver.status() if driver is not None else None
        rows.append({
            "name": folder.note.name, "id": described.id if described is not None else None,
            "state": status.state if status is not None else _state_on_disk(folder),
            "members": status.members if status is not None else None,
            "known": True, "seen": driver is not None and driver.has_met(),
        })  # fmt: skip
        if driver is not None and driver.failure is None and not driver.ended.is_set():
            # what is strange to one session may be announced for another
            unknown_here = driver.finder.strangers.items()
            strangers = set(unknown_here) if strangers is None else strangers & unknown_here
    if strangers is not None:
        foreign = {peer for _, peer in strangers}
    if foreign:
        rows.append({
            "name": None, "id": None, "state": None, "members": len(foreign),
            "known": False, "seen": True,
        })  # fmt: skip
    return rows


async def look_around(me: PeerId) -> set[PeerId]:
    """The peerd devices that announce themselves on this network now, of whatever session."""
    seen: set[PeerId] = set()

    def note(sighting: Sighting) -> None:
        if len(seen) < MAX_FOREIGN:
            seen.add(sighting.peer)

    ears = Discovery(secrets.token_bytes(32), me, 0, (), note)
    await ears.start()
    try:
        await asyncio.sleep(LOOK_AROUND_S)
    finally:
        await ears.stop()
    return seen


def unknown(name: str) -> UnknownSessionError:
    return UnknownSessionError(
        f"this device knows no session '{name}'; 'peerd sessions' lists those it knows"
    )


def not_running(folder: SessionFolder) -> PeerdError:
    """Why there is no status of a session that is on disk."""
    name = folder.note.name
    if folder.problem:
        return UnknownSessionError(folder.problem)
    return UnknownSessionError(f"this device has left session '{name}'; 'peerd join {name}' takes part again")


def over(folder: SessionFolder) -> SessionStatus:
    """A session whose rounds are all done, as far as the disk knows it."""
    known = folder.descriptor
    if known is None:
        return SessionStatus(folder.note.name, state="stopped")
    return SessionStatus(
        folder.note.name, known.id, known.algorithm, known.topology, known.task, "stopped",
        local_steps=known.local_steps,
    )  # fmt: skip


def _state_on_disk(folder: SessionFolder) -> str:
    return "stopped" if folder.note.finished else "left"
