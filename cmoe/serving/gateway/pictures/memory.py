"""Memory of a gateway: what a large picture took goes back to the system once it is done with."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
BYTES, ARENAS = 2**20, 2


def return_large_blocks() -> None:
    """Let glibc map large blocks each by itself, and give what is free at a heap's end back.

    By itself it raises the size from which it maps up to that of the largest block freed so far,
    and keeps a heap for each thread: a gateway would keep hundreds of MB of large pictures.
    """
    with suppress(OSError, AttributeError):  # another C library has another allocator
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (
            (_MMAP_THRESHOLD, BYTES),
            (_TRIM_THRESHOLD, BYTES),
            (_ARENA_MAX, ARENAS),
        ):
            mallopt(parameter, value)
