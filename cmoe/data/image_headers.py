"""What stands in a picture's file beside its pixels, and may cost more than they do.

Pillow reads all of a header before it says the picture's size: texts and profiles that inflate a
thousandfold, camera data whose entries repeat each other, a frame that enlarges its canvas. Here
the bytes alone are looked at, once and in their order.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

INFLATED = 4 * 2**20  # bytes that a PNG's compressed texts and profile may have together
CHUNKS = 1000  # that a PNG may have beside its pixels', and a JPEG may have in all
SCANS = 100  # of a JPEG: each goes over the whole picture, however few bytes it has
BLOCKS = 100_000  # before a GIF's first frame, and of a PNG in all
FRAMES_WEBP = 10_000  # chunks of a WebP, most of which are its frames

PIXELS = (b"IDAT", b"fdAT", b"fcTL")
COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")

APPLICATIONS, COMMENT = range(0xE0, 0xF0), 0xFE
COLOURS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # what an application may say of a JPEG's pixels
START, END, NO_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
BASIC = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential and progressive, Huffman and arithmetic
BITWISE = (0xC9, 0xCA)  # arithmetic
# A marker isn't within coded data, where 0 or a restart's number follows a byte 255.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


class UnusableError(ValueError):
    """A picture that may be sound, but isn't of a kind that is used."""


class Header(NamedTuple):
    """What a picture's file says of itself before its pixels.

    Attributes:
        data: The file, without what Pillow should not see.
        size: Width and height of its canvas in pixels; None where Pillow says it as cheaply.
        passes: How often decoding goes over all pixels.
        coded: What its coded data cost beside that, in pixels.
        frames: Of a WebP; one of the other formats, of which the first alone is looked at.
    """

    data: bytes
    size: tuple[int, int] | None
    passes: float
    coded: int
    frames: int = 1

    def work(self, pixels: int) -> int:
        """Pixels that decoding goes over, each as often as it does: about 10 ns a pixel."""
        return int(pixels * self.passes) + self.coded


def header_of(data: bytes) -> Header:
    """What a picture's file says of itself, of any format.

    Raises:
        UnusableError: It is of a kind that isn't used, or costs more than its pixels.
        ValueError: It is damaged.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header(data, _gif_size(data), 1, CODED * len(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM") and data[14:15] != b"\x0c" and data[30:34] in _RUN_LENGTHS:
        raise UnusableError("a BMP with run lengths isn't read")
    return Header(data, None, 1, len(data))


CODED, CODED_BITWISE = 8, 64
"""Pixels that decoding a byte costs: by Huffman codes, and bit by bit with changing odds."""

_RUN_LENGTHS = (b"\1\0\0\0", b"\2\0\0\0")


def _png(data: bytes) -> Header:
    """A PNG, with what Pillow doesn't check: the pixels' checksums, the sum of what inflates."""
    _check_chunks(data)
    if data[12:16] != b"IHDR" or len(data) < 29:
        return Header(data, None, 1, CODED * len(data))
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    samples = _SAMPLES.get(kind, 4) * max(depth, 8) / 24
    return Header(data, (width, height), 1 + samples + bool(interlaced), CODED * len(data))


_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type


def _check_chunks(data: bytes) -> None:
    view, at, count, others, left = memoryview(data), 8, 0, 0, INFLATED
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"IEND" or end + 4 > len(data):
            return  # Pillow knows whether the picture ends before its file does
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != int.from_bytes(
            view[end : end + 4]
        ):
            raise ValueError(f"the checksum of its chunk {kind.decode('latin-1')} is wrong")
        count += 1
        others += kind not in PIXELS
        if others > CHUNKS or count > BLOCKS:
            raise UnusableError(
                f"it has {others:,} chunks and {count - others:,} of pixels or more"
            )
        if kind in COMPRESSED:
            left -= _inflated(kind, data[at + 8 : end], left)
            if left < 0:
                raise UnusableError(f"its texts and profile inflate to more than {INFLATED:,}")
        at = end + 4


def _inflated(kind: bytes, chunk: bytes, most: int) -> int:
    """Bytes that a compressed chunk inflates to; counting ends behind `most`."""
    _, _, rest = chunk.partition(b"\0")
    packed = rest[1:]  # behind the method
    if kind == b"iTXt":
        packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] != b"\0" else b""
    try:
        return len(zlib.decompressobj().decompress(packed, most + 1))
    except zlib.error:
        return 2**20  # Pillow goes on without the text, after as much of it


def _bare_jpeg(data: bytes) -> Header:
    """A JPEG without what applications and cameras keep in it beside its pixels.

    Pictures behind the first one (MPO) are left out with the directory that names them.
    """
    view, kept, scans, scanned = memoryview(data), [memoryview(data)[:2]], 0, 0
    size, components, coded = None, 3, CODED
    for count, (code, start, end) in enumerate(_segments(data)):
        if count > CHUNKS:
            raise UnusableError(f"it has more than {CHUNKS:,} segments")
        if code == START:
            scans += 1
            scanned += data[start + 4]  # components
            if scans == 1:
                kept.append(view[start:])
            if scans > SCANS:
                raise UnusableError(f"it has more than {SCANS} scans")
        elif not scans:
            if code in FRAMES:
                _require_basic(code, data[start + 4])
                height, width, components = struct.unpack_from(">HHB", data, start + 5)
                size = (width, height)
                coded = CODED_BITWISE if code in BITWISE else CODED
            begin = data[start + 4 : start + 9]
            if code not in (*APPLICATIONS, COMMENT) or begin == COLOURS.get(code):
                kept.append(view[start:end])
    if not scans:
        raise ValueError("it ends before its pixels")
    passes = 1 + max(scanned, components) / max(components, 1)
    return Header(b"".join(kept), size, passes, coded * len(data))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, start and end of a JPEG's segments; what is between them is skipped.

    They go up to the picture's end, or to what isn't one behind the first pixels: the decoder knows
    whether it needs more.
    """
    at, begun = 2, False
    while (found := MARKER.search(data, at)) and (code := found[1][0]) != END:
        start, at = found.span()
        if code not in NO_LENGTH:
            length = int.from_bytes(data[at : at + 2])
            at += length
            if length < 2 or at >= len(data):
                if begun:
                    return
                raise ValueError("a segment ends behind the file, or before itself")
        begun |= code == START
        yield code, start, at


def _require_basic(code: int, bits: int) -> None:
    if code not in BASIC:
        raise UnusableError("a lossless or hierarchical JPEG isn't read")
    if bits != 8:
        raise UnusableError(f"a JPEG of {bits} bits isn't read, of 8 it is")


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a GIF's canvas with its first frame; None where it ends before.

    Pillow fills a frame of that size before it says so.

    Raises:
        UnusableError: Too much stands before the first frame.
    """
    if len(data) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    for _ in range(BLOCKS):
        block = data[at : at + 1]
        if block == b"," and at + 9 < len(data):
            left, top, wide, high = struct.unpack_from("<4H", data, at + 1)
            return max(width, left + wide), max(height, top + high)
        if block in (b"", b",", b";"):
            return width, height
        at = _behind_blocks(data, at + 2) if block == b"!" else at + 1
    raise UnusableError(f"it has more than {BLOCKS:,} blocks before its first frame")


def _behind_blocks(data: bytes, at: int) -> int:
    for _ in range(BLOCKS):
        size = data[at] if at < len(data) else 0
        at += 1 + size
        if not size:
            return at
    raise UnusableError(f"it has more than {BLOCKS:,} blocks before its first frame")


def _webp(data: bytes) -> Header:
    """A WebP, for whose canvas Pillow's decoder takes memory before it says the size.

    Raises:
        UnusableError: It has too many chunks.
    """
    at, count, frames = 12, 0, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8 + length + length % 2
        count += 1
        frames += kind == b"ANMF"
        if count > FRAMES_WEBP:
            raise UnusableError(f"it has more than {FRAMES_WEBP:,} chunks")
    return Header(data, _webp_size(data), 3, CODED_BITWISE * len(data), max(frames, 1))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP's canvas (RFC 9649, 2.5 to 2.7); None of what isn't whole."""
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return (1 + int.from_bytes(data[24:27], "little"),
                    1 + int.from_bytes(data[27:30], "little"))  # fmt: skip
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None
