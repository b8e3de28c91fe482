"""Picture files by hand, from their specifications: what a decoder makes of them is known."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF = b"II*\0\x08\0\0\0"  # a header of TIFF, before its entries
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


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(code: int, data: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(data) + 2) + data


def framed(code: int, bits: int) -> bytes:
    """A JPEG whose frame is said to be of another kind."""
    data = saved(Image.new("L", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 1] + bytes([code]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :]


def gif(canvas: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF of one frame, which is disposed to the background."""
    control = b"!\xf9\4\x09\0\0\0\0"
    screen = (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    )
    return screen + control + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\2\x4c\1\0;"
