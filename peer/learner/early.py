"""A long parcel, looked at while it comes: whether its numbers are finite, and the mean with them.

The daemon knows whether a parcel is what was sent when all of it has come. What is done before is of use
then, and else goes with the parcel: nothing but its own memory is written to. So a mean may take its place
there as far as it has come, and a message whose place is taken counts in that mean or nowhere (`lost`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch

from peer.algorithms.base import Algorithm, Folding, Message, most_of
from peer.compression import codec
from peer.compression.bodies import Dense
from peer.compression.layout import Layout, bound_of, peak_of
from peer.events import Deliver


class Buffer(Protocol):
    """Where it comes to lie (peer.shared_buffer.SharedBuffer is one)."""

    def __len__(self) -> int: ...
    def view(self) -> memoryview: ...
    def close(self) -> None: ...


class Early:
    """Its message is looked at if it is a vector as it is, which is as long as a message can be; any other is
    decoded when it is whole."""

    def __init__(self, parcel: Deliver, payload: Buffer, layout: Layout, dtype: torch.dtype) -> None:
        self.payload = payload
        self._parcel, self._layout, self._dtype = parcel, layout, dtype
        self._message: Message | None = None
        self._is_other = False  # nothing is known of it before it is whole
        self._checked = 0  # numbers
        self._peak = 0.0  # of those, or a bound of it
        self._most = most_of(dtype)
        self._folding: Folding | None = None

    def __len__(self) -> int:
        return len(self.payload)

    def advance(self, filled: int, algorithm: Algorithm) -> None:
        """Look at what is there: `filled` bytes."""
        if self._message is None and not self._is_other and filled >= codec.DENSE_HEAD_BYTES:
            self._message = codec.coming(self.payload.view(), self._layout, self._dtype)
            self._is_other = self._message is None or self._message.key != self._parcel.key
        if self._message is None or self._is_other:
            return
        values = self._message.body.dense()
        upto = (filled - codec.DENSE_HEAD_BYTES) // self._dtype.itemsize
        new = values[self._checked : upto]
        peak = bound_of(new) if len(new) else 0.0
        if peak > self._most:
            peak = peak_of(new)
        if not math.isfinite(peak):
            self._is_other = True  # decoding it says where: nothing is folded that was not looked at
            return
        self._checked, self._peak = upto, max(self._peak, peak)
        if self._is_too_large:
            return  # it will be refused, for what is left as it is from there on
        if self._folding is None:
            self._folding = algorithm.coming(self._parcel.src, self._message)
        if self._folding is not None:
            self._folding.to(upto)

    @property
    def _is_too_large(self) -> bool:
        """Will it be refused, as base.refuse_overflow does?"""
        weight = max(1.0, self._message.weight) if self._message is not None else 1.0
        return self._peak * weight > self._most

    @property
    def lost(self) -> bool:
        """Is nothing wrong with it, and has its memory been used for a mean that has come to nothing?"""
        is_void = self._folding is not None and self._folding.void
        return is_void and not self._is_other and not self._is_too_large

    def message(self) -> Message | None:
        """Of the whole parcel, once `advance` has seen all of it. None: it is yet to be decoded."""
        if self._message is None or self._is_other:
            return None
        body = self._message.body
        assert isinstance(body, Dense) and self._checked == body.size, "a part has not been looked at"
        return replace(self._message, body=replace(body, peak=self._peak))

    def view(self) -> memoryview:
        return self.payload.view()

    def give_up(self) -> None:
        """It will never be whole."""
        if self._folding is not None:
            self._folding.give_up()
        self.payload.close()
