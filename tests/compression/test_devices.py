"""A vector gives the same bytes on whatever device it lies, ties and all; bodies lie on the CPU."""

import pytest
import torch

from compression.devices import DEVICES, EVERYWHERE
from compression.specs import SPECS
from peer.catalogue import parse_compression
from peer.compression.bodies import Empty, Layout
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.history import History, recalling
from peer.compression.low_rank import factorize
from peer.compression.sparsify import global_top_k, largest_on_device, top_k
from peer.errors import DivergedError
from peer.events import Key

LAYOUT = Layout((64 * 64, 33, 3 * 5, 40_000), (64, 1, 3, 40))


def vector(dtype):
    """With ties, zeros of both signs and numbers below the least normal one."""
    v = torch.randn(LAYOUT.d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    v[100:4000] = v[100:4000].round(decimals=1)
    v[5000:9000] = 0.0
    v[7000:8000] *= -1
    v[9000:9100] = torch.finfo(dtype).tiny / 4
    return v


@pytest.mark.parametrize("text", [*SPECS, "topk=30%", "globaltopk=0.05%", "topk=1%,int8", "bits=0.3"])
@pytest.mark.parametrize(("device", "dtype"), EVERYWHERE)
def test_the_bytes_of_a_vector_are_the_same_on_every_device(device, dtype, text):
    v = vector(dtype)
    pack = compressor(parse_compression(text), LAYOUT, dtype)
    body = pack(v.to(device).requires_grad_(), 7)
    data = encode(Message(Key(1, 7), 16, body), LAYOUT)
    assert data == encode(Message(Key(1, 7), 16, pack(v.clone(), 7)), LAYOUT)
    read = decode(data, LAYOUT, dtype).body
    assert read == body
    assert body.dense().device.type == "cpu"
    assert torch.equal(read.dense(), body.dense())


@pytest.mark.parametrize(("device", "dtype"), EVERYWHERE)
def test_halves_and_symbols_with_memory_are_the_same_on_every_device(device, dtype):
    v = vector(dtype)
    halves = compressor(parse_compression("int8"), LAYOUT, dtype)
    assert halves.every(v.to(device), 1, 2) == halves.every(v, 1, 2)
    history = History.fresh(LAYOUT).after(recalling(LAYOUT, v.to(device), 1.0, None))
    changed = (v * 1.01).to(device)
    here, there = recalling(LAYOUT, changed, 1.0, history), recalling(LAYOUT, changed.cpu(), 1.0, history)
    assert history.recall(here) == history.recall(there)
    assert not isinstance(here, Empty)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.2, 0.3, 1.0])
@pytest.mark.parametrize(("device", "dtype"), EVERYWHERE)
def test_the_largest_are_the_same_on_every_device(device, dtype, share):
    v = vector(dtype)
    there, k = v.to(device), max(1, round(share * LAYOUT.d))
    assert torch.equal(global_top_k(there, share), global_top_k(v, share))
    assert torch.equal(top_k(there, LAYOUT, share), top_k(v, LAYOUT, share))
    assert torch.equal(largest_on_device(there, k).cpu(), global_top_k(v, share))


@pytest.mark.parametrize("device", DEVICES)
def test_factors_are_found_on_the_cpu_and_what_is_not_finite_is_noticed_everywhere(device):
    v = vector(torch.float32)
    assert torch.equal(factorize(v.to(device), LAYOUT, 2), factorize(v, LAYOUT, 2))
    v[-1] = float("inf")
    with pytest.raises(DivergedError):
        compressor(parse_compression("topk=1%"), LAYOUT)(v.to(device))
