"""peerd: trains one model together with the other devices on the network, with no server.

    algorithms/   one file per paper, pure            mesh/       the network: pure half and edges
    compression/  message <-> bytes                   daemon/     the driver of one device
    learner/      task, attach, loop, checkpoints     rehearsal/  the driver in virtual time
    adapters/     attach in other people's loops
    tasks/        built-in tasks                      wire/       generated gRPC code

`attach` makes a training script a member of a session. It is loaded when first used: `import peer` imports
nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peer.learner.attach import Swarm, attach

__all__ = ["Swarm", "attach"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from peer.learner import attach as module  # torch

        return getattr(module, name)
    raise AttributeError(f"module 'peer' has no attribute {name!r}")
