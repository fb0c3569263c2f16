"""This device, as each of its sessions is told of it by the daemon."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from peer.daemon.supervisor import Supervisor
from peer.mesh.identity import Device


@dataclass(frozen=True, slots=True)
class ThisDevice:
    """Who drives: its key, its name for people, how often its daemon has started, and how learners are
    started. threads(): what each of them may use now, None where the user has said. drivers: counts them, so
    that each outranks what an earlier one said of itself. instance: of this daemon, above any of an earlier
    boot, and drawn, so that a device with a copied key shows. owned: a script has started this daemon."""

    key: Device
    name: str
    boot: int
    supervisor: Callable[[str, Callable[[int], bool]], Supervisor]
    threads: Callable[[], int | None] = lambda: None
    drivers: Iterator[int] = field(default_factory=itertools.count)
    instance: int = 0
    owned: bool = False
