"""Does every codec give, with this machine's libraries, the bytes and the values it was built to give?

A codec that another version of a library makes fail, or worse, that gives other numbers, would spoil the
models of all; a learner asks before it trains. EXPECTED was made by `python -m peer.compression.self_check`;
it changes with the codec's VERSION alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from peer.compression.bodies import Body, Dense, Layout, LowRank, Quantized, Recalled
from peer.compression.chunks import CHUNK
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import SPARSIFIERS, TRANSFORMS, compressor
from peer.compression.history import History
from peer.compression.low_rank import factors
from peer.compression.sparsify import SAMPLED
from peer.compression.values import VALUE_TYPES
from peer.errors import CodecCheckError
from peer.events import Key
from peer.grammar import PARTS, Compression, parse_compression

MADE_WITH = "numpy 2.4.6 and torch 2.13.0"
REMEMBERED = "bits, with what a link remembers"
SAMPLES = "topk of a long tensor"
CHUNKS = "bits of a long model"
DOUBLE = "fp64"
EXPECTED = {
    "fp32": ("6e119bc583c42886", "82799cee2d03975e"),
    "fp16": ("0290439f14d4074c", "2c79ea43d91c1d87"),
    "bf16": ("9dac0890cc2daef8", "465ee41f7e692bd2"),
    "int8": ("31db86f158ff9c6e", "008247585fa5f984"),
    "int4": ("5b0564c41990fd67", "435addd83377dc97"),
    "sign": ("fe60543ba05b2c68", "b85dcaffe4df60cc"),
    "topk": ("51af6984491b0eac", "49f3acd61ca5f90c"),
    "globaltopk": ("99d076f139d37b6e", "e5b4bdab264b3509"),
    "randomk": ("ba729ca423de1871", "9e63230547e065b8"),
    "grouped": ("f9f5ba42308cc77f", "634210a6529d8bdf"),
    "lowrank": ("277c2bca8ec408b1", "a2ac26cc3f1d6f9f"),
    "bits": ("309e00a39d062307", "c1b999780b35cb07"),
    REMEMBERED: ("8a63dbc0f2f3520f", "c1b999780b35cb07"),
    SAMPLES: ("4ce7ca98d6e3ce86", "9478b2b520904ccf"),
    CHUNKS: ("112977db751676c5", "51cf90f676855d3d"),
    DOUBLE: ("6b2c2f6486810177", "0add64a13159ccb5"),
}
LAYOUT = Layout((64 * 64, 33, 3 * 5), (64, 1, 3))
LONG = Layout((SAMPLED, 33), (64, 1))  # of the first tensor the largest are looked for by a sample
LONGER = Layout((CHUNK, 33), (512, 1))  # its symbols are coded in chunks
LOST = {"bits": 0.2, "lowrank": 1e-3}  # of the vector, at most, where bodies are searched for


def vector(layout: Layout = LAYOUT, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of numbers with up to 23 bits. No generator: they differ, too."""
    i = np.arange(layout.d)
    return torch.from_numpy(np.ldexp(_whole(1, layout.d) * 262_139.0 + i, i % 11 - 20)).to(dtype)


def _whole(number: int, d: int) -> npt.NDArray[np.int64]:
    i = np.arange(d)
    return (i * (7919 * number) + i // 64 * 31) % 61 - 30


@dataclass(frozen=True, slots=True)
class Checked:
    """make: a body of `v` for a model of this layout."""

    make: Callable[[Tensor], Body]
    layout: Layout = LAYOUT
    v: Callable[[], Tensor] = vector


def check_codecs() -> None:
    """30 ms of a core. Raises CodecCheckError that names the first codec that differs."""
    for name, checked in codecs():
        found = _outcome(name, checked)
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


def codecs() -> Iterator[tuple[str, Checked]]:
    """Each value type, sparsifier, transform and coder, and what is done otherwise for what is long."""
    for values in VALUE_TYPES:
        yield values, Checked(compressor(Compression(values=values), LAYOUT))
    for sparsifier in SPARSIFIERS:
        yield sparsifier, Checked(_sparsifying(sparsifier, LAYOUT))
    yield "lowrank", Checked(_factors)
    yield "bits", Checked(_symbols)
    yield REMEMBERED, Checked(lambda v: _history(v).recall(_symbols(v)))
    yield SAMPLES, Checked(_sparsifying("topk", LONG), LONG, lambda: vector(LONG))
    yield CHUNKS, Checked(_few_symbols, LONGER)
    yield DOUBLE, Checked(lambda v: Dense(v.clone()), v=lambda: vector(dtype=torch.float64))


def _sparsifying(name: str, layout: Layout) -> Callable[[Tensor], Body]:
    return compressor(parse_compression(f"{name}={PARTS[name].example},int8"), layout)


def _factors(v: Tensor) -> Body:
    """Factors found by iteration need not be the same everywhere; what they are taken for must be."""
    return LowRank(LAYOUT, 2, v[: factors(LAYOUT, 2).d].clone())


def _symbols(v: Tensor, number: int = 1) -> Quantized:
    """A step found by search need not be the same everywhere; how symbols are coded must be."""
    drawn = _whole(number, LAYOUT.d)
    symbols = np.where(np.abs(drawn) < 5, drawn, 0).astype(np.int16)
    return Quantized(torch.from_numpy(symbols), 0.375, v.dtype, LAYOUT)


def _few_symbols(v: Tensor) -> Quantized:
    symbols = np.zeros(LONGER.d, dtype=np.int16)
    symbols[::331] = np.arange(len(symbols[::331])) * 7919 % 61 - 30
    return Quantized(torch.from_numpy(symbols), 0.375, v.dtype, LONGER)


def _history(v: Tensor) -> History:
    history = History.fresh(LAYOUT)
    for number in (2, 3):
        history = history.after(_symbols(v, number))
    return history


def _outcome(name: str, checked: Checked) -> tuple[str, str]:
    """Digests of a message, and of the values it is read as. Raises CodecCheckError."""
    layout, v = checked.layout, checked.v()
    try:
        data = encode(Message(Key(1, 2), 16, checked.make(v), 0.5), layout)
        body = decode(data, layout, v.dtype).body
        values = (_history(v).read(body) if isinstance(body, Recalled) else body).dense().numpy()
    except Exception as error:
        raise _refusal(name, f"fails ({type(error).__name__}: {error})") from error
    return _digest(data), _digest(values.astype(values.dtype.newbyteorder("<")).tobytes())


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
    sys.stdout.write("".join(f"    {name!r}: {_outcome(name, checked)},\n" for name, checked in codecs()))
