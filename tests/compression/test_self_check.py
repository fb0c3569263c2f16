"""A machine whose libraries give other bytes or values is told so before it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from peer.compression import chunks, self_check, sparsify, value_bytes
from peer.compression.compressor import SPARSIFIERS, TRANSFORMS
from peer.compression.values import VALUE_TYPES
from peer.errors import CodecCheckError, PeerdError, by_exit_code


def test_here_all_codecs_give_what_they_should() -> None:
    self_check.check_codecs()


def test_every_codec_is_checked() -> None:
    of_long_ones = {self_check.SAMPLES, self_check.CHUNKS, self_check.DOUBLE}
    named = {*VALUE_TYPES, *SPARSIFIERS, *TRANSFORMS, self_check.REMEMBERED}
    assert set(self_check.EXPECTED) == named | of_long_ones
    assert [name for name, _ in self_check.codecs()] == list(self_check.EXPECTED)
    bodies = [found for found, _ in self_check.EXPECTED.values()]
    assert len(set(bodies)) == len(bodies)


def fails(*_: Any) -> bytes:
    raise TypeError("ufunc 'no_such' is not supported")


def nines(numbers: torch.Tensor) -> bytes:
    """The number 1, again and again."""
    return b"\x99" * (numbers.numel() // 2)


def against(cursor: Any, count: int) -> torch.Tensor:
    return -value_bytes._read_signs(cursor, count)


BROKEN: list[tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("int4", "gives other bytes", lambda m: m.setitem(value_bytes._PACK, "int4", nines)),
    ("int8", r"fails \(TypeError: ufunc", lambda m: m.setitem(value_bytes._PACK, "int8", fails)),
    ("sign", "gives other values", lambda m: m.setitem(value_bytes._READ, "sign", against)),
    (
        "topk",
        "gives other bytes",
        lambda m: m.setattr(sparsify, "_largest", lambda v, k: (np.arange(k), v[:k])),
    ),
    (
        self_check.SAMPLES,
        "gives other bytes",
        lambda m: m.setattr(sparsify, "_above", lambda v, t: (np.arange(900), v[:900])),
    ),
    (self_check.CHUNKS, "gives other bytes", lambda m: m.setattr(chunks, "CHUNK", 1 << 18)),
    (self_check.DOUBLE, "fails", lambda m: m.setattr(value_bytes, "FP64", 9)),
    ("lowrank", "loses 1", lambda m: m.setitem(TRANSFORMS, "lowrank", lambda v, *_: nothing(v))),
]


def nothing(v: torch.Tensor) -> Any:
    return self_check.compressor(self_check.Compression(), self_check.LAYOUT)(torch.zeros_like(v))


@pytest.mark.parametrize(("name", "says", "breaks"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_codec_that_differs_is_a_refusal_that_names_it(
    name: str, says: str, breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    versions = f"numpy {np.__version__} and torch {torch.__version__}"
    with pytest.raises(CodecCheckError, match=f"the codec '{name}' {says}") as refused:
        self_check.check_codecs()
    assert versions in str(refused.value) and "nothing is trained here. Install" in str(refused.value)
    assert type(by_exit_code(refused.value.exit_code, "x")) is PeerdError
