"""How small messages are, and what it takes to make them, as tables. Part of `make bench`; needs no data but
what comes with peerd.

Speed: a top 1 % of a whole model, fp16, from the vector to the bytes of a message and from these to the body
again, in CPU seconds of one thread, beside a copy of the model in memory (`Tensor.copy_` into memory
that is there) and the same coder behind `torch.topk`. Layouts are those of a two-layer character model, of
ResNet-18 and of ResNet-50 (He et al. 2016).

Indices: bits for each against log2 C(n, k) / k, summed over tensors; random sets, and what local training of
real tasks leaves on top. Values: bits for each parameter of quantized changes as a link carries them, random
ones and those of real tasks, with and without its memory, against the entropy of the symbols' frequencies.

Compressions: what each makes of one change v of a real model, a message's head included, and what is lost of
it, |v - q| / |v|. The change is that of the last STEPS of STEPS x EXCHANGES local steps on spoken digits,
part 0/6 of the data, seed 0.

`--only PART` measures that part again and leaves the others in the file as they are.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: CPU seconds of one thread

import numpy as np
import torch
from kept import keep, read
from rich.console import Console
from rich.table import Table

from peer.catalogue import parse_compression
from peer.compression import sparsify
from peer.compression.bodies import Layout
from peer.compression.chunks import in_chunks
from peer.compression.codec import Message, decode, encode
from peer.compression.compressor import compressor
from peer.compression.golomb import BitMeter
from peer.compression.history import History, recalling
from peer.compression.indices import write_indices
from peer.compression.quantize import coded_bytes
from peer.events import Key
from peer.learner.flat import FlatModel
from peer.learner.task import Settings, load_task, seeded_model

RUNS, LONG_S = 31, 1.0
SHARES = (0.1, 0.01, 0.001)
STEPS, EXCHANGES = 16, 24  # local steps between two exchanges; exchanges of one link
WALK = 8  # of random changes, which are all alike
SPOKEN = "spoken-digits"
WORDS = (
    *("none", "fp16", "bf16", "int8", "int4", "sign", "topk=1%,fp16", "globaltopk=1%,fp16"),
    *("globaltopk=1%,int8", "randomk=1%,fp16", "grouped=8,fp16", "lowrank=2", "lowrank=2,fp16", "bits=1"),
)
Row = dict[str, Any]
Real = list[tuple[str, Layout, list[torch.Tensor], torch.Tensor]]


# --- layouts of well-known models -----------------------------------------------------------------------


def _conv(out: int, into: int, kernel: int) -> list[tuple[int, int]]:
    """(size, rows) of a convolution and of the batch norm behind it."""
    return [(out * into * kernel * kernel, out), (out, 1), (out, 1)]


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> Layout:
    """Of ImageNet; buffers left out."""
    tensors, into = _conv(64, 3, 7), 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        out = width * (4 if bottleneck else 1)
        for block in range(count):
            if bottleneck:
                tensors += _conv(width, into, 1) + _conv(width, width, 3) + _conv(out, width, 1)
            else:
                tensors += _conv(width, into, 3) + _conv(width, width, 3)
            if block == 0 and (stage or bottleneck):
                tensors += _conv(out, into, 1)
            into = out
    tensors += [(1000 * into, 1000), (1000, 1)]
    return Layout(tuple(size for size, _ in tensors), tuple(rows for _, rows in tensors))


LAYOUTS = {
    "1M": Layout((256 * 128, 1152 * 128, 1152 * 384, 1152, 256 * 1508, 256), (256, 1152, 1152, 1, 256, 1)),
    "11M (ResNet-18)": resnet((2, 2, 2, 2), bottleneck=False),
    "25M (ResNet-50)": resnet((3, 4, 6, 3), bottleneck=True),
}  # fmt: skip


# --- speed ------------------------------------------------------------------------------------------------


def cpu_ms(action: Callable[[], object]) -> float:
    """Median of RUNS or more, for so long as makes a moment's disturbance none of the median, after one that
    warms up."""
    action()
    seen: list[float] = []
    while len(seen) < RUNS or sum(seen) < LONG_S:
        began = time.process_time()
        action()
        seen.append(time.process_time() - began)
    return 1000 * statistics.median(seen)


def sorted_top_k(v: torch.Tensor, layout: Layout, fraction: float) -> torch.Tensor:
    """What `sparsify.top_k` finds, by torch.topk tensor by tensor."""
    parts = []
    for start, stop in layout.spans:
        k = min(max(1, round(fraction * (stop - start))), stop - start)
        parts.append(v[start:stop].abs().topk(k).indices.sort().values + start)
    return torch.cat(parts)


def speed() -> list[Row]:
    rows = []
    for name, layout in LAYOUTS.items():
        generator = torch.Generator().manual_seed(1)
        v = torch.randn(layout.d, generator=generator) * torch.rand(layout.d, generator=generator) ** 2
        target = torch.empty_like(v)
        make = compressor(parse_compression("topk=1%,fp16"), layout)

        def sent(make: Any = make, v: torch.Tensor = v, layout: Layout = layout) -> bytes:
            return encode(Message(Key(1, 1), 16, make(v), 0.5), layout)

        data = sent()
        ours = cpu_ms(sent)
        read, body = cpu_ms(lambda data=data, layout=layout: decode(data, layout)), decode(data, layout).body
        exact, sparsify_top_k = sorted_top_k(v, layout, 0.01), sparsify.top_k(v, layout, 0.01)
        assert torch.equal(v[exact].abs().sort().values, v[sparsify_top_k].abs().sort().values)
        chosen = cpu_ms(lambda v=v, layout=layout: sparsify.top_k(v, layout, 0.01))
        by_torch = cpu_ms(lambda v=v, layout=layout: sorted_top_k(v, layout, 0.01))
        copy = cpu_ms(lambda v=v, target=target: target.copy_(v))
        rows.append(
            {
                "model": name,
                "parameters": layout.d,
                "copy_ms": copy,
                "top_k_ms": chosen,
                "torch_topk_ms": by_torch,
                "encode_ms": ours,
                "decode_ms": read,
                "dense_ms": cpu_ms(body.dense),
                "copies": (ours + read) / copy,
                "faster_than_torch": (ours - chosen + by_torch + read) / (ours + read),
                "bytes": len(data),
            }
        )
    return rows


# --- real changes -----------------------------------------------------------------------------------------


def real_tasks() -> Iterator[tuple[str, Layout, list[torch.Tensor], torch.Tensor]]:
    """Name, layout, the model after each of EXCHANGES times STEPS local steps, and the initial one."""
    text = Path(__file__).parent.parent / "ARCHITECTURE.md"
    for name, settings in (
        (SPOKEN, Settings()),
        ("characters", Settings(data=str(text), options={"task.model": "transformer"})),
    ):
        task = load_task(name, settings)
        module = seeded_model(task, 0)
        flat, optimizer = FlatModel(module), task.optimizer(module.parameters())
        initial, models = flat.read(), []
        batches = task.batches("0/6", torch.device("cpu"))
        for _ in range(EXCHANGES):
            for _ in range(STEPS):
                optimizer.zero_grad()
                task.loss(module, next(batches)).backward()
                optimizer.step()
            models.append(flat.read())
        yield name, Layout(flat.sizes, flat.rows), models, initial


def log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def index_row(what: str, layout: Layout, share: float, v: torch.Tensor) -> Row:
    found = sparsify.top_k(v, layout, share).numpy()
    cuts = np.searchsorted(found, layout.bounds)
    bound = sum(
        log2_choose(stop - start, int(last - first))
        for (start, stop), first, last in zip(layout.spans, cuts[:-1], cuts[1:], strict=True)
    )
    meter = BitMeter()
    write_indices(meter, found, layout)
    return {
        "set": what,
        "parameters": layout.d,
        "share": share,
        "bound": bound / len(found),
        "bits": 8 * len(meter) / len(found),
        "over": 8 * len(meter) / bound - 1,
    }


def indices(real: Real) -> list[Row]:
    layout = LAYOUTS["11M (ResNet-18)"]
    random = torch.randn(layout.d, generator=torch.Generator().manual_seed(2))
    rows = [index_row("random, ResNet-18", layout, share, random) for share in SHARES]
    for name, its, models, initial in real:
        rows += [
            index_row(f"{name}, first exchange", its, share, models[0] - initial) for share in SHARES[:2]
        ]
        rows += [
            index_row(f"{name}, last exchange", its, share, models[-1] - models[-2]) for share in SHARES[:2]
        ]
    return rows


def entropy_bits(symbols: np.ndarray[Any, np.dtype[np.int16]]) -> float:
    """Of the frequencies, for all symbols together."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def random_walk() -> tuple[str, Layout, list[torch.Tensor], torch.Tensor]:
    """A model whose changes are random, and as large everywhere: nothing to learn from."""
    layout, generator = LAYOUTS["1M"], torch.Generator().manual_seed(3)
    models = [torch.zeros(layout.d)]
    for _ in range(WALK):
        models.append(models[-1] + torch.randn(layout.d, generator=generator))
    return "random, 1M", layout, models[1:], models[0]


def values(real: Real) -> list[Row]:
    rows = []
    for name, layout, models, initial in (random_walk(), *real):
        for budget in (0.25, 0.5, 1.0, 2.0):
            h, history = initial.clone(), History.fresh(layout)
            zero_order = with_memory = without = 0.0
            for number, model in enumerate(models):
                body = recalling(layout, model - h, budget, history)
                symbols = body.symbols.numpy()
                if number:  # the first has nothing to remember
                    zero_order += entropy_bits(symbols)
                    with_memory += 8 * history.coded_bytes(in_chunks(symbols))
                    without += 8 * coded_bytes(in_chunks(symbols), layout)
                h, history = h + body.dense(), history.after(body)
            each = (len(models) - 1) * layout.d
            rows.append(
                {
                    "task": name,
                    "parameters": layout.d,
                    "budget": budget,
                    "entropy": zero_order / each,
                    "with_memory": with_memory / each,
                    "without": without / each,
                    "over": with_memory / zero_order - 1,
                    "over_without": without / zero_order - 1,
                }
            )
    return rows


def compressions(real: Real) -> list[Row]:
    _, layout, models, _ = next(one for one in real if one[0] == SPOKEN)
    v, rows = models[-1] - models[-2], []
    for words in WORDS:
        body = compressor(parse_compression(words), layout)(v, 1)
        data = encode(Message(Key(1, 1), STEPS, body, 0.5), layout)
        lost = v - decode(data, layout).body.dense()
        bits = 8 * len(data) / layout.d
        rows.append(
            {
                "compression": words,
                "parameters": layout.d,
                "bits": bits,
                "lost": float(lost.norm() / v.norm()),
            }
        )
    return rows


# --- tables -----------------------------------------------------------------------------------------------


def show(result: dict[str, list[Row]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    heads = ("model", "copy ms", "encode ms", "of it top-k", "decode ms", "copies", "with torch.topk")
    table = Table(*heads, "to dense ms", title="top 1 %, fp16: a message and back")
    for row in result["speed"]:
        table.add_row(
            row["model"], f"{row['copy_ms']:.2f}", f"{row['encode_ms']:.2f}", f"{row['top_k_ms']:.2f}",
            f"{row['decode_ms']:.2f}", f"{row['copies']:.1f}", f"{row['faster_than_torch']:.1f}x as long",
            f"{row['dense_ms']:.2f}",
        )  # fmt: skip
    console.print(table)
    table = Table("set", "parameters", "share", "bound", "bits", "over", title="bits for each index")
    for row in result["indices"]:
        table.add_row(
            row["set"], str(row["parameters"]), f"{row['share']:.1%}", f"{row['bound']:.2f}",
            f"{row['bits']:.2f}", f"{row['over']:+.1%}",
        )  # fmt: skip
    console.print(table)
    table = Table(
        "task", "budget", "entropy", "with memory", "", "without", "", title="bits for each parameter"
    )
    for row in result["values"]:
        table.add_row(
            row["task"], f"{row['budget']:g}", f"{row['entropy']:.3f}", f"{row['with_memory']:.3f}",
            f"{row['over']:+.1%}", f"{row['without']:.3f}", f"{row['over_without']:+.1%}",
        )  # fmt: skip
    console.print(table)
    table = Table("compression", "bits for each parameter", "lost", title="a change of spoken-digits")
    for row in result["compressions"]:
        table.add_row(row["compression"], f"{row['bits']:.3g}", f"{row['lost']:.2g}")
    console.print(table)


PARTS: dict[str, Callable[[Real], list[Row]]] = {
    "speed": lambda real: speed(),
    "indices": indices,
    "values": values,
    "compressions": compressions,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this alone; needs --json")
    asked = parser.parse_args()
    if asked.only and not asked.json:
        parser.error("--only needs --json: the file that has the other parts")
    torch.set_num_threads(1)
    real = list(real_tasks())
    result = read(asked.json) if asked.only else {}
    result |= {part: PARTS[part](real) for part in asked.only or PARTS}
    show(result)
    if asked.json:
        keep(asked.json, result, asked.only or ())


if __name__ == "__main__":
    main()
