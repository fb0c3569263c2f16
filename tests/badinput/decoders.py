"""Every decoder of bytes that this device did not make itself, by name."""

from __future__ import annotations

from collections.abc import Callable

from badinput import algorithms, bodies, coming, local, wires
from badinput.decoding import Decoder

DECODERS: dict[str, Callable[[], Decoder]] = {
    **bodies.DECODERS,
    **algorithms.DECODERS,
    **coming.DECODERS,
    **wires.DECODERS,
    **local.DECODERS,
}
