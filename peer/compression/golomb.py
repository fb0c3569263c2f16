"""Sets of positions and small numbers as bits, in whole-array numpy operations.

A set of k of n positions is coded by the gaps between its members (or between the non-members, if those are
fewer) in Golomb code: gap = m * quotient + remainder, the quotient unary, the remainder truncated binary
(Golomb 1966; Gallager & van Voorhis 1975 for the choice of m). m follows from n and k and is not sent. Where
gaps are short, a long set is coded by pairs of positions: which have a member, which of these two, and which
of its two the others have. No set takes more than 1.08 n bits; a random one takes at most 1.5 % more than its
entropy, and some bytes for the counts. Large numbers are Rice-coded (m = 2^b, b sent). There are three
streams, so that nothing has to be decoded bit by bit:

    varint |head|, varint |fixed|, head (varints), fixed (bits, zero-padded), unary (bits, zero-padded)

`BitMeter` gives the exact number of bytes that `BitWriter` makes, by the same code but for its last step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from peer.compression.grouping import Grouping
from peer.errors import CodecError

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]
RICE_MAX = 15  # largest Rice parameter
WORDS = [np.dtype(kind) for kind in (">u1", ">u1", ">u1", ">u1", ">u2", ">u4", ">u8")]  # of 2^i bits and more
LISTED = 10  # bits of numbers whose bits are looked up, in half the time: 10 KB, which a first cache holds
AT_ONCE = 1 << 15  # numbers of several bits, each of them a byte of its own meanwhile
PAIR, BOTH = np.dtype("<u2"), 257  # two positions of a byte each, and what they are with a member in both
PAIRED = 1024  # a set of more positions may be coded by pairs: two more counts, 2 bytes each, are 0.3 % of it


def varint(number: int) -> bytes:
    """LEB128, unsigned."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: memoryview, at: int, limit: int, what: str) -> tuple[int, int]:
    """The number at `at`, at most `limit`, and where the next field starts."""
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise CodecError(f"{what}: expected a number at byte {at}, found the end of the data")
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            if number > limit:
                raise CodecError(f"{what}: expected at most {limit}, found {number}")
            return number, at
    raise CodecError(f"{what}: expected a number of at most 5 bytes, found a longer one")


def _parameter(n: int, k: int) -> tuple[int, int]:
    """(j, m): j members on the smaller side; Golomb parameter m, or 0 for n plain bits.

    m is the least with (1 - p)^m + (1 - p)^(m + 1) <= 1, where p = j/n: ln 2 / p - 0.84, rounded up.
    """
    j = min(k, n - k)
    if 1000 * j >= 382 * n:  # above this density (1 - golden ratio conjugate) m would be 1
        return j, 0
    return j, max(2, 1 + (6931 * n - 8400 * j) // (10000 * j))


def _by_pairs(n: int, j: int) -> bool:
    """Is the set shorter that way? From 30 % to 46 %, where Golomb code and plain bits lose 1 to 4 %."""
    return n > PAIRED and 300 * n <= 1000 * j <= 460 * n


def _complement(n: int, positions: Ints) -> Ints:
    outside = np.ones(n, dtype=np.bool_)
    outside[positions] = False
    return np.flatnonzero(outside)


@cache
def _bits_of(width: int) -> npt.NDArray[np.void]:
    """Of each number of so many bits these bits, a byte each and the highest first, as one item."""
    numbers = np.arange(1 << width, dtype=">u2").view(np.uint8).reshape(-1, 2)
    bits = np.unpackbits(numbers, axis=1)[:, -width:]
    found = np.ascontiguousarray(bits).view(np.dtype((np.void, width))).reshape(-1)
    found.flags.writeable = False
    return found


class BitSink(ABC):
    """Where coded data goes; see BitWriter and BitMeter."""

    @abstractmethod
    def number(self, number: int) -> None: ...

    @abstractmethod
    def fixed(self, values: npt.NDArray[np.integer], width: int) -> None: ...

    @abstractmethod
    def unary(self, values: Ints) -> None: ...

    def positions(self, n: int, ones: Ints) -> None:
        """A strictly increasing set `ones` out of 0..n-1; n is known to the reader."""
        if n == 0:
            return
        k = len(ones)
        self.number(k)
        if k in (0, n):
            return
        j, m = _parameter(n, k)
        if m == 0 and not _by_pairs(n, j):
            flags = np.zeros(n, dtype=np.uint8)
            flags[ones] = 1
            self.fixed(flags, 1)
            return
        members = ones if j == k else _complement(n, ones)
        if _by_pairs(n, j):
            self._pairs(n, members)
            return
        gaps = members.copy()
        gaps[1:] -= members[:-1] + 1
        quotients = gaps // m
        remainders = gaps - quotients * m
        self.unary(quotients)
        self._truncated_binary(remainders, m)

    def _pairs(self, n: int, members: Ints) -> None:
        held = np.zeros(n + n % 2, dtype=np.uint8)
        held[members] = 1
        pairs = held.view(PAIR)
        some = np.flatnonzero(pairs)
        left = pairs[some]
        self.positions(len(pairs), some)
        self.positions(len(some), np.flatnonzero(left == BOTH))
        self.fixed(left[left != BOTH] >> 8, 1)

    def _truncated_binary(self, remainders: Ints, m: int) -> None:
        width = (m - 1).bit_length()
        cut = (1 << width) - m
        late = remainders >= cut
        shifted = remainders + cut
        self.fixed(np.where(late, shifted >> 1, remainders), width - 1)
        self.fixed(shifted.take(np.flatnonzero(late)) & 1, 1)

    def grouped(self, flags: npt.NDArray[np.bool_], grouping: Grouping) -> None:
        """Which entries have the flag, group by group; the reader has the same grouping."""
        ones = np.flatnonzero(flags[grouping.order])
        cuts = np.searchsorted(ones, grouping.bounds)
        for (start, stop), (first, last) in zip(pairwise(grouping.bounds), pairwise(cuts), strict=True):
            self.positions(stop - start, ones[first:last] - start)

    def rice(self, values: Ints) -> None:
        """Non-negative numbers below 2^16, their count known to the reader."""
        if len(values) == 0:
            return
        guess = int(np.mean(values) * 0.69 + 1).bit_length() - 1  # Rice's optimum for geometric values
        tried = range(max(guess - 1, 0), min(guess + 1, RICE_MAX) + 1)
        b = min(tried, key=lambda width: int((values >> width).sum()) + width * len(values))
        self.number(b)
        self.unary(values >> b)
        self.fixed(values & ((1 << b) - 1), b)


class BitMeter(BitSink):
    """Counts what BitWriter would write."""

    def __init__(self) -> None:
        self._head_bytes = 0
        self._fixed_bits = 0
        self._unary_bits = 0

    def number(self, number: int) -> None:
        self._head_bytes += len(varint(number))

    def fixed(self, values: npt.NDArray[np.integer], width: int) -> None:
        self._fixed_bits += len(values) * width

    def unary(self, values: Ints) -> None:
        self._unary_bits += len(values) + int(values.sum())

    def _truncated_binary(self, remainders: Ints, m: int) -> None:
        width = (m - 1).bit_length()
        late = np.count_nonzero(remainders >= (1 << width) - m)
        self._fixed_bits += len(remainders) * (width - 1) + int(late)

    def __len__(self) -> int:
        fixed, unary = (self._fixed_bits + 7) // 8, (self._unary_bits + 7) // 8
        lengths = len(varint(self._head_bytes)) + len(varint(fixed))
        return lengths + self._head_bytes + fixed + unary


class BitWriter(BitSink):
    """Collects the three streams."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._fixed: list[Bits] = []
        self._unary: list[Ints] = []

    def number(self, number: int) -> None:
        self._head += varint(number)

    def fixed(self, values: npt.NDArray[np.integer], width: int) -> None:
        if width == 1:
            self._fixed.append(values.astype(np.uint8))
        elif 1 < width <= LISTED:
            self._fixed.append(_bits_of(width).take(values).view(np.uint8))
        elif width:
            kind = WORDS[(width - 1).bit_length()]
            bits = np.unpackbits(values.astype(kind).view(np.uint8)).reshape(len(values), 8 * kind.itemsize)
            self._fixed.append(bits[:, -width:].reshape(-1))

    def unary(self, values: Ints) -> None:
        self._unary.append(values)

    def finish(self) -> bytes:
        head = bytes(self._head)
        fixed = np.packbits(np.concatenate(self._fixed)).tobytes() if self._fixed else b""
        return b"".join((varint(len(head)), varint(len(fixed)), head, fixed, self._unary_bytes()))

    def _unary_bytes(self) -> bytes:
        if not self._unary:
            return b""
        ends = np.cumsum(np.concatenate(self._unary) + 1)
        if len(ends) == 0:
            return b""
        bits = np.zeros(int(ends[-1]), dtype=np.uint8)
        bits[ends - 1] = 1
        return np.packbits(bits).tobytes()


class BitReader:
    """What BitWriter wrote, checked as it is read: memory stays within 8 * (len(data) + most_numbers + n).

    most_numbers: of the unary stream. Every method raises CodecError for data BitWriter cannot have written.
    """

    def __init__(self, data: memoryview, most_numbers: int) -> None:
        head, at = read_varint(data, 0, len(data), "length of the head stream")
        fixed, at = read_varint(data, at, len(data), "length of the fixed stream")
        if at + head + fixed > len(data):
            raise CodecError(f"streams: expected {head} + {fixed} bytes after byte {at} of {len(data)}")
        self._head = data[at : at + head]
        self._head_at = 0
        self._fixed = np.unpackbits(np.frombuffer(data[at + head : at + head + fixed], dtype=np.uint8))
        self._fixed_at = 0
        # as flags: numpy looks for the places of those several times faster than for those of numbers
        unary = np.unpackbits(np.frombuffer(data[at + head + fixed :], dtype=np.uint8)).view(np.bool_)
        numbers = int(np.count_nonzero(unary))
        if numbers > most_numbers:
            raise CodecError(f"unary stream: expected at most {most_numbers} numbers, found {numbers}")
        self._unary_bits = len(unary)
        self._ends = np.flatnonzero(unary).astype(np.int32 if len(unary) < 1 << 31 else np.int64)
        self._ends_at = 0

    def number(self, limit: int, what: str) -> int:
        number, self._head_at = read_varint(self._head, self._head_at, limit, what)
        return number

    def fixed(self, count: int, width: int) -> Ints:
        size = count * width
        if size > len(self._fixed) - self._fixed_at:
            raise CodecError(
                f"fixed stream: expected {size} more bits, found {len(self._fixed) - self._fixed_at}"
            )
        bits = self._fixed[self._fixed_at : self._fixed_at + size].reshape(count, width)
        self._fixed_at += size
        if width < 2:
            return bits.reshape(-1).astype(np.int64) if width else np.zeros(count, dtype=np.int64)
        if width <= 8:
            return (bits @ (1 << np.arange(width)[::-1]).astype(np.uint8)).astype(np.int64)
        kind = WORDS[(width - 1).bit_length()]
        values = np.empty(count, dtype=np.int64)
        padded = np.zeros((min(count, AT_ONCE), 8 * kind.itemsize), dtype=np.uint8)
        for start in range(0, count, AT_ONCE):
            some = bits[start : start + AT_ONCE]
            padded[: len(some), -width:] = some
            values[start : start + len(some)] = np.packbits(padded[: len(some)]).view(kind)
        return values

    def unary(self, count: int) -> Ints:
        left = len(self._ends) - self._ends_at
        if count > left:
            raise CodecError(f"unary stream: expected {count} more numbers, found {left}")
        before = int(self._ends[self._ends_at - 1]) if self._ends_at else -1
        ends = self._ends[self._ends_at : self._ends_at + count]
        self._ends_at += count
        numbers = np.empty(count, dtype=np.int64)
        np.subtract(ends[1:], ends[:-1], out=numbers[1:])
        numbers[:1] = ends[:1] - before
        numbers -= 1
        return numbers

    def positions(self, n: int) -> Ints:
        """The inverse of BitSink.positions: strictly increasing, all below n."""
        if n == 0:
            return np.zeros(0, dtype=np.int64)
        k = self.number(n, "number of positions")
        if k == 0:
            return np.zeros(0, dtype=np.int64)
        if k == n:
            return np.arange(n)
        j, m = _parameter(n, k)
        if _by_pairs(n, j):
            members = self._pairs(n, j)
            return members if j == k else _complement(n, members)
        if m == 0:
            ones = np.flatnonzero(self.fixed(n, 1))
            if len(ones) != k:
                raise CodecError(f"plain bits: expected {k} ones of {n}, found {len(ones)}")
            return ones
        quotients = self.unary(j)
        if int(quotients.sum()) * m > n:
            raise CodecError(
                f"positions: expected all below {n}, found one at {int(quotients.sum()) * m} or above"
            )
        members = np.cumsum(quotients * m + self._truncated_binary(j, m) + 1) - 1
        if members[-1] >= n:
            raise CodecError(f"positions: expected all below {n}, found {members[-1]}")
        return members if j == k else _complement(n, members)

    def _pairs(self, n: int, j: int) -> Ints:
        pairs = np.zeros((n + n % 2) // 2, dtype=PAIR)
        some = self.positions(len(pairs))
        left = np.zeros(len(some), dtype=PAIR)
        left[self.positions(len(some))] = BOTH
        one = left != BOTH
        left[one] = 1 << 8 * self.fixed(int(np.count_nonzero(one)), 1)
        pairs[some] = left
        held = pairs.view(np.uint8)
        if held[n:].any() or int(np.count_nonzero(held)) != j:
            raise CodecError(f"pairs: expected {j} positions below {n}, found {np.count_nonzero(held)}")
        return np.flatnonzero(held)

    def _truncated_binary(self, count: int, m: int) -> Ints:
        width = (m - 1).bit_length()
        cut = (1 << width) - m
        values = self.fixed(count, width - 1)
        late = np.flatnonzero(values >= cut)
        values[late] = (values.take(late) << 1) - cut + self.fixed(len(late), 1)
        return values

    def grouped(self, grouping: Grouping) -> npt.NDArray[np.bool_]:
        """The inverse of BitSink.grouped."""
        flags = np.zeros(len(grouping.order), dtype=np.bool_)
        for start, stop in pairwise(grouping.bounds):
            flags[grouping.order[self.positions(stop - start) + start]] = True
        return flags

    def rice(self, count: int, limit: int) -> Ints:
        """`count` numbers, none above `limit`."""
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        b = self.number(RICE_MAX, "Rice parameter")
        quotients = self.unary(count)
        largest = int(quotients.max())
        if largest > limit >> b:
            raise CodecError(f"Rice code: expected numbers up to {limit}, found {largest << b} or above")
        values = np.left_shift(quotients, b, out=quotients)
        values |= self.fixed(count, b)
        if int(values.max()) > limit:
            raise CodecError(f"Rice code: expected numbers up to {limit}, found {int(values.max())}")
        return values

    def finish(self) -> None:
        """All three streams are used up, and what pads them to a byte is zero."""
        if self._head_at != len(self._head):
            raise CodecError(f"head stream: expected {self._head_at} bytes, found {len(self._head)}")
        rest = self._fixed[self._fixed_at :]
        if len(rest) > 7 or rest.any():
            raise CodecError(f"fixed stream: expected zero padding below 8 bits, found {len(rest)} bits")
        used = int(self._ends[self._ends_at - 1]) + 1 if self._ends_at else 0
        if self._ends_at != len(self._ends) or self._unary_bits - used > 7:
            raise CodecError(
                f"unary stream: expected zero padding below 8 bits after bit {used} of {self._unary_bits}"
            )
