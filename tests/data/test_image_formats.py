"""Pictures of every format that is read, and no other; and files that are none."""

from __future__ import annotations

import errno
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
from PIL import Image
from support.image_modes import LIMITS, pixels, same
from support.picture_files import (
    EXIF,
    GREY,
    SIGNATURE,
    chunk,
    framed,
    header,
    png,
    saved,
    segment,
)

from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import (
    ImageError,
    ImageTooLargeError,
    load_image,
    open_image,
    read_image,
    to_rgb,
)


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
