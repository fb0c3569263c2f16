"""Sets of indices: back as they were, near the bound when random, below it when they cluster."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.compression.bodies import Layout
from peer.compression.golomb import BitReader, BitWriter
from peer.compression.indices import read_indices, write_indices
from peer.errors import CodecError

NET = Layout((128 * 784, 128, 10 * 128, 10), (128, 128, 10, 10))


def written(indices, layout):
    writer = BitWriter()
    write_indices(writer, indices, layout)
    return writer.finish()


def read(data, layout):
    reader = BitReader(memoryview(data), 2 * layout.d)
    indices = read_indices(reader, layout)
    reader.finish()
    return indices


def drawn(layout, chance, seed=0):
    return np.flatnonzero(np.random.default_rng(seed).random(layout.d) < chance)


def bound(n, k):
    """log2 C(n, k): no code for all sets of k takes less on average."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


@st.composite
def layouts(draw):
    rows = draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    return Layout(tuple(r * draw(st.integers(1, 120)) for r in rows), tuple(rows))


@given(layouts(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_set_comes_back(layout, share, clustered, seed):
    generator = np.random.default_rng(seed)
    chance = share * np.where(np.arange(layout.d) % 90 < 90 * clustered, generator.random(), 0.01)
    indices = np.flatnonzero(generator.random(layout.d) < chance)
    found = read(written(indices, layout), layout)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, indices)


def test_a_writer_without_the_layout_is_read_by_one_who_has_it():
    indices = drawn(NET, 0.2)  # so many that the choice is not measured
    np.testing.assert_array_equal(read(written(indices, Layout((NET.d,))), NET), indices)


@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01, 0.001])
def test_a_random_set_takes_at_most_3_percent_more_than_its_information(share):
    indices = drawn(NET, share)
    bits = 8 * len(written(indices, NET))
    assert bits <= 1.03 * bound(NET.d, len(indices)) + 48  # the choice, a count, lengths of streams, padding


@pytest.mark.parametrize("axis", ["rows", "columns", "tensors"])
def test_a_set_that_clusters_takes_less_than_a_random_one(axis):
    """Words that did not occur, dead inputs, a layer that hardly moves."""
    chance = np.full((128, 784), 0.01)
    if axis == "rows":
        chance[::2] = 0.0001
    elif axis == "columns":
        chance[:, ::2] = 0.0001
    else:
        chance[:] = 0.0001
    chance = np.concatenate([chance.ravel(), np.full(NET.d - chance.size, 0.3)])
    indices = np.flatnonzero(np.random.default_rng(1).random(NET.d) < chance)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)).sum()
    bits = 8 * len(written(indices, NET))
    assert bits <= 0.95 * bound(NET.d, len(indices))
    assert bits <= 1.15 * entropy  # which knows the chances; the reader is told them


def test_a_reader_refuses_more_classes_than_a_line_has_entries_for():
    writer = BitWriter()
    for number in (1, 1, 12):  # by tensor, rows, highest class
        writer.number(number)
    with pytest.raises(CodecError, match="classes of lines"):
        read(writer.finish(), NET)


@pytest.mark.parametrize(("numbers", "what"), [((2,), "way"), ((1, 3), "axis")])
def test_a_reader_refuses_ways_that_there_are_not(numbers, what):
    writer = BitWriter()
    for number in numbers:
        writer.number(number)
    with pytest.raises(CodecError, match=what):
        read(writer.finish(), NET)
