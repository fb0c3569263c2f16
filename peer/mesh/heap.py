"""How the C library keeps this process's memory while long parcels pass through it.

A chunk is in memory of its own several times on its way through Python and gRPC, for a moment each. glibc
gives such memory back to the system at once and takes it anew for the next chunk, page by page: a tenth of
the CPU time of a daemon that sends and receives 100 MB. With more kept at hand it takes none.
"""

from __future__ import annotations

import ctypes
from functools import cache

LONG = 1 << 20  # bytes; of a parcel below it there are at most a few chunks
KEPT = 8 << 20  # bytes at the end of a heap; about what gRPC has of one connection at a time
OWN = 2 << 20  # bytes; a longer piece of memory is the system's own, and goes back to it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_chunks() -> bool:
    """Keep memory of chunks at hand from now on. False: this C library cannot be told, and goes its way."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_TRIM_THRESHOLD, KEPT) & mallopt(_M_MMAP_THRESHOLD, OWN))
