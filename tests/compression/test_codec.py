"""Messages come back bit for bit, and nothing but a message is accepted."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peer.catalogue import parse_compression
from peer.compression.bodies import MAX_SYMBOL, Body, Dense, Empty, Half, Layout, Quantized, Sparse
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.packing import DENSE, EMPTY, HALF, QUANTIZED, SPARSE
from peer.errors import CodecError, DivergedError
from peer.events import FINAL, Key

DTYPES = st.sampled_from([torch.float32, torch.float64])
LAYOUTS = st.lists(st.integers(1, 90), min_size=1, max_size=5).map(lambda sizes: Layout(tuple(sizes)))
SPECS = ["none", "fp16", "int8", "topk=10%", "topk=1%,fp16", "topk=5%,int8", "bits=1", "bits=4"]
HEAD, BODY = struct.Struct("<2sBQIBBBdB"), struct.Struct("<BI")
START = HEAD.size + BODY.size  # of the body, with an empty base


@st.composite
def bodies(draw, layout: Layout, dtype: torch.dtype) -> Body:
    """Anything an algorithm could send: not only what the compressors make."""
    d = layout.d
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = draw(st.sampled_from([None, layout]))
    stored = draw(st.sampled_from([dtype, torch.float32, torch.float16, torch.int8]))
    spread = draw(st.sampled_from([0.0, 1e-30, 1.0, 30_000.0]))
    indices = torch.from_numpy(np.flatnonzero(generator.random(d) < draw(st.floats(0, 1))))
    kind = draw(st.sampled_from(["empty", "dense", "half", "sparse", "quantized"]))
    if kind == "empty":
        return Empty(d, dtype)
    if kind == "quantized":
        most = draw(st.sampled_from([0, 1, 3, 5, 300, MAX_SYMBOL]))
        symbols = generator.integers(-most, most + 1, d) * (generator.random(d) < draw(st.floats(0, 1)))
        return Quantized(
            torch.from_numpy(symbols.astype(np.int32)), draw(st.floats(1e-30, 1e30)), dtype, blocks
        )
    values = torch.from_numpy(generator.uniform(-spread, spread, len(indices) if kind == "sparse" else d))
    scales = None
    if stored == torch.int8:
        values = values % 127
        scales = torch.from_numpy(generator.random(len(layout.sizes) if blocks else 1)).to(dtype)
    elif stored == torch.float16 and draw(st.booleans()):
        scales, blocks = torch.tensor([2.0 ** draw(st.integers(-100, 100))], dtype=dtype), None
    else:
        blocks = None
    if kind == "dense":
        return Dense(values.to(stored), dtype, scales, blocks)
    if kind == "half":
        return Half.of(Dense(values.to(stored), dtype, scales, blocks), draw(st.integers(0, 1)))
    return Sparse(d, indices, values.to(stored), dtype, scales, blocks)


@st.composite
def messages(draw):
    layout, dtype = draw(LAYOUTS), draw(DTYPES)
    message = Message(
        key=Key(
            draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0, 1]))
        ),
        meaning=draw(st.integers(0, 255)),
        body=draw(bodies(layout, dtype)),
        weight=draw(st.floats(0, allow_infinity=False, allow_nan=False)),
        base=draw(st.binary(max_size=32)),
        delivery=draw(st.sampled_from(["mass", "latest"])),
    )
    return message, layout, dtype


def accepted(data, layout, dtype=torch.float32):
    """Whether `data` is a message; a message must then be sound, and anything else a CodecError."""
    try:
        message = decode(data, layout, dtype)
    except CodecError:
        return False
    dense = message.body.dense()
    assert dense.shape == (layout.d,) and dense.dtype == dtype
    assert bool(torch.isfinite(dense).all())
    assert 0 <= message.weight < math.inf
    assert decode(encode(message, layout), layout, dtype) == message
    return True


@given(messages())
def test_a_message_comes_back_and_both_ends_read_the_same_bits(case):
    message, layout, dtype = case
    back = decode(encode(message, layout), layout, dtype)
    assert back == message
    here, there = message.body.dense(), back.body.dense()
    assert here.dtype == there.dtype == dtype
    assert here.numpy().tobytes() == there.numpy().tobytes()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from(SPECS)
)
@example([3.4019929e38], "fp16")
@example([-torch.finfo(torch.float32).max, 1.0], "topk=50%,fp16")
def test_whatever_a_compressor_makes_comes_back(values, text):
    v = torch.tensor(values)
    layout = Layout((len(values),))
    message = Message(Key(1, 2, FINAL), 16, compressor(parse_compression(text), layout)(v), 0.5)
    assert decode(encode(message, layout), layout) == message


def test_a_header_takes_32_bytes():
    assert len(encode(Message(Key(), 0, Empty(10)))) == START == 32


def test_any_buffer_of_bytes_is_read_and_not_kept():
    v = torch.randn(50, generator=torch.Generator().manual_seed(2))
    data = bytearray(encode(Message(Key(), 0, Dense(v))))
    message = decode(memoryview(data), Layout((50,)))
    data[:] = bytes(len(data))
    assert torch.equal(message.body.dense(), v)


@given(LAYOUTS, DTYPES, st.sampled_from(["none", "fp16", "int8"]), st.integers(0, 2**32 - 1))
def test_two_halves_are_the_whole_and_each_takes_half_of_its_values(layout, dtype, text, seed):
    v = torch.from_numpy(np.random.default_rng(seed).normal(size=layout.d)).to(dtype)
    whole = compressor(parse_compression(text), layout, dtype)(v)
    halves = [Half.of(whole, start) for start in (0, 1)]
    back = [decode(encode(Message(Key(), 16, half)), layout, dtype).body for half in halves]
    assert back == halves
    first, second = (body.dense() for body in back)
    assert torch.equal(first + second, whole.dense())
    assert torch.equal(first[0::2], whole.dense()[0::2])
    assert not first[1::2].any()
    assert sum(half.values.numel() for half in halves) == layout.d


@given(messages(), st.data())
def test_damaged_messages_are_refused_or_still_sound(case, data):
    message, layout, dtype = case
    raw = bytearray(encode(message, layout))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    accepted(bytes(raw), layout, dtype)


@given(messages(), st.data())
def test_truncated_and_lengthened_messages_are_refused(case, data):
    message, layout, dtype = case
    raw = encode(message, layout)
    assert not accepted(raw[: data.draw(st.integers(0, len(raw) - 1))], layout, dtype)
    assert not accepted(raw + data.draw(st.binary(min_size=1, max_size=9)), layout, dtype)


@given(LAYOUTS, DTYPES, st.integers(0, 5), st.binary(max_size=300))
@settings(max_examples=max(300, settings.default.max_examples))
def test_random_bodies_are_refused_or_sound(layout, dtype, kind, junk):
    head = HEAD.pack(b"pd", 3, 0, 0, 0, 16, 0, 1.0, 0) + BODY.pack(kind, layout.d)
    accepted(head + junk, layout, dtype)
    accepted(junk, layout, dtype)


def peak_bytes(data, layout):
    """Memory a decode of `data` takes at its peak, whether it is a message or not."""
    tracemalloc.start()
    try:
        accepted(data, layout)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def message_with(body: bytes, kind: int, d: int = 100, weight: float = 1.0, **head) -> bytes:
    fields = {"magic": b"pd", "version": 3, "delivery": 0, "base": 0} | head
    place = fields["magic"], fields["version"], 0, 0, 0, 16, fields["delivery"], weight, fields["base"]
    return HEAD.pack(*place) + BODY.pack(kind, d) + body


FLOATS = np.ones(100, dtype="<f4")
INFINITE = FLOATS.copy()
INFINITE[3] = np.inf
HALF_NAN = np.full(100, np.nan, dtype="<f2")
STEP = struct.Struct("<d").pack


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header: expected 27 bytes, found 0"),
        (message_with(b"", EMPTY, magic=b"xx"), "expected b'pd' version 3, found b'xx'"),
        (message_with(b"", EMPTY, version=2), "found b'pd' version 2"),
        (message_with(b"", EMPTY, delivery=2), "delivery: expected 0 or 1, found 2"),
        (message_with(b"", EMPTY, base=33), "base: expected at most 32 bytes, found 33"),
        (message_with(b"", EMPTY, weight=math.nan), "weight: expected a finite number from 0, found nan"),
        (message_with(b"", EMPTY, weight=-1.0), "weight: .* found -1.0"),
        (message_with(b"", EMPTY, weight=math.inf), "weight: .* found inf"),
        (message_with(b"", EMPTY, d=2**31), "parameters: expected 100, found 2147483648"),
        (message_with(b"", 6), r"body kind: expected 0..5, found 6"),
        (message_with(b"x", EMPTY), "expected its end at byte 0, found 1"),
        (message_with(b"\x09\x00", DENSE), "value type: .* found 9"),
        (message_with(b"\x00\x02", DENSE), "blocks: expected 0 or 1, found 2"),
        (
            message_with(b"\x03\x00" + bytes(800), DENSE),
            "fits a session of torch.float32, found torch.float64",
        ),
        (message_with(b"\x00\x00" + FLOATS.tobytes()[:-1], DENSE), "values: expected 400 bytes, found 399"),
        (message_with(b"\x00\x00" + FLOATS.tobytes() + b"x", DENSE), "expected its end"),
        (
            message_with(b"\x00\x00" + INFINITE.tobytes(), DENSE),
            "values: expected finite numbers, found inf at 3",
        ),
        (message_with(b"\x01\x00" + HALF_NAN.tobytes(), DENSE), "found nan at 0"),
        (
            message_with(b"\x02\x00" + FLOATS[:1].tobytes() + b"\x80" * 100, DENSE),
            "int8 from -127, found -128",
        ),
        (
            message_with(b"\x02\x00" + STEP(math.nan)[4:] + bytes(100), DENSE),
            "scales: expected numbers from 0",
        ),
        (message_with(b"\x02\x00\x00" + FLOATS.tobytes()[:200], HALF), "start: expected 0 or 1, found 2"),
        (
            message_with(b"\x00\x00\x00" + FLOATS.tobytes()[:199], HALF),
            "values: expected 200 bytes, found 199",
        ),
        (message_with(b"\x01\x00\x00" + FLOATS.tobytes()[:204], HALF), "expected its end at byte 203"),
        (message_with(b"\x01\x00\x00" + INFINITE.tobytes()[:200], HALF), "found inf at 3"),
        (
            message_with(b"\x00\x00\xff\xff\xff\xff\x0f", SPARSE),
            "length of the index section: expected at most",
        ),
        (
            message_with(b"\x00\x00\x05\x03\x00\x00\xff\x0f", SPARSE),
            "number of positions: expected at most 100",
        ),
        (
            message_with(b"\x00\x00\x04\x02\x00\x00\x64" + FLOATS.tobytes()[:4], SPARSE),
            "values: expected 400 bytes",
        ),
        (message_with(b"\x00\x00\x05\x02\x00\x00\x64\x80", SPARSE), "unary stream: expected"),
        (message_with(b"\x00" + STEP(0.0) + b"\x01\x00\x00", QUANTIZED), "step: expected a normal positive"),
        (message_with(b"\x00" + STEP(math.nan) + b"\x01\x00\x00", QUANTIZED), "step: .* found nan"),
        (message_with(b"\x00" + STEP(1e39) + b"\x01\x00\x00", QUANTIZED), r"step: .* found 1e\+39"),
        (message_with(b"\x00" + STEP(1.0) + bytes(400), QUANTIZED), "symbols: expected at most 372 bytes"),
        (message_with(b"\x00" + STEP(1.0) + b"\x01\x00\x65", QUANTIZED), "expected at most 100, found 101"),
        (
            message_with(b"\x00" + STEP(1.0) + b"\x01\x01\x00\x00", QUANTIZED),
            "fixed stream: expected zero padding",
        ),
        (
            message_with(b"\x00" + STEP(1.0) + b"\x02\x00\x00\x00", QUANTIZED),
            "head stream: expected 1 bytes, found 2",
        ),
        (message_with(b"\x00" + STEP(1.0) + b"\x80\x80\x80\x80\x80\x01", QUANTIZED), "at most 5 bytes"),
    ],
)
def test_each_broken_rule_is_named(data, reason):
    with pytest.raises(CodecError, match=reason):
        decode(data, Layout((100,)))


def test_an_all_zero_vector_of_symbols_takes_3_bytes_and_a_step():
    body = decode(message_with(b"\x00" + STEP(1.0) + b"\x01\x00\x00", QUANTIZED), Layout((100,))).body
    assert body == Quantized(torch.zeros(100, dtype=torch.int32), 1.0)


def test_values_that_would_overflow_are_refused():
    body = Quantized(torch.tensor([4], dtype=torch.int32), 1e38)
    with pytest.raises(CodecError, match="symbols: expected finite values"):
        decode(encode(Message(Key(), 16, body)), Layout((1,)))


def test_what_is_not_finite_is_never_sent():
    for body in (
        Dense(torch.tensor([1.0, math.nan])),
        Sparse(2, torch.tensor([1]), torch.tensor([-math.inf])),
        Half(2, 1, torch.tensor([math.inf])),
    ):
        with pytest.raises(DivergedError):
            encode(Message(Key(), 16, body))


@pytest.mark.parametrize("kind", [DENSE, SPARSE, QUANTIZED, HALF])
@pytest.mark.parametrize("declared", [2**31, 2**32 - 1, 10_000])
def test_forty_bytes_take_no_more_memory_than_the_model_warrants(kind, declared):
    generator = np.random.default_rng(kind)
    for _ in range(50):
        assert peak_bytes(message_with(generator.bytes(12), kind, d=declared), Layout((10_000,))) < 640_000


def test_two_billion_declared_parameters_are_refused_at_once():
    for body in (b"", bytes(12)):
        for kind in (EMPTY, DENSE, SPARSE, QUANTIZED, HALF):
            assert peak_bytes(message_with(body, kind, d=2**31), Layout((10_000,))) < 100_000


def test_a_long_message_of_ones_takes_memory_in_proportion_to_the_model():
    ones = b"\x00" + STEP(1.0) + b"\x01\x00\x64" + b"\xff" * 60_000
    assert peak_bytes(message_with(ones, QUANTIZED, d=20_000), Layout((20_000,))) < 64 * 20_000
