"""A damaged picture is refused, and nothing in a file costs more than the picture that it shows."""

from __future__ import annotations

import os
import struct
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile
from support.picture_files import (
    EXIF,
    SIGNATURE,
    chunk,
    framed,
    gif,
    header,
    png,
    saved,
    segment,
)

from cmoe.common.errors import DataError
from cmoe.data import image_headers
from cmoe.data.image_limits import FORMATS, ImageLimits
from cmoe.data.images import (
    ImageError,
    ImageTooLargeError,
    image_size,
    load_image,
    open_image,
    to_rgb,
)

LIMITS = ImageLimits()


# Damage


def damaged() -> Iterator[tuple[str, bytes]]:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    for kind in FORMATS:
        data = saved(image, kind)
        yield f"{kind} cut at half", data[: len(data) // 2]
        yield f"{kind} cut early", data[:40]
        yield f"{kind} without its last part", data[: -len(data) // 10]
    gradual = saved(image, "JPEG", progressive=True)
    yield "progressive JPEG cut at half", gradual[: len(gradual) // 2]
    data = bytearray(saved(image, "PNG"))
    data[data.index(b"IDAT") + 200] ^= 1
    yield "a bit of a PNG's pixels", bytes(data)
    for kind, content in (
        (b"gAMA", b"\1"), (b"pHYs", b"\1"), (b"cHRM", b"\1"), (b"tRNS", b"\1"), (b"sRGB", b""),
        (b"acTL", b"\1"), (b"fcTL", b"\1"), (b"fcTL", b"\xff" * 26), (b"fdAT", b"\0"),
        (b"iCCP", b"a\0"), (b"iCCP", b"a\0\1xx"), (b"zTXt", b"a\0\1xx"),
    ):  # fmt: skip
        name = f"a PNG's chunk {kind.decode()} of {len(content)} bytes"
        yield name, png([bytes(6)], 2, chunk(kind, content))
    yield "a PNG's header of 5 bytes", SIGNATURE + chunk(b"IHDR", bytes(5))
    yield "a PNG of no pixels", SIGNATURE + header(2, 2) + chunk(b"IEND", b"")
    yield "a PNG of no width", png([b""], 0)
    yield "a PNG of a colour type that isn't one", png([bytes(6)], 2, kind=5)
    yield "a PNG whose pixels inflate to nothing", SIGNATURE + header(2, 2) + chunk(b"IDAT", b"x")
    yield "a JPEG of no width", framed(0xC0, 8).replace(b"\0\x08\0\x08", b"\0\0\0\0", 1)
    yield "a JPEG with 2 components", framed(0xC0, 8).replace(b"\0\x08\0\x08\1", b"\0\x08\0\x08\2")
    yield "a JPEG's segment of no length", b"\xff\xd8\xff\xe0\0\0" + bytes(40)
    yield "a GIF of no frame", saved(Image.new("P", (4, 4)), "GIF")[:13] + b";"
    yield "a BMP of a header that isn't one", b"BM" + bytes(12) + b"\x29\0\0\0" + bytes(60)
    yield "nothing that is a picture", b"hello there"
    yield "empty", b""


DAMAGED = dict(damaged())


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_picture_is_refused(what: str, recwarn: pytest.WarningsRecorder) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError, match=r"^picture a\.png (can't be decoded|has 0 x )"):
        to_rgb(open_image(DAMAGED[what], LIMITS, "picture a.png"), "picture a.png")
    assert not list(recwarn)


@pytest.mark.parametrize(
    "error",
    [
        ValueError, SyntaxError, struct.error, zlib.error, RecursionError, KeyError,
        AssertionError, NotImplementedError, UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        Image.DecompressionBombError, OSError, ImportError, RuntimeError, OverflowError,
    ],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_an_error_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    data = saved(Image.new("RGB", (4, 4)), "PNG")
    image = open_image(data, LIMITS)
    monkeypatch.setattr(image, "load", fail)
    with pytest.raises(ImageError, match=r"picture a\.png can't be decoded: it is damaged: \S"):
        to_rgb(image, "picture a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=r"picture a\.png "):
        open_image(data, LIMITS, "picture a.png")
    assert issubclass(ImageError, DataError)


def test_warnings_of_pillow_reach_nobody_while_threads_decode() -> None:
    """A PNG that Pillow warns of, in threads that overlap; afterwards all filters are back."""
    warned = png([bytes(6)], 2, chunk(b"acTL", bytes(8)))
    shown = png([bytes(6)], 2)
    barrier, before = threading.Barrier(4), list(warnings.filters)

    def decode(data: bytes) -> None:
        barrier.wait()
        for _ in range(50):
            to_rgb(open_image(data, LIMITS))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=decode, args=[d]) for d in (warned, shown) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not caught
    assert list(warnings.filters) == before


# Limits


@pytest.mark.parametrize(
    ("size", "limits", "cause"),
    [
        ((4, 5), {"pixels": 19}, "has 4 x 5 pixels; at most 19"),
        ((1, 5), {"side": 2}, "has 1 x 5 pixels; each side needs 2"),
        ((4, 5), {"file_bytes": 50}, "has a file larger than 50 bytes"),
        ((1, 65_536), {}, "has 1 x 65536 pixels; each side at most 65,535"),
    ],
)
def test_a_limit_is_checked_before_a_pixel_is_decoded(
    size: tuple[int, int], limits: dict[str, int], cause: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(saved(Image.new("RGB", size), "PNG"))
    for call in (image_size, load_image):
        with pytest.raises(ImageError, match=rf"^picture {file} {cause}"):
            call(file, ImageLimits(**limits))
    if size == (4, 5):
        assert image_size(file, LIMITS) == size
        with pytest.raises(ImageTooLargeError):
            image_size(file, ImageLimits(**limits))


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header says another size."""
    if kind == "PNG":
        return SIGNATURE + header(width, height) + chunk(b"IDAT", zlib.compress(bytes(20)))
    if kind in ("GIF", "GIF canvas"):
        return gif((1, 1), (width, height)) if kind == "GIF" else gif((width, height), (1, 1))
    data = bytearray(saved(Image.new("RGB", (4, 4)), kind, lossless=True))
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":
        at = data.index(b"VP8L") + 9
        data[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", [*FORMATS, "GIF canvas"])
@pytest.mark.parametrize("limit", [1_000_000, 10**9])
def test_a_huge_claim_costs_nothing(kind: str, limit: int) -> None:
    """Whatever the limit is: Pillow's own is 179 million pixels."""
    tracemalloc.start()
    try:
        before = _resident()
        with pytest.raises(ImageError, match=r"16000 x 15000 pixels|many more pixels"):
            open_image(claiming(kind, 16_000, 15_000), ImageLimits(pixels=min(limit, 178_956_970)))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        assert _resident() - before < 20 * 2**20
    finally:
        tracemalloc.stop()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MEGABYTE = zlib.compress(bytes(2**20), 9)
BOMBS: dict[str, Callable[[], bytes]] = {
    "texts": lambda: png([bytes(6)], 2, *[chunk(b"zTXt", b"a\0\0" + MEGABYTE)] * 500),
    "texts without a name": lambda: png([bytes(6)], 2, *[chunk(b"zTXt", b"\0\0" + MEGABYTE)] * 500),
    "texts of other languages": lambda: png(
        [bytes(6)], 2, *[chunk(b"iTXt", b"a\0\1\0\0\0" + MEGABYTE)] * 500
    ),
    "profiles": lambda: png([bytes(6)], 2, *[chunk(b"iCCP", b"a\0\0" + MEGABYTE)] * 500),
    "texts that break off": lambda: png(
        [bytes(6)], 2, *[chunk(b"zTXt", b"a\0\0" + MEGABYTE[:-8] + b"\xff" * 8)] * 500
    ),
    "texts behind the pixels": lambda: png(
        [bytes(6)], 2, behind=[chunk(b"zTXt", b"a\0\0" + MEGABYTE)] * 500
    ),
    "chunks": lambda: png([bytes(6)], 2, *[chunk(b"abCd", b"")] * 20_000),
    "chunks of pixels": lambda: png([bytes(6)], 2, *[chunk(b"IDAT", b"")] * 20_000),
    "segments": lambda: _jpeg(*[segment(0xE3, b"")] * 20_000),
    "tables": lambda: _jpeg(*[segment(0xDB, b"\0" + b"\1" * 64)] * 20_000),
    "scans": lambda: _scans(5_000),
    "a GIF's comments": lambda: gif((9, 9), (9, 9)).replace(
        b"!\xf9", b"!\xfe" + b"\2ab" * 20_000 + b"\0!\xf9"
    ),
}


def _jpeg(*segments: bytes) -> bytes:
    data = saved(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, a few bytes for all pixels, comes again and again."""
    data = saved(Image.new("RGB", (640, 640)), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


@pytest.mark.parametrize("what", BOMBS)
def test_what_costs_more_than_its_pixels_is_refused(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(image_headers, "BLOCKS", 10_000)
    data = BOMBS[what]()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="the picture can't be used: it"):
            to_rgb(open_image(data, LIMITS))
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + 20 * 2**20
    finally:
        tracemalloc.stop()


def test_camera_data_that_points_to_itself_costs_nothing() -> None:
    """2,500 entries that each stand for the same 60 kB: 150 MB, which older Pillows copy."""
    entries = b"".join(struct.pack("<HHII", n, 7, 60_000, 0) for n in range(2500))
    exif = EXIF + struct.pack("<H", 2500) + entries + bytes(4)
    data = _jpeg(segment(0xE1, b"Exif\0\0" + exif.ljust(65_500, b"\0")))
    tracemalloc.start()
    try:
        assert to_rgb(open_image(data, LIMITS)).size == (8, 8)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
