"""Sets of positions and numbers as bits."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.compression.golomb import BitMeter, BitReader, BitWriter
from peer.errors import CodecError

MANY = 10**9


def written(n, ones):
    writer, meter = BitWriter(), BitMeter()
    for sink in (writer, meter):
        sink.positions(n, ones)
    data = writer.finish()
    assert len(meter) == len(data)
    return data


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_set_comes_back_and_the_meter_knows_its_length(n, density, seed):
    ones = np.flatnonzero(np.random.default_rng(seed).random(n) < density)
    reader = BitReader(memoryview(written(n, ones)), MANY)
    assert reader.positions(n).tolist() == ones.tolist()
    reader.finish()


@given(st.lists(st.lists(st.integers(0, 2**15), max_size=30), max_size=4))
def test_numbers_come_back_in_rice_code(lists):
    writer, meter = BitWriter(), BitMeter()
    for numbers in lists:
        for sink in (writer, meter):
            sink.rice(np.array(numbers, dtype=np.int64))
    data = writer.finish()
    assert len(meter) == len(data)
    reader = BitReader(memoryview(data), MANY)
    assert [reader.rice(len(numbers), 2**15).tolist() for numbers in lists] == lists
    reader.finish()


@pytest.mark.parametrize("share", [0.1, 0.03, 0.01, 0.001])
def test_a_random_set_takes_3_percent_more_than_its_information(share):
    d = 272_474
    k = round(d * share)
    bound = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
    ones = np.sort(np.random.default_rng(7).choice(d, k, replace=False))
    assert bound <= 8 * len(written(d, ones)) <= 1.03 * bound + 64


@pytest.mark.parametrize("k", [10, 1000, 3000])
def test_the_worst_set_stays_within_two_bits_per_member_of_a_random_one(k):
    d = 100_000
    ones = np.sort(np.random.default_rng(3).choice(d, k, replace=False))
    for worst in (np.arange(k), np.arange(d - k, d), np.linspace(0, d - 1, k).astype(np.int64)):
        assert 8 * len(written(d, worst)) <= 8 * len(written(d, ones)) + 2 * k + 16


def test_a_reader_refuses_more_numbers_than_there_can_be():
    data = written(1000, np.arange(0, 1000, 10))
    with pytest.raises(CodecError, match="at most 99 numbers, found 100"):
        BitReader(memoryview(data), 99)


@pytest.mark.parametrize("width", range(1, 17))
def test_numbers_of_so_many_bits_are_these_bits_the_highest_first(width):
    """By whatever way they are written: looked up, or not."""
    top = (1 << width) - 1
    values = np.array([0, top, 1, top >> 1, top - 1, *range(0, top, max(1, top // 50))], dtype=np.int64)
    writer = BitWriter()
    writer.fixed(values, width)
    data = writer.finish()
    bits = "".join(f"{value:0{width}b}" for value in values.tolist())
    bits += "0" * (-len(bits) % 8)
    assert data.endswith(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    assert BitReader(memoryview(data), 0).fixed(len(values), width).tolist() == values.tolist()
