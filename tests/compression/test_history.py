"""Symbols coded by what both ends of a link remember: exact, smaller, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.compression.bodies import Body, Dense, Empty, Layout, Quantized, Recalled
from peer.compression.chunks import in_chunks
from peer.compression.codec import Message, decode, encode
from peer.compression.history import CLASSES, SMALLEST_MODEL, History, classes, recalling
from peer.compression.packing import write_body
from peer.errors import CodecError, UnknownBaseError
from peer.events import Key

LAYOUT = Layout((4096, 64, 2048, 7), (64, 1, 16, 1))


def moving(layout: Layout, seed: int) -> torch.Tensor:
    """Where a model moves: rows and columns of unlike activity, steadily in the same direction."""
    generator = torch.Generator().manual_seed(7)
    scales = []
    for rows, columns in layout.shapes:
        row, column = (torch.randn(n, generator=generator).exp() for n in (rows, columns))
        drift = torch.randn(rows, columns, generator=generator)
        scales.append((row[:, None] * column[None, :], drift))
    generator.manual_seed(seed)
    parts = [
        (scale * (drift + torch.randn(scale.shape, generator=generator))).reshape(-1)
        for scale, drift in scales
    ]
    return torch.cat(parts)


def symbols(values: list[int], layout: Layout, seed: int, density: float) -> Quantized:
    generator = np.random.default_rng(seed)
    drawn = generator.choice(values, layout.d) * (generator.random(layout.d) < density)
    return Quantized(torch.from_numpy(drawn.astype(np.int16)), 0.5)


def sent(body: Body) -> Body:
    return decode(encode(Message(Key(), 16, body)), LAYOUT).body


def test_both_ends_remember_the_same_and_read_what_was_meant() -> None:
    here, there = History.fresh(LAYOUT), History.fresh(LAYOUT)
    kinds = []
    for seed in range(8):
        body = recalling(LAYOUT, moving(LAYOUT, seed), 1.0, here)
        arrived = sent(here.recall(body))
        kinds.append(type(arrived))
        read = there.read(arrived) if isinstance(arrived, Recalled) else arrived
        assert read == Quantized(body.symbols, body.step, body.dtype, read.blocks)
        here, there = here.after(body), there.after(read)
        assert np.array_equal(here.a, there.a) and np.array_equal(here.e, there.e)
    assert kinds == [Quantized] + [Recalled] * 7


def test_what_is_remembered_makes_parcels_smaller() -> None:
    """The same symbols, tensor by tensor and with memory; where nothing is steady it costs very little."""
    for moved, most in ((lambda seed: moving(LAYOUT, seed), 0.85), (noise, 1.03)):
        history, plain, recalled = History.fresh(LAYOUT), 0, 0
        for seed in range(6):
            body = recalling(LAYOUT, moved(seed), 1.0, None)
            if seed:
                plain += len(b"".join(write_body(body)))
                recalled += len(b"".join(write_body(history.recall(body))))
            history = history.after(body)
        assert recalled < most * plain, (recalled, plain)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(LAYOUT.d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [0.25, 1.0, 3.0])
def test_the_budget_holds_with_memory_too(bits: float) -> None:
    history = History.fresh(LAYOUT)
    for seed in range(4):
        body = recalling(LAYOUT, moving(LAYOUT, seed), bits, history)
        size = len(b"".join(write_body(history.recall(body))))
        assert 0.97 * bits * LAYOUT.d / 8 <= size <= bits * LAYOUT.d / 8
        history = history.after(body)


@given(
    values=st.lists(st.integers(-32767, 32767).filter(bool), min_size=1, max_size=5),
    density=st.floats(0, 1),
    parcels=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_symbols_come_back_as_they_were(
    values: list[int], density: float, parcels: int, seed: int
) -> None:
    history = History.fresh(LAYOUT).after(symbols(values, LAYOUT, seed, density))
    for parcel in range(parcels):
        body = symbols(values, LAYOUT, seed + parcel, density)
        recalled = history.recall(body)
        assert isinstance(recalled, Recalled)
        assert history.read(sent(recalled)) == body  # type: ignore[arg-type]
        assert history.coded_bytes(in_chunks(body.symbols.numpy())) == len(b"".join(write_body(recalled)))
        history = history.after(body)
        assert int(history.a.max()) <= 195 and int(np.abs(history.e).max()) <= 99


@given(data=st.data(), cut=st.integers(0, 40))
def test_damaged_symbols_are_refused_and_change_nothing(data: st.DataObject, cut: int) -> None:
    history = History.fresh(LAYOUT).after(recalling(LAYOUT, moving(LAYOUT, 0), 1.0, None))
    body = history.recall(recalling(LAYOUT, moving(LAYOUT, 1), 1.0, history))
    assert isinstance(body, Recalled)
    raw = bytearray(body.data[: len(body.data) - cut])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    a, e = history.a.copy(), history.e.copy()
    with pytest.raises((UnknownBaseError, CodecError)):
        history.read(Recalled(body.size, body.step, body.check, bytes(raw)))
    assert np.array_equal(history.a, a) and np.array_equal(history.e, e)


def test_one_that_remembers_something_else_says_so() -> None:
    """Whatever its classes make of the symbols: an entry off by one is enough."""
    history = History.fresh(LAYOUT).after(recalling(LAYOUT, moving(LAYOUT, 0), 1.0, None))
    body = history.recall(recalling(LAYOUT, moving(LAYOUT, 1), 1.0, history))
    assert isinstance(body, Recalled)
    for name in ("a", "e"):
        other = History(LAYOUT, history.a.copy(), history.e.copy(), history.count)
        getattr(other, name)[5] += 1
        with pytest.raises(UnknownBaseError):
            other.read(body)
    with pytest.raises(UnknownBaseError):
        History(LAYOUT, history.a, history.e, history.count + 1).read(body)
    with pytest.raises(CodecError, match="memory"):
        body.dense()


def test_classes_and_memory_are_the_same_on_every_machine() -> None:
    """Numbers of this one: another machine or library that finds others could not take part."""
    history = History.fresh(LAYOUT)
    places = torch.arange(LAYOUT.d)
    for seed in range(1, 6):
        drawn = (places * (7919 * seed) + places // 64 * 31) % 61 - 30  # no generator: they differ, too
        body = Quantized(torch.where(drawn.abs() < 5, drawn, 0).to(torch.int16), 1.0)
        history = history.after(body)
    found = classes(history)
    assert found.min() >= 0 and found.max() < CLASSES and len(set(found.tolist())) >= 4
    told = hashlib.sha256(history.a.tobytes() + history.e.tobytes() + found.tobytes()).hexdigest()[:16]
    assert told == "5192d1eb661aa41b"


def test_small_models_and_other_bodies_are_coded_as_they_are() -> None:
    small = Layout((SMALLEST_MODEL - 1,))
    body = Quantized(torch.ones(small.d, dtype=torch.int16), 1.0)
    assert History.fresh(small).after(body).recall(body) is body
    history = History.fresh(LAYOUT)
    for other in (Empty(LAYOUT.d), Dense(torch.zeros(LAYOUT.d))):
        assert history.after(other) is history and history.recall(other) is other
