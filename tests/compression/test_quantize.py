"""The dead-zone quantizer and its budget."""

import numpy as np
import pytest
import torch

from peer.compression.bodies import Layout, Quantized
from peer.compression.chunks import in_chunks
from peer.compression.packing import write_body
from peer.compression.quantize import ROUNDING, coded_bytes, quantize

SIZES = (144, 16, 4608, 32, 36_864, 64, 4096, 64, 1920, 10)
LAYOUT = Layout(SIZES)  # 47,818 parameters


def drawn(kind, seed=0, d=LAYOUT.d, dtype=np.float32):
    generator = np.random.default_rng(seed)
    draw = {"gaussian": generator.standard_normal, "laplace": lambda n: generator.laplace(size=n)}[kind]
    return torch.from_numpy((1e-3 * draw(d)).astype(dtype))


@pytest.mark.parametrize("blocks", [None, LAYOUT], ids=["whole", "by tensor"])
@pytest.mark.parametrize("bits", [0.25, 0.5, 1, 2, 4])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_the_coded_size_is_the_budget_less_2_percent_at_most(kind, bits, blocks):
    body = quantize(drawn(kind), bits, blocks)
    size = len(b"".join(write_body(body)))
    assert 0.98 * bits <= 8 * size / LAYOUT.d <= bits


@pytest.mark.parametrize("bits", [0.5, 1, 2])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_the_code_is_within_4_percent_of_the_entropy_of_its_symbols(kind, bits):
    body = quantize(drawn(kind), bits)
    counts = np.unique(body.symbols.numpy(), return_counts=True)[1]
    share = counts / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    assert 8 * len(b"".join(write_body(body))) / LAYOUT.d <= 1.04 * entropy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symbols_are_the_dead_zone_quantizers(dtype):
    v = drawn("laplace", dtype=dtype)
    body = quantize(v, 1)
    magnitudes = np.floor(np.abs(v.numpy()) / dtype(body.step) + dtype(ROUNDING))
    assert np.array_equal(body.symbols.numpy(), np.sign(v.numpy()) * magnitudes)


def test_the_meter_counts_what_the_codec_writes():
    for bits in (0.1, 1, 3, 8):
        body = quantize(drawn("laplace", d=5000), bits)
        assert len(b"".join(write_body(body))) == coded_bytes(in_chunks(body.symbols.numpy()), None)


@pytest.mark.parametrize("off", [0.9, 0.97, 1.05, 1.1])  # as from one parcel to the next
@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_near_a_guess_the_step_is_found_in_four_tries(kind, bits, off):
    """Each of which codes the whole message."""
    v, tries = drawn(kind), []

    def size_of(symbols):
        tries.append(coded_bytes(symbols, None))
        return tries[-1]

    body = quantize(v, bits, None, size_of, off * quantize(v, bits).step)
    assert len(tries) <= 4
    assert 0.995 * bits <= 8 * len(b"".join(write_body(body))) / LAYOUT.d <= bits


def test_more_bits_leave_less_error():
    v = drawn("gaussian")
    errors = [float((v - quantize(v, bits).dense()).norm()) for bits in (0.25, 0.5, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_zero_gives_zero_symbols():
    body = quantize(torch.zeros(100), 1)
    assert not body.symbols.any()
    assert not body.dense().any()


def test_tensors_of_different_density_take_less_coded_each_on_its_own():
    v = torch.cat([10.0**-i * part for i, part in enumerate(drawn("laplace").split(SIZES))])
    alone, together = quantize(v, 1, LAYOUT), quantize(v, 1)
    assert alone.step < together.step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["tiny", "smallest", "max", "outlier"])
def test_the_ends_of_the_number_range_are_kept_finite_and_within_budget(scale, dtype):
    limits = torch.finfo(dtype)
    v = drawn("gaussian", d=2000).to(dtype)
    v = v / v.abs().max()
    if scale == "outlier":
        v[7] = limits.max
    else:
        v = (
            v
            * {"tiny": limits.tiny, "smallest": limits.smallest_normal * limits.eps, "max": limits.max}[scale]
        )
    body = quantize(v, 1)
    assert bool(torch.isfinite(body.dense()).all())
    assert 8 * len(b"".join(write_body(body))) <= 2000


@pytest.mark.parametrize("d", [1, 2, 10, 100])
def test_a_tiny_model_gets_through_within_32_bytes(d):
    v = drawn("gaussian", d=d)
    body = quantize(v, 1)
    assert isinstance(body, Quantized)
    assert len(b"".join(write_body(body))) <= 32
    assert float((v - body.dense()).norm()) < 0.75 * float(v.norm())
