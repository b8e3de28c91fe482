"""Every picture is right in every mode of every format, or refused by name."""

from __future__ import annotations

import errno
import io
import os
import socket
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.picture_files import (
    EXIF,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB_ALPHA,
    SIGNATURE,
    chunk,
    framed,
    header,
    png,
    saved,
    segment,
)

from cmoe.data.image_limits import FORMATS, ImageLimits
from cmoe.data.images import (
    ImageError,
    ImageTooLargeError,
    load_image,
    open_image,
    read_image,
    to_rgb,
)

LIMITS = ImageLimits()


def pixels(data: bytes, limits: ImageLimits = LIMITS) -> list[list[int]]:
    """The first row, a colour a pixel."""
    image = to_rgb(open_image(data, limits))
    assert image.mode == "RGB"
    found: list[list[int]] = np.asarray(image)[0].tolist()
    return found


def same(one: Image.Image, other: Image.Image) -> bool:
    assert one.mode == other.mode == "RGB"
    return np.array_equal(np.asarray(one), np.asarray(other))


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Colours that change smoothly, and noise: what cameras see."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    noise = random.integers(-8, 9, (64, 80, 3))
    smooth = np.asarray(coarse.resize((80, 64), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


# Every mode


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_an_opaque_picture_of_8_bits_is_as_pillow_converts_it(
    photo: Image.Image, kind: str, mode: str
) -> None:
    data = saved(photo.convert("L" if (kind, mode) == ("JPEG", "P") else mode), kind)
    assert same(to_rgb(open_image(data, LIMITS)), Image.open(io.BytesIO(data)).convert("RGB"))


def test_16_bits_of_grey_are_scaled_to_8() -> None:
    """PNG specification, 13.12: floor(input * 255 / 65535 + 0.5)."""
    values = [0, 127, 128, 129, 255, 256, 257, 12_345, 32_767, 32_768, 65_279, 65_280, 65_535]
    data = png([struct.pack(f">{len(values)}H", *values)], len(values), depth=16, kind=GREY)
    assert pixels(data) == grey(*(int(value * 255 / 65_535 + 0.5) for value in values))
    assert pixels(data)[9] == [128] * 3


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_16_bits_are_the_same_in_every_mode_that_holds_them(mode: str) -> None:
    order = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    values = np.array([0, 255, 256, 32_768, 65_535], order)
    image = Image.frombytes(mode, (5, 1), values.tobytes())
    assert np.asarray(to_rgb(image))[0].tolist() == grey(0, 1, 1, 128, 255)


@pytest.mark.parametrize("value", [-1, 65_536])
def test_greys_of_more_than_16_bits_are_refused(value: int) -> None:
    with pytest.raises(ImageError, match="not from 0 to 65535"):
        to_rgb(Image.new("I", (2, 2), value))


def test_16_bits_of_colour_keep_their_higher_ones() -> None:
    samples = [0, 32_768, 65_535, 12_345, 257, 65_280]
    found = pixels(png([struct.pack(">6H", *samples)], 2, depth=16))
    assert np.abs(np.array(found).ravel() - np.array(samples) / 257).max() <= 1
    alpha = [65_535, 0, 32_768, 65_535]
    rgba = [v for i in range(4) for v in (65_535, 0, 32_896, alpha[i])]
    found = pixels(png([struct.pack(">16H", *rgba)], 4, depth=16, kind=RGB_ALPHA))
    for pixel, a in zip(found, alpha, strict=True):
        wanted = [(v / 257 * a + 255 * (65_535 - a)) / 65_535 for v in (65_535, 0, 32_896)]
        assert pixel == pytest.approx(wanted, abs=1.01)


@pytest.mark.parametrize(
    ("depth", "row", "values", "transparent"),
    [
        (1, 0b0101_0011, [0, 1, 0, 1, 0, 0, 1, 1], 0),
        (2, 0b0001_1011, [0, 1, 2, 3], 2),
        (4, 0b0011_1100, [3, 12], 12),
        (8, 0b0011_1100, [60], 60),
    ],
)
@pytest.mark.parametrize("above", [0, 256])
def test_greys_of_any_depth_and_the_transparent_one(
    depth: int, row: int, values: list[int], transparent: int, above: int
) -> None:
    """PNG specification, 11.3.2.1: of the 16 bits of tRNS those above the depth say nothing."""
    top = 2**depth - 1
    data = png([bytes([row])], len(values), depth=depth, kind=GREY)
    assert pixels(data) == grey(*(value * 255 // top for value in values))
    above *= depth > 1  # Pillow alone knows those of one bit
    trns = chunk(b"tRNS", struct.pack(">H", transparent + above))
    data = png([bytes([row])], len(values), trns, depth=depth, kind=GREY)
    assert pixels(data) == grey(*(255 if v == transparent else v * 255 // top for v in values))


def test_a_transparent_grey_of_16_bits_is_that_grey_alone() -> None:
    row, trns = struct.pack(">3H", 256, 257, 258), chunk(b"tRNS", struct.pack(">H", 257))
    assert pixels(png([row], 3, trns, depth=16, kind=GREY)) == grey(1, 255, 1)


def test_a_picture_may_be_asked_for_twice() -> None:
    trns = chunk(b"tRNS", struct.pack(">H", 2))
    for data in (
        png([b"\x1b"], 4, trns, depth=2, kind=GREY),
        png([bytes([0, 2, 0, 3])], 2, trns, depth=16, kind=GREY),
    ):
        image = open_image(data, LIMITS)
        assert same(to_rgb(image), to_rgb(image))


def test_a_transparent_colour_is_white() -> None:
    row, trns = bytes([1, 2, 3, 4, 5, 6]), struct.pack(">3H", 4, 5, 6)
    assert pixels(png([row], 2, chunk(b"tRNS", trns))) == [[1, 2, 3], [255, 255, 255]]
    above = struct.pack(">3H", 4 + 256, 5, 6 + 512)
    assert pixels(png([row], 2, chunk(b"tRNS", above))) == [[1, 2, 3], [255, 255, 255]]


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    """Of its 16 bits Pillow gives 8: other colours would be transparent, too."""
    row, trns = bytes(12), chunk(b"tRNS", bytes(6))
    with pytest.raises(ImageError, match="16 bits with a transparent colour"):
        pixels(png([row], 2, trns, depth=16))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [(0,), (255, 0), (128, 64), ()])
def test_a_palettes_alphas_are_composed_over_white(depth: int, alphas: tuple[int, ...]) -> None:
    palette = chunk(b"PLTE", bytes([10, 200, 30, 40, 50, 60]))
    trns = [chunk(b"tRNS", bytes(alphas))] if alphas else []
    row = bytes([1 << (8 - 2 * depth)]) if depth < 8 else bytes([0, 1])
    found = pixels(png([row], 2, palette, *trns, depth=depth, kind=PALETTE))
    for n, colour in enumerate(([10, 200, 30], [40, 50, 60])):
        a = alphas[n] if n < len(alphas) else 255
        assert found[n] == pytest.approx([(c * a + 255 * (255 - a)) / 255 for c in colour], abs=1)
        assert a != 255 or found[n] == colour


def test_a_palette_that_is_missing_is_refused() -> None:
    with pytest.raises(ImageError, match="have no palette"):
        pixels(png([bytes(2)], 2, kind=PALETTE))


@pytest.mark.parametrize(("kind", "bands"), [(RGB_ALPHA, 3), (GREY_ALPHA, 1)])
@given(drawn=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=9))
def test_alpha_is_composed_over_white(kind: int, bands: int, drawn: list[tuple[int, int]]) -> None:
    row = b"".join(bytes([value] * bands + [alpha]) for value, alpha in drawn)
    found = pixels(png([row], len(drawn), kind=kind))
    for pixel, (value, alpha) in zip(found, drawn, strict=True):
        assert pixel == pytest.approx([(value * alpha + 255 * (255 - alpha)) / 255] * 3, abs=1)
        assert alpha not in (0, 255) or pixel == [value if alpha else 255] * 3


def test_a_gifs_transparent_entry_is_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([9, 8, 7, 60, 70, 80, 1, 2, 3])
    image.putdata([0, 1, 2])
    assert pixels(saved(image, "GIF", transparency=1)) == [[9, 8, 7], [255, 255, 255], [1, 2, 3]]
    assert pixels(saved(image, "GIF")) == [[9, 8, 7], [60, 70, 80], [1, 2, 3]]


def test_a_webp_and_a_bmp_with_alpha_are_composed_over_white() -> None:
    """A BMP says by its masks which byte is alpha (BITMAPV4HEADER)."""
    colours = [(10, 20, 30, 255), (10, 20, 30, 0), (200, 100, 50, 128)]
    image = Image.new("RGBA", (3, 1))
    image.putdata(colours)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 3, 1, 1, 32, 3, 12, 0, 0, 0, 0) + masks + bytes(52)
    stored = b"".join(bytes([b, g, r, a]) for r, g, b, a in colours)
    bmp = b"BM" + struct.pack("<IHHI", 134, 0, 0, 122) + info + stored
    for data in (saved(image, "WEBP", lossless=True, exact=True), bmp):
        for found, (*colour, a) in zip(pixels(data), colours, strict=True):
            assert found == pytest.approx([(c * a + 255 * (255 - a)) / 255 for c in colour], abs=1)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_the_other_modes_with_alpha_are_composed_as_well(mode: str) -> None:
    image = Image.new("LA", (2, 1), (40, 255))
    image.putpixel((1, 0), (40, 0))
    if mode != "LA":
        image = image.convert("RGBA").convert(mode) if mode != "La" else image.convert(mode)
    assert np.asarray(to_rgb(image))[0].tolist() == grey(40, 255)


@pytest.mark.parametrize(
    ("ink", "wanted"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 128), (127, 127, 127)),
    ],
)
@pytest.mark.parametrize("transform", [0, 2])
def test_inks_of_a_jpeg_are_light_as_they_are_printed(
    ink: tuple[int, ...], wanted: tuple[int, ...], transform: int
) -> None:
    """Adobe's JPEGs hold inks inverted; or (2), as YCCK, YCbCr of the inks and the inverted black.

    Pillow inverts what it stores, and stores it as it is said to be.
    """
    image = Image.new("CMYK", (16, 16), ink)
    if transform == 2:
        *colours, black = image.split()
        stored = Image.merge("RGB", colours).convert("YCbCr").point(lambda v: 255 - v)
        image = Image.merge("CMYK", [*stored.split(), black])
    data = saved(image, "JPEG", quality=100, subsampling=0)
    at = data.index(b"Adobe")
    data = data[: at + 11] + bytes([transform]) + data[at + 12 :]
    assert pixels(data)[0] == pytest.approx(list(wanted), abs=3)


@pytest.mark.parametrize(
    ("mode", "value", "wanted"),
    [
        ("YCbCr", (76, 85, 255), (254, 0, 0)),  # ITU-R BT.601, full range
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),  # L* 100, no a*, no b*
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
    ],
)
def test_other_colours_are_converted(mode: str, value: Any, wanted: tuple[int, ...]) -> None:
    found = to_rgb(Image.new(mode, (1, 1), value)).getpixel((0, 0))
    assert found == pytest.approx(wanted, abs=2)


def test_a_mode_without_a_known_range_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="pictures of mode F can't be used"):
        to_rgb(Image.new("F", (2, 2)))


# Every format, and no other


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "EPS", "PDF", "DDS", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Above all PostScript: Pillow would run Ghostscript."""
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(file, kind)
    for name in ("gs", "picture"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ImageError, match=r"formats are JPEG, PNG, WEBP, GIF, BMP") as refused:
        load_image(file, LIMITS)
    assert str(file) in str(refused.value)
    assert not (tmp_path / "called").exists()


def test_fewer_formats_may_be_allowed() -> None:
    data = saved(Image.new("RGB", (4, 4)), "BMP")
    assert pixels(data)
    with pytest.raises(ImageError, match=r"formats are JPEG, PNG$"):
        open_image(data, ImageLimits(formats=("JPEG", "PNG")))


def moving(photo: Image.Image, kind: str) -> bytes:
    frames = [photo.rotate(angle) for angle in (90, 180)]
    return saved(photo, kind, save_all=True, append_images=frames, lossless=True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "MPO"])
def test_of_an_animation_the_first_frame_counts(photo: Image.Image, kind: str) -> None:
    options = {"MPO": {"save_all": True, "append_images": [photo.rotate(90)]}}
    data = saved(photo, kind, **options[kind]) if kind in options else moving(photo, kind)
    still = saved(photo, "JPEG" if kind == "MPO" else kind, lossless=True)
    assert same(to_rgb(open_image(data, LIMITS)), to_rgb(open_image(still, LIMITS)))


SEGMENTS = {
    "broken Exif": segment(0xE1, b"Exif\0\0" + EXIF + b"\xff" * 40),
    "no Exif": segment(0xE1, b"Exif\0\0"),
    "a broken directory of pictures": segment(0xE2, b"MPF\0" + b"II*\0" + b"\xff" * 30),
    "half a profile": segment(0xE2, b"ICC_PROFILE\0\1\2" + b"x" * 100),
    "a profile of nothing": segment(0xE2, b"ICC_PROFILE\0"),
    "a broken resource block": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\xff"),
    "a comment": segment(0xFE, b"\xff\xda\xff\xd9" * 20),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_what_a_camera_writes_beside_a_jpegs_pixels_changes_nothing(
    photo: Image.Image, what: str
) -> None:
    plain = saved(photo, "JPEG")
    data = plain[:2] + SEGMENTS[what] + plain[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(to_rgb(open_image(data, LIMITS)), to_rgb(open_image(plain, LIMITS)))


def test_a_progressive_and_an_interlaced_picture_are_the_plain_one(photo: Image.Image) -> None:
    plain = to_rgb(open_image(saved(photo, "JPEG", quality=95), LIMITS))
    gradual = to_rgb(open_image(saved(photo, "JPEG", quality=95, progressive=True), LIMITS))
    assert same(gradual, plain)
    # Adam7 passes of a picture of 2 x 2 pixels: the first pixel, the second, then the second row.
    rows = zlib.compress(b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28")
    data = SIGNATURE + header(2, 2, kind=GREY, interlaced=1) + chunk(b"IDAT", rows)
    found = to_rgb(open_image(data + chunk(b"IEND", b""), LIMITS))
    assert np.asarray(found)[..., 0].tolist() == [[10, 20], [30, 40]]


def test_texts_and_profiles_of_an_ordinary_size_are_none_of_our_business() -> None:
    more = [
        chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(3000))),
        chunk(b"tEXt", b"a\0" + b"x" * 99),
    ]
    more += [
        chunk(b"zTXt", b"transparency\0\0" + zlib.compress(b"none")),
        chunk(b"eXIf", b"broken"),
    ]
    assert pixels(png([bytes([1, 2, 3])], 1, *more, behind=more[1:])) == [[1, 2, 3]]


def test_a_jpegs_end_may_be_followed_or_replaced_by_anything(photo: Image.Image) -> None:
    data = saved(photo, "JPEG")
    for behind in (b"\xff\xd9" + b"\xff\xc3" * 9, b"\xff\xe1\xff\xff" * 9, b"\xff\xfe\0\0" * 9):
        assert same(
            to_rgb(open_image(data[:-2] + behind, LIMITS)), to_rgb(open_image(data, LIMITS))
        )


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (framed(0xC1, 12), "JPEG of 12 bits"),
        (framed(0xC3, 8), "lossless or hierarchical JPEG"),
        (framed(0xC5, 8), "lossless or hierarchical JPEG"),
        (framed(0xC3, 16), "lossless or hierarchical JPEG"),
    ],
)
def test_rare_kinds_of_jpeg_are_refused_by_name(data: bytes, cause: str) -> None:
    with pytest.raises(ImageError, match=f"the picture can't be used: a {cause}"):
        open_image(data, LIMITS)


@pytest.mark.parametrize("compression", [1, 2])
def test_a_bmp_with_run_lengths_is_refused_by_name(compression: int) -> None:
    data = bytearray(saved(Image.new("P", (4, 4)), "BMP"))
    data[30:34] = struct.pack("<I", compression)
    with pytest.raises(ImageError, match="BMP with run lengths"):
        open_image(bytes(data), LIMITS)


# Files


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing.png")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket.png"))
    for name, cause in (
        ("fifo.png", "can't be read: it is a device, pipe or socket"),
        ("socket.png", "can't be read: it is a device, pipe or socket"),
        ("device.png", "can't be read: it is a device, pipe or socket"),
        ("folder.png", "can't be read: it is a folder"),
        ("loop.png", "can't be read: Too many levels of symbolic links"),
        ("lost.png", "is missing"),
        ("nothing.png", "is missing"),
        ("empty.png", "can't be read: its file is empty"),
        ("empty.png/a.png", "can't be read: Not a directory"),
        ("a\0b.png", "can't be read: embedded null byte"),
        ("a" * 300, "can't be read: File name too long"),
        ("\ud800.png", "can't be read: 'utf-8' codec"),
        ("\udcff.png", "is missing"),
        ("a\nb.png", "is missing"),
    ):
        with pytest.raises(ImageError, match=cause) as refused:
            read_image(tmp_path / name, LIMITS)
        said = str(refused.value)
        assert said.startswith("picture ")
        assert said.isprintable()
        said.encode()
    bound.close()


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "open", refuse)  # whoever runs the tests may read all
    with pytest.raises(ImageError, match=r"a\.png can't be read: Permission denied"):
        read_image(tmp_path / "a.png", LIMITS)


def test_a_files_size_is_known_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match=r"a\.png has a file larger than 1,000 bytes"):
            read_image(file, ImageLimits(file_bytes=1000))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
