"""Tensors as products of thin matrices: as good as they can be, and the same bits at both ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.compression.bodies import Layout, LowRank
from peer.compression.low_rank import bound, factored, factorize, factors, product

LAYOUT = Layout((40 * 30, 25, 6 * 2, 16 * 64), (40, 1, 6, 16))


def of_rank(rank: int, layout: Layout, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(rank)
    return torch.cat(
        [
            (
                torch.randn(r, rank, generator=g, dtype=torch.float64)
                @ torch.randn(rank, c, generator=g, dtype=torch.float64)
            ).reshape(-1)
            for r, c in layout.shapes
        ]
    ).to(dtype)


def test_only_tensors_that_become_smaller_are_factored() -> None:
    assert [factored(shape, 2) for shape in LAYOUT.shapes] == [True, False, False, True]
    assert factors(LAYOUT, 2).sizes == (2 * 40, 2 * 30, 25, 12, 2 * 16, 2 * 64)
    for rank in range(1, 64):
        assert factors(LAYOUT, rank).d <= LAYOUT.d
    flat = Layout((100, 7))
    v = torch.randn(107, generator=torch.Generator().manual_seed(1))
    assert torch.equal(product(factorize(v, flat, 2), flat, 2), v), "vectors go as they are"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_tensor_of_that_rank_or_less_is_kept(rank: int, dtype: torch.dtype) -> None:
    for true in {1, rank}:
        v = of_rank(true, LAYOUT, dtype)
        found = product(factorize(v, LAYOUT, rank), LAYOUT, rank)
        assert float((found - v).norm()) <= 64 * torch.finfo(dtype).eps * float(v.norm())


def test_it_is_nearly_the_best_there_is() -> None:
    """Singular values that fall by a third each."""
    g = torch.Generator().manual_seed(5)
    layout = Layout((40 * 30,), (40,))
    U, _, V = torch.linalg.svd(torch.randn(40, 30, generator=g), full_matrices=False)
    S = 0.67 ** torch.arange(30)
    v = (U * S @ V).reshape(-1)
    for rank in (1, 2, 4):
        off = float((product(factorize(v, layout, rank), layout, rank) - v).norm())
        assert off <= 1.1 * float(S[rank:].norm())


@pytest.mark.parametrize("size", [0.0, 1e-38, 1.0, 1e38])
def test_any_size_is_factored_and_zero_stays_zero(size: float) -> None:
    v = of_rank(2, LAYOUT, torch.float32)
    v = size * (v / v.abs().max())
    numbers = factorize(v, LAYOUT, 2)
    assert torch.equal(numbers, factorize(v, LAYOUT, 2)), "nothing is kept, nothing is random"
    found = product(numbers, LAYOUT, 2)
    assert bool(torch.isfinite(found).all()) and float(found.abs().max()) <= bound(numbers, LAYOUT, 2)
    assert bool(found.any()) == (size > 0)


def test_a_product_is_multiplied_and_then_added_entry_by_entry() -> None:
    """No fused operation and no other order, which machines differ in."""
    layout, rank = Layout((9 * 7, 3), (9, 1)), 3
    numbers = torch.randn(factors(layout, rank).d, generator=torch.Generator().manual_seed(2))
    p = numbers[:27].numpy().reshape(3, 9)
    q = numbers[27:48].numpy().reshape(3, 7)
    expected = np.zeros((9, 7), dtype=np.float32)
    for i in range(9):
        for j in range(7):
            total = np.float32(p[0, i] * q[0, j])
            for c in (1, 2):
                total = np.float32(total + np.float32(p[c, i] * q[c, j]))
            expected[i, j] = total
    found = LowRank(layout, rank, numbers).dense()
    assert found[:63].numpy().tobytes() == expected.tobytes()
    assert torch.equal(found[63:], numbers[48:])
