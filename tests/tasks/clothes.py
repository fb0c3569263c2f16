"""Small files of Fashion-MNIST's official format, which the tests write themselves."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

TRAIN, TEST = 400, 100


def idx(path: Path, shape: tuple[int, ...], body: bytes, magic: int | None = None) -> None:
    head = [0x801 + len(shape) - 1 if magic is None else magic, *shape]
    path.write_bytes(gzip.compress(b"".join(number.to_bytes(4, "big") for number in head) + body))


def write_clothes(folder: Path) -> None:
    """Pictures of kind k have a bright bar across the middle of row 2k, and noise."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        kinds = (rng.permutation(count) % 10).astype(np.uint8)
        pictures = rng.integers(0, 128, (count, 28, 28), dtype=np.uint8)
        pictures[np.arange(count), 2 * kinds + 4, 6:22] = 255
        idx(folder / f"{prefix}-images-idx3-ubyte.gz", (count, 28, 28), pictures.tobytes())
        idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (count,), kinds.tobytes())
