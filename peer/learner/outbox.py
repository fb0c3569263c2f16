"""Messages on their way to the daemon: put together in the memory in which they are handed over."""

from __future__ import annotations

from peer.compression.codec import Encoded
from peer.shared_buffer import SharedBuffer


class Outbox:
    """For one batch of messages. Holds the last one's buffer, since the next may be the same message to
    another neighbor; what the daemon was given of it is the daemon's own."""

    def __init__(self) -> None:
        self._last: tuple[Encoded, SharedBuffer] | None = None

    def put(self, message: Encoded) -> SharedBuffer:
        """A buffer that holds this message, valid until the next call."""
        if self._last is not None and message.is_like(self._last[0]):
            return self._last[1]
        self.close()
        self._last = message, SharedBuffer.of(*message.parts)
        return self._last[1]

    def close(self) -> None:
        if self._last is not None:
            self._last[1].close()
            self._last = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
