"""The largest entries of a vector, and messages of them, on a CUDA device and on the CPU, as tables; and
whether both choose the same entries and make the same bytes. `make bench` leaves it out; on a machine with
such a device: `PYTHONPATH=.:bench python -P bench/on_gpu.py`.

Choosing: the top 1 % of a whole vector, from the vector to its indices and the values there, both on the CPU,
against torch.topk, which is given |v| and its indices are sorted. Of ties at the edge of what is chosen the
lower index is taken, which costs something; torch.topk takes any. Vectors have thousands of them or none.

Messages: from a vector on CUDA to the bytes of a message on the CPU, where the compressor is given the vector
as it lies, and where it is copied to the CPU first, as training does: into new memory. What a copy into
memory that is there would take stands beside it.

Milliseconds by the clock, the median of RUNS after WARM_S of the same; one CPU thread. Layouts are those of
coding.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from coding import LAYOUTS
from kept import keep
from rich.console import Console
from rich.table import Table
from torch import Tensor

from peer.catalogue import parse_compression
from peer.compression.bodies import Layout
from peer.compression.codec import Message, encode
from peer.compression.compressor import compressor
from peer.compression.sparsify import global_top_entries, share_of
from peer.events import Key

SHARE, RUNS, WARM_S = 0.01, 15, 0.2
SAME = ("globaltopk=1%,fp16", "topk=1%", "topk=1%,int8", "randomk=1%", "grouped=8,int8", "none", "bf16")
TIMED = ("globaltopk=1%,fp16", "globaltopk=1%,int8", "topk=1%,fp16", "topk=1%,int8")
Row = dict[str, Any]


def ours(v: Tensor) -> tuple[Tensor, Tensor]:
    return global_top_entries(v, SHARE)


def torch_top_k(v: Tensor) -> tuple[Tensor, Tensor]:
    found = v.abs().topk(share_of(v.numel(), SHARE), sorted=False).indices.sort().values
    return found.cpu(), v[found].cpu()


def message(v: Tensor, words: str, layout: Layout) -> bytes:
    return encode(Message(Key(1, 7), 16, compressor(parse_compression(words), layout)(v, 7)), layout)


def clock_ms(action: Callable[[], object]) -> float:
    """Median of RUNS, once a GPU has had the time to raise its clock."""
    warm = time.perf_counter() + WARM_S
    while time.perf_counter() < warm:
        action()
    seen = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seen.append(time.perf_counter() - began)
    return 1000 * statistics.median(seen)


def vector(n: int, ties: bool = True) -> Tensor:
    """Normal; with ties every tenth entry is rounded to two decimals: thousands of equal ones at the edge."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(1))
    if ties:
        v[::10] = v[::10].round(decimals=2)
        v[5::1000] = v.abs().topk(share_of(n, SHARE)).values[-1]
    return v


def choosing() -> list[Row]:
    rows = []
    for name, layout in LAYOUTS.items():
        for ties in (False, True):
            v = vector(layout.d, ties)
            row: Row = {"model": name, "parameters": layout.d, "ties": ties}
            for where, there in (("cpu", v), ("cuda", v.cuda())):
                mine, theirs = (clock_ms(lambda: choose(there)) for choose in (ours, torch_top_k))  # noqa: B023
                row |= {f"{where}_ms": mine, f"{where}_topk_ms": theirs, f"{where}_ratio": theirs / mine}
            same = all(torch.equal(*pair) for pair in zip(ours(v), ours(v.cuda()), strict=True))
            rows.append(row | {"same": same})
    return rows


def messages() -> list[Row]:
    rows = []
    for name, layout in LAYOUTS.items():
        v, there = vector(layout.d).cuda(), torch.empty(layout.d)
        copy, copy_again = clock_ms(v.cpu), clock_ms(lambda: there.copy_(v))  # noqa: B023
        for words in TIMED:
            on_cuda = clock_ms(lambda: message(v, words, layout))  # noqa: B023
            copied = clock_ms(lambda: message(v.cpu(), words, layout))  # noqa: B023
            rows.append(
                {
                    "model": name,
                    "parameters": layout.d,
                    "tensors": len(layout.sizes),
                    "compression": words,
                    "cuda_ms": on_cuda,
                    "copied_ms": copied,
                    "copy_ms": copy,
                    "copy_again_ms": copy_again,
                    "ratio": copied / on_cuda,
                    "bytes": len(message(v, words, layout)),
                }
            )
    return rows


def differing() -> list[str]:
    """Models and compressions of which CPU and CUDA make other bytes."""
    found = []
    for name, layout in LAYOUTS.items():
        v = vector(layout.d)
        words = (words for words in SAME if message(v, words, layout) != message(v.cuda(), words, layout))
        found += [f"{name}, {one}" for one in words]
    return found


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(f"{result['device']}, torch {result['torch']}")
    heads = ("model", "ties", "CPU ms", "torch.topk ms", "ratio", "CUDA ms", "torch.topk ms", "ratio")
    table = Table(*heads, "the same", title="the top 1 % of all")
    for row in result["choosing"]:
        times = (
            (f"{row[f'{where}_ms']:.2f}", f"{row[f'{where}_topk_ms']:.2f}", f"{row[f'{where}_ratio']:.2f}")
            for where in ("cpu", "cuda")
        )
        ties, same = ("yes" if row[what] else "no" for what in ("ties", "same"))
        table.add_row(row["model"], ties, *(cell for cells in times for cell in cells), same)
    console.print(table)
    heads = ("model", "tensors", "compression", "on CUDA ms", "copied ms", "of it copy", "copy again")
    table = Table(*heads, "ratio", title="a message of a vector on CUDA")
    for row in result["messages"]:
        table.add_row(
            row["model"], str(row["tensors"]), row["compression"],
            *(f"{row[f'{what}_ms']:.2f}" for what in ("cuda", "copied", "copy", "copy_again")),
            f"{row['ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"other bytes on CUDA: {'; '.join(result['differing']) or 'none'}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    torch.set_num_threads(1)
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "choosing": choosing(),
        "messages": messages(),
        "compared": list(SAME),
        "differing": differing(),
    }
    show(result)
    if asked.json:
        keep(asked.json, result)
    return 1 if result["differing"] or not all(row["same"] for row in result["choosing"]) else 0


if __name__ == "__main__":
    sys.exit(main())
