"""PNGs by hand, from their specification alone: what a decoder makes of them is known."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, kind: int = RGB, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))


def png(
    rows: Sequence[bytes],
    width: int,
    *before: bytes,
    depth: int = 8,
    kind: int = RGB,
    behind: Sequence[bytes] = (),
) -> bytes:
    """A PNG of unfiltered rows.

    Args:
        rows: Their samples, packed as `depth` says.
        width: In pixels.
        before: Chunks before the pixels.
        depth: Bits of a sample.
        kind: Colour type.
        behind: Chunks behind the pixels.
    """
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [header(width, len(rows), depth, kind), *before, chunk(b"IDAT", pixels), *behind]
    return SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")
