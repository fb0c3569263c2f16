"""Devices that this one wants nothing to do with, in any session: kept over restarts, named as by people.

STATE/blocked.json      {id: the name it had}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from peer.daemon.store import read, write
from peer.errors import StateError, UsageError
from peer.events import PeerId
from peer.mesh.frames import MAX_DEVICE_NAME, PEER_ID, clean

if TYPE_CHECKING:
    from peer.daemon.app import Daemon

MAX_BLOCKED = 256  # as many as a session has members; each keeps a contact


class BlockList:
    """`peers`: those blocked, with the name each had. Raises StateError if what is kept cannot be read: who
    is blocked must not get in because of a bad disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "blocked.json"
        self.peers: dict[PeerId, str] = _loaded(self._path) if self._path.exists() else {}

    @property
    def ids(self) -> frozenset[PeerId]:
        return frozenset(self.peers)

    def add(self, peer: PeerId, device: str) -> None:
        """Keep it. Raises UsageError when there are too many, StateError when it cannot be written."""
        if peer not in self.peers and len(self.peers) >= MAX_BLOCKED:
            raise UsageError(
                f"{MAX_BLOCKED} devices are blocked already; give the sessions new keys with "
                "'peerd rekey NAME', or let some in again with 'peerd unblock PEER'"
            )
        self._save(self.peers | {peer: device})

    def remove(self, peer: PeerId) -> None:
        self._save({one: device for one, device in self.peers.items() if one != peer})

    def _save(self, peers: dict[PeerId, str]) -> None:
        write(self._path, json.dumps(peers, indent=1, sort_keys=True).encode() + b"\n")
        self.peers = peers


def meant(word: str, known: Mapping[PeerId, str]) -> PeerId:
    """The device that a person means by its name, its id or the beginning of it. known: names by id. An id
    that is not known is taken as it is. Raises UsageError that lists those it may be."""
    if word in known or PEER_ID.fullmatch(word):
        return word
    named = [peer for peer, device in known.items() if device == word]
    begun = [peer for peer in known if peer.startswith((word, f"p-{word}"))]
    found = named or begun
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{peer} ({known[peer] or 'without a name'})" for peer in sorted(found or known))
    if found:
        raise UsageError(f"'{clean(word, 64)}' may be one of {len(found)}: {listed}; give more of its id")
    if not known:
        raise UsageError(
            f"no device '{clean(word, 64)}' is known here; give its whole id, as 'peerd status' shows it"
        )
    raise UsageError(f"no device is called '{clean(word, 64)}', and no id begins so; known are {listed}")


def _loaded(path: Path) -> dict[PeerId, str]:
    try:
        kept = json.loads(read(path))
        if not isinstance(kept, dict) or not all(map(PEER_ID.fullmatch, kept)):
            raise ValueError("it holds no ids")
        return {str(peer): clean(str(device), MAX_DEVICE_NAME) for peer, device in kept.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(
            f"{path} is damaged ({error}): who is blocked is not known; delete it, and block them again"
        ) from error


def known_to(daemon: Daemon) -> dict[PeerId, str]:
    """Names, by id, of the members that the sessions here know, and of those blocked."""
    known = dict(daemon.blocked.peers)
    for driver in daemon.sessions.values():
        said = [c.introduction.record for c in driver.transport.contacts if c.introduction is not None]
        records = driver.node.members.records() if driver.node is not None else said
        known |= {record.peer: clean(record.device, MAX_DEVICE_NAME) for record in records}
    known.pop(daemon.device.key.id, None)
    return known


def block(daemon: Daemon, word: str) -> PeerId:
    """Block the device meant, here and now and from now on. Raises UsageError, StateError."""
    known = known_to(daemon)
    if word == daemon.device.key.id:
        raise UsageError("that is this device itself")
    peer = meant(word, known)
    daemon.blocked.add(peer, known.get(peer, ""))
    _apply(daemon)
    return peer


def unblock(daemon: Daemon, word: str) -> PeerId:
    """Let the device meant in again. Raises UsageError, StateError."""
    peer = meant(word, daemon.blocked.peers)
    if peer not in daemon.blocked.peers:
        raise UsageError(f"{peer} is not blocked; 'peerd block --list' shows who is")
    daemon.blocked.remove(peer)
    _apply(daemon)
    return peer


def _apply(daemon: Daemon) -> None:
    for driver in daemon.sessions.values():
        copy_context().run(driver.block, daemon.blocked.ids)  # its log lines have its name
