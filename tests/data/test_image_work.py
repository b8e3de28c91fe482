"""What a header says of a picture and of the work to decode it, beside what Pillow itself says."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.hostile_pictures import HOSTILE, animated_webp, arithmetic, scans
from support.picture_files import saved

from cmoe.data.image_headers import UnusableError, header_of
from cmoe.data.image_limits import FORMATS, ImageLimits
from cmoe.data.images import TooMuchWorkError, open_image

SIDES = st.integers(1, 300)
MODES = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
         "WEBP": ("RGB", "RGBA"), "GIF": ("L", "P"), "BMP": ("1", "L", "RGB")}  # fmt: skip
OPTIONS = {"JPEG": ("progressive", "optimize"), "WEBP": ("lossless",), "GIF": ("interlace",)}


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """A sound picture of any format, mode and size, and with any option."""
    kind = draw(st.sampled_from(FORMATS))
    image = Image.new(draw(st.sampled_from(MODES[kind])), (draw(SIDES), draw(SIDES)))
    options = {name: draw(st.booleans()) for name in OPTIONS.get(kind, ())}
    return saved(image, kind, **options)


@given(pictures())
def test_size_and_frames_are_those_that_pillow_says(data: bytes) -> None:
    found, image = header_of(data), Image.open(io.BytesIO(data))
    if image.format == "BMP":
        assert found.size is None, "Pillow says it before it takes any memory"
    else:
        assert found.size == image.size
    assert found.frames == getattr(image, "n_frames", 1) == 1
    assert found.work(image.width * image.height) >= image.width * image.height


@given(st.integers(1, 12), st.booleans())
def test_frames_of_an_animation_are_counted(count: int, lossless: bool) -> None:
    frames = [Image.new("RGB", (9, 7), (20 * i, 0, 0)) for i in range(count)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": lossless}
    data = saved(frames[0], "WEBP", **options)
    image = Image.open(io.BytesIO(data))
    assert (header_of(data).frames, header_of(data).size) == (image.n_frames, image.size)  # type: ignore[attr-defined]
    made = animated_webp(64, count)
    assert header_of(made).frames == Image.open(io.BytesIO(made)).n_frames == count  # type: ignore[attr-defined]


@given(pictures(), st.data())
def test_what_is_cut_off_or_changed_is_looked_at_or_refused(
    data: bytes, draw: st.DataObject
) -> None:
    cut = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for _ in range(draw.draw(st.integers(0, 5))):
        if cut:
            cut[draw.draw(st.integers(0, len(cut) - 1))] = draw.draw(st.integers(0, 255))
    # These, `open_image` says as errors of the picture.
    with suppress(ValueError, struct.error, IndexError):
        assert header_of(bytes(cut)).work(10) >= 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("what", HOSTILE)
def test_no_picture_is_both_cheap_by_its_header_and_huge(what: str) -> None:
    """Whatever is looked at by header alone: a size that differs from Pillow's would deceive."""
    data = HOSTILE[what]()
    try:
        found = header_of(data)
        image = Image.open(io.BytesIO(found.data), formats=FORMATS)
    except Exception:  # refused by one of them
        return
    assert found.size in (None, image.size)


@pytest.mark.parametrize("progressive", [False, True])
def test_work_grows_with_pixels_and_with_scans(progressive: bool) -> None:
    """A sequential JPEG is gone over by its scan and behind it; each scan more costs as much."""
    data = saved(Image.new("RGB", (100, 50)), "JPEG", progressive=progressive)
    found = header_of(data)
    # libjpeg's own order has 3 components in two of its 10 scans, and one in each other.
    assert found.passes == pytest.approx(1 + (14 / 3 if progressive else 1))
    assert header_of(scans(100, 40)).passes - header_of(scans(100, 20)).passes == 20
    assert found.work(2_000_000) - found.work(1_000_000) == pytest.approx(1e6 * found.passes)


def test_a_picture_of_too_much_work_is_refused_by_its_header() -> None:
    """Pillow is never asked to decode it."""
    data = scans(1000, 50)
    work = header_of(data).work(1000 * 1000)
    limits = ImageLimits(work=work)
    assert open_image(data, limits).size == (1000, 1000)
    with pytest.raises(
        TooMuchWorkError, match=f"takes as much work to decode as {work:,} pixels"
    ) as refused:
        open_image(data, replace(limits, work=work - 1))
    assert refused.value.work == work


def test_scans_of_any_coding_are_bounded() -> None:
    for made in (scans(16, 101), arithmetic(16, 101), arithmetic(16, 10_000)):
        with pytest.raises(UnusableError, match="more than 100 scans"):
            header_of(made)
