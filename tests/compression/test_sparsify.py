"""Top-k and the types values travel in."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from peer.catalogue import parse_compression
from peer.compression.bodies import Layout
from peer.compression.compressor import compressor
from peer.compression.sparsify import top_k
from peer.errors import DivergedError

LAYOUT = Layout((100, 7, 1, 892))
SPECS = ["none", "fp16", "int8", "topk=10%", "topk=1%,fp16", "topk=5%,int8", "bits=1", "bits=4"]
numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


def gaussian(dtype=torch.float32, d=LAYOUT.d):
    return torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_top_k_takes_the_largest_of_each_tensor_and_at_least_one():
    v = gaussian()
    indices = top_k(v, LAYOUT, 0.05)
    counts = [
        int(((indices >= a) & (indices < a + n)).sum())
        for a, n in zip((0, 100, 107, 108), LAYOUT.sizes, strict=True)
    ]
    assert counts == [5, 1, 1, 45]
    assert indices[:5].tolist() == sorted(v[:100].abs().topk(5).indices.tolist())
    assert bool((indices.diff() > 0).all())


def test_ties_go_to_the_lower_index():
    v = torch.tensor([1.0, -2, 2, -2, 2, 0])
    assert top_k(v, Layout((6,)), 0.5).tolist() == [1, 2, 3]
    assert top_k(torch.zeros(6), Layout((6,)), 0.5).tolist() == [0, 1, 2]


def misleading(n: int) -> Tensor:
    """Large exactly where no sample looks, and nowhere else."""
    v = torch.full((n,), 1e-3)
    v[1 :: n // 4096] = 1.0
    return v


@pytest.mark.parametrize("fraction", [0.3, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(
    "v",
    [
        torch.randn(100_000, generator=torch.Generator().manual_seed(3)),
        torch.randn(40_000, generator=torch.Generator().manual_seed(4)).round(decimals=1),  # ties
        torch.randn(50_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 9,
        torch.linspace(-1, 2, 33_000),
        misleading(100_000),
        misleading(100_000).flip(0),
        torch.zeros(40_000),
        torch.cat([torch.zeros(60_000), torch.ones(3)]),
    ],
    ids=["normal", "ties", "steep", "ramp", "misleading", "flipped", "zero", "few"],
)
def test_the_threshold_guessed_from_a_sample_never_changes_what_is_chosen(v: Tensor, fraction: float) -> None:
    k = max(1, round(fraction * len(v)))
    magnitudes = v.abs().tolist()
    order = sorted(range(len(v)), key=lambda i: (-magnitudes[i], i))
    assert top_k(v, Layout((len(v),)), fraction).tolist() == sorted(order[:k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", SPECS)
def test_value_plus_residual_is_the_input(text, dtype):
    v = gaussian(dtype)
    body = compressor(parse_compression(text), LAYOUT, dtype)(v)
    value = body.dense()
    residual = v - value
    assert value.dtype == dtype
    torch.testing.assert_close(value + residual, v, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert float(residual.norm()) < float(v.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_compressed_is_exact(dtype):
    v = gaussian(dtype)
    assert torch.equal(compressor(parse_compression("none"), LAYOUT, dtype)(v).dense(), v)
    kept = compressor(parse_compression("topk=10%"), LAYOUT, dtype)(v).dense()
    assert torch.equal(kept[kept != 0], v[kept != 0])


@given(numbers, st.sampled_from(SPECS))
@example([3.4019929e38], "fp16")  # rounds up to 2^128
@example([-torch.finfo(torch.float32).max, 1.0], "topk=50%,fp16")
def test_any_finite_input_gives_finite_values(values, text):
    v = torch.tensor(values)
    body = compressor(parse_compression(text), Layout((len(values),)))(v)
    assert bool(torch.isfinite(body.dense()).all())
    assert bool(torch.isfinite(v - body.dense()).all())


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("text", ["fp16", "topk=50%,fp16"])
def test_float16_keeps_eleven_bits_whatever_the_size_of_all(text, size):
    """A share of little mass is small as a whole."""
    v = gaussian() * size
    kept = compressor(parse_compression(text), LAYOUT)(v).dense()
    chosen = kept != 0
    assert int(chosen.sum()) >= LAYOUT.d // 2
    assert bool(((kept - v).abs() <= v.abs() * 2.0**-11)[chosen].all())


def test_int8_is_within_half_a_level_of_each_tensors_largest_value():
    v = gaussian() * torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    error = (compressor(parse_compression("int8"), LAYOUT)(v).dense() - v).abs()
    for whole, wrong in zip(v.split(LAYOUT.sizes), error.split(LAYOUT.sizes), strict=True):
        assert float(wrong.max()) <= float(whole.abs().max()) / 127 * 0.501


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_model_is_not_compressed(text, bad):
    v = gaussian()
    v[500] = bad
    with pytest.raises(DivergedError, match="lower --lr"):
        compressor(parse_compression(text), LAYOUT)(v)


@pytest.mark.parametrize("text", SPECS)
def test_a_body_shares_no_memory_with_its_input(text):
    v = gaussian()
    body = compressor(parse_compression(text), LAYOUT)(v)
    before = body.dense().clone()
    v.zero_()
    assert torch.equal(body.dense(), before)
