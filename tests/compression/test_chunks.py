"""Long models are coded chunk by chunk: exact, refused if damaged, and in memory that is bounded."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.compression import chunks as cut
from peer.compression import history as memory
from peer.compression.bodies import Layout, Quantized, Recalled
from peer.compression.chunks import CHUNK, coding_bytes, in_chunks
from peer.compression.codec import Message, decode, encode
from peer.compression.golomb import varint
from peer.compression.grouping import Grouping, KeptGrouping
from peer.compression.history import History, classes, recalling
from peer.compression.packing import write_body
from peer.compression.quantize import coded_bytes, quantize
from peer.errors import CodecError, UnknownBaseError
from peer.events import Key

ACROSS = Layout((400_000, 30, 1000 * 333, 77), (400, 1, 1000, 7))  # tensors that lie in two chunks
SMALL = Layout((CHUNK - 3000, *[1, 5, 11, 40] * 100, 7))  # all but the first below SMALLEST_GROUP
ONE_ROW, ONE_COLUMN = Layout((CHUNK + 5,)), Layout((CHUNK + 5,), (CHUNK + 5,))
LONG = [ACROSS, SMALL, ONE_ROW, ONE_COLUMN]
NAMES = ["across", "small tensors", "one row", "one column"]


def some(layout: Layout, number: int) -> Quantized:
    """Some large, most zero or small. No generator: they differ between versions."""
    places = torch.arange(layout.d)
    drawn = (places * (7919 * number) + places // 64 * 31) % 61 - 30
    found = drawn * (places % 97 == 0) * 700 + drawn * (places % 5 != 0)
    symbols = torch.where(drawn.abs() < 9, found, 0).to(torch.int16)
    return Quantized(symbols, 0.375, torch.float32, layout if number % 2 else None)


def moving(layout: Layout, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    scale = torch.rand(layout.d, generator=generator) ** 3
    drift = torch.randn(layout.d, generator=generator)
    return scale * (drift + torch.randn(layout.d, generator=generator.manual_seed(seed)))


def after(layout: Layout, parcels: int) -> History:
    history = History.fresh(layout)
    for number in range(parcels):
        history = history.after(quantize(moving(layout, number), 1.0, layout))
    return history


def size(body: Any) -> int:
    return len(b"".join(write_body(body)))


VERSION_THEN = 5  # of the codec, which the third byte of a message says


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (Layout((4096, 64, 2048, 7), (64, 1, 16, 1)), "f172be90dba410b3"),
        (Layout((3, 5, 2, 60, 1, 1, 5000, 10)), "063157c9ecf2812e"),
        (Layout((CHUNK // 2, CHUNK // 2 - 77, 70, 7), (512, 1, 70, 1)), "ac4e0293dff9c487"),
        (Layout((CHUNK,), (1024,)), "ce0292b72c4cfdac"),
    ],
    ids=lambda value: str(value.d) if isinstance(value, Layout) else "",
)
def test_models_of_a_chunk_are_coded_as_before_there_were_chunks(layout: Layout, told: str) -> None:
    history, found = History.fresh(layout), hashlib.sha256()
    for number in range(1, 4):
        body = some(layout, number)
        for sent in (body, history.recall(body)):
            coded = bytearray(encode(Message(Key(1, 2), 16, sent)))
            coded[2] = VERSION_THEN
            found.update(coded)
        history = history.after(body)
    assert found.hexdigest()[:16] == told


@pytest.mark.parametrize("layout", LONG, ids=NAMES)
def test_long_models_come_back_as_they_were(layout: Layout) -> None:
    """With memory and without, of just the length that was counted beforehand."""
    assert CHUNK < layout.d < 2 * CHUNK
    history = History.fresh(layout)
    for number in range(1, 4):
        body = some(layout, number)
        symbols = body.symbols.numpy()
        assert size(body) == coded_bytes(in_chunks(symbols), body.blocks)
        assert decode(encode(Message(Key(), 16, body)), layout).body == body
        if history.is_of_use:
            sent = decode(encode(Message(Key(), 16, history.recall(body))), layout).body
            assert isinstance(sent, Recalled)
            assert size(sent) == history.coded_bytes(in_chunks(symbols)) < size(body)
            assert History(layout, history.a, history.e, history.count).read(sent) == body
        history = history.after(body)


@pytest.mark.parametrize("layout", LONG, ids=NAMES)
def test_the_budget_holds_for_long_models(layout: Layout) -> None:
    history = after(layout, 2)
    v = moving(layout, 2)
    with_memory = history.recall(recalling(layout, v, 1.0, history))
    for body in (with_memory, quantize(v, 1.0, layout)):
        assert 0.98 * layout.d / 8 <= size(body) <= layout.d / 8


@pytest.mark.parametrize("layout", [ACROSS, SMALL], ids=NAMES[:2])
def test_damage_to_a_long_model_is_refused(layout: Layout) -> None:
    history = after(layout, 1)
    body = quantize(moving(layout, 1), 1.0, layout)
    recalled = history.recall(body)
    assert isinstance(recalled, Recalled)
    data, generator = recalled.data, np.random.default_rng(0)
    first = len(data) * CHUNK // layout.d
    wrong = [data[:-1], data + b"\0", data[:first], b"", data[3:], data[:3] + data, varint(1 << 34) + data]
    places = (0, 1, 5, first, len(data) - 1, *generator.integers(len(data), size=6).tolist())
    wrong += [data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :] for at in places]
    for damaged in wrong:
        with pytest.raises(UnknownBaseError):
            history.read(Recalled(layout.d, recalled.step, recalled.check, damaged))
    plain = encode(Message(Key(), 16, body), layout)
    head = len(plain) - size(body) + 9
    for damaged in (
        plain[:-1],
        plain + b"\0",
        plain[:head],
        plain[: head + first],
        plain[:head] + plain[head + 3 :],
    ):
        with pytest.raises(CodecError):
            decode(damaged, layout)


# --- cut short, so that much can be tried ---------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    chunk=st.integers(1, 90),
    values=st.lists(st.integers(-32767, 32767), min_size=1, max_size=5),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_wherever_it_is_cut_it_comes_back(
    sizes: list[int], chunk: int, values: list[int], density: float, seed: int
) -> None:
    layout = Layout(tuple(3 * one for one in sizes), tuple(3 if one % 2 else one for one in sizes))
    generator = np.random.default_rng(seed)

    def drawn() -> Quantized:
        found = generator.choice(values, layout.d) * (generator.random(layout.d) < density)
        return Quantized(torch.from_numpy(found.astype(np.int16)), 0.5, torch.float32, layout)

    history = History.fresh(layout).after(drawn())
    body = drawn()
    with patch.object(cut, "CHUNK", chunk), patch.object(memory, "SMALLEST_MODEL", 1):
        assert decode(encode(Message(Key(), 16, body)), layout).body == body
        assert size(body) == coded_bytes(in_chunks(body.symbols.numpy()), layout)
        counted = [
            history.coded_bytes(in_chunks(body.symbols.numpy())) for _ in range(2)
        ]  # the second by what is kept
        sent = history.recall(body)
        assert counted == [size(sent)] * 2
        read = decode(encode(Message(Key(), 16, sent)), layout).body
        assert isinstance(read, Recalled)
        assert history.read(read) == body


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("rows", [1, 2, 60, 1260, 2520])
def test_classes_do_not_depend_on_where_a_tensor_is_cut(rows: int, chunk: int) -> None:
    layout = Layout((2520, 30), (rows, 1))
    history = after(layout, 3)
    whole = classes(history)
    with patch.object(cut, "CHUNK", chunk):
        assert np.array_equal(classes(history), whole)


@pytest.mark.parametrize("n", [1, 65536, 65537, 300_000])
@pytest.mark.parametrize("kinds", [1, 2, 14, 200])
def test_a_kept_grouping_is_the_grouping(n: int, kinds: int) -> None:
    found = (np.arange(n) * 7919 % 1009 * kinds // 1009).astype(np.uint8)
    found[: n // 2] = kinds - 1  # others have a gap there of more than 16 bits say
    grouping = Grouping.of(found, 64)
    again = KeptGrouping(grouping).grouping()
    assert np.array_equal(again.order, grouping.order) and again.bounds == grouping.bounds


# --- memory ---------------------------------------------------------------------------------------------


def peak(attempt: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return attempt(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MANY = [
    Layout((1 << 22,)),
    Layout((1 << 22,), (1 << 22,)),
    Layout((2**21, 2**20, 2**20 - 7, 7), (2048, 1, 1, 7)),
]


@pytest.mark.parametrize(
    ("layout", "bits"),
    [*((layout, 1.0) for layout in MANY), (MANY[-1], 12.0)],
    ids=["one row", "one column", "several", "several, 12 bits"],
)
def test_four_million_parameters_take_6_bytes_each_and_64_mb_in_all(layout: Layout, bits: float) -> None:
    """Beyond the vector and the coded bytes; at the usual bit each, and at more than is of use."""
    history = after(layout, 2)
    v = moving(layout, 2)
    took = {}
    body, took["search"] = peak(lambda: recalling(layout, v, bits, history))
    sent, took["recall"] = peak(lambda: history.recall(body))
    took["recall"] -= len(sent.data)
    there = History(layout, history.a, history.e, history.count)
    _, took["read"] = peak(lambda: there.read(sent))
    _, took["after"] = peak(lambda: history.after(body))
    _, took["search, no memory"] = peak(lambda: quantize(v, bits, layout))
    data, took["encode"] = peak(lambda: encode(Message(Key(), 16, body)))
    took["encode"] -= 2 * len(data)
    _, took["decode"] = peak(lambda: decode(data, layout))
    assert max(took.values()) <= min(coding_bytes(layout.d), 64_000_000), took
    if bits == 1.0:
        assert max(took.values()) <= 6 * layout.d + 13_000_000, took


def hostile(kind: str, layout: Layout) -> bytes:
    """As long as a frame may be."""
    sections = []
    for chunk in cut.chunks(layout.d):
        n = chunk.stop - chunk.start
        if kind == "every symbol large":  # and all that is wrong with it is seen in the end
            groups = 1  # all of one class
            head = varint(n) * groups + varint(n) * 3 + b"\x0c" + b"\0"
            unary = b"\xff" * (3 * n // 8)
            start = varint(len(head)) + varint(3 * n - len(unary) - len(head)) + head
            sections.append(start + bytes(3 * n - len(unary) - len(head)) + unary)
        else:
            sections.append(b"\0\0" + bytes((int(kind, 16),)) * (3 * n - 2))
    return b"".join(cut.joined(sections))


@pytest.mark.parametrize("d", [CHUNK, 1 << 22])
@pytest.mark.parametrize("kind", ["00", "01", "11", "55", "ff", "every symbol large"])
def test_a_junk_frame_takes_no_more(kind: str, d: int) -> None:
    layout = Layout((d,))
    flat = np.zeros(d, dtype=np.uint8)
    history = History(layout, flat, flat.view(np.int8), 1)
    frame = Recalled(d, 1.0, 0, hostile(kind, layout))

    def refused() -> str:
        with pytest.raises(UnknownBaseError) as error:
            history.read(frame)
        return str(error.value)

    words, took = peak(refused)
    assert took <= min(coding_bytes(d), 64_000_000), words
    assert ("padding" in words) == (kind == "every symbol large"), words
    plain = encode(Message(Key(), 16, Quantized(torch.zeros(d, dtype=torch.int16), 1.0)))
    bad = plain[: len(plain) - size(decode(plain, layout).body) + 9] + frame.data

    def undecodable() -> None:
        with pytest.raises(CodecError):
            decode(bad, layout)

    assert peak(undecodable)[1] <= min(coding_bytes(d), 64_000_000)
