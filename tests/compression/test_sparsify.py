"""Which entries travel, and the types values travel in."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.specs import SPECS
from peer.catalogue import parse_compression
from peer.compression.bodies import Layout
from peer.compression.compressor import compressor
from peer.compression.sparsify import PIECE, global_top_k, group_of, largest_on_device, top_k
from peer.errors import DivergedError

LAYOUT = Layout((100, 7, 1, 892), (10, 1, 1, 4))


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


@pytest.mark.parametrize("text", ["topk=1%", "globaltopk=1%,int8", "topk=50%,fp16"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 1, 70, 71, PIECE - 1, PIECE, 2 * PIECE + 1, 299_999, 300_000, 300_006])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_is_seen_wherever_it_is(dtype, at, wrong, text):
    """In what a sample looks at, between, at the edges of pieces, and in a small tensor."""
    layout = Layout((300_000, 7))
    v = gaussian(dtype, layout.d)
    compressor(parse_compression(text), layout, dtype)(v)
    v[at] = wrong
    with pytest.raises(DivergedError, match="nan" if wrong != wrong else "inf"):
        compressor(parse_compression(text), layout, dtype)(v)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_vector_of_which_hardly_anything_is_finite_is_refused(wrong):
    v = torch.full((100_000,), wrong)
    v[::2] = 1.0
    with pytest.raises(DivergedError):
        top_k(v, Layout((100_000,)), 0.01)


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
    assert global_top_k(v, fraction).tolist() == sorted(order[:k])
    assert largest_on_device(v, k).tolist() == sorted(order[:k])


@given(
    st.lists(
        st.sampled_from([0.0, -1.0, 1.0, 2.0, -0.5])
        | st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
    ),
    st.data(),
)
def test_torch_and_numpy_choose_the_same(values, data):
    """On a device with its own memory it is torch that chooses."""
    v, k = torch.tensor(values), data.draw(st.integers(1, len(values)))
    order = sorted(range(len(v)), key=lambda i: (-abs(values[i]), i))
    assert largest_on_device(v, k).tolist() == sorted(order[:k])
    assert global_top_k(v, k / len(v)).tolist() == sorted(order[:k])


def test_global_top_k_looks_at_all_tensors_together():
    v = gaussian() * torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    assert global_top_k(v, 0.01).tolist() == sorted(v.abs().topk(10).indices.tolist())
    assert int(global_top_k(v, 0.01)[0]) >= 107


@pytest.mark.parametrize("groups", [2, 3, 8, 64])
def test_every_group_has_its_turn_whatever_the_cycle_of_the_links(groups):
    for first in (0, 5 * groups):
        assert {group_of(turn, groups) for turn in range(first, first + groups)} == set(range(groups))
    for cycle in (1, 2, 3, 4, 8, 16, groups, groups**2):
        of_one_link = {group_of(turn * cycle + 1, groups) for turn in range(12 * groups)}
        assert len(of_one_link) == groups


@pytest.mark.parametrize("text", ["randomk=5%", "grouped=8,int8"])
def test_all_entries_get_their_turn(text):
    sent = torch.zeros(LAYOUT.d, dtype=torch.bool)
    pack = compressor(parse_compression(text), LAYOUT)
    for turn in range(200):
        body = pack(torch.ones(LAYOUT.d), turn)
        assert body == pack(torch.ones(LAYOUT.d), turn), "the turn says all"
        sent |= body.dense() != 0
    assert bool(sent.all())


@pytest.mark.parametrize("text", ["none", "fp16", "bf16", "int8", "int4"])
def test_every_second_entry_and_the_others_are_the_whole(text):
    pack = compressor(parse_compression(text), LAYOUT)
    v = gaussian()
    halves = [pack.every(v, start, 2).dense() for start in (0, 1)]
    assert not halves[0][1::2].any() and not halves[1][0::2].any()
    whole = pack(v).dense()
    assert float((halves[0] + halves[1] - v).norm()) <= 1.1 * float((whole - v).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", SPECS)
def test_value_plus_residual_is_the_input(text, dtype):
    v = gaussian(dtype)
    body = compressor(parse_compression(text), LAYOUT, dtype)(v)
    value = body.dense()
    residual = v - value
    assert value.dtype == dtype and bool(value.any())
    torch.testing.assert_close(value + residual, v, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert float(residual.norm()) < float(v.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_compressed_is_exact(dtype):
    v = gaussian(dtype)
    assert torch.equal(compressor(parse_compression("none"), LAYOUT, dtype)(v).dense(), v)
    kept = compressor(parse_compression("topk=10%"), LAYOUT, dtype)(v).dense()
    assert torch.equal(kept[kept != 0], v[kept != 0])


def shaped(values, dtype):
    """A vector, and a layout with a matrix in it if there is enough of it."""
    n, rows = len(values), 4 if len(values) >= 16 else 1
    cut = n - n % rows if n > rows else n
    layout = Layout((cut, n - cut), (rows, 1)) if n > cut else Layout((n,), (rows,))
    return torch.tensor(values, dtype=dtype), layout


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    st.sampled_from(SPECS),
    st.integers(0, 2**31),
)
@example([3.4019929e38], "fp16", 0)  # rounds up to 2^128
@example([-torch.finfo(torch.float32).max, 1.0], "topk=1%,fp16", 0)
@example([torch.finfo(torch.float32).max] * 64, "lowrank=2,sign", 0)
@example([torch.finfo(torch.float32).max] * 64, "int4", 0)
@settings(max_examples=max(400, settings.default.max_examples))
def test_any_finite_input_gives_finite_values(values, text, turn):
    v, layout = shaped(values, torch.float32)
    body = compressor(parse_compression(text), layout)(v, turn)
    assert bool(torch.isfinite(body.dense()).all())
    assert bool(torch.isfinite(v - body.dense()).all())


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    st.sampled_from(SPECS),
)
@example([torch.finfo(torch.float64).max] * 64, "lowrank=2")
@example([5e-324, -1.0, 1e300], "int8")
@settings(max_examples=max(400, settings.default.max_examples))
def test_any_finite_input_gives_finite_values_in_float64_too(values, text):
    v, layout = shaped(values, torch.float64)
    body = compressor(parse_compression(text), layout, torch.float64)(v)
    assert bool(torch.isfinite(body.dense()).all())
    assert bool(torch.isfinite(v - body.dense()).all())


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e6, 1e30])
@pytest.mark.parametrize(("text", "bits"), [("fp16", 11), ("topk=50%,fp16", 11), ("bf16", 8)])
def test_floating_point_keeps_its_bits_whatever_the_size_of_all(text, bits, size):
    """A share of little mass is small as a whole."""
    v = gaussian() * size
    kept = compressor(parse_compression(text), LAYOUT)(v).dense()
    chosen = kept != 0
    assert int(chosen.sum()) >= LAYOUT.d // 2
    assert bool(((kept - v).abs() <= v.abs() * 2.0**-bits)[chosen].all())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e36])
@pytest.mark.parametrize(("text", "levels"), [("int8", 127), ("int4", 7)])
def test_levels_are_within_half_a_step_of_each_block(text, levels, size):
    """Blocks are 64 values inside a tensor; a step is up to 1/128 more than the largest value asks for."""
    v = gaussian() * torch.logspace(-2, 2, LAYOUT.d) * size
    error = (compressor(parse_compression(text), LAYOUT)(v).dense() - v).abs()
    for start, stop in LAYOUT.spans:
        for whole, wrong in zip(v[start:stop].split(64), error[start:stop].split(64), strict=True):
            assert float(wrong.max()) <= float(whole.abs().max()) / levels * 0.5 * (1 + 2**-7 + 1e-5)


def test_signs_come_with_the_mean_of_each_tensor():
    v = gaussian() * torch.cat([torch.full((n,), 10.0**i) for i, n in enumerate(LAYOUT.sizes)])
    found = compressor(parse_compression("sign"), LAYOUT)(v).dense()
    assert torch.equal(found < 0, v < 0)
    for whole, sent in zip(v.split(LAYOUT.sizes), found.split(LAYOUT.sizes), strict=True):
        assert len(set(sent.abs().tolist())) == 1
        assert float(sent[0].abs()) == pytest.approx(float(whole.abs().mean()), rel=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", ["int8", "int4", "sign", "topk=50%,int4"])
def test_a_block_of_zeros_and_one_of_subnormals_become_zeros_and_spoil_no_other(text, dtype):
    layout = Layout((64, 64, 64))
    limits = torch.finfo(dtype)
    v = torch.cat(
        [torch.zeros(64), torch.full((64,), limits.smallest_normal, dtype=dtype) / 4, torch.ones(64)]
    )
    found = compressor(parse_compression(text), layout, dtype)(v.to(dtype)).dense()
    assert not found[:128].any()
    assert float(found[128:].abs().max()) == pytest.approx(1.0, rel=2**-7)


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
