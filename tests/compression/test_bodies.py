"""Bodies read back as tensors."""

import pytest
import torch

from peer.compression.bodies import Dense, Empty, Half, Layout, Quantized, Sparse

LAYOUT = Layout((2, 3))
LEVELS = torch.tensor([1, -2, 3, 0, 127], dtype=torch.int8)
SYMBOLS = torch.tensor([0, 1, -2, 3, -32767], dtype=torch.int32)
AT = torch.tensor([1, 4])


def test_a_layout_knows_where_its_tensors_start():
    assert LAYOUT.d == 5
    assert LAYOUT.bounds == (0, 2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_body_reads_back_in_the_dtype_of_its_session(dtype):
    scales = torch.tensor([0.5, 2.0], dtype=dtype)
    bodies = [
        (Empty(5, dtype), [0, 0, 0, 0, 0]),
        (Dense(torch.arange(5, dtype=torch.float16), dtype), [0, 1, 2, 3, 4]),
        (Dense(LEVELS, dtype, scales, LAYOUT), [0.5, -1, 6, 0, 254]),
        (Dense(LEVELS, dtype, scales[:1]), [0.5, -1, 1.5, 0, 63.5]),
        (Sparse(5, AT, torch.tensor([7, -8], dtype=dtype), dtype), [0, 7, 0, 0, -8]),
        (Sparse(5, AT, LEVELS[:2], dtype, scales, LAYOUT), [0, 0.5, 0, 0, -4]),
        (Sparse(5, AT, LEVELS[:2], dtype, scales[:1]), [0, 0.5, 0, 0, -1]),
        (Half(5, 0, torch.tensor([7, -8, 9], dtype=dtype), dtype), [7, 0, -8, 0, 9]),
        (Half(5, 1, torch.tensor([7, -8], dtype=dtype), dtype), [0, 7, 0, -8, 0]),
        (Half(5, 1, LEVELS[:2], dtype, scales, LAYOUT), [0, 0.5, 0, -4, 0]),
        (Quantized(SYMBOLS, 0.25, dtype), [0, 0.25, -0.5, 0.75, -8191.75]),
    ]
    for body, expected in bodies:
        assert body.dense().dtype == dtype
        assert body.dense().tolist() == expected
        assert body.size == 5


def test_float64_values_stay_float64():
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.equal(Dense(third).dense(), third)
    assert torch.equal(Sparse(3, torch.arange(3), third).dense(), third)


def test_bodies_are_equal_by_value_and_dtype():
    ones = torch.ones(3)
    assert Dense(ones) == Dense(ones.clone())
    assert Dense(ones) != Dense(2 * ones)
    assert Dense(ones) != Dense(ones.half())
    assert Dense(ones) != Empty(3)
    assert Quantized(SYMBOLS, 0.5) != Quantized(SYMBOLS, 0.25)
