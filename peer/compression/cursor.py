"""Fields off the front of some bytes."""

from __future__ import annotations

from peer.compression.golomb import read_varint
from peer.errors import CodecError


class Cursor:
    """Reads fields off the front of some bytes; whatever is not there is a CodecError.

    lasting: what is read may be kept as a view, for nobody changes these bytes any more."""

    def __init__(self, data: memoryview, lasting: bool = False) -> None:
        self._data, self.lasting = data, lasting
        self._at = 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self._data) - self._at:
            raise CodecError(f"{what}: expected {size} bytes, found {len(self._data) - self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, limit: int, what: str) -> int:
        number, self._at = read_varint(self._data, self._at, limit, what)
        return number

    def rest(self) -> memoryview:
        return self.take(len(self._data) - self._at, "the rest")

    def finish(self) -> None:
        if self._at != len(self._data):
            raise CodecError(f"message: expected its end at byte {self._at}, found {len(self._data)} bytes")
