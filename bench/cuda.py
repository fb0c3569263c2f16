"""The sampled threshold against torch.topk, on the CPU and on a CUDA device, as a table; and whether both
choose the same entries and make the same bytes. `PYTHONPATH=. python3 bench/cuda.py`; needs torch and numpy.

The top 1 % of a whole vector, in seconds from the vector to its indices on the CPU, median of five; on CUDA
the copy of the indices is part of it. torch.topk is given |v| and its indices are sorted. Every vector has
ties at the edge of what is chosen, which go to the lower index; torch.topk breaks them as it likes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from peer.compression.bodies import Layout
from peer.compression.codec import Message, encode
from peer.compression.compressor import compressor
from peer.compression.sparsify import global_top_k, share_of
from peer.events import Key
from peer.grammar import parse_compression

SIZES = {"1M": 1_000_000, "11M": 11_000_000, "25M": 25_000_000}
SHARE, REPEATS = 0.01, 5
SPECS = ["globaltopk=1%,fp16", "topk=1%", "topk=1%,int8", "randomk=1%", "grouped=8,int8", "none", "bf16"]


def torch_top_k(v: Tensor) -> Tensor:
    return v.abs().topk(share_of(v.numel(), SHARE), sorted=False).indices.sort().values.cpu()


def seconds(v: Tensor, choose: Callable[[Tensor], Tensor]) -> float:
    choose(v)
    times = []
    for _ in range(REPEATS):
        if v.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        choose(v)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def vector(n: int) -> Tensor:
    """Normal; every tenth entry rounded to two decimals: thousands of equal ones at the edge."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(1))
    v[::10] = v[::10].round(decimals=2)
    k = share_of(n, SHARE)
    edge = v.abs().topk(k).values[-1]
    v[5::1000] = edge
    return v


def differing(v: Tensor) -> list[str]:
    """What is not the same for this vector on the CPU and on CUDA."""
    layout, there = Layout((v.numel() // 2, v.numel() - v.numel() // 2)), v.cuda()
    found = []
    if not torch.equal(global_top_k(v, SHARE), global_top_k(there, SHARE)):
        found.append("indices of the largest")
    for text in SPECS:
        pack = compressor(parse_compression(text), layout)
        here, far = (encode(Message(Key(1, 7), 16, pack(one, 7)), layout) for one in (v, there))
        if here != far:
            found.append(text)
    return found


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    head = ("entries", "CPU ours", "topk", "ratio", "CUDA ours", "topk", "ratio", "CPU/CUDA", "the same")
    print("".join(f"{word:>11}" for word in head))
    wrong = False
    for name, n in SIZES.items():
        v = vector(n)
        there = v.cuda()
        ours, theirs = (seconds(v, choose) for choose in (lambda v: global_top_k(v, SHARE), torch_top_k))
        far, far_theirs = (
            seconds(there, choose) for choose in (lambda v: global_top_k(v, SHARE), torch_top_k)
        )
        found = differing(v)
        wrong = wrong or bool(found)
        times = f"{ours:11.5f}{theirs:11.5f}{theirs / ours:11.1f}{far:11.5f}{far_theirs:11.5f}"
        print(f"{name:>11}{times}{far_theirs / far:11.1f}{ours / far:11.1f}{', '.join(found) or 'all':>11}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
