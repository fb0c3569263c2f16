"""Performing those effects of a node that concern the network, memory and the log."""

from __future__ import annotations

import logging

from peer.events import (
    Connect,
    Disconnect,
    Dispose,
    Effect,
    ForLearner,
    Gone,
    Note,
    Reach,
    Send,
    StartOver,
    Tell,
)
from peer.mesh.transport import Transport
from peer.shared_buffer import SharedBuffer

log = logging.getLogger(__name__)

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def perform(effect: Effect, transport: Transport) -> None:
    """Do what the node asks for. `ForLearner`, `Gone` and `StartOver` are the session's own business."""
    match effect:
        case Send(peer, direction, frame):
            transport.send(peer, direction, frame)
        case Tell(peer, message):
            transport.tell(peer, message)
        case Connect(peer, direction):
            transport.connect(peer, direction)
        case Disconnect(peer, direction):
            transport.disconnect(peer, direction)
        case Reach(peer, addresses):
            transport.learn(peer, addresses, listed=True)
        case Dispose(payload):
            if isinstance(payload, SharedBuffer):
                payload.close()
        case Note(text, fields, level):
            log.log(LEVELS[level], "%s", text, extra=dict(fields))
        case ForLearner() | Gone() | StartOver():
            raise AssertionError(f"{effect} is not for the network")
