"""Which entries of a model a message has values for: sets of positions, smaller where they cluster.

    one set     of d positions
    by tensor   a set per tensor, each of a long matrix in one of three ways: as it is, or rows (or columns)
                sorted by how many of their entries are in the set, and a set for each class of them

What a layer's dead inputs, or words that did not occur, leave untouched then takes next to nothing. A row
with c entries is of class bit_length(c): which rows exceed 0, of those 1, .. are sets themselves. The writer
takes what is shortest, by `golomb`'s meter, where something else than one set may be.

    way u8 | one set: positions | by tensor: per tensor, axis u8 if long, positions
    axis rows, columns: highest class, then sets of rows per class, then a set of entries per class
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from peer.compression.bodies import Layout
from peer.compression.golomb import BitMeter, BitReader, BitSink, Ints

ONE_SET, BY_TENSOR = 0, 1
AS_IT_IS, ROWS, COLUMNS = 0, 1, 2
LONG = 4096  # entries of a tensor that may be sorted; below, a byte is too much for the choice (guess)
FEWEST = 64  # of its entries in the set, for rows to be tried: counts of fewer tell little (guess)
UNLIKE = 1.2  # variance over mean of counts, from which sorting may be worth it: 1 if entries are random
MANY = 1000  # entries for each tensor, from which a count for each costs nothing to speak of

Way = Callable[[BitSink], None]


def write_indices(sink: BitSink, indices: Ints, layout: Layout) -> None:
    """A strictly increasing set out of the layout's d positions."""
    ways = {BY_TENSOR: _by_tensor(indices, layout)}
    if len(indices) < MANY * len(layout.sizes) or len(layout.sizes) == 1:
        ways = {ONE_SET: lambda sink: sink.positions(layout.d, indices), **ways}
    way = _shortest(ways)
    sink.number(way)
    ways[way](sink)


def read_indices(reader: BitReader, layout: Layout) -> Ints:
    """The inverse; raises CodecError."""
    if reader.number(BY_TENSOR, "way of the index section") == ONE_SET:
        return reader.positions(layout.d)
    parts = [
        _read_tensor(reader, rows, columns) + start
        for (start, _), (rows, columns) in zip(layout.spans, layout.shapes, strict=True)
    ]
    return np.concatenate(parts)


def _shortest(ways: dict[int, Way]) -> int:
    if len(ways) == 1:
        return next(iter(ways))
    lengths = {}
    for name, way in ways.items():
        meter = BitMeter()
        way(meter)
        lengths[name] = len(meter)
    return min(lengths, key=lengths.__getitem__)


def _by_tensor(indices: Ints, layout: Layout) -> Way:
    cuts = np.searchsorted(indices, layout.bounds)
    pieces = zip(layout.spans, layout.shapes, pairwise(cuts), strict=True)
    ways = [
        _tensor(indices[first:last] - start, rows, columns)
        for (start, _), (rows, columns), (first, last) in pieces
    ]

    def write(sink: BitSink) -> None:
        for way in ways:
            way(sink)

    return write


# --- one tensor ----------------------------------------------------------------------------------------


def _has_choice(rows: int, columns: int) -> bool:
    return rows * columns >= LONG and min(rows, columns) > 1


def _tensor(ones: Ints, rows: int, columns: int) -> Way:
    if not _has_choice(rows, columns):
        return lambda sink: sink.positions(rows * columns, ones)
    ways: dict[int, Way] = {AS_IT_IS: lambda sink: sink.positions(rows * columns, ones)}
    if len(ones) >= FEWEST:
        row = ones // columns
        column = ones - row * columns
        for axis, line, place, lines, length in (
            (ROWS, row, column, rows, columns),
            (COLUMNS, column, row, columns, rows),
        ):
            counts = np.bincount(line, minlength=lines)
            if _are_unlike(counts, len(ones)):
                ways[axis] = _lines(line, place, counts, length)
    axis = _shortest(ways)

    def write(sink: BitSink) -> None:
        sink.number(axis)
        ways[axis](sink)

    return write


def _are_unlike(counts: Ints, total: int) -> bool:
    """Is their variance more than UNLIKE times their mean?"""
    return len(counts) * int(counts @ counts) - total * total > UNLIKE * total * len(counts)


def _read_tensor(reader: BitReader, rows: int, columns: int) -> Ints:
    axis = reader.number(COLUMNS, "axis of a tensor") if _has_choice(rows, columns) else AS_IT_IS
    if axis == AS_IT_IS:
        return reader.positions(rows * columns)
    if axis == ROWS:
        row, column = _read_lines(reader, rows, columns)
    else:
        column, row = _read_lines(reader, columns, rows)
    return np.sort(row * columns + column)


def _lines(line: Ints, place: Ints, counts: Ints, length: int) -> Way:
    """Entries at `place` in `line`, of lines of that length; sorted by the classes of their lines."""
    classes = np.frexp(counts.astype(np.float64))[1].astype(np.int64)  # bit_length
    highest = int(classes.max())
    among, sets = np.arange(len(counts)), []
    for level in range(highest):
        above = np.flatnonzero(classes[among] > level)
        sets.append((len(among), above))
        among = among[above]
    own = classes[line]
    for level in range(1, highest + 1):
        of_class = np.flatnonzero(classes == level)
        seat = np.zeros(len(counts), dtype=np.int64)
        seat[of_class] = np.arange(len(of_class))
        chosen = own == level
        sets.append((len(of_class) * length, np.sort(seat[line[chosen]] * length + place[chosen])))

    def write(sink: BitSink) -> None:
        sink.number(highest)
        for n, ones in sets:
            sink.positions(n, ones)

    return write


def _read_lines(reader: BitReader, lines: int, length: int) -> tuple[Ints, Ints]:
    """Lines and places of the entries."""
    highest = reader.number(length.bit_length(), "classes of lines")
    classes, among = np.zeros(lines, dtype=np.int64), np.arange(lines)
    for _ in range(highest):
        among = among[reader.positions(len(among))]
        classes[among] += 1
    line, place = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for level in range(1, highest + 1):
        of_class = np.flatnonzero(classes == level)
        seat, at = np.divmod(reader.positions(len(of_class) * length), length)
        line.append(of_class[seat])
        place.append(at)
    return np.concatenate(line), np.concatenate(place)
