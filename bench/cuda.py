"""The largest entries of a vector, and messages of them, on a CUDA device and on the CPU, as tables; and
whether both choose the same entries and make the same bytes. `make bench` leaves it out; on a machine with
such a device: `PYTHONPATH=.:bench python -P bench/cuda.py`.

Choosing: the top 1 % of a whole vector, from the vector to its indices on the CPU, against torch.topk, which
is given |v| and its indices are sorted; on CUDA the copy of the indices is part of it. Every vector has ties
at the edge of what is chosen, which go to the lower index; torch.topk breaks them as it likes.

Messages: from a vector on CUDA to the bytes of a message on the CPU, where the compressor is given the vector
as it lies, and where it is copied to the CPU first, as training does.

Milliseconds by the clock, the median of RUNS; one CPU thread. Layouts are those of coding.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from coding import LAYOUTS
from rich.console import Console
from rich.table import Table
from torch import Tensor

from peer.catalogue import parse_compression
from peer.compression.bodies import Layout
from peer.compression.codec import Message, encode
from peer.compression.compressor import compressor
from peer.compression.sparsify import global_top_k, share_of
from peer.events import Key

SHARE, RUNS = 0.01, 21
SAME = ("globaltopk=1%,fp16", "topk=1%", "topk=1%,int8", "randomk=1%", "grouped=8,int8", "none", "bf16")
TIMED = ("globaltopk=1%,fp16", "globaltopk=1%,int8", "topk=1%,fp16", "topk=1%,int8")
Row = dict[str, Any]


def torch_top_k(v: Tensor) -> Tensor:
    return v.abs().topk(share_of(v.numel(), SHARE), sorted=False).indices.sort().values.cpu()


def ours(v: Tensor) -> Tensor:
    return global_top_k(v, SHARE)


def message(v: Tensor, words: str, layout: Layout) -> bytes:
    return encode(Message(Key(1, 7), 16, compressor(parse_compression(words), layout)(v, 7)), layout)


def clock_ms(action: Callable[[], object]) -> float:
    """Median of RUNS, after one that warms up."""
    action()
    seen = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seen.append(time.perf_counter() - began)
    return 1000 * statistics.median(seen)


def vector(n: int) -> Tensor:
    """Normal; every tenth entry rounded to two decimals: thousands of equal ones at the edge."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(1))
    v[::10] = v[::10].round(decimals=2)
    k = share_of(n, SHARE)
    edge = v.abs().topk(k).values[-1]
    v[5::1000] = edge
    return v


def choosing() -> list[Row]:
    rows = []
    for name, layout in LAYOUTS.items():
        v = vector(layout.d)
        row: Row = {"model": name, "parameters": layout.d}
        for where, there in (("cpu", v), ("cuda", v.cuda())):
            mine, theirs = (clock_ms(lambda: choose(there)) for choose in (ours, torch_top_k))  # noqa: B023
            row |= {f"{where}_ms": mine, f"{where}_topk_ms": theirs, f"{where}_ratio": theirs / mine}
        rows.append(row | {"same": torch.equal(ours(v), ours(v.cuda()))})
    return rows


def messages() -> list[Row]:
    rows = []
    for name, layout in LAYOUTS.items():
        v = vector(layout.d).cuda()
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
                    "copy_ms": clock_ms(v.cpu),
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
    heads = ("model", "CPU ms", "torch.topk ms", "ratio", "CUDA ms", "torch.topk ms", "ratio", "the same")
    table = Table(*heads, title="the top 1 % of all")
    for row in result["choosing"]:
        times = (
            (f"{row[f'{where}_ms']:.2f}", f"{row[f'{where}_topk_ms']:.2f}", f"{row[f'{where}_ratio']:.2f}")
            for where in ("cpu", "cuda")
        )
        table.add_row(row["model"], *(cell for cells in times for cell in cells), str(row["same"]))
    console.print(table)
    heads = ("model", "tensors", "compression", "on CUDA ms", "copied ms", "of it copy", "ratio", "bytes")
    table = Table(*heads, title="a message of a vector on CUDA")
    for row in result["messages"]:
        table.add_row(
            row["model"], str(row["tensors"]), row["compression"],
            *(f"{row[f'{what}_ms']:.2f}" for what in ("cuda", "copied", "copy")), f"{row['ratio']:.2f}",
            str(row["bytes"]),
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
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["differing"] or not all(row["same"] for row in result["choosing"]) else 0


if __name__ == "__main__":
    sys.exit(main())
