"""Whatever a file holds: a picture within limits, or an error of the project's own.

`CMOE_FUZZ=20000` tries that many files instead of a few hundred.
"""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.picture_files import GREY, PALETTE, SIGNATURE, chunk, header, png

from cmoe.data.image_limits import FORMATS, ImageLimits, Resizing
from cmoe.data.images import ImageError, open_image, to_rgb

pytestmark = pytest.mark.filterwarnings("error")
FUZZ = int(os.environ.get("CMOE_FUZZ", "500"))
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
LIMITS = ImageLimits(
    file_bytes=2**20, pixels=2**20, processed=2**22, resizing=Resizing(squared=True)
)


@cache
def samples() -> tuple[bytes, ...]:
    """What every plugin of Pillow that saves makes of every mode, and what none of them makes."""
    Image.init()
    colours = Image.effect_noise((21, 17), 80).convert("RGB").resize((42, 34))
    clear = colours.copy()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    found: list[bytes] = []

    def add(image: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of formats that Pillow will give up
                image.save(file, kind, **options)
        except Exception:  # not every format holds every mode, or is built in
            return
        found.append(file.getvalue())

    for kind in sorted({*Image.SAVE, *Image.SAVE_ALL}):
        for mode in MODES if kind in FORMATS else ("L", "RGB", "RGBA"):
            source = clear if mode in ("LA", "PA", "RGBA") else colours
            try:
                image = source.convert(mode)
            except ValueError:
                image = Image.new(mode, source.size, 99)
            add(image, kind)
    frames = [clear.rotate(90), clear.rotate(180)]
    for kind in ("PNG", "WEBP", "GIF"):
        add(clear, kind, save_all=True, append_images=frames, lossless=True)
    add(colours, "MPO", save_all=True, append_images=[colours.rotate(90)])
    add(colours, "WEBP", lossless=True)
    add(
        colours, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(90), comment=b"a"
    )
    add(colours, "JPEG", icc_profile=bytes(900), quality=30, subsampling=2)
    add(colours.convert("P"), "GIF", transparency=3, comment=b"a")
    add(colours.convert("P"), "PNG", transparency=bytes(range(99)), icc_profile=bytes(900))
    return (*found, *_by_hand())


def _by_hand() -> list[bytes]:
    """Headers that Pillow reads and doesn't write."""
    interlaced = zlib.compress(b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28")
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9000)))
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 56, 2, 2, 1, 32, 3, 16, 0, 0, 0, 0) + masks
    core = struct.pack("<IHHHH", 12, 1, 1, 1, 24)
    return [
        SIGNATURE + header(2, 2, kind=GREY, interlaced=1) + chunk(b"IDAT", interlaced),
        png([bytes(2)] * 2, 1, chunk(b"tRNS", b"\0\1"), text, depth=16, kind=GREY),
        png([b"\x1b"] * 3, 4, chunk(b"tRNS", b"\0\1"), depth=2, kind=GREY, behind=[text]),
        png([b"\x1b"], 4, chunk(b"PLTE", bytes(12)), chunk(b"tRNS", b"\1"), depth=2, kind=PALETTE),
        b"BM" + struct.pack("<IHHI", 86, 0, 0, 70) + info + bytes(16),
        b"BM" + struct.pack("<IHHI", 30, 0, 0, 26) + core + bytes(4),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + b"!\xfe\1a\0!\xff\x0b"
        b"NETSCAPE2.0\3\1\0\0\0!\xf9\4\x09\0\0\0\0,\0\0\0\0\1\0\1\0\x40\2\2\x4c\1\0;",
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x12" + bytes(9),
    ]  # fmt: skip


NUMBERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\0\1\0\0", b"\x80"]
Change = tuple[str, float, float, int]


def changed(data: bytes, changes: list[Change], mended: bool) -> bytes:
    """A file with bits flipped, parts cut, doubled, left out or overwritten.

    Args:
        data: The file.
        changes: What to do, where (two parts of the file), and a number of any meaning.
        mended: Whether a PNG's checksums are made right again, so that its chunks are read.
    """
    for what, first, second, number in changes:
        if not data:
            return data
        start, end = sorted((int(first * len(data)), int(second * len(data))))
        if what == "flip":
            at = bytearray(data)
            at[start] ^= 1 << number % 8
            data = bytes(at)
        elif what == "cut":
            data = data[:end]
        elif what == "leave out":
            data = data[:start] + data[min(end, start + 1 + number) :]
        elif what == "double":
            part = data[start : start + 1 + number]
            data = data[:start] + part * (1 + number % 20) + data[start:]
        else:
            data = data[:start] + NUMBERS[number % len(NUMBERS)] + data[start + 4 :]
    return _mended(data) if mended and data.startswith(SIGNATURE) else data


def _mended(data: bytes) -> bytes:
    parts, at = [SIGNATURE], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts) + data[at:]


def require_right_or_refused(data: bytes) -> bool:
    """Whether it was right; anything but an `ImageError` goes up."""
    try:
        image = to_rgb(open_image(data, LIMITS))
    except ImageError:
        return False
    assert image.mode == "RGB"
    assert max(image.size) ** 2 <= LIMITS.processed
    assert len(image.tobytes()) == 3 * image.width * image.height
    return True


@cache
def readable() -> tuple[bytes, ...]:
    return tuple(data for data in samples() if require_right_or_refused(data))


part = st.floats(0, 1, exclude_max=True)
number = st.integers(0, 255)
change = st.tuples(
    st.sampled_from(["flip", "flip", "flip", "cut", "leave out", "double", "overwrite"]),
    st.one_of(part, st.floats(0, 0.1)),
    part,
    number,
)


def test_samples_are_of_every_format() -> None:
    """Of those that are read in several modes, and of many that are refused."""
    kinds = [open_image(data, LIMITS).format for data in readable()]
    assert {*kinds} == {*FORMATS}
    assert all(kinds.count(kind) > 4 for kind in FORMATS)
    assert len({data[:2] for data in {*samples()} - {*readable()}}) > 12


@settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.lists(change, min_size=1, max_size=6), st.booleans())
def test_a_changed_file_is_a_picture_or_an_error(
    data: st.DataObject, changes: list[Change], mended: bool
) -> None:
    """Most of the files are of formats that are read."""
    group = data.draw(st.sampled_from([readable(), readable(), readable(), samples()]))
    require_right_or_refused(changed(data.draw(st.sampled_from(group)), changes, mended))


def test_memory_does_not_grow_with_the_files_that_were_tried() -> None:
    rng = random.Random(0)

    def tried(count: int) -> int:
        for _ in range(count):
            changes = [
                (rng.choice(["flip", "cut", "double", "overwrite"]), rng.random(), rng.random(), n)
                for n in rng.choices(range(256), k=3)
            ]
            require_right_or_refused(changed(rng.choice(readable()), changes, rng.random() < 0.5))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    warm = tried(FUZZ)
    assert tried(2 * FUZZ) - warm < 30 * 2**20
