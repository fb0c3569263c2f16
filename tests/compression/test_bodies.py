"""Bodies read back as tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.base import refuse_overflow
from peer.compression.bodies import (
    Dense,
    Drawn,
    Empty,
    Layout,
    LowRank,
    Pair,
    Portion,
    Quantized,
    Sparse,
    Strided,
    drawn,
    largest,
    numbers_in,
    peak_of,
    strided_in,
    those_in,
)
from peer.compression.codec import Message
from peer.compression.layout import bound_of
from peer.compression.values import Coding
from peer.errors import CodecError, RemoteError
from peer.events import Key

LAYOUT = Layout((2, 3))
LEVELS = torch.tensor([1, -2, 3, 0, 127], dtype=torch.int8)
SYMBOLS = torch.tensor([0, 1, -2, 3, -32767], dtype=torch.int16)
AT = torch.tensor([1, 4])


def test_a_layout_knows_where_its_tensors_start():
    assert LAYOUT.d == 5
    assert LAYOUT.bounds == (0, 2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_body_reads_back_in_the_dtype_of_its_session(dtype):
    two = torch.tensor([0.5, 2.0], dtype=torch.bfloat16)
    int8, sign = Coding("int8", 1, two, LAYOUT), Coding("sign", 0, two, LAYOUT)
    signs = torch.tensor([1, -1, -1, 1, 1], dtype=torch.int8)
    thin = Layout((6, 2), (2, 1))  # a 2 x 3 tensor as (p, q), and two entries
    bodies = [
        (Empty(5, dtype), [0, 0, 0, 0, 0]),
        (Dense(torch.arange(5, dtype=torch.float16), dtype, Coding("fp16", -1)), [0, 0.5, 1, 1.5, 2]),
        (Dense(torch.arange(5, dtype=torch.bfloat16), dtype, Coding("bf16", 2)), [0, 4, 8, 12, 16]),
        (Dense(LEVELS, dtype, int8), [1, -2, 12, 0, 508]),
        (Dense(signs, dtype, sign), [0.5, -0.5, -2, 2, 2]),
        (Sparse(5, AT, torch.tensor([7, -8], dtype=dtype), dtype), [0, 7, 0, 0, -8]),
        (Sparse(5, AT, LEVELS[:2], dtype, int8), [0, 1, 0, 0, -8]),
        (Sparse(5, AT[1:], LEVELS[:1], dtype, Coding("int4", 0, two[1:], LAYOUT)), [0, 0, 0, 0, 2]),
        (Strided(5, 0, 2, torch.tensor([7, -8, 9], dtype=dtype), dtype), [7, 0, -8, 0, 9]),
        (Strided(5, 2, 3, torch.tensor([7], dtype=dtype), dtype), [0, 0, 7, 0, 0]),
        (Strided(5, 1, 2, LEVELS[:2], dtype, int8), [0, 1, 0, -8, 0]),
        (Drawn(5, 3, torch.arange(1, 6, dtype=dtype), dtype), [1, 2, 3, 4, 5]),
        (Drawn(5, 3, LEVELS, dtype, int8), [1, -2, 12, 0, 508]),
        (Quantized(SYMBOLS, 0.25, dtype), [0, 0.25, -0.5, 0.75, -8191.75]),
        (
            LowRank(thin, 1, torch.tensor([1, 2, 3, 4, 5, 6, 7], dtype=dtype), dtype),
            [3, 4, 5, 6, 8, 10, 6, 7],
        ),
    ]
    for body, expected in bodies:
        assert body.dense().dtype == dtype
        assert body.dense().tolist() == expected
        assert body.size == len(expected)


@given(st.integers(1, 5000), st.data(), st.integers(0, 2**32 - 1))
def test_drawn_entries_are_as_many_as_wanted_one_in_each_stretch(size, data, seed):
    k = data.draw(st.integers(1, size))
    indices = drawn(size, k, seed).tolist()
    assert len(indices) == k
    assert all(i * size // k <= at < (i + 1) * size // k for i, at in enumerate(indices))


def in_whole_numbers(size, k, seed):
    """The same without numpy: splitmix64."""

    def mixed(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    start, cuts = mixed((seed + golden) % 2**64), [i * size // k for i in range(k + 1)]
    words = [mixed((start + golden * i) % 2**64) for i in range(1, k + 1)]
    return [a + word % (b - a) for a, b, word in zip(cuts, cuts[1:], words, strict=False)]


@pytest.mark.parametrize(("size", "k", "seed"), [(100, 7, 1), (2**32 - 1, 3, 2), (5000, 4999, 2**32 - 1)])
def test_drawn_entries_are_the_same_on_every_machine(size, k, seed):
    assert drawn(size, k, seed).tolist() == in_whole_numbers(size, k, seed)
    assert drawn(100, 7, 1).tolist() == [0, 22, 28, 50, 60, 77, 99]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(2, 9), st.data())
def test_entries_are_counted_tensor_by_tensor(sizes, step, data):
    layout, start = Layout(tuple(sizes)), data.draw(st.integers(0, step - 1))
    entries = torch.arange(layout.d)[start::step].contiguous()
    counts = [sum(a <= at < b for at in entries.tolist()) for a, b in layout.spans]
    assert strided_in(layout, start, step) == those_in(layout, entries) == counts


def test_float64_values_stay_float64():
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.equal(Dense(third).dense(), third)
    assert torch.equal(Sparse(3, torch.arange(3), third).dense(), third)


def test_bodies_are_equal_by_value_and_dtype():
    ones = torch.ones(3)
    assert Dense(ones) == Dense(ones.clone())
    assert Dense(ones) != Dense(2 * ones)
    assert Dense(ones) != Dense(ones.double())
    assert Dense(ones.half(), coding=Coding("fp16")) != Dense(ones.half(), coding=Coding("fp16", 1))
    assert Dense(ones) != Empty(3)
    assert Quantized(SYMBOLS, 0.5) != Quantized(SYMBOLS, 0.25)


def test_what_is_no_vector_is_not_taken_for_one():
    first, second = torch.arange(5.0), torch.ones(5)
    pair, portion = Pair(Dense(first), Dense(second)), Portion(5, torch.tensor([1.0, 2.0]))
    assert all(map(torch.equal, numbers_in(pair), (first, second)))
    assert torch.equal(*numbers_in(portion), torch.tensor([1.0, 2.0]))
    for body in (pair, portion):
        assert body.size == 5
        with pytest.raises(CodecError, match=r"where (one|a vector of 5) is expected"):
            body.dense()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 1 << 16])
def test_a_bound_is_no_less_than_the_peak_and_finite_with_it(n: int, dtype: torch.dtype) -> None:
    v = torch.linspace(-3, 2, n).to(dtype)
    assert peak_of(v) <= bound_of(v) <= peak_of(v) * math.sqrt(n) * (1 + 1e-3)
    for wrong in (math.nan, math.inf, -math.inf):
        for at in {0, n // 2, n - 1}:
            bad = v.clone()
            bad[at] = wrong
            assert not math.isfinite(bound_of(bad))
    large = torch.full((n,), torch.finfo(dtype).max, dtype=dtype)  # whose squares are no such numbers
    assert bound_of(large) == peak_of(large)


def test_what_only_the_bound_is_too_large_of_is_taken() -> None:
    most = math.sqrt(torch.finfo(torch.float32).max)
    v = torch.full((100,), most / 200)
    for weight, fine in ((100.0, True), (300.0, False)):
        body = Dense(v, peak=bound_of(v))
        assert bound_of(v) * weight > 4 * most
        said = Message(Key(0, 1), 16, body, weight)
        if fine:
            refuse_overflow("p-a", said, torch.float32)
        else:
            with pytest.raises(RemoteError, match="after weighing"):
                refuse_overflow("p-a", said, torch.float32)


@pytest.mark.parametrize("at", [0, 1])
def test_of_two_vectors_none_hides_that_the_other_is_not_finite(at: int) -> None:
    vectors = [torch.tensor([2.0, -3.0]), torch.tensor([1.0, 1.0])]
    assert largest(map(peak_of, vectors)) == 3
    vectors[at][1] = math.nan
    assert math.isnan(largest(map(peak_of, vectors)))
    with pytest.raises(RemoteError, match="nan"):
        refuse_overflow("p-a", Message(Key(0, 1), 16, Pair(*map(Dense, vectors))), torch.float32)
