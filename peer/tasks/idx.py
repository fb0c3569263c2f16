"""Files in the format of MNIST: idx, gzipped.

    0x00000801, number of items, one byte each                  labels
    0x00000803, number of items, rows, columns, one byte each    pictures

All numbers are four bytes, the most significant first (Y. LeCun's MNIST page).
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peer.errors import DataError

MAX_BYTES = 1 << 28  # of what a header may announce; the largest one is 47 MB


def read_idx(path: Path, shape: tuple[int, ...], where_from: str) -> NDArray[np.uint8]:
    """Its bytes as [items, *shape]; where_from says where one gets such a file. Raises DataError that names
    the file and what was expected."""
    magic = 0x801 + len(shape)
    try:
        with gzip.open(path) as file:
            head = file.read(8 + 4 * len(shape))
            found = [int.from_bytes(head[at : at + 4], "big") for at in range(0, len(head), 4)]
            if len(head) < 8 + 4 * len(shape) or found[0] != magic or tuple(found[2:]) != shape:
                sizes = "".join(f" x {size}" for size in shape)
                raise DataError(
                    f"{path} is no idx file of bytes in the shape items{sizes}: expected the header "
                    f"{magic:#010x}, items{''.join(f', {size}' for size in shape)}, found "
                    f"{', '.join([f'{found[0]:#010x}', *map(str, found[1:])]) if found else 'nothing'}; "
                    f"get it anew {where_from}"
                )
            size = found[1] * prod(shape)
            body = file.read(min(size, MAX_BYTES) + 1)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; get it {where_from}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is cut short or garbled ({error}): expected an idx file packed by gzip; get it anew "
            f"{where_from}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; look at --data") from error
    if not found[1] or len(body) != size:
        raise DataError(
            f"{path} announces {found[1]} items, {size} bytes, and holds "
            f"{'more' if len(body) > size else len(body)}; get it anew {where_from}"
        )
    return np.frombuffer(body, np.uint8).reshape(-1, *shape)
