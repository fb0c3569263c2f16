"""Does every codec give, with this machine's libraries, the bytes and the values it was built to give?

A codec that another version of a library makes fail, or worse, that gives other numbers, would spoil the
models of all; a learner asks before it trains. EXPECTED was made by `python -m peer.compression.self_check`;
it changes with the codec's VERSION alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import Body, Layout, LowRank, Quantized, Recalled
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import SPARSIFIERS, TRANSFORMS, compressor
from peer.compression.history import History
from peer.compression.low_rank import factors
from peer.compression.values import VALUE_TYPES
from peer.errors import CodecCheckError
from peer.events import Key
from peer.grammar import PARTS, Compression, parse_compression

MADE_WITH = "numpy 2.4.6 and torch 2.13.0"
REMEMBERED = "bits, with what a link remembers"
EXPECTED = {
    "fp32": ("b36b2bb1fc8267f0", "82799cee2d03975e"),
    "fp16": ("ab022b9b5e9abbc6", "2c79ea43d91c1d87"),
    "bf16": ("801f4d7db97db09d", "465ee41f7e692bd2"),
    "int8": ("c46b0b1db5a968ff", "008247585fa5f984"),
    "int4": ("b45ef2634a79bab9", "435addd83377dc97"),
    "sign": ("7c40d0d02611b8cb", "b85dcaffe4df60cc"),
    "topk": ("bb9d12a99648c974", "49f3acd61ca5f90c"),
    "globaltopk": ("87ef75feda3d40c7", "e5b4bdab264b3509"),
    "randomk": ("43049b250f2c9031", "9e63230547e065b8"),
    "grouped": ("1afba48d943bd0fc", "634210a6529d8bdf"),
    "lowrank": ("7b86768599b1a31e", "a2ac26cc3f1d6f9f"),
    "bits": ("5daa13761fa39637", "c1b999780b35cb07"),
    REMEMBERED: ("b9afbcb8a988e375", "c1b999780b35cb07"),
}
LAYOUT = Layout((64 * 64, 33, 3 * 5), (64, 1, 3))
LOST = {"bits": 0.2, "lowrank": 1e-3}  # of the vector, at most, where bodies are searched for


def check_codecs() -> None:
    """20 ms of a core. Raises CodecCheckError that names the first codec that differs."""
    for name, make in codecs():
        found = _outcome(name, make)
        if found != EXPECTED[name]:
            what = "bytes" if found[0] != EXPECTED[name][0] else "values"
            raise _refusal(name, f"gives other {what} than it should")
    for name, most in LOST.items():
        if not (lost := _lost(name)) <= most:
            raise _refusal(name, f"loses {lost:.3g} of a vector, and {most:g} at most should be lost,")


def _refusal(name: str, problem: str) -> CodecCheckError:
    return CodecCheckError(
        f"the codec '{name}' {problem} with numpy {np.__version__} and torch {torch.__version__} on this "
        f"device; it would spoil the others' models, so nothing is trained here. Install other versions of "
        f"the two (peerd was made with {MADE_WITH}), start again, and report it if that does not help"
    )


def codecs() -> Iterator[tuple[str, Callable[[Tensor], Body]]]:
    """Each value type, sparsifier, transform and coder, and what makes a body of a vector with it."""
    for values in VALUE_TYPES:
        yield values, compressor(Compression(values=values), LAYOUT)
    for sparsifier in SPARSIFIERS:
        spec = parse_compression(f"{sparsifier}={PARTS[sparsifier].example},int8")
        yield sparsifier, compressor(spec, LAYOUT)
    yield "lowrank", _factors
    yield "bits", _symbols
    yield REMEMBERED, lambda v: _history(v).recall(_symbols(v))


def vector() -> Tensor:
    """Of numbers with up to 23 bits. No generator: they differ, too."""
    i = np.arange(LAYOUT.d)
    return torch.from_numpy(np.ldexp(_whole(1) * 262_139 + i, i % 11 - 20).astype(np.float32))


def _whole(number: int) -> npt.NDArray[np.int64]:
    i = np.arange(LAYOUT.d)
    return (i * (7919 * number) + i // 64 * 31) % 61 - 30


def _factors(v: Tensor) -> Body:
    """Factors found by iteration need not be the same everywhere; what they are taken for must be."""
    return LowRank(LAYOUT, 2, v[: factors(LAYOUT, 2).d].clone())


def _symbols(v: Tensor, number: int = 1) -> Quantized:
    """A step found by search need not be the same everywhere; how symbols are coded must be."""
    drawn = _whole(number)
    symbols = np.where(np.abs(drawn) < 5, drawn, 0).astype(np.int16)
    return Quantized(torch.from_numpy(symbols), 0.375, v.dtype, LAYOUT)


def _history(v: Tensor) -> History:
    history = History.fresh(LAYOUT)
    for number in (2, 3):
        history = history.after(_symbols(v, number))
    return history


def _outcome(name: str, make: Callable[[Tensor], Body]) -> tuple[str, str]:
    """Digests of a message, and of the values it is read as. Raises CodecCheckError."""
    v = vector()
    try:
        data = encode(Message(Key(1, 2), 16, make(v), 0.5), LAYOUT)
        body = decode(data, LAYOUT).body
        values = (_history(v).read(body) if isinstance(body, Recalled) else body).dense()
    except Exception as error:
        raise _refusal(name, f"fails ({type(error).__name__}: {error})") from error
    return _digest(data), _digest(values.numpy().astype("<f4").tobytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _lost(name: str) -> float:
    """What is searched for need not be the same everywhere, but it must be found. Raises CodecCheckError."""
    v = vector()
    try:
        if name == "lowrank":
            v = _factors(v).dense()
        found = TRANSFORMS[name](v, LAYOUT, 2.0, "").dense()
        return float((v - found).norm()) / float(v.norm())
    except Exception as error:
        raise _refusal(name, f"fails ({type(error).__name__}: {error})") from error


if __name__ == "__main__":
    sys.stdout.write("".join(f"    {name!r}: {_outcome(name, make)},\n" for name, make in codecs()))
