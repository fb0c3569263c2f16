"""Events of peer/events.py as frames of the local socket, and back, with every field checked.

    Push(dst, key, payload)  <->  {"op": "Push", "dst": "p-…", "key": [0, 7, 0], "payload": 1234, …}

A payload is its length in the frame; its bytes lie in a SharedBuffer whose descriptor comes along. A frame
that is not exactly one event with fields of the declared types and sane sizes raises PeerdError.

A long payload may be handed on while it is still being filled:

    {"op": "begin", "event": FRAME}                its descriptor comes along, nothing is there yet
    {"op": "progress", "memory": n, "filled": n}   bytes; `memory` is SharedBuffer.memory. All of it: the end
    {"op": "end", "memory": n}                     it is given up

What a learner pushes is an event from "begin" on. What comes for it is one when the event's own frame comes,
with the same memory: what is begun before may be looked at, and does not count.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peer.errors import PeerdError
from peer.events import FromLearner, Key, Payload, ToLearner
from peer.framing import Frame
from peer.shared_buffer import Growth, SharedBuffer

Event = FromLearner | ToLearner
Taken = Callable[[int, int], SharedBuffer]  # takes over a descriptor: of SharedBuffer.from_fd's kind

EVENTS: dict[str, type[Any]] = {k.__name__: k for k in (*get_args(FromLearner), *get_args(ToLearner))}
MAX_TEXT = 4096  # characters of any text field: reasons are the longest (guess)
MAX_BYTES = 64  # bytes of any digest field; SHA-512 is the longest in use anywhere
MAX_INT = (1 << 63) - 1
MAX_BEGUN = 1024  # payloads under way on one connection; a session has 256 members


def to_frame(event: Event) -> Frame:
    """The frame of one event; a payload becomes its length. Raises PeerdError if it is no learner event."""
    kind = EVENTS.get(type(event).__name__)
    if kind is not type(event):
        raise PeerdError(f"{type(event).__name__} does not travel on the local socket")
    frame: Frame = {"op": kind.__name__}
    for name, hint in _hints(kind.__name__).items():
        value = getattr(event, name)
        if hint is Payload:
            frame[name] = len(value)
        elif isinstance(value, Key):
            frame[name] = [value.generation, value.round, value.phase]
        else:
            frame[name] = list(value) if isinstance(value, tuple) else value
    return frame


def from_frame(frame: Frame, payload: Payload | None = None) -> Event:
    """The event of one frame. Raises PeerdError naming the field that is missing, unknown or wrong."""
    kind = EVENTS.get(str(frame.get("op")))
    if kind is None:
        raise PeerdError(f"no event is called {frame.get('op')!r}; known: {', '.join(sorted(EVENTS))}")
    hints = _hints(kind.__name__)
    unknown = frame.keys() - hints.keys() - {"op", "fd"}
    if unknown:
        raise PeerdError(
            f"{kind.__name__} has no field {min(map(repr, unknown))[:80]}; it has {', '.join(hints)}"
        )
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        where = f"{kind.__name__}.{name}"
        if name not in frame:
            if name in _optional(kind.__name__):
                continue
            raise PeerdError(f"{where} is missing")
        check = _check if hint is not Payload else partial(_payload, payload)
        values[name] = check(frame[name], hint, where)
    event: Event = kind(**values)
    return event


def payload_of(event: Event) -> SharedBuffer | None:
    """The buffer whose descriptor must travel with this event's frame. Bytes, whole or in `parts`, are copied
    into a new one (the caller closes it if `event.payload` is not that buffer)."""
    payload = getattr(event, "payload", None)
    if payload is None or isinstance(payload, SharedBuffer):
        return payload
    return SharedBuffer.of(*getattr(payload, "parts", (payload,)))


def begin_frame(event: Event) -> Frame:
    """Hands on an event whose payload is still being filled; its descriptor is to come along."""
    return {"op": "begin", "event": to_frame(event)}


def progress_frame(memory: int, filled: int) -> Frame:
    return {"op": "progress", "memory": memory, "filled": filled}


def end_frame(memory: int) -> Frame:
    return {"op": "end", "memory": memory}


class EventAssembler:
    """Turns the frames of one connection, with their descriptors, into events. taken: takes payloads over,
    as a Reserve does that knows memory which comes again."""

    def __init__(self, taken: Taken = SharedBuffer.from_fd) -> None:
        self._taken = taken
        self._begun: dict[int, SharedBuffer] = {}  # still being filled, by their memory

    def take(self, frame: Frame, fd: int | None) -> Event | None:
        """The event of this frame, if it is one; the payload of one that is begun has a `growth`, and is the
        same buffer when the whole one comes. Owns `fd`. Raises PeerdError; the connection is to be closed
        then."""
        op = frame.get("op")
        if op in ("progress", "end"):
            _refuse_descriptor(fd, str(op))
            self._advance(frame)
            return None
        return self._begin(frame, fd) if op == "begin" else self._whole(frame, fd)

    def _begin(self, frame: Frame, fd: int | None) -> Event:
        event = frame.get("event")
        if not isinstance(event, dict) or "payload" not in event or fd is None:
            _drop(fd)
            raise PeerdError("'begin' needs an event that has a payload, and a descriptor")
        buffer = self._taken_over(fd, event["payload"])
        try:
            memory = buffer.memory
            if memory in self._begun or len(self._begun) >= MAX_BEGUN:
                raise PeerdError("'begin' of memory that is begun already, or of too much of it")
            begun = from_frame(event, buffer)
        except PeerdError:
            buffer.close()
            raise
        buffer.growth, self._begun[memory] = Growth(), buffer
        return begun

    def _advance(self, frame: Frame) -> None:
        op, memory = frame["op"], frame.get("memory", -1)
        buffer = self._begun.get(memory) if type(memory) is int else None
        growth = buffer.growth if buffer is not None else None
        if buffer is None or growth is None:
            raise PeerdError(f"{op!r} without a 'begin'")
        if op == "end":
            del self._begun[memory]
            growth.fail()
            return
        filled = _length(frame.get("filled"))
        if not growth.filled <= filled <= len(buffer):
            raise PeerdError(f"'progress' from {growth.filled} to {filled} of {len(buffer)} bytes")
        if whole := filled == len(buffer):
            del self._begun[memory]
            buffer.growth = None
        growth.reach(filled, last=whole)

    def close(self) -> None:
        """The connection is gone: what was begun never comes to its end."""
        begun, self._begun = self._begun, {}
        for buffer in begun.values():
            buffer.close()

    def _whole(self, frame: Frame, fd: int | None) -> Event:
        if "payload" not in frame:
            _refuse_descriptor(fd, str(frame.get("op")))
            return from_frame(frame)
        if fd is None:
            raise PeerdError(f"{frame.get('op')} came without the descriptor of its payload")
        begun = self._begun.pop(os.fstat(fd).st_ino, None) if self._begun else None
        if begun is None:
            buffer = self._taken_over(fd, frame["payload"])
        else:
            os.close(fd)
            buffer = begun
            assert begun.growth is not None
            begun.growth.reach(len(begun), last=True)
            begun.growth = None
        try:
            return from_frame(frame, buffer)
        except PeerdError:
            buffer.close()
            raise

    def _taken_over(self, fd: int, announced: object) -> SharedBuffer:
        """The buffer of a payload announced with that length; raises PeerdError, and `fd` is closed."""
        try:
            size = _length(announced)
        except PeerdError:
            os.close(fd)
            raise
        return self._taken(fd, size)


def _refuse_descriptor(fd: int | None, op: str) -> None:
    if fd is not None:
        os.close(fd)
        raise PeerdError(f"{op!r} came with a descriptor and has no use for one")


def _drop(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _length(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise PeerdError(f"a payload's length is a count of bytes, not {value!r}")
    return value


def _payload(payload: Payload | None, announced: object, _: Any, where: str) -> Payload:
    if payload is None or len(payload) != announced:
        found = "nothing" if payload is None else f"{len(payload)} bytes"
        raise PeerdError(f"{where} announces {announced!r} bytes and {found} came")
    return payload


@cache
def _hints(op: str) -> dict[str, Any]:
    return get_type_hints(EVENTS[op])


@cache
def _optional(op: str) -> frozenset[str]:
    return frozenset(f.name for f in fields(EVENTS[op]) if f.default is not MISSING)


def _check(value: object, hint: Any, where: str) -> Any:
    """`value` as the declared type, or PeerdError."""
    if hint is Key:
        parts = value if isinstance(value, list) else []
        if len(parts) != 3:
            raise _wrong(value, "a key of three numbers", where)
        return Key(*(_check(part, int, where) for part in parts))
    if hint in _SCALARS:
        accept, words = _SCALARS[hint]
        if not accept(value):
            raise _wrong(value, words, where)
        return value
    return _check_composite(value, hint, where)


def _check_composite(value: object, hint: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in inner:
            raise _wrong(value, f"one of {', '.join(map(repr, inner))}", where)
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _check(value, next(kind for kind in inner if kind is not types.NoneType), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(value, "a list", where)
        return tuple(_check(part, inner[0], where) for part in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, "a map", where)
        return {_check(k, inner[0], where): _check(v, inner[1], where) for k, v in value.items()}
    raise AssertionError(f"{where}: no check for {hint}")


_SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda v: type(v) is bool, "true or false"),
    int: (lambda v: type(v) is int and abs(v) <= MAX_INT, "a whole number of at most 63 bits"),
    float: (lambda v: type(v) in (int, float) and math.isfinite(v), "a finite number"),
    str: (lambda v: type(v) is str and len(v) <= MAX_TEXT, f"text of at most {MAX_TEXT} characters"),
    bytes: (lambda v: type(v) is bytes and len(v) <= MAX_BYTES, f"at most {MAX_BYTES} bytes"),
}


def _wrong(value: object, expected: str, where: str) -> PeerdError:
    shown = repr(value)
    return PeerdError(f"{where} is {expected}, not {shown[:80]}")


__all__ = [
    "EVENTS",
    "Event",
    "EventAssembler",
    "Frame",
    "begin_frame",
    "end_frame",
    "from_frame",
    "payload_of",
    "progress_frame",
    "to_frame",
]
