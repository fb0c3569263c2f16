"""Messages come back bit for bit, and nothing but a message is accepted."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from compression.damage import damaged
from compression.specs import SPECS
from peer.catalogue import parse_compression
from peer.compression.bodies import (
    MAX_SYMBOL,
    Body,
    Dense,
    Drawn,
    Empty,
    Layout,
    LowRank,
    Pair,
    Portion,
    Quantized,
    Recalled,
    Sparse,
    Strided,
    drawn,
    numbers_in,
    strided_below,
    strided_in,
    those_in,
)
from peer.compression.codec import VERSION, Message, decode, encode, in_parts
from peer.compression.compressor import compressor
from peer.compression.low_rank import factors
from peer.compression.packing import DENSE, DRAWN, EMPTY, KINDS, LOW_RANK, QUANTIZED, SPARSE, STRIDED
from peer.compression.values import VALUE_TYPES, Coding, block_lengths
from peer.errors import CodecError, DivergedError
from peer.events import FINAL, Key

DTYPES = st.sampled_from([torch.float32, torch.float64])
LAYOUTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=5).map(
    lambda shapes: Layout(tuple(r * c for r, c in shapes), tuple(r for r, _ in shapes))
)
HEAD, BODY = struct.Struct("<2sBQIBBBdB"), struct.Struct("<BI")
START = HEAD.size + BODY.size  # of the body, with an empty base


@st.composite
def valued(draw, count: int, blocks: Layout, counts: list[int], dtype: torch.dtype, generator):
    """Any numbers and coding that a body of so many values may have: not only what the compressors make."""
    spread = draw(st.sampled_from([0.0, 1e-30, 1.0, 30_000.0]))
    numbers = torch.from_numpy(generator.uniform(-spread, spread, count))
    name = draw(st.sampled_from(list(VALUE_TYPES)))
    kind = VALUE_TYPES[name]
    if name == "fp32":
        return numbers.to(draw(st.sampled_from([dtype, torch.float32]))), None
    if kind.block == 0:
        return numbers.to(kind.stored), Coding(name, draw(st.integers(-126, 112)))
    most = int(kind.largest)
    levels = torch.from_numpy(generator.integers(-most, most + 1, count).astype(np.int8))
    if name == "sign":
        levels = levels.sign() + (levels == 0)
    scales = torch.from_numpy(generator.uniform(0.5, 2.0, len(block_lengths(counts, kind.block))))
    scales = scales * torch.from_numpy(generator.random(len(scales)) < 0.8)
    exponent = draw(st.integers(-125, 119))
    return levels.to(torch.int8), Coding(name, exponent, scales.to(torch.bfloat16), blocks)


@st.composite
def bodies(draw, layout: Layout, dtype: torch.dtype) -> Body:
    """Anything an algorithm could send."""
    d = layout.d
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(list(KINDS)))
    if kind is Empty:
        return Empty(d, dtype)
    if kind is Quantized:
        most = draw(st.sampled_from([0, 1, 3, 5, 300, MAX_SYMBOL]))
        symbols = generator.integers(-most, most + 1, d) * (generator.random(d) < draw(st.floats(0, 1)))
        blocks = draw(st.sampled_from([None, layout]))
        return Quantized(
            torch.from_numpy(symbols.astype(np.int16)), draw(st.floats(1e-30, 1e30)), dtype, blocks
        )
    if kind is Recalled:
        data = draw(st.binary(max_size=3 * d))
        blocks = draw(st.sampled_from([None, layout]))
        return Recalled(d, draw(st.floats(1e-30, 1e30)), draw(st.integers(0, 2**32 - 1)), data, dtype, blocks)
    if kind is Dense:
        numbers, how = draw(valued(d, layout, layout.sizes, dtype, generator))
        return Dense(numbers, dtype, how)
    if kind is LowRank:
        rank = draw(st.integers(1, 3))
        inner = factors(layout, rank)
        numbers, how = draw(valued(inner.d, inner, inner.sizes, dtype, generator))
        if how is not None:  # products of factors, too, are finite
            how = Coding(how.type, min(how.exponent, 20), how.scales, how.blocks)
        return LowRank(layout, rank, numbers, dtype, how)
    if kind is Strided:
        step = draw(st.integers(2, 12))
        start = draw(st.integers(0, step - 1))
        count, counts = strided_below(d, start, step), strided_in(layout, start, step)
        numbers, how = draw(valued(count, layout, counts, dtype, generator))
        return Strided(d, start, step, numbers, dtype, how)
    if kind is Drawn:
        count, seed = draw(st.integers(1, d)), draw(st.integers(0, 2**32 - 1))
        counts = those_in(layout, drawn(d, count, seed))
        numbers, how = draw(valued(count, layout, counts, dtype, generator))
        return Drawn(d, seed, numbers, dtype, how)
    if kind is Pair:
        first, second = (draw(valued(d, layout, layout.sizes, dtype, generator)) for _ in range(2))
        return Pair(Dense(first[0], dtype, first[1]), Dense(second[0], dtype, second[1]))
    if kind is Portion:
        count = draw(st.integers(1, d))
        numbers, how = draw(valued(count, Layout((count,)), (count,), dtype, generator))
        return Portion(d, numbers, dtype, how)
    assert kind is Sparse
    indices = torch.from_numpy(np.flatnonzero(generator.random(d) < draw(st.floats(0, 1))))
    numbers, how = draw(valued(len(indices), layout, those_in(layout, indices), dtype, generator))
    return Sparse(d, indices, numbers, dtype, how)


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
    assert message.body.size == layout.d
    if isinstance(message.body, Recalled):  # what it says, only its link's history can tell
        assert decode(encode(message, layout), layout, dtype) == message
        return True
    for numbers in numbers_in(message.body):
        assert len(numbers) == layout.d or isinstance(message.body, Portion)
        assert numbers.dtype == dtype and bool(torch.isfinite(numbers).all())
    assert 0 <= message.weight < math.inf
    assert decode(encode(message, layout), layout, dtype) == message
    return True


@given(messages())
def test_a_message_comes_back_and_both_ends_read_the_same_bits(case):
    message, layout, dtype = case
    back = decode(encode(message, layout), layout, dtype)
    assert back == message
    if isinstance(message.body, Recalled):
        return
    for here, there in zip(numbers_in(message.body), numbers_in(back.body), strict=True):
        assert here.dtype == there.dtype == dtype
        assert here.numpy().tobytes() == there.numpy().tobytes()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    st.sampled_from(SPECS),
    st.integers(1, 6),
    st.integers(0, 99),
)
@example([3.4019929e38], "fp16", 1, 0)
@example([-torch.finfo(torch.float32).max, 1.0], "topk=1%,fp16", 1, 0)
@settings(max_examples=max(300, settings.default.max_examples))
def test_whatever_a_compressor_makes_comes_back(values, text, rows, turn):
    v = torch.tensor(values * rows)
    layout = Layout((len(v),), (rows,))
    message = Message(Key(1, 2, FINAL), 16, compressor(parse_compression(text), layout)(v, turn), 0.5)
    back = decode(encode(message, layout), layout)
    assert back == message
    assert back.body.dense().numpy().tobytes() == message.body.dense().numpy().tobytes()


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("fp32", 32), ("fp16", 16), ("bf16", 16), ("int8", 8.25), ("int4", 4.25), ("sign", 1.001),
        ("randomk=1%,fp16", 0.16), ("randomk=1%,int4", 0.0425), ("grouped=8,fp16", 2),
        ("grouped=8,sign", 0.126), ("topk=1%,sign", 0.0911), ("topk=1%,int8", 0.1636),
        ("lowrank=2,fp16", 32 * (200 + 500) / 100_000),
    ],
)  # fmt: skip
def test_bits_per_parameter_are_those_of_the_values_and_their_scales(text, bits):
    """And 8.1 bits for an index at 1 %."""
    layout = Layout((100_000,), (200,))
    v = torch.randn(layout.d, generator=torch.Generator().manual_seed(4))
    size = len(encode(Message(Key(), 16, compressor(parse_compression(text), layout)(v)))) - START
    assert 0.97 * bits <= 8 * size / layout.d <= 1.01 * bits + 0.002


def test_a_header_takes_32_bytes():
    assert len(encode(Message(Key(), 0, Empty(10)))) == START == 32


def test_any_buffer_of_bytes_is_read_and_not_kept():
    v = torch.randn(50, generator=torch.Generator().manual_seed(2))
    data = bytearray(encode(Message(Key(), 0, Dense(v))))
    message = decode(memoryview(data), Layout((50,)))
    data[:] = bytes(len(data))
    assert torch.equal(message.body.dense(), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [b"", bytes(16)])
def test_whole_models_are_used_where_they_lie_if_nothing_changes_them_there(dtype, base):
    v = torch.randn(50, generator=torch.Generator().manual_seed(2), dtype=dtype)
    data = bytearray(encode(Message(Key(), 0, Dense(v), 1.0, base)))
    body = decode(data, Layout((50,)), dtype, lasting=True).body
    assert torch.equal(body.dense(), v)
    assert np.shares_memory(body.values.numpy(), np.frombuffer(data, dtype=np.uint8))
    assert body.values.data_ptr() % body.values.element_size() == 0


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_values_that_lie_askew_or_in_memory_that_is_read_only_are_copied(shift):
    v = torch.randn(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    raw = encode(Message(Key(), 0, Dense(v)))
    askew = memoryview(bytearray(bytes(shift) + raw))[shift:]
    for data in (raw, memoryview(raw), askew):
        body = decode(data, Layout((50,)), torch.float64, lasting=True).body
        assert torch.equal(body.dense(), v)
        assert not np.shares_memory(body.values.numpy(), np.frombuffer(data, dtype=np.uint8))


def test_a_message_in_parts_holds_no_copy_of_a_whole_model():
    v = torch.randn(50, generator=torch.Generator().manual_seed(2))
    message = Message(Key(), 0, Dense(v))
    whole = in_parts(message)
    assert b"".join(whole.parts) == encode(message)
    assert len(whole) == len(encode(message))
    assert np.shares_memory(np.frombuffer(whole.parts[-1], dtype=np.float32), v.numpy())


def test_messages_are_alike_that_have_one_body_and_one_head():
    body = Dense(torch.ones(3))
    message = in_parts(Message(Key(0, 1), 16, body, 0.5))
    assert message.is_like(in_parts(Message(Key(0, 1), 16, body, 0.5)))
    assert not message.is_like(in_parts(Message(Key(0, 2), 16, body, 0.5)))
    assert not message.is_like(in_parts(Message(Key(0, 1), 16, body, 0.25)))
    assert not message.is_like(in_parts(Message(Key(0, 1), 16, Dense(torch.ones(3)), 0.5)))


@given(LAYOUTS, DTYPES, st.sampled_from(["none", "fp16", "bf16", "int8", "int4"]), st.integers(0, 2**32 - 1))
def test_two_halves_are_the_whole_and_each_takes_half_of_its_values(layout, dtype, text, seed):
    v = torch.from_numpy(np.random.default_rng(seed).normal(size=layout.d)).to(dtype)
    pack = compressor(parse_compression(text), layout, dtype)
    halves = [pack.every(v, start, 2) for start in (0, 1)]
    back = [decode(encode(Message(Key(), 16, half)), layout, dtype).body for half in halves]
    assert back == halves
    first, second = (body.dense() for body in back)
    assert not first[1::2].any()
    assert not second[0::2].any()
    assert sum(half.values.numel() for half in halves) == layout.d
    if text in ("none", "bf16"):
        assert torch.allclose(first + second, pack(v).dense(), rtol=1e-2, atol=0)


@given(messages(), st.data())
def test_damaged_messages_are_refused_or_still_sound(case, data):
    message, layout, dtype = case
    raw = bytearray(encode(message, layout))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    accepted(bytes(raw), layout, dtype)


@given(messages(), st.integers(0, 2**32 - 1))
@settings(max_examples=max(1000, settings.default.max_examples))
def test_messages_whose_fields_are_damaged_are_refused_or_still_sound(case, seed):
    message, layout, dtype = case
    generator = np.random.default_rng(seed)
    for _ in range(5):
        accepted(damaged(encode(message, layout), generator), layout, dtype)


@given(messages(), st.data())
def test_truncated_and_lengthened_messages_are_refused(case, data):
    message, layout, dtype = case
    assume(not isinstance(message.body, Recalled))  # its symbols are any bytes, until they are read
    raw = encode(message, layout)
    assert not accepted(raw[: data.draw(st.integers(0, len(raw) - 1))], layout, dtype)
    assert not accepted(raw + data.draw(st.binary(min_size=1, max_size=9)), layout, dtype)


@given(LAYOUTS, DTYPES, st.integers(0, 8), st.binary(max_size=300))
@settings(max_examples=max(300, settings.default.max_examples))
def test_random_bodies_are_refused_or_sound(layout, dtype, kind, junk):
    head = HEAD.pack(b"pd", VERSION, 0, 0, 0, 16, 0, 1.0, 0) + BODY.pack(kind, layout.d)
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
    fields = {"magic": b"pd", "version": VERSION, "delivery": 0, "base": 0} | head
    place = fields["magic"], fields["version"], 0, 0, 0, 16, fields["delivery"], weight, fields["base"]
    return HEAD.pack(*place) + BODY.pack(kind, d) + (bytes(7) if kind == DENSE else b"") + body


FLOATS = np.ones(100, dtype="<f4")
INFINITE = FLOATS.copy()
INFINITE[3] = np.inf
HALF_NAN = np.full(100, np.nan, dtype="<f2")
ONE, TINY, NEGATIVE, INFINITE_SCALE = (
    bits.to_bytes(2, "little") for bits in (0x3F80, 0x0001, 0xBF80, 0x7F80)
)
STEP = struct.Struct("<d").pack


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "header: expected 27 bytes, found 0"),
        (message_with(b"", EMPTY, magic=b"xx"), f"expected b'pd' version {VERSION}, found b'xx'"),
        (message_with(b"", EMPTY, version=3), "found b'pd' version 3"),
        (message_with(b"", EMPTY, delivery=2), "delivery: expected 0 or 1, found 2"),
        (message_with(b"", EMPTY, base=33), "base: expected at most 32 bytes, found 33"),
        (message_with(b"", EMPTY, weight=math.nan), "weight: expected a finite number from 0, found nan"),
        (message_with(b"", EMPTY, weight=-1.0), "weight: .* found -1.0"),
        (message_with(b"", EMPTY, weight=math.inf), "weight: .* found inf"),
        (message_with(b"", EMPTY, d=2**31), "parameters: expected 100, found 2147483648"),
        (message_with(b"", 10), r"body kind: expected 0..9, found 10"),
        (message_with(b"x", EMPTY), "expected its end at byte 0, found 1"),
        (message_with(b"", DENSE)[:-3], "padding: expected 7 bytes, found 4"),
        (message_with(b"", DENSE)[:-1] + b"\x01", "padding: expected zeros"),
        (message_with(b"\x09\x00", DENSE), "value type: .* found 9"),
        (message_with(b"\x03" + bytes(800), DENSE), "fits a session of torch.float32, found fp64"),
        (message_with(b"\x00" + FLOATS.tobytes()[:-1], DENSE), "values: expected 400 bytes, found 399"),
        (message_with(b"\x00" + FLOATS.tobytes() + b"x", DENSE), "expected its end"),
        (
            message_with(b"\x00" + INFINITE.tobytes(), DENSE),
            "values: expected finite numbers, found inf at 3",
        ),
        (message_with(b"\x01\x00\x00" + HALF_NAN.tobytes(), DENSE), "found nan at 0"),
        (message_with(b"\x01\x71\x00" + bytes(200), DENSE), "exponent: expected -126 to 112, found 113"),
        (message_with(b"\x01\x81\xff" + bytes(200), DENSE), "exponent: expected -126 to 112, found -127"),
        (message_with(b"\x02\x80\x00" + bytes(104), DENSE), "exponent: expected -126 to 127, found 128"),
        (message_with(b"\x04\x00\x00" + INFINITE_SCALE * 100, DENSE), "values: .* to 65280, found inf"),
        (message_with(b"\x04\x00\x00" + b"\x80\x47" * 100, DENSE), "values: .* to 65280, found 65536"),
        (message_with(b"\x02\x00\x00" + 2 * ONE + b"\x80" * 100, DENSE), "int8 from -127, found -128"),
        (message_with(b"\x02\x00\x00" + 2 * TINY + bytes(100), DENSE), "scales: expected zero or a number"),
        (message_with(b"\x02\x00\x00" + 2 * NEGATIVE + bytes(100), DENSE), "scales: .* found -1.0"),
        (message_with(b"\x02\x00\x00" + 2 * INFINITE_SCALE + bytes(100), DENSE), "scales: .* found inf"),
        (message_with(b"\x02\x7f\x00" + 2 * ONE + bytes(100), DENSE), "scales: .* found 1.7.*e\\+38"),
        (message_with(b"\x02\x00\x00" + 2 * ONE + bytes(99), DENSE), "values: expected 100 bytes, found 99"),
        (message_with(b"\x05\x00\x00" + 2 * ONE + bytes(50), DENSE), "int4 from -7, found -8"),
        (
            message_with(b"\x02\x00\x05\x00\x00" + ONE + b"\x99" * 25, STRIDED),
            "start: expected 0 to 1, found 5",
        ),
        (
            message_with(b"\x03\x00\x01\x00\x05\x00\x00" + ONE + b"\x99" * 17, STRIDED),
            "values: expected zero pad",
        ),
        (message_with(b"\x06\x00\x00" + ONE + bytes(12) + b"\x01", DENSE), "zero padding after the signs"),
        (message_with(b"\x01\x00\x00\x00\x00", STRIDED), "step: expected 2 to 1024, found 1"),
        (
            message_with(b"\x02\x00\x00\x00\x00" + FLOATS.tobytes()[:199], STRIDED),
            "values: expected 200 bytes",
        ),
        (message_with(b"\x02\x00\x01\x00\x00" + FLOATS.tobytes()[:204], STRIDED), "its end at byte 205"),
        (message_with(b"\x02\x00\x01\x00\x00" + INFINITE.tobytes()[:200], STRIDED), "found inf at 3"),
        (message_with(bytes(9), DRAWN), "count: expected 1 to 100, found 0"),
        (message_with(bytes(4) + b"\x65\x00\x00\x00\x00", DRAWN), "count: expected 1 to 100, found 101"),
        (
            message_with(bytes(4) + b"\x64\x00\x00\x00\x00", DRAWN),
            "values: expected 100 bytes at least, found 0",
        ),
        (message_with(b"\x00\x00", LOW_RANK), "rank: expected 1 to 64, found 0"),
        (message_with(b"\x41\x00", LOW_RANK), "rank: expected 1 to 64, found 65"),
        (message_with(b"\x02\x00", LOW_RANK), "values: expected 100 bytes at least, found 0"),
        (message_with(b"\xff\xff\xff\xff\x0f", SPARSE), "length of the index section: expected at most"),
        (message_with(b"\x05\x03\x00\x00\xff\x0f", SPARSE), "number of positions: expected at most 100"),
        (
            message_with(b"\x04\x02\x00\x00\x64\x00" + FLOATS.tobytes()[:4], SPARSE),
            "values: expected 100 bytes",
        ),
        (message_with(b"\x05\x02\x00\x00\x64\x80", SPARSE), "unary stream: expected"),
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
    assert body == Quantized(torch.zeros(100, dtype=torch.int16), 1.0)


def test_values_that_would_overflow_are_refused():
    body = Quantized(torch.tensor([4], dtype=torch.int16), 1e38)
    with pytest.raises(CodecError, match="symbols: expected finite values"):
        decode(encode(Message(Key(), 16, body)), Layout((1,)))


def test_what_is_not_finite_is_never_sent():
    for body in (
        Dense(torch.tensor([1.0, math.nan])),
        Sparse(2, torch.tensor([1]), torch.tensor([-math.inf])),
        Strided(2, 1, 2, torch.tensor([math.inf])),
        Drawn(2, 1, torch.tensor([math.inf])),
        LowRank(Layout((2,)), 1, torch.tensor([math.inf, 1.0])),
        Dense(torch.tensor([math.inf], dtype=torch.bfloat16), coding=Coding("bf16")),
        Pair(Dense(torch.tensor([1.0])), Dense(torch.tensor([math.inf]))),
        Portion(2, torch.tensor([math.inf])),
    ):
        with pytest.raises(DivergedError):
            encode(Message(Key(), 16, body))


@pytest.mark.parametrize("kind", list(range(11)))
@pytest.mark.parametrize("declared", [2**31, 2**32 - 1, 10_000])
def test_forty_bytes_take_no_more_memory_than_the_model_warrants(kind, declared):
    generator = np.random.default_rng(kind)
    for _ in range(50):
        assert peak_bytes(message_with(generator.bytes(12), kind, d=declared), Layout((10_000,))) < 640_000


def test_factors_whose_products_would_overflow_are_refused():
    layout = Layout((16,), (4,))
    body = LowRank(layout, 1, torch.full((8,), 1e20))
    with pytest.raises(CodecError, match=r"factors: expected finite products .* found up to 1"):
        decode(encode(Message(Key(), 16, body)), layout)


def test_two_billion_declared_parameters_are_refused_at_once():
    for body in (b"", bytes(12)):
        for kind in range(11):
            assert peak_bytes(message_with(body, kind, d=2**31), Layout((10_000,))) < 100_000


def test_a_long_message_of_ones_takes_memory_in_proportion_to_the_model():
    ones = b"\x00" + STEP(1.0) + b"\x01\x00\x64" + b"\xff" * 60_000
    assert peak_bytes(message_with(ones, QUANTIZED, d=20_000), Layout((20_000,))) < 64 * 20_000


def test_of_whole_models_a_bound_of_values_is_known_once_they_are_read() -> None:
    layout, values = Layout((3,)), torch.tensor([0.5, -3.0, 2.0])
    read = decode(encode(Message(Key(), 16, Dense(values))), layout).body
    assert isinstance(read, Dense)
    assert read.peak is not None and 3.0 <= read.peak < 4.0
    halved = compressor(parse_compression("fp16"), layout)(values)
    coded = decode(encode(Message(Key(), 16, halved)), layout).body
    assert isinstance(coded, Dense)
    assert coded.peak is None, "it would be one of numbers, and these are values times a power of two"
