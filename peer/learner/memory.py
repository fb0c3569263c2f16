"""The part of this device's memory that replicas get (algorithms/replicas.py), of what a message leaves while
it is coded (compression/chunks.py); what there is: peer/available.py."""

from __future__ import annotations

from collections.abc import Mapping

from peer import catalogue
from peer.algorithms.replicas import REPLICA_MB
from peer.available import available_bytes
from peer.compression.chunks import coding_bytes

SHARE = 0.25  # of what is available, for replicas: the rest is for activations and other programs (guess)


def replica_mb(available: int | None, d: int) -> float:
    """Megabytes for replicas of d parameters, where so many bytes are available."""
    return REPLICA_MB if available is None else SHARE * max(0, available - coding_bytes(d)) / 1e6


def with_memory(algorithm: str, options: Mapping[str, str], d: int) -> dict[str, str]:
    """An algorithm's options, with this device's memory for `replica-mb=auto`. d: parameters of the model."""
    known = catalogue.algorithm(algorithm).options.get("replica-mb")
    if known is None or options.get("replica-mb", known.default) != "auto":
        return dict(options)
    most = min(known.most, replica_mb(available_bytes(), d))
    return {**options, "replica-mb": f"{most:.6f}"}
