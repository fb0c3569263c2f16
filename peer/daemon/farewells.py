"""What a session's folder keeps of a node that has gone: how far the links to here were applied, for a
neighbor that did not hear the goodbye, and who was here, for an export later on."""

from __future__ import annotations

import logging

from peer.daemon.company import everybody
from peer.daemon.store import SessionFolder
from peer.errors import StateError
from peer.events import Farewell, PeerId
from peer.mesh.node import Node

log = logging.getLogger(__name__)


def keep(folder: SessionFolder, node: Node) -> None:
    """Keep that of this node for the next. On a full disk nothing is kept: a neighbor that did not hear the
    goodbye takes its last parcel back."""
    try:
        folder.save_farewells(node.farewells())
        folder.save_members(everybody(node))
    except StateError as error:
        log.warning("%s", error)


def kept(folder: SessionFolder) -> dict[PeerId, Farewell]:
    """How far they were applied, by neighbor; nothing where that cannot be read."""
    try:
        return folder.farewells()
    except StateError as error:
        log.warning("%s", error)
        return {}
