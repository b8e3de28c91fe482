"""Every picture is right in every mode of every format, or refused by name."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_modes import LIMITS, pixels, same
from support.picture_files import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB_ALPHA,
    chunk,
    png,
    saved,
)

from cmoe.data.image_limits import FORMATS
from cmoe.data.images import (
    ImageError,
    open_image,
    to_rgb,
)


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


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
