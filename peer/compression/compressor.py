"""From a compression spec ("topk=1%,fp16") to the function that turns a vector into a message body."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from peer.catalogue import Compression
from peer.compression.bodies import Body, Dense, Layout, Sparse, peak_of
from peer.compression.quantize import quantize
from peer.compression.sparsify import to_half, to_int8, top_k
from peer.errors import DivergedError

Compressor = Callable[[Tensor], Body]


def compressor(spec: Compression, layout: Layout, dtype: torch.dtype = torch.float32) -> Compressor:
    """The compressor of `spec` for flat vectors of `layout.d` entries of the session's `dtype`.

    "fp32" keeps values as they are: float64 in a float64 session. Nothing is random and nothing is kept
    between calls; a body shares no memory with its input. Calls raise DivergedError unless v is finite.
    """
    bits, fraction = spec.bits, spec.top_k
    if bits is not None:
        return lambda v: quantize(_finite(v, layout, dtype), bits, layout)
    if fraction is not None:
        return lambda v: _sparse(_finite(v, layout, dtype), layout, fraction, spec.values)
    return lambda v: _dense(_finite(v, layout, dtype), layout, spec.values)


def _finite(v: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    assert v.dtype == dtype and v.shape == (layout.d,), f"{v.shape} of {v.dtype}, not {layout.d} of {dtype}"
    v = v.detach().cpu()
    peak = peak_of(v)
    if not math.isfinite(peak):
        raise DivergedError.found(peak)
    return v


def _dense(v: Tensor, layout: Layout, values: str | None) -> Dense:
    if values == "int8":
        levels, scales = to_int8(v, layout.sizes)
        return Dense(levels, v.dtype, scales, layout)
    if values == "fp16":
        halves, scale = to_half(v)
        return Dense(halves, v.dtype, scale)
    return Dense(v.clone(), v.dtype)


def _sparse(v: Tensor, layout: Layout, fraction: float, values: str | None) -> Sparse:
    indices = top_k(v, layout, fraction)
    kept = v[indices]
    if values == "int8":
        cuts = torch.searchsorted(indices, torch.tensor(layout.bounds))
        levels, scales = to_int8(kept, cuts.diff().tolist())
        return Sparse(layout.d, indices, levels, v.dtype, scales, layout)
    if values == "fp16":
        halves, scale = to_half(kept)
        return Sparse(layout.d, indices, halves, v.dtype, scale)
    return Sparse(layout.d, indices, kept, v.dtype)
