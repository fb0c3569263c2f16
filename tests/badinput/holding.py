"""All that an object holds, to be compared; and copies of it, many times over. Both are made for each of
millions of inputs, so what is to be done is found out once for each type, and copies are made by pickle."""

from __future__ import annotations

import io
import pickle
import types
from collections import deque
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peer.compression.bodies import Layout
from peer.events import Key

_VALUES = (str, bytes, int, float, torch.dtype, type, Layout, Key, type(None))


def held(value: object) -> Any:
    """All that an object holds, tensors bit for bit, in a form that compares; not what can be made anew."""
    return _way(type(value))(value)


@cache
def _way(kind: type) -> Callable[[Any], Any]:
    """How it is to be had of an object of this type."""
    if issubclass(kind, _VALUES):
        return _itself
    if issubclass(kind, Tensor):
        return _bits
    if issubclass(kind, np.ndarray):
        return np.ndarray.tobytes
    if issubclass(kind, dict | types.MappingProxyType):
        return _items
    if issubclass(kind, list | tuple | deque):
        return _elements
    if issubclass(kind, set | frozenset):
        return _members
    if any("__call__" in vars(one) for one in kind.__mro__):
        return _nothing
    names = [name for one in kind.__mro__ for name in getattr(one, "__slots__", ())]
    if not names:
        return _variables
    get = attrgetter(*names, "__class__")  # two at the least, so that it gives a tuple
    if any("__dict__" in vars(one) for one in kind.__mro__):
        return lambda value: (_elements(get(value)), _variables(value))
    return lambda value: _elements(get(value))


def _itself(value: Any) -> Any:
    return value


def _nothing(value: object) -> None:
    return None


def _bits(value: Tensor) -> tuple[torch.dtype, bytes]:
    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    return value.dtype, bits.numpy().tobytes()


def _elements(value: Any) -> list[Any]:
    return [_way(type(one))(one) for one in value]


def _items(value: Any) -> list[Any]:
    return [(_way(type(key))(key), _way(type(one))(one)) for key, one in value.items()]


def _members(value: Any) -> list[str]:
    return sorted(map(repr, value))


def _variables(value: object) -> list[Any]:
    return [type(value), *((name, held(one)) for name, one in sorted(vars(value).items()))]


class Original:
    """What copies are made of. shared: what they are to have in common, as nobody writes to it."""

    def __init__(self, value: object, *shared: object) -> None:
        self._parts: list[Any] = list(shared)
        self._shared = len(shared)
        written = io.BytesIO()
        pickler = _Pickler(written, protocol=5)
        pickler.parts = self._parts
        pickler.dump(value)
        self._written = written.getvalue()
        tensors = self._parts[self._shared :]
        stores = {one.untyped_storage().data_ptr() for one in tensors}
        assert len(stores) == len(tensors), "two of its tensors lie in the same memory"
        self._parts[self._shared :] = [one.clone() for one in tensors]  # as they are now
        assert held(self.copy()) == held(value)

    def copy(self) -> Any:
        unpickler = _Unpickler(io.BytesIO(self._written))
        unpickler.parts = self._parts[: self._shared] + [one.clone() for one in self._parts[self._shared :]]
        return unpickler.load()


class _Pickler(pickle.Pickler):
    parts: list[Any]

    def persistent_id(self, value: Any) -> int | None:
        for at, one in enumerate(self.parts):
            if one is value:
                return at
        if not isinstance(value, Tensor):
            return None
        self.parts.append(value)
        return len(self.parts) - 1


class _Unpickler(pickle.Unpickler):
    parts: list[Any]

    def persistent_load(self, at: Any) -> Any:
        return self.parts[at]
